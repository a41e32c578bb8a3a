"""What the wheel promises: declared dependencies, typed packages, one command for all, and a list of excuses that only shrinks."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import genlip_eval
from small_data.mini.fonts import FONTS
from tests.check_types import faults

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALLED = ("genlip", "llava_plugin", "train_mllm", "eval_suites", "small_data")
# What a folder may import besides the dependencies of all: the extras that its users install.
EXTRAS = {
    "llava_plugin": ("weights", "llava_next"),
    "train_mllm": ("train", "deepspeed"),
    "eval_suites": ("eval",),
    "small_data": ("mini",),
}
DISTRIBUTION = {"PIL": "pillow", "yaml": "pyyaml"}
OPTIONAL = {  # imported, and in no extra
    "lmms_eval": "installed with --no-deps from eval_suites/requirements-nodeps.txt",
    "llava": "the LLaVA-NeXT repository, cloned and put on PYTHONPATH",
    "liger_kernel": "faster layers on a GPU, where it is there",
    "wandb": "asked for by --report wandb, which says how to install it",
}
UNSEEN = {  # declared, and imported by somebody else on our behalf
    "gguf": "transformers reads GGUF files by it",
    "tensorboard": "torch.utils.tensorboard writes by it",
    "evaluate": "lmms-eval's metrics",
    "pycocoevalcap": "lmms-eval's CIDEr",
    "loguru": "lmms-eval's log",
    "sacrebleu": "lmms-eval's metrics",
    "tenacity": "lmms-eval's retries",
    "pytz": "lmms-eval, which does not declare it",
    "einops": "LLaVA-NeXT's model code",
    **{package.replace("-", "_"): "a font file, read and never imported" for package, _ in FONTS.values()},
}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", each)[0].lower().replace("-", "_") for each in requirements}


def third_party(folder: str) -> set[str]:
    """Modules of others that a folder's files import, at whatever depth."""
    found = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - {*INSTALLED}


def declared(folder: str) -> set[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    return names(PROJECT["project"]["dependencies"] + [each for extra in EXTRAS.get(folder, ()) for each in extras[extra]])


@pytest.mark.parametrize("folder", INSTALLED)
def test_every_module_that_is_imported_is_declared(folder):
    wanted = {DISTRIBUTION.get(module, module) for module in third_party(folder) - {*OPTIONAL}}
    assert wanted <= declared(folder)


def test_every_dependency_is_imported_or_says_by_whom_and_every_excuse_is_needed():
    imported = set().union(*map(third_party, INSTALLED))
    assert set().union(*map(declared, INSTALLED)) - {DISTRIBUTION.get(module, module) for module in imported} == {*UNSEEN}
    assert imported >= {*OPTIONAL}


def test_what_a_fresh_environment_installs_has_every_dependency_pinned():
    pinned = names([line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line])
    extras = PROJECT["project"]["optional-dependencies"]
    assert names(PROJECT["project"]["dependencies"]) - pinned == {"torch"}, "torch comes first, from the Makefile"
    assert names(extras["train"] + extras["eval"] + extras["weights"] + extras["mini"] + extras["dev"]) <= pinned


def test_every_installed_package_says_that_it_is_typed():
    assert [folder for folder in INSTALLED if not (ROOT / folder / "py.typed").is_file()] == []


def test_excused_files_exist_and_none_is_of_the_strict_folders():
    (excused,) = (each["module"] for each in PROJECT["tool"]["mypy"]["overrides"] if each.get("ignore_errors"))
    assert excused == sorted(set(excused))
    for module in excused:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), module
        assert not module.startswith("eval_suites.score")


def test_types_are_refused_in_other_files_and_in_files_that_need_no_excuse():
    lines = ["a/b.py:3: error: wrong  [x]", "a/b.py:3: note: more", "c/__init__.py:1: error: odd  [y]", "Found 2 errors in 2 files"]
    assert faults(["a.b", "c"], lines) == []
    assert faults(["c"], lines) == [lines[0]]
    assert faults(["a.b", "c", "d"], lines) == ["d has no error left: take it off the list"]


# --- genlip-eval ------------------------------------------------------------------------------------------------------------


def test_the_command_without_a_word_names_all_commands_and_loads_none(capsys):
    code = "import sys, genlip_eval\ntry: genlip_eval.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, loaded = done.stdout.splitlines()
    assert all(f"  {name} " in "\n".join(shown) for name in genlip_eval.COMMANDS)
    assert {name for name in loaded.split() if name.split(".")[0] in {*INSTALLED, "torch", "numpy"}} == {
        "genlip", "genlip.common", "genlip.common.command", "genlip.common.suggest",
    }  # fmt: skip


@pytest.mark.parametrize("name", genlip_eval.COMMANDS)
def test_a_command_is_its_modules_own(name, capsys):
    with pytest.raises(SystemExit) as ended:
        genlip_eval.main([name, "--help"])
    own = genlip_eval.COMMANDS[name][0].removesuffix(".__main__").replace(".", "[./]")  # eval_suites/run.py, python -m eval_suites.tables
    assert ended.value.code == 0 and re.search(own, capsys.readouterr().out)


def test_exit_codes_pass_and_an_unknown_command_says_what_was_meant(capsys, monkeypatch):
    assert genlip_eval.main(["tables", "nosuite"]) == 2 and "unknown suite" in capsys.readouterr().err
    monkeypatch.setattr("eval_suites.tables.main", lambda argv: 3 if argv == ["genlip14", "--csv"] else 0)
    assert genlip_eval.main(["tables", "genlip14", "--csv"]) == 3
    with pytest.raises(SystemExit) as ended:
        genlip_eval.main(["tabels"])
    assert ended.value.code == 2 and "Did you mean 'tables'?" in capsys.readouterr().err

"""Who may import whom (see the README's map of folders), read from the syntax trees; and what must load without torch."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genlip.common.command import command

ROOT = Path(__file__).parents[1]
OURS = ("genlip", "llava_plugin", "train_mllm", "eval_suites", "small_data", "benchmarks")
# A folder's own files, and genlip/common, are open to each; common itself imports nothing of ours.
MAY_IMPORT = {
    "genlip": (),
    "llava_plugin": ("genlip",),
    "train_mllm": ("llava_plugin",),
    "eval_suites": ("llava_plugin",),
    "small_data": ("eval_suites.tasks",),  # the hub's columns, which it fills
    "benchmarks": OURS,
}
TORCH_FREE = (
    "genlip_eval",
    "genlip",
    "genlip.recipes",
    "genlip.estimate",
    "genlip.image_decoding",
    "llava_plugin",
    "llava_plugin.encoders",
    "llava_plugin.fetch",
    "llava_plugin.llava_next",
    "llava_plugin.pictures",
    "train_mllm.recipes",
    "train_mllm.setup",
    "train_mllm.estimate",
    "train_mllm.conversations",
    "benchmarks.packing",
    "benchmarks.finetuning",
    "benchmarks.summary",
    "train_mllm.prepare_data",
    "train_mllm.fetch",
    "genlip.common.sources",
    "eval_suites.suites",
    "eval_suites.results",
    "eval_suites.tables",
    "eval_suites.compare",
    "eval_suites.report",
    "small_data.easyvqa",
    "small_data.mini",
)
COMMANDS = (
    "genlip_eval",
    "genlip.train",
    "genlip.speak",
    "genlip.readout",
    "genlip.convert",
    "genlip.common.schema",
    "benchmarks.encoder",
    "llava_plugin.encoders",
    "llava_plugin.fetch",
    "llava_plugin.llava_next",
    "train_mllm.train",
    "train_mllm.prepare_data",
    "train_mllm.fetch",
    "benchmarks.pretraining",
    "benchmarks.packing",
    "benchmarks.llava_next",
    "benchmarks.finetuning",
    "benchmarks.summary",
    "eval_suites.run",
    "eval_suites.results",
    "eval_suites.tables",
    "eval_suites.compare",
    "eval_suites.report",
    "eval_suites.tasks",
    "eval_suites.fetch",
    "eval_suites.own",
    "small_data.easyvqa",
    "small_data.mini",
    "small_data.mini.sheet",
)
UPLOADABLE = {
    "configuration_genlip",
    "packed_row",
    "modeling_genlip",
    "image_decoding",
    "image_processing_genlip",
}  # what `convert --code` carries


def imports(file: Path) -> set[str]:
    """Full names of all modules and names of ours, and of the packages of others, that a file imports anywhere, relative ones resolved."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], node.module or ""]).strip(".") if node.level else node.module
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and getattr(node.func, "attr", "") in ("import_module", "run_module", "__import__"):
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return found


def files():
    return [file for folder in OURS for file in sorted((ROOT / folder).rglob("*.py"))]


def under(module: str, *packages: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_keep_to_the_layers(file):
    folder, name = file.relative_to(ROOT).parts[0], str(file.relative_to(ROOT))
    ours = {module for module in imports(file) if under(module, *OURS)}
    tops = {module.split(".")[0] for module in imports(file)}
    if name.startswith("genlip/common/"):
        assert all(under(module, "genlip.common") for module in ours)
    assert all(under(module, folder, "genlip.common", *MAY_IMPORT[folder]) for module in ours)
    assert not tops & {"torchvision", "genlip_eval", "tests"}
    assert not {module for module in ours if module == "eval_suites"}, "its parts are imported by name: `eval_suites.run` would reach all"
    if name != "llava_plugin/llava_next.py":
        assert "llava" not in tops
    if name not in ("eval_suites/runner/lmms_model.py", "eval_suites/runner/worker.py") and not name.startswith("eval_suites/tasks/"):
        assert "lmms_eval" not in tops
    for room, others in (("score", ("runner", "report")), ("runner", ("report",)), ("report", ("runner",))):
        if name.startswith(f"eval_suites/{room}/"):
            assert not any(under(module, *(f"eval_suites.{other}" for other in others)) for module in ours)
    if name.startswith("genlip/") and file.stem in UPLOADABLE:
        assert {module.split(".")[1] for module in ours} <= UPLOADABLE


def test_the_one_command_imports_the_ground_floor_alone():
    """It names commands of all folders as words, and imports the one that is asked for."""
    assert all(under(module, "genlip.common") for module in imports(ROOT / "genlip_eval.py") if under(module, *OURS))


def test_no_two_files_import_each_other_by_whatever_way():
    """Imports inside functions count: a circle is a circle. A package's __init__ stands for the package, which its files may name."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files() if file.name != "__init__.py"}
    targets = {name: {m for full in imports(file) for m in (full, full.rpartition(".")[0]) if m in names} for name, file in names.items()}

    def reachable(start: str) -> set[str]:
        seen, open_ = set(), [start]
        while open_:
            for target in targets[open_.pop()] - seen:
                seen.add(target)
                open_.append(target)
        return seen

    assert [name for name in names if name in reachable(name)] == []


def without_torch(code: str) -> subprocess.CompletedProcess:
    blocked = f"import sys; sys.modules['torch'] = None\n{code}"
    return subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_loads_where_torch_cannot(module):
    result = without_torch(f"import {module}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_without_torch(module):
    result = without_torch(f"import runpy, sys; sys.argv = ['x', '--help']; runpy.run_module('{module}', run_name='__main__')")
    assert result.returncode == 0, result.stderr
    assert "example" in result.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_is_inside_the_one_boundary(module):
    loaded = importlib.import_module(module)
    if not hasattr(loaded, "main"):  # a package run by its __main__
        loaded = importlib.import_module(f"{module}.__main__")
    assert loaded.main.__code__ is command(print).__code__


def test_no_other_place_turns_exceptions_into_exit_codes():
    """A broad handler hides a fault of ours. A task of lmms-eval may raise anything: its worker reports that, and goes on with others."""
    broad = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
                raises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                if names & {"Exception", "BaseException", "everything", "KeyboardInterrupt"} and not raises:
                    broad.append(file.name)
    assert broad == ["command.py", "worker.py"]


def test_auto_classes_load_in_one_place_which_runs_no_code_that_a_folder_brings():
    """Without trust_remote_code=False transformers asks on stdin whether to run it, and a `y` there does."""
    elsewhere = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_config"):
                refuses = any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in node.keywords)
                if not refuses and ast.unparse(node.func.value).split(".")[-1].lower().startswith("auto"):
                    elsewhere.append(f"{file.relative_to(ROOT)}, line {node.lineno}")
    assert elsewhere == []


TRY = """
import sys, transformers
from genlip.common.model_folder import build_auto, load_auto
for name in ("AutoConfig", "AutoModel", "AutoTokenizer"):
    try:
        load_auto(getattr(transformers, name), sys.argv[1])
    except ValueError as error:
        print(error)
config = transformers.AutoConfig.for_model("encodec", auto_map={"AutoModelForCausalLM": "bomb.Model"}, name_or_path=sys.argv[1])
try:
    build_auto(transformers.AutoModelForCausalLM, config)
except ValueError as error:
    print(error)
"""


def test_a_folder_with_code_of_its_own_is_refused_whatever_stdin_says(tmp_path):
    folder, mark = tmp_path / "folder", tmp_path / "ran"
    folder.mkdir()
    classes = {"AutoConfig": "bomb.Config", "AutoModel": "bomb.Model", "AutoTokenizer": ["bomb.Tokenizer", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of", "auto_map": classes}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Bomb", "auto_map": classes}))
    (folder / "bomb.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    options = {"capture_output": True, "text": True, "cwd": ROOT, "env": environment}
    ran = subprocess.run([sys.executable, "-c", TRY, str(folder)], input="y\n" * 4, check=False, **options)
    assert not mark.exists()
    refused = [f"{what} brings code of its own (auto_map), which is not run here" for what in (*[folder] * 3, "a config of encodec")]
    assert [line.partition(": ")[0] for line in ran.stdout.splitlines()] == refused, ran.stdout + ran.stderr

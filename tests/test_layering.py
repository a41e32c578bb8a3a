"""Who may import whom (see the README's map of folders), read from the syntax trees; and what must load without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("genlip", "llava_plugin", "train_mllm", "eval_suites")
MAY_IMPORT = {
    "genlip": set(),
    "llava_plugin": {"genlip"},
    "train_mllm": {"llava_plugin", "genlip"},  # of genlip, the flags of a recipe and the peaks of GPUs alone
    "eval_suites": {"llava_plugin"},
}
TORCH_FREE = (
    "genlip",
    "genlip.recipes",
    "genlip.plan",
    "llava_plugin",
    "llava_plugin.encoders",
    "llava_plugin.fetch",
    "llava_plugin.llava_next",
    "train_mllm.recipes",
    "train_mllm.plan",
    "train_mllm.sources",
    "train_mllm.rows",
    "train_mllm.benchmark",
    "train_mllm.throughput",
    "train_mllm.prepare_data",
    "eval_suites.suites",
    "eval_suites.results",
    "eval_suites.tables",
    "eval_suites.report",
    "eval_suites.easyvqa",
    "eval_suites.mini",
)
COMMANDS = (
    "genlip.train",
    "genlip.speak",
    "genlip.readout",
    "genlip.convert",
    "genlip.benchmark",
    "llava_plugin.encoders",
    "llava_plugin.fetch",
    "llava_plugin.llava_next",
    "train_mllm.train",
    "train_mllm.prepare_data",
    "train_mllm.benchmark",
    "train_mllm.throughput",
    "eval_suites.run",
    "eval_suites.results",
    "eval_suites.tables",
    "eval_suites.report",
    "eval_suites.tasks",
    "eval_suites.easyvqa",
    "eval_suites.mini",
)
UPLOADABLE = {"configuration_genlip", "packed_row", "modeling_genlip", "image_processing_genlip"}  # what `convert --code` carries


def imports(file: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere, relative ones resolved."""
    package = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], node.module or ""]).strip(".") if node.level else node.module
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def files():
    return [file for folder in OURS for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_keep_to_the_layers(file):
    folder, name = file.relative_to(ROOT).parts[0], str(file.relative_to(ROOT))
    tops = {module.split(".")[0] for module in imports(file)}
    assert tops & set(OURS) <= MAY_IMPORT[folder] | {folder}
    assert "torchvision" not in tops
    if name != "llava_plugin/llava_next.py":
        assert "llava" not in tops
    if name not in ("eval_suites/lmms_model.py", "eval_suites/worker.py") and not name.startswith("eval_suites/tasks/"):
        assert "lmms_eval" not in tops
    if folder == "train_mllm":
        assert {m for m in imports(file) if m.startswith("genlip")} <= {
            "genlip.recipes",
            *(f"genlip.recipes.{n}" for n in ("add_flags", "claim_run_folder", "from_args")),
            "genlip.plan",
            "genlip.plan.PEAK_BF16",
        }
    if file.stem in UPLOADABLE:
        own = {m.split(".")[1] for m in imports(file) if m.startswith("genlip.")}
        assert own <= UPLOADABLE


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

"""benchmarks/gpu.sh: every command of its plan parses, a step that hangs or fails stops nothing, and the table says what came of each."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import encoder, finetuning, pretraining, summary

ROOT = Path(__file__).parents[2]
SCRIPT = ["bash", str(ROOT / "benchmarks" / "gpu.sh")]


def plan() -> list[tuple[str, int, list[str]]]:
    """(step, seconds, command) of the dry run."""
    said = subprocess.run([*SCRIPT, "--dry-run"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=3) for line in said.splitlines()]
    return [(step, int(limit), shlex.split(command)) for step, limit, _, command in lines]


def test_the_plan_fits_eight_minutes():
    assert 0 < sum(limit for _, limit, _ in plan()) <= 480


@pytest.mark.parametrize("command", [command for _, _, command in plan()], ids=" ".join)
def test_every_command_of_the_plan_parses(command, monkeypatch, capsys):
    """By the command's own parser and its recipe's checks; what it would measure is left out."""
    monkeypatch.setattr(pretraining, "recipe_steps", lambda recipe, steps: [recipe.preset])
    monkeypatch.setattr(finetuning, "time_recipe", lambda recipe, steps, scale: [finetuning.check_steps(recipe, steps) or recipe.preset])
    monkeypatch.setattr(encoder, "compare", lambda args: [])
    assert command[:2] == ["python", "-m"]
    if command[2] == "pytest":
        files = [word for word in command[3:] if word.endswith(".py")]
        assert files and all((ROOT / file).is_file() for file in files)
    else:
        assert importlib.import_module(command[2]).main(command[3:]) == 0


PRETRAINED = """warming up
| tokens/s | seconds per step | TFLOP/s | MFU | peak memory, GiB | planned | measured / planned |
|---:|---:|---:|---:|---:|---:|---:|
| 43,210 | 1.5 | 400 | 40.4% | 61.5 | 60.0 | 1.02 |
"""
FINETUNED = """
| | measured | planned | measured / planned |
|---|---:|---:|---:|
| tokens/s | 12,345 | | |
| MFU | 51.0 % | | |
| peak memory, as --dry-run plans it (9,999 tokens per micro-step) | 40.5 GB | 41.8 GB | 0.97 |
"""


def test_figures_are_found_in_what_the_benchmarks_print():
    assert summary.measured(PRETRAINED) == {"tokens/s": "43,210", "MFU": "40.4%", "peak memory": "61.5 GiB", "planned": "60.0 GiB"}
    assert summary.measured(FINETUNED) == {"tokens/s": "12,345", "MFU": "51.0 %", "peak memory": "40.5 GB", "planned": "41.8 GB"}
    assert summary.measured("no table") == {}


def on_path(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in which `programs` (name -> shell script) stand before all others."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder)}


def test_a_step_that_hangs_or_fails_is_left_out_and_the_others_are_done(tmp_path):
    """A stand-in for python: one step hangs, one fails, the rest print a table; the summary is the real one."""
    stub = f"""case "$*" in
  *summary\\ --environment*) echo H200 ;;
  *summary*) exec {sys.executable} "$@" ;;
  *so16-s1*) echo "error: no room"; exit 2 ;;
  *encoder*) sleep 60 ;;
  *) cat <<'END'
{PRETRAINED}
END
esac"""
    there = on_path(tmp_path, python=stub, **{"nvidia-smi": "echo GPU 0"})
    out = tmp_path / "out"
    done = subprocess.run([*SCRIPT, str(out)], capture_output=True, text=True, env=there | {"GPU_SECONDS": "96"}, check=False)
    assert done.returncode == 1, done.stderr
    records = {record["step"]: record for record in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    assert records["pretraining-so16-s1"]["outcome"] == "left out: error: no room"
    assert records["encoder"]["outcome"] == "left out: stopped after 7 s"
    others = [record for name, record in records.items() if name not in ("pretraining-so16-s1", "encoder")]
    assert {record["outcome"] for record in others} == {"done"}
    assert records["pretraining-g16-s1"]["measured"]["MFU"] == "40.4%"
    assert list(records) == [step for step, _, _ in plan()]
    assert "| encoder " in done.stdout and "40.4%" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run(SCRIPT, capture_output=True, text=True, env=on_path(tmp_path, **{"nvidia-smi": "exit 9"}), check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: no GPU here") and "--dry-run" in done.stderr

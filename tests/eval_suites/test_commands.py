"""The main command as a user types it, in a process of its own: without weights, without anything, and with a stand-in model."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval_suites.runner.preflight import read_export
from tests.eval_suites.helpers.small_data import make_easyvqa, write_parquet

pytest.importorskip("lmms_eval")
ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`python eval_suites/run.py ...`, with runs/, data/ and weights/ looked for in `folder`."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "1"}
    env |= {"HF_DATASETS_CACHE": str(folder / "cache"), "LMMS_EVAL_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "eval_suites" / "run.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_without_weights_it_says_what_is_missing_and_how_to_bring_it(tmp_path):
    done = run(tmp_path, "--encoder", "genlip-g16")
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
    assert "no fine-tuned MLLM of genlip-g16 under runs/" in done.stderr
    assert "ENCODER=genlip-g16 bash train_mllm/sft_qwen1.5b_frozen.sh" in done.stderr
    assert "python -m llava_plugin.fetch genlip-g16" in done.stderr
    assert done.stderr.count("hf download --repo-type dataset") == 14
    assert not list(tmp_path.iterdir())  # nothing ran, nothing is left behind


def write_export(folder: Path, **changes) -> None:
    (folder / "export").mkdir(parents=True)
    said = {"stage": "sft", "encoder": "mine", "llm": "llm-tiny", "weights_digest": "a" * 64, **changes}
    (folder / "export" / "provenance.json").write_text(json.dumps(said))
    (folder / "export" / "config.json").write_text("{}")


def test_without_an_encoder_it_says_what_is_there_and_what_to_type_next(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "usage" not in done.stderr
    assert "error: which encoder? For instance: python eval_suites/run.py --encoder genlip-g16" in done.stderr
    assert "genlip-so16" in done.stderr and "siglip2-g16-384" in done.stderr
    assert "MLLMs under runs/: none yet\nbenchmark data under data/: none yet\n" in done.stderr and "demo/" not in done.stderr
    commands = [line.split("    ")[0].strip() for line in done.stderr.split("next:\n")[1].splitlines()]
    assert commands == ["make demo", "ENCODER=genlip-g16 bash train_mllm/sft_qwen1.5b_frozen.sh"]
    write_export(tmp_path / "runs" / "a", stage="projector")
    write_export(tmp_path / "runs" / "b")
    said = run(tmp_path).stderr
    assert "  mine, llm-tiny, runs/a/export (projector stage: does not count)\n  mine, llm-tiny, runs/b/export\n" in said
    assert "next:\n  python eval_suites/run.py --encoder mine --dry-run" in said and "python -m small_data.mini --out data" in said


def test_the_next_command_evaluates_what_is_trained_on_what_is_there(tmp_path):
    for root, encoder in (("", "mine"), ("demo", "genlip-tiny")):
        write_export(tmp_path / root / "runs" / "a", encoder=encoder)
        make_easyvqa(tmp_path / root / "data")
    rows = [{"question": "?", "answer": "a", "type": "human_test"}]
    write_parquet(tmp_path / "data/lmms-lab/ChartQA/data/test-00000-of-00001.parquet", rows)
    said = run(tmp_path).stderr
    assert "benchmark data under data/: easyvqa, genlip14 (1 of 14 tasks)\n" in said
    assert said.split("next:\n")[1].splitlines() == [
        "  python eval_suites/run.py --encoder mine --suite easyvqa",
        "  python eval_suites/run.py --encoder genlip-tiny --suite easyvqa --mllm demo/runs/a/export --data-root demo/data --out demo",
    ]
    # The second command finds what it names: these data are 40 questions a kind, which is all that it complains of.
    command = said.split("next:\n")[1].splitlines()[1].split()[2:]
    done = run(tmp_path, *command)
    assert done.returncode == 2 and done.stderr.count("\n") == 3 and done.stderr.count("samples by suite easyvqa") == 3
    write_export(tmp_path / "runs" / "b")  # two of one encoder: the command says which
    assert "--encoder mine --suite easyvqa --mllm runs/a/export\n" in run(tmp_path).stderr


def test_an_encoder_with_nothing_trained_hears_what_else_is_there(tmp_path):
    write_export(tmp_path / "runs" / "a")
    make_easyvqa(tmp_path / "data")
    said = run(tmp_path, "--encoder", "genlip-g16").stderr
    assert "Fine-tuned MLLMs that are here: mine (runs/a/export)\n" in said
    assert said.endswith("under data/ are the data of easyvqa: ask for --suite easyvqa\n")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory, llama_tiny):
    """A real MLLM, tiny and untrained, whose provenance says genlip-g16; and a mini world of four rows a set."""
    from llava_plugin import mllm
    from llava_plugin.tower import VisionTower
    from small_data.mini import build

    folder = tmp_path_factory.mktemp("stand-in")
    build.make(build.World(0, 1, 4), folder / "data", workers=1)
    model, tokenizer = mllm.build(VisionTower.from_encoder("genlip-tiny"), str(llama_tiny))
    said = {
        "stage": "sft", "encoder": "genlip-g16", "encoder_key": "genlip-g16", "arch": "genlip", "llm": "llama-tiny", "frozen": True,
        "resolution": 64, "tokens": 16, "untrained": True, "llm_digest": "l", "data_digest": "d", "recipe": {}, "versions": {},
        "git_commit": "0" * 40,
    }  # fmt: skip
    mllm.save(model, tokenizer, folder / "runs" / "sft-g16" / "export", said)
    return folder


@pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program")
def test_with_a_stand_in_for_the_weights_it_makes_the_table(stand_in):
    done = run(stand_in, "--encoder", "genlip-g16", "--suite", "mini14", "--data-root", "data")
    assert done.returncode == 0, done.stderr
    with (stand_in / "tables" / "mini14.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["encoder"], row["complete"], row["source"]) == ("genlip-g16", "14/14", "measured") and row["all_avg"] != ""
    export = read_export(stand_in / "runs/sft-g16/export")
    assert row["digest"] == export.digest != export.provenance.weights_digest
    assert {path.name for path in (stand_in / "tables").iterdir()} >= {"mini14.md", "mini14.csv", "mini14.tex", "mini14.html"}
    assert "genlip-g16 (untrained)" in done.stdout
    counts = {path.parent.name: json.loads(path.read_text())["n"] for path in stand_in.rglob("result.json")}
    assert len(counts) == 14 and counts["mini_mme"] == 28 and counts["mini_gqa"] == 4  # MME: a pair of each of its 14 categories

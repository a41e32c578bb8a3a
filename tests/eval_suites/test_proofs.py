"""The main job against plain lmms-eval, against kill -9, and without a network, on the mini world with a fixed answering model."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from eval_suites import suites, tasks
from tests.eval_suites.helpers.small_data import chart_rows, provenance, write_parquet

pytest.importorskip("lmms_eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program"),
]
FIXED = Path(__file__).with_name("helpers") / "fixed_answerer.py"
MINI = suites.get("mini14")
ROWS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from small_data.mini import build

    root = tmp_path_factory.mktemp("mini")
    build.make(build.World(0, 400, ROWS), root, workers=1)
    return root


def command(kind: str, data: Path, folder: Path, *arguments: str, seconds: float = 0.0, answers: Path | None = None, **environment: str):
    """(command, keywords) of a process with the fixed model, in `folder`; it knows the right answers of the data below `answers`."""
    answers = answers or data / "genlip-eval"
    env = {**os.environ, "PYTHONPATH": str(FIXED.parents[2]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    env |= {"HF_DATASETS_CACHE": str(data / "cache"), "LMMS_EVAL_DATASETS_CACHE": str(data / "cache"), "HF_HUB_CACHE": str(data / "hub")}
    return [sys.executable, str(FIXED), kind, str(answers), str(seconds), *arguments], {"cwd": folder, "env": env}


def start(data: Path, folder: Path, *arguments: str, suite: str = "mini14", **keywords) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    export = folder / "runs" / "a" / "export"
    if not export.exists():
        export.mkdir(parents=True)
        (export / "provenance.json").write_text(json.dumps(provenance("genlip-tiny")))
        (export / "config.json").write_text("{}")
    arguments = ("--encoder", "genlip-tiny", "--suite", suite, "--data-root", str(data), *arguments)
    line, more = command("ours", data, folder, *arguments, **keywords)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def plain(data: Path, folder: Path, names: str, **keywords) -> dict[str, dict]:
    """Results of the plain lmms-eval command on folder/definitions, task by task."""
    line, more = command("plain", data, folder, "--tasks", names, "--include_path", "definitions", "--batch_size", "1", "--output_path",
                         "out", "--log_samples", **keywords)  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=1800, **more)
    files = list((folder / "out").glob("*_results.json"))
    assert len(files) == 1, done.stderr[-2000:]
    return json.loads(files[0].read_text())["results"]


def tables_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tables").iterdir())}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(data, folder)
    out = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, out
    return folder


def test_our_cells_are_plain_lmms_evals_numbers_to_the_last_digit(data, undisturbed, tmp_path):
    for task in MINI.tasks:
        tasks.write_definition(tmp_path / "definitions", tasks.locate(task, data))
    names = ",".join(tasks.local_name(task) for task in MINI.tasks)
    theirs = plain(data, tmp_path, names)
    values = []
    for column in MINI.columns:
        (path,) = undisturbed.rglob(f"{column.task}/result.json")
        mine = json.loads(path.read_text())["results"][column.metric]
        assert mine == theirs[tasks.local_name(column.task)][column.metric], column.name
        values.append(mine / column.range[1])
    assert sum(0 < value < 1 for value in values) >= 12 and len(set(values)) >= 8  # a model that is always wrong would prove nothing


def asked(folder: Path) -> list[list[str]]:
    """The prompts of each batch that the model was asked, in order, over all runs in a folder."""
    path = folder / "asked.jsonl"
    return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_kill_9_at_ten_random_moments_ends_in_the_same_table(data, undisturbed, tmp_path):
    draw, in_flight, folder = random.Random(7), [], tmp_path / "killed"
    for _ in range(40):
        process = start(data, folder, "--batch-size", "4", seconds=0.05)
        # A moment after some more batches: while the imports run there is nothing to lose.
        target, patience = len(asked(folder)) + draw.randint(1, 25), draw.uniform(0, 0.1)
        while process.poll() is None and len(in_flight) < 10:
            if len(asked(folder)) >= target:
                time.sleep(patience)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        out = process.communicate(timeout=1800)[0]
        if process.returncode != -signal.SIGKILL:
            break
        in_flight += asked(folder)[-1]
    assert len(in_flight) >= 10 and process.returncode == 0, out
    assert tables_of(folder) == tables_of(undisturbed)
    # Each question once, but for those of a batch that was asked last before a kill: a second time at most.
    once, all_of_them = (Counter(prompt for batch in asked(place) for prompt in batch) for place in (undisturbed, folder))
    assert not once - all_of_them and not (all_of_them - once) - Counter(in_flight)


def test_real_charts_have_plain_lmms_evals_numbers(tmp_path):
    """The three real questions of ChartQA, through the packaged definition, ours against the plain command."""
    root, charts = tmp_path / "hub" / "lmms-lab", chart_rows()
    write_parquet(root / "ChartQA" / "data" / "test-00000-of-00001.parquet", charts)
    process = start(tmp_path / "hub", tmp_path / "ours", "--tasks", "chartqa", "--allow-partial", suite="genlip14", answers=root)
    out = process.communicate(timeout=1800)[0]
    assert process.returncode == 3, out
    tasks.write_definition(tmp_path / "definitions", tasks.locate("chartqa", tmp_path / "hub"))
    theirs = plain(tmp_path / "hub", tmp_path, "chartqa_local", answers=root)["chartqa_local"]
    (path,) = (tmp_path / "ours").rglob("chartqa/result.json")
    mine = json.loads(path.read_text())["results"]
    numbers = {metric: value for metric, value in mine.items() if isinstance(value, float)}
    assert numbers and all(theirs[metric] == value for metric, value in numbers.items())
    assert 0 < mine["relaxed_overall,none"] < 1 and json.loads(path.read_text())["n"] == len(charts) == 3


def test_a_task_that_fails_leaves_thirteen_columns_and_a_non_zero_exit(data, undisturbed, tmp_path):
    process = start(data, tmp_path / "failing", FAIL="mini_gqa")
    out = process.communicate(timeout=1800)[0]
    assert process.returncode == 1 and "mini_gqa failed: made to fail" in out
    with (tmp_path / "failing" / "tables" / "mini14.csv").open(newline="") as one, (undisturbed / "tables" / "mini14.csv").open() as two:
        (row,), (whole,) = csv.DictReader(one), csv.DictReader(two)
    assert (row["complete"], row["gqa"], row["all_avg"], row["general_vqa"]) == ("13/14", "", "", "")
    assert {name for name in row if row[name] != whole[name]} == {"complete", "gqa", "all_avg", "general_vqa"}


def test_with_sockets_disabled_nothing_is_missed(data, undisturbed, tmp_path):
    touched = tmp_path / "touched.txt"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "class Closed(socket.socket):\n"
        "    def connect(self, address):\n"
        "        if self.family != socket.AF_UNIX:\n"
        f"            print(address, file=open({str(touched)!r}, 'a'))\n"
        "            raise OSError('no network')\n"
        "        return super().connect(address)\n"
        "socket.socket = Closed\n"
    )
    root = str(FIXED.parents[2])
    process = start(data, tmp_path / "closed", PYTHONPATH=f"{tmp_path}{os.pathsep}{root}")
    out = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, out
    assert not touched.exists(), touched.read_text()
    assert tables_of(tmp_path / "closed") == tables_of(undisturbed)


def test_the_table_is_a_full_row(undisturbed):
    with (undisturbed / "tables" / "mini14.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["complete"] == "14/14" and float(row["all_avg"]) > 30

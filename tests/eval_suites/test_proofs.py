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
from tests.eval_suites.small import provenance

pytest.importorskip("lmms_eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program"),
]
FIXED = Path(__file__).with_name("fixed.py")
MINI = suites.get("mini14")
ROWS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from eval_suites.mini import build

    root = tmp_path_factory.mktemp("mini")
    build.make(build.World(0, 400, ROWS), root, workers=1)
    return root


def command(kind: str, data: Path, folder: Path, *arguments: str, seconds: float = 0.0, **environment: str):
    """(command, keywords) of a process with the fixed model, in `folder`."""
    env = {**os.environ, "PYTHONPATH": str(FIXED.parents[2]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    env |= {"HF_DATASETS_CACHE": str(data / "cache"), "LMMS_EVAL_DATASETS_CACHE": str(data / "cache"), "HF_HUB_CACHE": str(data / "hub")}
    return [sys.executable, str(FIXED), kind, str(data / "genlip-eval"), str(seconds), *arguments], {"cwd": folder, "env": env}


def start(data: Path, folder: Path, *arguments: str, **keywords) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    export = folder / "runs" / "a" / "export"
    if not export.exists():
        export.mkdir(parents=True)
        (export / "provenance.json").write_text(json.dumps(provenance("genlip-tiny")))
    arguments = ("--encoder", "genlip-tiny", "--suite", "mini14", "--data-root", str(data), *arguments)
    line, more = command("ours", data, folder, *arguments, **keywords)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def tables_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tables").iterdir())}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(data, folder)
    out = process.communicate(timeout=600)[0]
    assert process.returncode == 0, out
    return folder


def test_our_cells_are_plain_lmms_evals_numbers_to_the_last_digit(data, undisturbed, tmp_path):
    for task in MINI.tasks:
        tasks.write(tmp_path / "definitions", tasks.locate(task, data))
    names = ",".join(tasks.local_name(task) for task in MINI.tasks)
    line, more = command("plain", data, tmp_path, "--tasks", names, "--include_path", "definitions", "--batch_size", "1",
                         "--output_path", "out", "--log_samples")  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=900, **more)
    (file,) = (tmp_path / "out").glob("*_results.json")
    theirs = json.loads(file.read_text())["results"]
    values = []
    for column in MINI.columns:
        (path,) = undisturbed.rglob(f"{column.task}/result.json")
        mine = json.loads(path.read_text())["results"][column.metric]
        assert mine == theirs[tasks.local_name(column.task)][column.metric], (column.name, done.stderr[-2000:])
        values.append(mine / column.range[1])
    assert sum(0 < value < 1 for value in values) >= 12 and len(set(values)) >= 8  # a model that is always wrong would prove nothing


def test_kill_9_at_ten_random_moments_ends_in_the_same_table(data, undisturbed, tmp_path):
    draw, kills = random.Random(7), 0
    for _ in range(40):
        process = start(data, tmp_path / "killed", "--batch-size", "4", seconds=0.05)
        asked = tmp_path / "killed" / "asked.jsonl"
        before = len(asked.read_text().splitlines()) if asked.exists() else 0
        # A moment after some more batches: while the imports run there is nothing to lose.
        target, patience = before + draw.randint(1, 25), draw.uniform(0, 0.1)
        while process.poll() is None and kills < 10:
            if asked.exists() and len(asked.read_text().splitlines()) >= target:
                time.sleep(patience)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        out = process.communicate(timeout=600)[0]
        if process.returncode != -signal.SIGKILL:
            break
    assert kills == 10 and process.returncode == 0, out
    assert tables_of(tmp_path / "killed") == tables_of(undisturbed)
    # Captions' prompts are all alike; of the others, what was asked twice is what a kill found in flight.
    sizes = Counter(prompt for line in (tmp_path / "killed" / "asked.jsonl").read_text().splitlines() for prompt in json.loads(line)[0])
    once = Counter(prompt for line in (undisturbed / "asked.jsonl").read_text().splitlines() for prompt in json.loads(line)[0])
    lost = sum((sizes - once).values())
    assert not once - sizes and lost <= 10 * 4


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
    out = process.communicate(timeout=600)[0]
    assert process.returncode == 0, out
    assert not touched.exists(), touched.read_text()
    assert tables_of(tmp_path / "closed") == tables_of(undisturbed)


def test_the_table_is_a_full_row(undisturbed):
    with (undisturbed / "tables" / "mini14.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["complete"] == "14/14" and float(row["all_avg"]) > 30

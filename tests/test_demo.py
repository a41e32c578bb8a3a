"""`make demo` at a one-minute size: killed in each of its phases it ends with the table of a run that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIZE = {"SCENES": "500", "ROWS": "28", "S1": "30", "S2": "5", "CAPTIONS": "30", "SFT": "30"}
# What stands when a phase has begun and not yet ended, in the order of the demo.
PHASES = (
    "data/mini/world.json",
    "weights",
    "runs/tiny-s1/metrics.jsonl",
    "captions/random-tiny/metrics.jsonl",
    "runs/tiny-s2/metrics.jsonl",
    "runs/sft-random-tiny/metrics.jsonl",
    "captions/genlip-tiny/metrics.jsonl",
    "results/mini14/random-tiny",
    "runs/sft-genlip-tiny/metrics.jsonl",
    "results/mini14/genlip-tiny",
)


def start(out: Path) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as the Makefile's
    env = os.environ | SIZE | {"OUT": str(out), "PATH": path}
    with (out.parent / f"{out.name}.log").open("a") as log:
        return subprocess.Popen(["bash", ROOT / "examples" / "demo.sh"], env=env, stdout=log, stderr=log, start_new_session=True)


def test_a_folder_of_another_size_or_version_is_left_as_it_is(tmp_path):
    (tmp_path / "demo/runs/sft-genlip-tiny/export").mkdir(parents=True)
    command = ["bash", ROOT / "examples" / "demo.sh"]
    done = subprocess.run(command, env=os.environ | {"OUT": str(tmp_path / "demo")}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"move it away (mv {tmp_path}/demo {tmp_path}/demo-old)" in done.stderr
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="CIDEr's tokenizer is a Java program")
def test_killed_in_each_phase_it_ends_with_the_same_table(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]
    for phase in PHASES:
        run = start(killed)
        while run.poll() is None and not (killed / phase).exists():
            time.sleep(0.05)
        assert run.poll() is None, f"ended before {phase}: {(tmp_path / 'killed.log').read_text()[-3000:]}"
        time.sleep(0.3)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert start(killed).wait() == 0, (tmp_path / "killed.log").read_text()[-3000:]
    for table in ("mini14.csv", "mini14_cells.csv"):
        assert (killed / "tables" / table).read_text() == (whole / "tables" / table).read_text()

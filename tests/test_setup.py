"""The Makefile's set-up on bad machines: each ends in a sentence that mends it. A fake Python writes down what it is asked; nothing is
installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
ROOT = Path(__file__).parents[1]
# Answers as a Python of $VERSION would; makes an environment whose pip writes to `log` and ends with $PIP_RC.
FAKE = """#!/bin/sh
case "$*" in
  *version_info*) [ -z "$VERSION" ] || exec python3 -c "
import sys
sys.version_info, sys.version = (3, 8), '$VERSION (main)'
$2";;
  *"import ensurepip"*) exit ${VENV_RC:-0};;
  *"import torch"*) exit 1;;
  *"-m venv"*) echo "venv $*" >> log; mkdir -p .venv/bin
    printf '#!/bin/sh\\n[ "$3" = --version ] || { echo "pip $*" >> log; exit ${PIP_RC:-0}; }\\n' > .venv/bin/python
    chmod +x .venv/bin/python;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """`make setup` in a folder of its own -> (exit code, stderr, lines of the log so far)."""
    (tmp_path / "eval_suites").mkdir()
    for name in ("Makefile", "requirements.txt", "eval_suites/requirements-nodeps.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "fake").write_text(FAKE)
    (tmp_path / "fake").chmod(0o755)
    (tmp_path / "log").touch()

    def run(*flags, **environment):
        command = ["make", "setup", "PYTHON=./fake", "ROOM=0", *flags]  # whatever this disk has left
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr, (tmp_path / "log").read_text().splitlines()

    run.folder = tmp_path
    return run


def test_a_fresh_machine_is_set_up_once_and_torch_comes_first(make):
    code, _, log = make()
    assert code == 0 and log[0] == "venv -m venv .venv" and "torch==" in log[1] and len(log) == 5
    assert make() == (0, "", log)  # the stamp is newer than what it was made of


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (["PYTHON=./nothing"], {}, "no ./nothing here: install Python 3.11 or newer, or make PYTHON=/path/to/python3.11"),
        ([], {"VERSION": "3.8.10"}, "Python 3.11 or newer is needed, this is 3.8.10: make PYTHON=python3.11"),
        ([], {"VENV_RC": "1"}, "this Python makes no environments: apt-get install python3-venv"),
        (["ROOM=999999"], {}, "GB are free here and the environment takes 999999: free some"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_made(make, flags, environment, said):
    code, err, log = make(*flags, **environment)
    assert code == 2 and said in err and not log and not (make.folder / ".venv").exists()


def test_a_stopped_installation_says_what_it_wants_and_starts_anew(make):
    code, err, log = make(PIP_RC="1")
    assert code == 2 and "a compiler (apt-get install build-essential)" in err and len(log) == 2
    code, err, log = make()
    assert code == 0 and ".venv is half-made: made anew" in err and log[2] == "venv -m venv --clear .venv" and len(log) == 7
    assert not (make.folder / ".venv" / ".begun").exists()


def test_an_environment_without_pip_is_made_anew_and_a_users_own_is_kept(make):
    (make.folder / ".venv").mkdir()
    (make.folder / ".venv" / "pyvenv.cfg").touch()
    code, err, log = make()
    assert code == 0 and "half-made" in err and log[0] == "venv -m venv --clear .venv"
    (make.folder / ".venv" / ".installed").unlink()
    code, err, log = make()
    assert code == 0 and "half-made" not in err and log[5] == "venv -m venv .venv"

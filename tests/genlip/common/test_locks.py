"""One writer at a time: the second is told who the first is, and what a killed one left is taken over."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genlip.common import locks
from genlip.common.locks import locked, one_at_a_time

HOLD = "import sys, time; from pathlib import Path; from genlip.common.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1]), sys.argv[2]):\n print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `folder`, or a name in it."""
    started = []

    def hold(name: str = "") -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "folder"), name], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_the_second_is_told_who_holds_it_and_a_dead_ones_lock_is_taken_over(holder, tmp_path):
    folder = tmp_path / "folder"
    first = holder()
    said = rf"another run is writing into .*folder \(process {first.pid} on {os.uname().nodename} since "
    with pytest.raises(ValueError, match=said), locked(folder):
        pass
    with locked(folder, "name in it"):  # which is another's affair
        pass
    first.kill()
    first.wait()
    assert (folder / ".lock").exists()
    with locked(folder):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    assert not folder.joinpath(".lock").exists() and list(folder.iterdir()) == []


def test_a_refused_command_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="bad"), locked(tmp_path / "runs" / "new"):
        raise ValueError("bad")
    assert list(tmp_path.iterdir()) == []


def test_turns_are_waited_for(tmp_path):
    code = "import sys, time; from pathlib import Path; from genlip.common.locks import one_at_a_time\n"
    code += "for _ in range(20):\n with one_at_a_time(Path(sys.argv[1])):\n"
    code += "  file = Path(sys.argv[1], 'n'); n = int(file.read_text()); time.sleep(0.002); file.write_text(str(n + 1))"
    (tmp_path / "n").write_text("0")
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in several] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "60" and [file.name for file in tmp_path.iterdir()] == ["n"]


def test_where_a_file_system_knows_no_locks_the_file_decides(holder, tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    first = holder()
    with pytest.raises(ValueError, match=f"process {first.pid}"), locked(tmp_path / "folder"):
        pass
    first.kill()
    first.wait()
    with locked(tmp_path / "folder"):
        pass


def test_a_dead_ones_worker_that_still_holds_the_lock_is_waited_for(tmp_path, monkeypatch):
    """As a forked worker that inherited it: for as long as PATIENCE."""
    monkeypatch.setattr(locks, "PATIENCE", 10.0)
    code = "import os, sys, time; from pathlib import Path; from genlip.common.locks import locked\n"
    code += "with locked(Path(sys.argv[1])):\n if os.fork():\n  os.kill(os.getpid(), 9)\n else:\n  time.sleep(1); os._exit(0)"
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with locked(tmp_path):
        assert time.monotonic() - began > 0.9
    with one_at_a_time(Path(tmp_path)):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "socket", "folder"])
def test_what_is_no_plain_file_is_refused_in_words_and_stays_as_it_is(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    target, lock = Path("thesis.tex"), Path("folder", ".lock")
    lock.parent.mkdir()
    if "link" in kind:
        lock.symlink_to(target.resolve())
    if kind == "link":
        target.write_text("years of work")
    if kind == "pipe":
        os.mkfifo(lock)
    if kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(lock))
    if kind == "folder":
        lock.mkdir()
    before = lock.lstat()
    with pytest.raises(ValueError, match=r"folder/\.lock is no plain file .*: remove it"), locked(lock.parent):
        pass
    assert os.path.samestat(before, lock.lstat())
    assert target.read_text() == "years of work" if kind == "link" else not target.exists()


def test_a_lock_file_that_cannot_be_written_does_not_stay(tmp_path):
    code = "import resource, sys; from pathlib import Path; from genlip.common.locks import locked\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nwith locked(Path(sys.argv[1], 'new')):\n pass"
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "File too large" in ran.stderr and "new/.lock" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pid", ["1" + "0" * 30, "0", "-1", "1e400", "1" * 4000, "[" * 4000])
def test_a_process_that_cannot_be_holds_nothing(tmp_path, monkeypatch, pid):
    """Where the file decides; what it says may be anything."""
    (tmp_path / ".lock").write_text(f'{{"pid": {pid}, "host": "{os.uname().nodename}", "since": "", "command": ""}}')
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with locked(tmp_path):
        pass


def test_what_a_lock_file_says_commands_no_terminal(tmp_path):
    with (tmp_path / ".lock").open("w") as stream:
        json.dump({"pid": os.getpid(), "host": os.uname().nodename, "since": "now", "command": "\x1b[2J\nerror: all is well"}, stream)
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run") as refused, locked(tmp_path):
            pass
    assert "\x1b" not in str(refused.value) and "\n" not in str(refused.value) and "all is well" in str(refused.value)

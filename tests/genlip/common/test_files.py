"""Files are whole or absent, whoever else writes them at the same moment."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from genlip.common.files import file_aside, keep_until, write_file


def _write_often(path: Path, letter: str) -> None:
    for _ in range(200):
        write_file(path, letter * 100_000)
        seen = path.read_text()
        assert len(seen) == 100_000 and len(set(seen)) == 1


def test_two_processes_that_write_one_file_at_once_leave_a_whole_one(tmp_path):
    path = tmp_path / "tables" / "suite.md"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in path.parent.iterdir()] == ["suite.md"]


def test_lines_of_a_run_are_kept_up_to_a_step_whatever_spoilt_the_last(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for spoilt in (b"\0\0\0\n", b'{"step": 1', b'{"said": "caf\xc3', b"[]\n", b""):
        file.write_bytes(b'{"step": 0}\n{"step": 1}\n{"step": 7}\n' + spoilt)
        keep_until(file, 1)
        assert file.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    file.write_bytes(b'{"step": 0}\n\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not a record of a step"):
        keep_until(file, 1)


def test_a_killed_writer_leaves_one_part_that_the_next_overwrites(tmp_path):
    code = "import os, sys; from pathlib import Path; from genlip.common.files import file_aside\n"
    code += "with file_aside(Path(sys.argv[1])) as part:\n part.write_bytes(b'1'); os.kill(os.getpid(), 9)"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], check=False).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["x.part"]
    with file_aside(tmp_path / "x") as part:
        part.write_bytes(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"whole")]

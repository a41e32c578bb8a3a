"""Files are whole or absent, whoever else writes them at the same moment."""

import multiprocessing
from pathlib import Path

from genlip.common.files import write_file


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

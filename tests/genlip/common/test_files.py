"""Files are whole or absent, whoever else writes them at the same moment."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genlip.common.files import LONG, file_aside, keep_until, read_json, write_file, written_aside


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
    deep = b"[" * 100_000 + b"]" * 100_000 + b"\n"
    for spoilt in (deep, b"\0\0\0\n", b'{"step": 1', b'{"said": "caf\xc3', b"[]\n", b""):
        file.write_bytes(b'{"step": 0}\n{"step": 1}\n{"step": 7}\n' + spoilt)
        keep_until(file, 1)
        assert file.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    for spoilt in (b"\n", deep):
        file.write_bytes(b'{"step": 0}\n' + spoilt + b'{"step": 1}\n')
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


def test_what_a_killed_writer_of_a_shared_file_left_goes_with_the_next_write(tmp_path):
    code = "import os, sys; from pathlib import Path; from genlip.common import files\n"
    code += "files.Path.write_bytes = lambda *_: os.kill(os.getpid(), 9)\n"
    code += "Path(sys.argv[1] + f'.{os.uname().nodename}.{os.getpid()}.part').touch(); files.write_file(Path(sys.argv[1]), 'x')"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.md")], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / f"x.md.elsewhere.{os.getpid()}.part"  # of a machine that may be writing it right now
    other.touch()
    write_file(tmp_path / "x.md", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"x.md", other.name}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_never_replaces_a_file_or_a_link(tmp_path, kind):
    there = tmp_path / "export"
    there.touch() if kind == "file" else there.symlink_to(tmp_path)
    with pytest.raises(ValueError, match=rf"export is a {kind}, and a folder goes there"), written_aside(there):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_left_half_written_is_no_part_of_the_next(tmp_path):
    (tmp_path / "export.part").mkdir()
    (tmp_path / "export.part" / "old.bin").touch()
    with written_aside(tmp_path / "export") as part:
        (part / "new.bin").touch()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["export", "export/new.bin"]


@pytest.mark.parametrize("library", ["system", "safetensors"])
def test_a_full_disk_is_a_sentence_that_names_the_folder(tmp_path, library):
    from safetensors import SafetensorError

    error = OSError(28, "No space left on device") if library == "system" else SafetensorError("I/O error: No space left on device")
    with pytest.raises((OSError, ValueError), match=r"export"), written_aside(tmp_path / "export") as part:
        (part / "model.safetensors").touch()
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff{}", "cannot be read: it is no JSON"),
        (b"{", "cannot be read: it is no JSON"),
        (b"[" * 100_000, "cannot be read: it is no JSON"),
        (b"null", "is null, and takes an object"),
        (b"[1]", r"is \[1\], and takes an object"),
        (b"{}", "does not say step"),
        (b'{"step": "3", "of": null}', 'step is "3", and takes a whole number'),
        (b'{"step": true, "of": null}', "step is true, and takes a whole number"),
        (b'{"step": 3, "of": 4}', "of is 4, and takes text or null"),
    ],
)
def test_json_that_is_not_what_it_is_meant_to_be_is_named_by_file_and_field(tmp_path, content, said):
    file = tmp_path / "state.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"state\.json.*{said}.*copy it again"):
        read_json(file, "copy it again", {"step": int, "of": str | None})


def test_json_is_read_from_a_plain_file_of_a_size_that_memory_holds(tmp_path):
    """A pipe would be waited for, a device never ends, and a file with a hole costs its maker nothing."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(ValueError, match=rf"{name}\.json cannot be read: it is no plain file; copy it again"):
            read_json(tmp_path / f"{name}.json", "copy it again")
    with (tmp_path / "hole.json").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match=r"hole\.json .* holds 1,099,511,627,776 bytes, and such a file at most 67,108,864; copy it again"):
        read_json(tmp_path / "hole.json", "copy it again")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    (tmp_path / "long.json").write_text("[" + " " * 2**26 + "]")
    assert read_json(tmp_path / "long.json", most=LONG) == []

"""Digests of files: equal bytes, equal digest; any write is noticed, also one whose date was put back; what is known is not read again."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genlip.common import digests

ROOT = Path(__file__).parents[2]


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Names of the files that are read; files count as settled at once, and a process of its own is stood for by an empty memory."""
    names, real = [], digests._hash
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "SETTLED_NS", -1)
    monkeypatch.setattr(digests, "_hash", lambda file, *more: names.append(file.name) or real(file, *more))
    return names


def plain(*data: bytes) -> list[str]:
    return [hashlib.sha256(some).hexdigest() for some in data]


def test_a_file_is_read_once_until_it_is_touched(tmp_path, read):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two" * digests.BLOCK)
    expected = plain(b"one", b"two" * digests.BLOCK)
    assert digests.of_files([a, b, a]) == [*expected, expected[0]] and sorted(read) == ["a", "b"]
    digests._known.clear()
    assert digests.of_files([b, a]) == expected[::-1] and len(read) == 2
    assert digests.of_files([a], rehash=True) == expected[:1] and read[2:] == ["a"]
    date = a.stat().st_mtime_ns
    a.write_bytes(b"ONE")
    os.utime(a, ns=(date, date))
    assert digests.of_files([a, b]) == plain(b"ONE", b"two" * digests.BLOCK) and read[3:] == ["a"]


def test_what_changed_a_moment_ago_is_not_yet_believed(tmp_path, read, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", 2 * 10**9)
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert digests.of_files([file]) == digests.of_files([file]) and read == ["a", "a"]


@pytest.mark.parametrize("damage", ["torn", "binary", "folder", "no folder", "read-only", "no home"])
def test_a_cache_that_is_broken_or_cannot_be_written_costs_time_alone(tmp_path, read, monkeypatch, damage):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    if damage == "no folder":
        (tmp_path / "cache").write_text("a file where the folder should be")
    elif damage == "read-only":
        monkeypatch.setattr(digests, "write_file", lambda *a: (_ for _ in ()).throw(PermissionError()))
    elif damage == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert digests.of_files([file]) == plain(b"one")
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(entries) == (damage in ("torn", "binary", "folder"))
    for entry in entries:
        if damage == "folder":
            entry.unlink()
            entry.mkdir()
        else:
            entry.write_bytes(b"12ab" if damage == "torn" else b"\xff" * 64)
    assert digests.of_files([file]) == plain(b"one") and read == ["a"], "this process knows it"
    digests._known.clear()
    assert digests.of_files([file]) == plain(b"one") and read == ["a", "a"]
    digests._known.clear()
    assert digests.of_files([file]) == plain(b"one") and len(read) == (2 if damage in ("torn", "binary") else 3), "mended where it can be"


def test_a_file_that_is_being_written_is_refused(tmp_path, read, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    monkeypatch.setattr(digests, "_hash", lambda file, *more: str(file.write_bytes(b"longer")))
    with pytest.raises(ValueError, match=r"a was written to while it was read.*same command again"):
        digests.of_files([file])


def test_one_digest_of_many_knows_their_order_and_not_their_names(tmp_path, read):
    for folder, names in (("x", "ab"), ("y", "cd")):
        (tmp_path / folder).mkdir()
        for name, data in zip(names, (b"one", b"two")):
            (tmp_path / folder / name).write_bytes(data)
    one = digests.of_all([tmp_path / "x/a", tmp_path / "x/b"])
    assert one == digests.of_all([tmp_path / "y/c", tmp_path / "y/d"]) != digests.of_all([tmp_path / "x/b", tmp_path / "x/a"])


def test_processes_share_what_is_known(tmp_path, read):
    """Four at once, over the same files: all are right, and what they leave is read by nobody again."""
    files = [tmp_path / str(i) for i in range(20)]
    for file in files:
        file.write_bytes(file.name.encode() * 1000)
    code = "import sys; from pathlib import Path; from genlip.common import digests; digests.SETTLED_NS = -1\n"
    code += "print(*digests.of_files([Path(name) for name in sys.argv[1:]]))"
    command = [sys.executable, "-c", code, *map(str, files)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate()[0] for process in running}
    expected = plain(*(file.read_bytes() for file in files))
    assert said == {" ".join(expected) + "\n"}
    assert digests.of_files(files) == expected and read == []


def test_signatures_of_many_files_and_of_none(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "STATS_AT_ONCE", 3)
    for i in range(10):
        (tmp_path / str(i)).write_bytes(b"x" * i)
    paths = [str(tmp_path / str(i)) for i in range(12)]
    found = digests.signatures(paths)
    assert [seen and seen[0] for seen in found] == [*range(10), None, None] and digests.signatures([]) == []

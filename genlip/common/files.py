"""Files and folders that are whole or absent: written aside, then renamed; and their digests."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(folder: Path, fresh: bool = True) -> Iterator[Path]:
    """Yield `NAME.part` beside `folder` to write into; it becomes `folder` when the block ends without an error.

    One left by a killed run is thrown away, or kept for a download to go on with where `fresh` is false.
    """
    aside = folder.with_name(f"{folder.name}.part")
    if fresh:
        shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
    except BaseException:
        if fresh:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


@contextmanager
def file_aside(path: Path, part: str = "part") -> Iterator[Path]:
    """Yield `NAME.part` beside `path` to write a file to; it is renamed to `path` when the block ends without an error, else removed.

    One left by a killed run is overwritten by the next. Where two may write at the same moment each gives another `part`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{part}")
    try:
        yield aside
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk, met while writing: the system names no file
            error.filename = str(path)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """The file whole: a reader meets the old one or the new one. Two processes may write one file at once: the later one stands."""
    with file_aside(path, f"{os.getpid()}.part") as aside:
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, content: object) -> None:
    write_file(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path, mend: str = "mend it, or make it again") -> Any:
    """What a JSON file holds. ValueError that names the file, with what mends it, where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: it is no JSON ({error}); {mend}") from error


def keep_until(file: Path, step: int) -> None:
    """Drop from a run's JSON lines those after `step`, which a resumed run logs again, and the one that a kill or power cut spoilt.

    ValueError that names the line where another than the last is none.
    """
    kept, lines = [], file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{file}, line {number}: not a record of a step ({error!r}); mend or remove that line") from error
    write_file(file, b"".join(kept))


def sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

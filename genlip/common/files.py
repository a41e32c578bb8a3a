"""Files and folders that are whole or absent: written aside, then renamed; JSON that is what it is meant to be; and digests.

What a killed process left of a file or folder is removed by the next one that writes it.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from .processes import running

NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO)  # what the system says of a link, a folder, a socket
# Bytes of JSON, which takes some eight times as many in memory: of a config or record, and of what grows with steps, files or samples.
RECORD, LONG = 2**26, 2**30
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list"}


@contextmanager
def written_aside(folder: Path, fresh: bool = True) -> Iterator[Path]:
    """Yield `NAME.part` beside `folder` to write into; it becomes `folder` when the block ends without an error.

    One left by a killed run is thrown away, or kept for a download to go on with where `fresh` is false. Raises ValueError where a file
    or a link has the folder's name: neither is replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} is {'a link' if folder.is_symlink() else 'a file'}, and a folder goes there: move it, or name another")
    aside = folder.with_name(f"{folder.name}.part")
    if fresh:
        remove(aside)
    aside.mkdir(parents=True, exist_ok=True)
    try:
        with naming(folder):
            yield aside
    except BaseException:
        if fresh:
            remove(aside)
        raise
    remove(folder)
    aside.rename(folder)


@contextmanager
def file_aside(path: Path, part: str = "part") -> Iterator[Path]:
    """Yield `NAME.part` beside `path` to write a file to; it is renamed to `path` when the block ends without an error, else removed.

    One left by a killed run is overwritten by the next. Where two may write at the same moment each gives another `part`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{part}")
    try:
        with naming(path):
            yield aside
            aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full disk, met while writing: the system names no file, and safetensors none either. `path` is the one that could not be made."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        loaded = sys.modules.get("safetensors")  # nothing else can have raised it
        if loaded and isinstance(error, loaded.SafetensorError):
            raise ValueError(f"{path} cannot be written: {error}") from error
        raise


def remove(path: Path) -> None:
    """A file, link or folder that may be there; what cannot be removed is an OSError, never left to be shipped inside what comes next."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """The file whole: a reader meets the old one or the new one. Two processes may write one file at once: the later one stands."""
    mine = f"{os.uname().nodename}.{os.getpid()}.part"
    with file_aside(path, mine) as aside:
        for left in path.parent.glob(f"{glob.escape(path.name)}.{glob.escape(os.uname().nodename)}.*.part"):
            if left != aside and not running(int(left.name.split(".")[-2])):
                left.unlink(missing_ok=True)
        aside.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, content: object) -> None:
    write_file(path, json.dumps(content, indent=1) + "\n")


def read_json(
    path: Path, mend: str = "mend it, or make it again", fields: Mapping[str, type | types.UnionType] | None = None, most: int = RECORD
) -> Any:
    """What a JSON file of at most so many bytes holds. ValueError that names the file, with what mends it, where it is larger, no plain
    file (a pipe is waited for, a device never ends) or no JSON.

    With `fields`, name -> type, it has to be an object that has them: as `require`.
    """
    told = path.stat()
    if not stat.S_ISREG(told.st_mode):
        raise ValueError(f"{path} cannot be read: it is no plain file; {mend}")
    if told.st_size > most:
        raise ValueError(f"{path} cannot be read: it holds {told.st_size:,} bytes, and such a file at most {most:,}; {mend}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: it is no JSON ({error}); {mend}") from error
    return content if fields is None else require(content, fields, str(path), mend)


def require(content: object, fields: Mapping[str, type | types.UnionType], where: str, mend: str) -> dict[str, Any]:
    """`content`, an object that has the `fields`. ValueError with file, field, what was found and what is meant."""
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {json.dumps(content)[:60]}, and takes an object: {mend}")
    for name, kind in fields.items():
        if name not in content:
            raise ValueError(f"{where} does not say {name}: {mend}")
        value, kinds = content[name], get_args(kind) or (kind,)
        if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, (*kinds, *((int,) if float in kinds else ()))):
            wanted = " or ".join(WORDS.get(each, "null") for each in kinds)
            raise ValueError(f"{where}: {name} is {json.dumps(value)[:60]}, and takes {wanted}: {mend}")
    return content


def numbered(folder: Path, prefix: str) -> list[Path]:
    """The folders inside whose name is the prefix and a number, by that number. OSError where `folder` is there and cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if re.fullmatch(rf"{re.escape(prefix)}[0-9]+", entry.name) and entry.is_dir()]
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names, key=lambda name: int(name.removeprefix(prefix)))]


def in_their_sizes(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Whether the folder has every file that `sizes` names, of that many bytes. OSError where one is there and cannot be looked at."""
    for name, size in sizes.items():
        try:
            found = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
    return True


def keep_until(file: Path, step: int) -> None:
    """Drop from a run's JSON lines those after `step`, which a resumed run logs again, and the one that a kill or power cut spoilt.

    ValueError that names the line where another than the last is none.
    """
    kept, lines = [], file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{file}, line {number}: not a record of a step ({error!r}); mend or remove that line") from error
    write_file(file, b"".join(kept))


def open_to_append(path: Path) -> int:
    """A descriptor that reads and appends; the file is made where there is none. ValueError where a link or no plain file has its name.

    What is written through a link, or cut off, would be another file's.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise ValueError(f"{path} is no plain file but a link, a folder or a device, and is written to: remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no plain file but a pipe or a device, and is written to: remove it")
    return descriptor


def sha256_json(content: object) -> str:
    """In hex, of what JSON holds, in whatever order its names stand."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of the file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Who may write into a folder: file locks, which the system lets go of when their process ends, however it ends.

    with locked(Path("runs/so16-s1")):              # runs/so16-s1/.lock; ValueError where another process holds it
    with locked(Path("weights"), "dinov2-s14"):     # weights/.dinov2-s14.lock: one name in a folder that others write to as well

The file says who holds it (process, machine, since when, command) for the sentence with which a second one is refused. It is removed
when the holder ends; one that a killed process left is taken over. Where a network file system knows no locks, what the file says
decides: a process that this machine does not have any more holds nothing.
"""

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from .files import naming, open_to_append
from .labels import one_line
from .processes import running

PATIENCE = 15.0  # seconds that a killed run's last worker may take to let go of the folder: a loader's looks every five
LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Hold the folder, or `name` in it, for this process and its workers, which inherit the lock. ValueError where another holds it."""
    with _held(folder, f".{name}.lock" if name else ".lock", waits=False):
        yield


@contextmanager
def one_at_a_time(folder: Path, name: str = "turn") -> Iterator[None]:
    """Processes that come to the same folder do what lies inside one after another: the first does the work, the others find it done."""
    with _held(folder, f".{name}.lock", waits=True):
        yield


@contextmanager
def _held(folder: Path, name: str, waits: bool) -> Iterator[None]:
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    file = folder / name
    with _taken(file, waits) as stream:
        held = {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            "command": " ".join(sys.argv)[:500],
        }
        try:
            with naming(file):
                stream.truncate(0)
                os.write(stream.fileno(), json.dumps(held).encode() + b"\n")  # at once: what a full disk refuses waits in no buffer
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile sees that it is gone, and makes a new one
            with suppress(OSError):  # a command that was refused leaves no folder; one that is not empty stays
                for each in made:
                    each.rmdir()


def _taken(file: Path, waits: bool) -> TextIO:
    """The lock file, opened and locked."""
    end = time.monotonic() + PATIENCE
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)  # again: a holder that ends without a file removes the folder that it made
        stream = os.fdopen(open_to_append(file), "a+", encoding="utf-8")
        try:
            if _tried(stream):
                with suppress(FileNotFoundError):  # its holder has ended, and removed it, since it was opened: the next one is another file
                    if os.path.samestat(os.fstat(stream.fileno()), file.lstat()):
                        return stream
            elif not waits:
                holder = _holder(stream)
                if (holder and _alive(holder)) or time.monotonic() > end:
                    who = f" (process {holder['pid']} on {holder['host']} since {holder['since']}: {holder['command']})" if holder else ""
                    who = one_line(who)  # whoever can write into the folder wrote it
                    raise ValueError(f"another run is writing into {file.parent}{who}: wait for it, or write into another folder")
        except BaseException:
            stream.close()
            raise
        stream.close()
        time.sleep(0.05)


def _tried(stream: TextIO) -> bool:
    """Whether the lock was free, and now is ours."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        holder = _holder(stream)
        return not holder or not _alive(holder)
    return True


def _holder(stream: TextIO) -> dict[str, str]:
    """What the holder wrote of itself; empty where it has not yet, or in another version."""
    stream.seek(0)
    try:
        said = json.loads(stream.read(4096))
        return {"pid": str(int(said["pid"])), **{key: str(said[key]) for key in ("host", "since", "command")}}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def _alive(holder: dict[str, str]) -> bool:
    """Whether the holder still runs, as far as this machine can tell: one on another machine is taken to."""
    return holder["host"] != os.uname().nodename or running(int(holder["pid"]))

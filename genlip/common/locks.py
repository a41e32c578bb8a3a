"""Who may write into a folder: file locks, which the system lets go of when their process ends, however it ends."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 5.0  # seconds that a killed run's last worker may take to let go of the folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process and its workers, which inherit the lock. ValueError where another run holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise ValueError(f"another run is writing into {folder}: wait for it, or give another --out") from error
                time.sleep(0.1)
        yield


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Ranks that come to the same folder do what lies inside one after another: the first does the work, the others find it done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

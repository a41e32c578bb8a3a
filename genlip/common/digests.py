"""What files hold: sha256 of their bytes, read once for as long as a file is not touched.

    digests.of_files([Path("a.parquet"), Path("b.parquet")])              # the second time: a stat each
    digests.of_files(files, rehash=True)                                  # read again whatever is known
    digests.vouched(files)                                                # what one who read them all by other means found of them

Why: a name, a size and a date do not say what a benchmark asked or a run learned from; reading hundreds of GB at every start is no
answer either. What is known is kept in $XDG_CACHE_HOME/genlip-eval/digests (default ~/.cache), a small file for each digest, named by the
file's path, size, mtime, ctime, inode and device: to write to a file, or to put its date back, moves ctime. There is no lock and nothing
to repair: entries are written aside and renamed, so processes and machines with one home use them at the same time; an entry that cannot
be read is made again; where none can be written, files are read once by each process.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from .files import write_file
from .progress import progress

Signature = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode; each as 64 bits without a sign

SETTLED_NS = 2 * 10**9  # a file that changed a moment ago may change again within one tick of its file system's clock
SHOWN_BYTES = 4 * 2**30  # from here on hashing takes long enough to show how far it is
BLOCK = 2**20
THREADS = 8
STATS_AT_ONCE = 256

_known: dict[str, str] = {}  # of this process, where nothing can be written


def signature(stat: os.stat_result) -> Signature:
    """What moves when a file is written to, replaced, or its date put back."""
    return stat.st_size, stat.st_mtime_ns % 2**64, stat.st_ctime_ns % 2**64, stat.st_ino % 2**64


def settled(seen: Signature) -> bool:
    """Whether the file's last change is long enough ago for its signature to tell the next one."""
    return time.time_ns() - seen[2] > SETTLED_NS


def signatures(paths: Sequence[str]) -> list[Signature | None]:
    """The signature of each file, None where there is none. Several are asked for at a time: on a network each waits for a server."""

    def ask(start: int) -> list[Signature | None]:
        found: list[Signature | None] = []
        for path in paths[start : start + STATS_AT_ONCE]:
            try:
                found.append(signature(os.stat(path)))
            except OSError:
                found.append(None)
        return found

    starts = range(0, len(paths), STATS_AT_ONCE)
    if len(starts) <= 1:
        return ask(0)
    with ThreadPoolExecutor(THREADS) as pool:
        return [one for some in pool.map(ask, starts) for one in some]


def of_files(files: Sequence[Path], rehash: bool = False) -> list[str]:
    """sha256 in hex of each file's bytes, in their order; `rehash` reads them whatever is known.

    OSError where one cannot be read, ValueError where one is written to meanwhile.
    """
    stats = {file: file.stat() for file in files}
    keys = {file: _key(file, stat) for file, stat in stats.items()}
    found = {} if rehash else {file: digest for file, key in keys.items() if (digest := _recall(key))}
    unknown = [file for file in stats if file not in found]
    for file, digest in zip(unknown, _hash_all(unknown, sum(stats[file].st_size for file in unknown))):
        if _key(file, file.stat()) != keys[file]:
            raise ValueError(f"{file} was written to while it was read: wait until it is whole, then give the same command again")
        if settled(signature(stats[file])):
            _keep(keys[file], digest)
        found[file] = digest
    return [found[file] for file in files]


def of_all(files: Sequence[Path], rehash: bool = False) -> str:
    """One digest of the files' bytes in their order: names, folders and dates are no part of it."""
    return hashlib.sha256("\n".join(of_files(files, rehash)).encode()).hexdigest()


def stamp(files: Sequence[Path]) -> str:
    """A name of files as they lie there, of their paths and signatures: another one when any of them is touched."""
    return hashlib.sha256("".join(_key(file, file.stat()) for file in files).encode()).hexdigest()


def vouch(files: Sequence[Path], seen: str, digest: str) -> None:
    """Keep what was found of the files' content, a digest in hex, where they still are as `seen`, their stamp before they were read."""
    if files and stamp(files) == seen and all(settled(signature(file.stat())) for file in files):
        _keep(seen, digest)


def vouched(files: Sequence[Path]) -> str | None:
    """The digest that `vouch` kept for the files as they are; None where there is none."""
    return _recall(stamp(files)) if files else None


def _hash_all(files: Sequence[Path], size: int) -> Iterable[str]:
    """The digest of each file, several read side by side; its progress shown where it takes more than a few seconds."""
    if not files:
        return []
    with ThreadPoolExecutor(min(THREADS, len(files))) as pool:
        try:
            if size < SHOWN_BYTES:
                return list(pool.map(_hash, files))
            one_at_a_time = Lock()
            with progress("reading the data, once, in MiB", size // BLOCK) as advance:

                def counted() -> None:
                    with one_at_a_time:
                        advance()

                return list(pool.map(lambda file: _hash(file, counted), files))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C nothing more is begun


def _hash(file: Path, advance: Callable[[], None] = lambda: None) -> str:
    sha, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with file.open("rb", buffering=0) as stream:
        while n := stream.readinto(block):
            sha.update(block[:n])
            advance()
    return sha.hexdigest()


def _key(file: Path, stat: os.stat_result) -> str:
    return hashlib.sha256(repr((str(file.absolute()), signature(stat), stat.st_dev)).encode()).hexdigest()


def _entry(key: str) -> Path | None:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genlip-eval" / "digests" / key[:2] / key[2:]
    except RuntimeError:  # a user without a home
        return None


def _recall(key: str) -> str | None:
    if key in _known:
        return _known[key]
    entry = _entry(key)
    if entry is None:
        return None
    try:
        digest = entry.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None


def _keep(key: str, digest: str) -> None:
    _known[key] = digest
    entry = _entry(key)
    if entry is not None:
        with suppress(OSError):
            write_file(entry, digest)

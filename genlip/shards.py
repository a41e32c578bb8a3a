"""Where samples lie: tar shards and row groups of parquet files, listed, digested, and read at any place.

A tar is WebDataset's: `KEY.jpg|png|webp` beside `KEY.json` (or `KEY.txt`); a parquet file is a hub data set's: a column of pictures
(bytes, or a struct with `bytes`) and one of texts. Only headers and footers are read ahead, so memory does not grow with a shard.

A tar's members say nothing of how many there should be, so one that was cut between two reads like a whole one: what tells is its end,
two blocks of zeros and the filling of its last record. All else behind the last member is refused.

Why no reader from a package: webdataset streams and shuffles in a buffer, so a stop loses its place; wids and mosaicml-streaming
want an index file or a format of their own; datasets' streaming resumes a shard by reading it again. What is needed here, the i-th
sample of a shard in any order, is a header scan and a pread.
"""

import glob
import hashlib
import json
import math
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .common import digests

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SHARD_SUFFIXES = (".tar", ".parquet")
TEXT_KEYS = ("conversations", "conversation", "messages", "caption")  # how texts are commonly called
MAX_MEMBER = 256 * 2**20  # bytes of one tar member
END_OF_TAR = 2 * tarfile.BLOCKSIZE  # zeros that close every tar
FILLING = tarfile.RECORDSIZE  # what follows them fills a record, at most
WHOLE_BYTES = 8 * 2**30  # up to here the digest of the data covers every byte
END_BYTES = 64 * 2**10  # beyond, so many at both ends of each shard: a tar's first headers, a parquet file's footer


@dataclass(frozen=True)
class Shard:
    """A tar file, or one row group of a parquet file."""

    path: str
    group: int | None = None


@dataclass(frozen=True)
class Source:
    """Shards that are read as one, and their weight in the mixture."""

    shards: tuple[Shard, ...]
    weight: float = 1.0


def list_sources(data: str) -> list[Source]:
    """`PATH[@WEIGHT],...` -> what is mixed. Without weights all shards make one source, in the order of their names.

    A PATH is a folder, a glob, a file, or a .txt list of PATH[@WEIGHT] lines, read from the list's own folder.
    Raises ValueError where there is no shard, or where some paths have a weight and some have none.
    """
    parts = [part for text in data.split(",") for part in _parts(text.strip(), Path())]
    weighted = [weight is not None for _, weight in parts]
    if any(weighted) and not all(weighted):
        raise ValueError(f"some paths of {data!r} have a weight and some have none: write PATH@WEIGHT for all, or for none")
    if not any(weighted):
        return [Source(tuple(shard for path in sorted(p for path, _ in parts for p in _files(path)) for shard in _groups(path)))]
    total = sum(weight for _, weight in parts)
    return [Source(tuple(s for p in _files(path) for s in _groups(p)), weight / total) for path, weight in parts]


def _parts(text: str, base: Path, inside: tuple[Path, ...] = ()) -> Iterator[tuple[str, float | None]]:
    """PATH[@WEIGHT] -> (path, weight or None), a list's lines in its place; `inside` are the lists around it."""
    path, at, weight = text.rpartition("@")
    path = path if at else text
    if at:
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            raise ValueError(f"the weight of {text!r} is not a number above 0: write PATH@0.3")
    path = str(base / path)
    if not path.endswith(".txt"):
        yield path, number if at else None
        return
    if not Path(path).is_file():
        raise ValueError(f"there is no list {path}")
    if Path(path).resolve() in inside:
        raise ValueError(f"the list {path} names itself: take that line out")
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no list of paths, a line each ({error})") from error
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise ValueError(f"the list {path} names no shards: write a path on each line")
    for line in named:
        try:
            yield from _parts(line, Path(path).parent, (*inside, Path(path).resolve()))
        except ValueError as error:
            raise ValueError(f"list {path}: {error}") from error


def _files(path: str) -> list[str]:
    if Path(path).is_dir():
        found = sorted(str(f) for f in Path(path).iterdir() if f.suffix in SHARD_SUFFIXES)
    else:
        found = sorted(f for f in glob.glob(path) if f.endswith(SHARD_SUFFIXES))
    if not found:
        raise ValueError(f"no shards at {path!r}: give a folder with *.tar or *.parquet, a glob such as 'shards/train-*.tar', or one file")
    return found


def _groups(path: str) -> list[Shard]:
    if path.endswith(".tar"):
        _check_closed(path)
        return [Shard(path)]
    return [Shard(path, group) for group in range(_parquet(path).num_row_groups)]


def _check_closed(path: str) -> None:
    """ValueError for a tar without the zeros at its end: told when it is listed, not when a run of days has come to it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - END_OF_TAR))
            end = file.read()
    except OSError as e:
        raise _unreadable(path, e) from e
    if any(end) or len(end) < END_OF_TAR:
        raise _unreadable(path, "its end is missing: it was cut off, or is compressed")


def _check_end(file, end: int) -> None:
    """ValueError where what stands behind a tar's last member, from byte `end` on, is not the end of a tar alone."""
    size = os.fstat(file.fileno()).st_size
    if size - end < END_OF_TAR:
        raise ValueError(f"its end is missing behind byte {end}: it was cut off")
    if any(os.pread(file.fileno(), END_OF_TAR + FILLING, end)):
        raise ValueError(f"something follows its end at byte {end}: another tar joined to it with cat, or damage; join tars with tar -A")
    if size - end > END_OF_TAR + FILLING:
        raise ValueError(f"nothing but zeros from byte {end} to {size}: it was not written to its end")


def _parquet(path: str):
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as e:
        raise _unreadable(path, e) from e


def listing_digest(sources: list[Source]) -> str:
    """sha256 over weights, file names, sizes and row groups: what a position in the data means. Folders may move."""
    lines = [
        f"{source.weight:.9f} {Path(shard.path).name} {os.path.getsize(shard.path)} {shard.group}"
        for source in sources
        for shard in source.shards
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def data_digest(sources: list[Source]) -> tuple[str, str]:
    """(sha256 over the listing and what the shards hold, what of that it covers in words).

    Up to WHOLE_BYTES in all every byte is read, once for as long as a shard is not touched; hashing terabytes at every start is no
    answer, so beyond that the two ends of each shard stand for it.
    """
    paths = list(dict.fromkeys(Path(shard.path) for source in sources for shard in source.shards))
    size = sum(path.stat().st_size for path in paths)
    if size <= WHOLE_BYTES:
        held, covers = digests.of_files(paths), "names, sizes and all bytes of the shards"
    else:
        with ThreadPoolExecutor(digests.THREADS) as pool:
            held = list(pool.map(_ends, paths))
        covers = f"names and sizes of the shards and {END_BYTES // 2**10} KiB at both ends of each: they hold {size / 2**30:.0f} GiB, "
        covers += f"and all bytes are covered up to {WHOLE_BYTES // 2**30} GiB"
    return hashlib.sha256("\n".join([listing_digest(sources), *held]).encode()).hexdigest(), covers


def _ends(path: Path) -> str:
    with path.open("rb") as stream:
        sha = hashlib.sha256(stream.read(END_BYTES))
        stream.seek(max(0, path.stat().st_size - END_BYTES))
        sha.update(stream.read())
    return sha.hexdigest()


def check_same_data(theirs: str, digest: str, sources: list[Source], run: str) -> None:
    """ValueError where the digest that a run keeps of its data is not that of these shards. One begun before bytes were covered keeps
    the listing's, which is taken too, and said."""
    if theirs == digest:
        return
    if theirs != listing_digest(sources):
        raise ValueError(f"the shards are not those that {run} began with: bring them back, or give another --out")
    print(f"note: {run} began before the bytes of shards were compared; their names and sizes are those of then")


def _unreadable(path: str, why) -> ValueError:
    return ValueError(f"shard {path} cannot be read to its end ({why}): copy it again, or take it out of --data")


def open_shard(shard: Shard, image_key: str, text_key: str) -> "TarShard | ParquetShard":
    """Raises ValueError that names a truncated or unreadable shard."""
    return TarShard(shard, text_key) if shard.group is None else ParquetShard(shard, image_key, text_key)


class TarShard:
    """The samples of a tar: members with one stem that follow one another; where a suffix comes again, the next sample begins. Nothing is
    ever unpacked to the disk."""

    def __init__(self, shard: Shard, text_key: str):
        self.path, self.file_name, self.text_key = shard.path, Path(shard.path).name, text_key
        self.samples: list[tuple[str, dict[str, tuple[int, int]]]] = []  # key, suffix -> (offset, size); size -1: not a plain file
        self.again: set[int] = set()  # samples whose key an earlier one has
        keys: set[str] = set()
        try:
            self.file = open(shard.path, "rb")  # noqa: SIM115 (kept open for reads; closed when the shard is let go)
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    if member.isdir():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    suffix = suffix.lower()
                    if not self.samples or self.samples[-1][0] != key or suffix in self.samples[-1][1]:
                        if key in keys:
                            self.again.add(len(self.samples))
                        keys.add(key)
                        self.samples.append((key, {}))
                    plain = member.isreg() and not member.issparse()
                    self.samples[-1][1][suffix] = (member.offset_data, member.size if plain else -1)
                    tar.members.clear()  # of the library's own list, which would keep every header
                _check_end(self.file, tar.offset)
        except (tarfile.TarError, EOFError, OSError, ValueError) as e:
            raise _unreadable(shard.path, e) from e

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, i: int) -> str:
        return f"{self.samples[i][0]} in {self.file_name}"

    def read(self, i: int) -> tuple[bytes, str | list]:
        """The picture's bytes and its text. Raises ValueError with the reason under which the sample is counted."""
        key, members = self.samples[i]
        if key.startswith("/") or ".." in key.split("/"):
            raise ValueError("path outside the shard")
        suffix = next((s for s in IMAGE_SUFFIXES if s in members), None)
        if suffix is None:
            raise ValueError("no picture")
        if "json" in members:
            data = self._bytes(members["json"])
            try:
                text = text_of(json.loads(data), self.text_key)
            except (ValueError, AttributeError, RecursionError) as e:  # broken, no object, nested without end, a number of 5,000 digits
                raise ValueError("unreadable json") from e
        elif "txt" in members:
            data = self._bytes(members["txt"])
            try:
                text = data.decode()
            except UnicodeDecodeError as e:
                raise ValueError("unreadable text") from e
        else:
            raise ValueError("no caption")
        if i in self.again:
            raise ValueError("key comes twice")
        return self._bytes(members[suffix]), text

    def _bytes(self, place: tuple[int, int]) -> bytes:
        offset, size = place
        if size < 0:
            raise ValueError("not a plain file")
        if size > MAX_MEMBER:
            raise ValueError("member too large")
        return os.pread(self.file.fileno(), size, offset)


class ParquetShard:
    """The rows of one row group."""

    def __init__(self, shard: Shard, image_key: str, text_key: str):
        import pyarrow

        self.path, self.group = shard.path, shard.group
        file = _parquet(shard.path)
        names = file.schema_arrow.names
        text_key = next((name for name in text_keys(text_key) if name in names), text_key)
        lacking = [name for name in (image_key, text_key) if name not in names]
        if lacking:
            raise ValueError(
                f"{shard.path} has no column {' and no '.join(map(repr, lacking))}, only {', '.join(names)}: name yours with "
                "--image-key and --text-key"
            )
        try:
            table = file.read_row_group(shard.group, columns=[image_key, text_key])
        except (OSError, pyarrow.ArrowInvalid) as e:
            raise _unreadable(shard.path, e) from e
        self.images, self.texts = table.column(image_key), table.column(text_key)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        return f"row {i} of row group {self.group} in {Path(self.path).name}"

    def read(self, i: int) -> tuple[bytes, str | list]:
        """As TarShard.read."""
        image = self.images[i].as_py()
        image = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(image, bytes):
            raise ValueError("no picture")
        return image, self.texts[i].as_py()


def text_of(record: dict, key: str) -> str | list | None:
    """The text under `key`; where that is one of TEXT_KEYS and the record lacks it, under another of them, so that captions and
    conversations lie in one mix."""
    text = record.get(key)
    return text if text is not None else next((record[name] for name in text_keys(key) if record.get(name) is not None), None)


def text_keys(key: str) -> tuple[str, ...]:
    """The names under which a text is looked for, the first first."""
    return (key, *(name for name in TEXT_KEYS if name != key)) if key in TEXT_KEYS else (key,)

"""Which rows of conversations a data source means, and reading them a piece at a time: parquet, JSON lists and lines, folders, YAML
mixes. Torch-free.

A source becomes a list of pieces of bounded size, each readable by itself from any process: row groups of a parquet file, or a byte
range of a JSON file, which is parsed as a stream and never held whole.

LLaVA-NeXT's mixes name JSON files and how much of each is taken. What else stands in a mix is ours, and optional:

    obtainable: 3136000                    # rows that the mix takes of what can be had
    datasets:
      - json_path: chartqa.json            # or a folder of parquet and JSON files
        sampling_strategy: "first:10%"     # all, first:N, end:N, random:N, each with or without %
        rows: 18265                        # how many it is said to hold
      - json_path: private.json
        published: false                   # nobody can have it: named, and left out
"""

import codecs
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .columns import of_batch
from .conversations import read_row

SUFFIXES = (".json", ".jsonl", ".parquet")
PARQUET_COLUMNS = ("id", "image", "images", "conversations", "messages", "data_source")
PIECE_BYTES = 256 << 20  # of a parquet file, uncompressed
PIECE_ROWS = 20_000  # of a JSON file
CHUNK_ROWS = 1000
CHUNK_BYTES = 32 << 20
READ_BYTES = 4 << 20
ROW_BYTES = 256 << 20  # what never closes within this much text is no row
SEPARATORS = re.compile(r"[\s,]*")
RULE = re.compile(r"(?:all|(first|end|random):(\d+(?:\.\d+)?)(%?))")


@dataclass(frozen=True)
class Source:
    """One line of a mix, or all there is: files read one behind another, the rule that samples them, rows they are said to hold, and
    JSON files beside them that hold no conversations."""

    name: str
    files: tuple[Path, ...]
    rule: str = "all"
    rows: int | None = None
    passed_over: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Mix:
    """Sources that are trained on together; the rows that they are said to give where all of them are there (None: not said), the rows
    with those that were never published, and the names of these."""

    sources: tuple[Source, ...]
    obtainable: int | None = None
    authors: int | None = None
    unpublished: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Rows of one file: `first` is the number of its first row in the file, `rows` how many there are, `wanted` those to take (None: all).
    `groups` are a parquet file's row groups, `offset` a JSON file's byte where the first row starts."""

    name: str
    file: Path
    first: int
    rows: int
    wanted: tuple[int, ...] | None = None
    groups: tuple[int, ...] = ()
    offset: int = 0

    @property
    def taken(self) -> int:
        return self.rows if self.wanted is None else len(self.wanted)


def find_mix(source: Path) -> Mix:
    """The sources that a path means. Raises ValueError for what holds no conversations, and for a mix that names absent files."""
    if source.suffix in (".yaml", ".yml") and source.is_file():
        return _mix(source)
    files, others = _files(source)
    if not files:
        raise ValueError(
            f"no conversations at {source}: give a .json, .jsonl or .parquet file, a folder of such files, a .yaml mix, "
            "or a folder made by train_mllm.prepare_data"
        )
    if source.is_file():
        return Mix((Source(source.stem, files),))
    folders = sorted({file.parent for file in files + others})  # a hub snapshot keeps each subset in a folder of its own
    return Mix(
        tuple(
            Source(
                str(folder.relative_to(source)) if folder != source else source.name,
                tuple(f for f in files if f.parent == folder),
                passed_over=tuple(f for f in others if f.parent == folder),
            )
            for folder in folders
        )
    )


def find_sources(source: Path) -> tuple[Source, ...]:
    """`find_mix`'s sources alone."""
    return find_mix(source).sources


def _files(path: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(files of conversations, JSON files that are none) of a file, or of a folder and all below it."""
    if not path.is_dir():
        return ((path,) if path.is_file() and path.suffix in SUFFIXES else ()), ()
    found = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]  # the hub's own notes lie in .cache
        found += [Path(folder, name) for name in names if name.endswith(SUFFIXES)]
    found.sort()
    others = tuple(file for file in found if file.suffix != ".parquet" and not _holds_conversations(file))
    return tuple(file for file in found if file not in others), others


def _holds_conversations(file: Path) -> bool:
    """Whether the first row of a JSON file is a conversation."""
    try:
        _, row = next(json_rows(file))
    except (ValueError, StopIteration):
        return False
    return isinstance(row, dict) and bool({"conversations", "messages"} & row.keys())


def mix_entries(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what a mix says of itself, its entries). ValueError where the YAML is no mix."""
    import yaml

    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        entries = said.get("datasets")
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as e:
        raise ValueError(f"{file} is no mix of data sets ({e}): it wants `datasets:`, a list of json_path and sampling_strategy") from e
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("json_path"), str) for e in entries):
        raise ValueError(f"{file}: `datasets` must be a list whose entries have a json_path")
    for entry in entries:
        rule = str(entry.get("sampling_strategy", "all"))
        if not RULE.fullmatch(rule):
            raise ValueError(
                f"{file}: sampling_strategy {rule!r} of {entry['json_path']}: it is all, first:N, end:N or random:N, N a count or a share "
                "like 10%"
            )
    said_rows = [(name, said.get(name)) for name in ("obtainable", "authors")] + [("rows", entry.get("rows")) for entry in entries]
    for name, rows in said_rows:
        if rows is not None and (type(rows) is not int or rows < 0):
            raise ValueError(f"{file}: {name}: {rows!r} is no number of rows")
    return said, entries


def _mix(file: Path) -> Mix:
    said, entries = mix_entries(file)
    published = [entry for entry in entries if entry.get("published", True)]
    found, absent = [], []
    for entry in published:
        path = file.parent / entry["json_path"]
        files, others = _files(path)
        if not files:
            absent.append(str(path))
        name = path.name if path.is_dir() else path.stem
        found.append(Source(name, files, str(entry.get("sampling_strategy", "all")), entry.get("rows"), others))
    if absent:
        raise ValueError(
            f"{file} names {len(absent)} of {len(published)} files that are not there: {', '.join(absent)}. "
            "Correct the paths, or take them out; a mix of ours is brought by python -m train_mllm.fetch"
        )
    names = tuple(Path(entry["json_path"]).name for entry in entries if entry not in published)
    return Mix(tuple(found), said.get("obtainable"), said.get("authors"), names)


def pieces(source: Source, seed: int) -> tuple[list[Piece], int]:
    """(the source's pieces after its sampling rule, the rows that its files hold)."""
    whole = [piece for file in source.files for piece in (_of_parquet if file.suffix == ".parquet" else _of_json)(source.name, file)]
    total = sum(piece.rows for piece in whole)
    chosen = sample(source.rule, total, f"{seed} {source.name}")
    if isinstance(chosen, range) and len(chosen) == total:
        return whole, total
    out, start = [], 0
    for piece in whole:
        wanted = tuple(i - start + piece.first for i in chosen if start <= i < start + piece.rows)
        if wanted:
            out.append(Piece(piece.name, piece.file, piece.first, piece.rows, wanted, piece.groups, piece.offset))
        start += piece.rows
    return out, total


def sample(rule: str, total: int, seed: str) -> range | list[int]:
    """Row numbers that a rule takes of `total`, in order: "first:10%" is rounded up, as LLaVA-NeXT does; "random" is drawn by seed."""
    matched = RULE.fullmatch(rule)
    if matched is None:
        raise ValueError(f"{rule!r} is no sampling rule")
    how, number, percent = matched.groups()
    if how is None:
        return range(total)
    n = min(total, math.ceil(float(number) * total / 100) if percent else int(float(number)))
    if how == "random":
        import random

        return sorted(random.Random(seed).sample(range(total), n))
    return range(n) if how == "first" else range(total - n, total)


def _of_parquet(name: str, file: Path) -> list[Piece]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowInvalid

    try:
        parquet = pq.ParquetFile(file)
    except ArrowInvalid as e:
        raise ValueError(f"{file} is no whole parquet file ({e}): fetch it again") from e
    columns = parquet.schema_arrow.names
    if not {"conversations", "messages"} & set(columns):
        raise ValueError(f"{file} has no column 'conversations' or 'messages' (it has {', '.join(columns)})")
    out: list[Piece] = []
    groups: list[int] = []
    rows = size = first = 0
    for g in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(g)
        if groups and size + group.total_byte_size > PIECE_BYTES:
            out.append(Piece(name, file, first, rows, groups=tuple(groups)))
            groups, rows, size, first = [], 0, 0, first + rows
        groups, rows, size = [*groups, g], rows + group.num_rows, size + group.total_byte_size
    return [*out, Piece(name, file, first, rows, groups=tuple(groups))] if rows else out


def _of_json(name: str, file: Path) -> list[Piece]:
    starts, rows = [], 0
    for offset, _ in json_rows(file):
        if rows % PIECE_ROWS == 0:
            starts.append((rows, offset))
        rows += 1
    ends = [start for start, _ in starts[1:]] + [rows]
    return [Piece(name, file, start, end - start, offset=offset) for (start, offset), end in zip(starts, ends)]


@dataclass(frozen=True)
class Chunk:
    """Rows that were read together, by their numbers in the file. `pictures` is an Arrow array of the bytes in their picture column,
    `turns` one of the turns in their column of turns, where there is one; a row's ImageRef and Turns say its places in them."""

    numbers: list[int]
    rows: list
    pictures: Any = None
    turns: Any = None


def read(piece: Piece) -> Iterator[Chunk]:
    """A piece's wanted rows, a bounded chunk at a time. No chunk that has been handed out is held here while the next is read: its memory
    is used again, where fresh memory for each chunk costs as much time as reading it."""
    numbers, wanted = itertools.count(piece.first), None if piece.wanted is None else set(piece.wanted)

    def chunk(found: tuple[list, Any, Any]) -> Chunk:
        rows, *arrays = found
        taken = [(number, row) for row, number in zip(rows, numbers) if wanted is None or number in wanted]
        return Chunk([number for number, _ in taken], [row for _, row in taken], *arrays)

    return map(chunk, _parquet_rows(piece) if piece.file.suffix == ".parquet" else _json_rows(piece))


def conversations(source: Path) -> Iterator[tuple[str, list[dict], list]]:
    """(the row's place in words, its turns, its pictures as given) of all rows. ValueError that names one that is odd."""
    for piece in (piece for one in find_sources(source) for piece in pieces(one, 0)[0]):
        for chunk in read(piece):
            for number, row in zip(chunk.numbers, chunk.rows):
                place = f"row {number} of {piece.file}"
                try:
                    turns, shown = read_row(row)
                except ValueError as e:
                    raise ValueError(f"{place}: {e}") from e
                said = turns.messages
                messages = chunk.turns.slice(said.start, len(said)).to_pylist() if isinstance(said, range) else said
                yield place, messages, shown


def _json_rows(piece: Piece) -> Iterator[tuple[list, None, None]]:
    rows = (row for _, row in json_rows(piece.file, piece.offset))
    for start in range(0, piece.rows, CHUNK_ROWS):
        yield list(itertools.islice(rows, min(CHUNK_ROWS, piece.rows - start))), None, None


def _parquet_rows(piece: Piece) -> Iterator[tuple[list[dict], Any, Any]]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(piece.file)
    columns = [c for c in PARQUET_COLUMNS if c in parquet.schema_arrow.names]
    for g in piece.groups:  # one by one: the reader keeps no more than a group
        group = parquet.metadata.row_group(g)
        batch = max(1, min(CHUNK_ROWS, group.num_rows * CHUNK_BYTES // max(group.total_byte_size, 1)))
        yield from map(of_batch, parquet.iter_batches(batch_size=batch, row_groups=[g], columns=columns))


def json_rows(file: Path, offset: int = 0) -> Iterator[tuple[int, Any]]:
    """(byte offset, row) of a JSON list or JSON lines, from the row that starts at `offset`. Raises ValueError where it is neither, and
    where something follows the list's end."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    lines = file.suffix == ".jsonl"
    with file.open("rb") as stream:
        begun, ended = offset > 0 or lines, False
        if not offset and stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            offset = len(codecs.BOM_UTF8)
        stream.seek(offset)
        text, at = "", offset
        while piece := stream.read(READ_BYTES):
            try:
                text += utf8.decode(piece)
            except UnicodeDecodeError as e:
                raise ValueError(f"{file} is no text in UTF-8 behind byte {at} ({e}): write it anew in UTF-8") from e
            position = counted = 0  # `at` is the byte where text[counted] stands
            if not begun:
                position = _skip(text)
                if not text.startswith("[", position):
                    raise ValueError(f"{file} is not a JSON list of conversations")
                position, begun = position + 1, True
            while (position := _skip(text, position)) < len(text):
                if ended:
                    raise ValueError(
                        f"{file} goes on behind the end of its list, byte {at + len(text[counted:position].encode())}: write all rows as "
                        "one list, or name the files that were joined one by one in a mix"
                    )
                if text[position] == "]" and not lines:
                    position, ended = position + 1, True
                    continue
                try:
                    row, end = decoder.raw_decode(text, position)
                except json.JSONDecodeError as e:
                    if len(text) - position > ROW_BYTES:
                        raise ValueError(f"{file} is no JSON after byte {at}: {e}") from e
                    break  # the row goes on in what has not been read yet
                except (RecursionError, ValueError) as e:  # nested thousands of levels deep; a number of thousands of digits
                    start = at + len(text[counted:position].encode())
                    raise ValueError(f"{file}: the row at byte {start} cannot be read ({e}): take it out") from e
                at, counted = at + len(text[counted:position].encode()), position
                yield at, row
                position = end
            at += len(text[counted:position].encode())
            text = text[position:]
    if not (lines or ended) or text.strip():
        raise ValueError(f"{file} is no whole JSON: what starts at byte {at} does not end. Copy the file again")


def _skip(text: str, position: int = 0) -> int:
    """Where what stands between two rows ends."""
    found = SEPARATORS.match(text, position)
    return found.end() if found else position

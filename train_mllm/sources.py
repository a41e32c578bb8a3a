"""Which rows a data source means, and reading them a piece at a time: parquet, JSON lists and lines, folders, YAML mixes. Torch-free.

A source becomes a list of pieces of bounded size, each readable by itself from any process: row groups of a parquet file, or a byte
range of a JSON file, which is parsed as a stream and never held whole.

LLaVA-NeXT's mixes name JSON files and how much of each is taken:

    datasets:
      - json_path: chartqa.json
        sampling_strategy: "first:10%"     # all, first:N, end:N, random:N, each with or without %
        rows: 18265                        # optional, ours: how many the file is said to hold
"""

import codecs
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .conversations import ImageRef, plain_turns

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
    """One line of a mix, or all there is: files read one behind another, the rule that samples them, rows they are said to hold."""

    name: str
    files: tuple[Path, ...]
    rule: str = "all"
    rows: int | None = None


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


def find_sources(source: Path) -> list[Source]:
    """The sources that a path means. Raises ValueError for what holds no conversations, and for a mix that names absent files."""
    if source.suffix in (".yaml", ".yml") and source.is_file():
        return _mix(source)
    files = _files(source)
    if not files:
        raise ValueError(
            f"no conversations at {source}: give a .json, .jsonl or .parquet file, a folder of parquet files, a .yaml mix, "
            "or a folder made by train_mllm.prepare_data"
        )
    if source.is_file():
        return [Source(source.stem, files)]
    folders = sorted({file.parent for file in files})  # a hub snapshot keeps each subset in a folder of its own
    return [
        Source(str(folder.relative_to(source)) if folder != source else source.name, tuple(f for f in files if f.parent == folder))
        for folder in folders
    ]


def _files(path: Path) -> tuple[Path, ...]:
    if path.is_file() and path.suffix in (".json", ".jsonl", ".parquet"):
        return (path,)
    return tuple(sorted(path.rglob("*.parquet"))) if path.is_dir() else ()


def _mix(file: Path) -> list[Source]:
    import yaml

    try:
        entries = (yaml.safe_load(file.read_text()) or {}).get("datasets")
    except (yaml.YAMLError, AttributeError) as e:
        raise ValueError(f"{file} is no mix of data sets ({e}): it wants `datasets:`, a list of json_path and sampling_strategy") from e
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.get("json_path") for e in entries):
        raise ValueError(f"{file}: `datasets` must be a list whose entries have a json_path")
    found, absent = [], []
    for entry in entries:
        path = Path(entry["json_path"])
        path = path if path.is_absolute() else file.parent / path
        rule = str(entry.get("sampling_strategy", "all"))
        if not RULE.fullmatch(rule):
            raise ValueError(
                f"{file}: sampling_strategy {rule!r} of {path}: it is all, first:N, end:N or random:N, N a count or a share like 10%"
            )
        files = _files(path)
        if not files:
            absent.append(str(path))
        found.append(Source(path.stem, files, rule, entry.get("rows")))
    if absent:
        raise ValueError(
            f"{file} names {len(absent)} of {len(entries)} files that are not there: {', '.join(absent)}. "
            "Correct the paths, or take them out"
        )
    return found


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
    how, number, percent = RULE.fullmatch(rule).groups()
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
    out, groups, rows, size, first = [], [], 0, 0, 0
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
    `turns` one of the turns in their column of turns, where there is one; a row's rows.Picture and rows.Turns say its places in them."""

    numbers: list[int]
    rows: list
    pictures: object = None
    turns: object = None


def read(piece: Piece) -> Iterator[Chunk]:
    """A piece's wanted rows, a bounded chunk at a time. No chunk that has been handed out is held here while the next is read: its memory
    is used again, where fresh memory for each chunk costs as much time as reading it."""
    numbers, wanted = itertools.count(piece.first), None if piece.wanted is None else set(piece.wanted)

    def chunk(found: tuple[list, object, object]) -> Chunk:
        rows, *arrays = found
        taken = [(number, row) for row, number in zip(rows, numbers) if wanted is None or number in wanted]
        return Chunk([number for number, _ in taken], [row for _, row in taken], *arrays)

    return map(chunk, _parquet_rows(piece) if piece.file.suffix == ".parquet" else _json_rows(piece))


def _json_rows(piece: Piece) -> Iterator[tuple[list, None, None]]:
    rows = (row for _, row in json_rows(piece.file, piece.offset))
    for start in range(0, piece.rows, CHUNK_ROWS):
        yield list(itertools.islice(rows, min(CHUNK_ROWS, piece.rows - start))), None, None


def _parquet_rows(piece: Piece) -> Iterator[tuple[list[dict], object, object]]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(piece.file)
    columns = [c for c in PARQUET_COLUMNS if c in parquet.schema_arrow.names]
    for g in piece.groups:  # one by one: the reader keeps no more than a group
        group = parquet.metadata.row_group(g)
        batch = max(1, min(CHUNK_ROWS, group.num_rows * CHUNK_BYTES // max(group.total_byte_size, 1)))
        yield from map(_of_batch, parquet.iter_batches(batch_size=batch, row_groups=[g], columns=columns))


def _of_batch(batch) -> tuple[list[dict], object, object]:
    """(rows, their array of pictures, their array of turns) of a record batch."""
    values, found, said = {name: batch.column(name) for name in batch.schema.names}, None, None
    for name in ("image", "images"):
        if name in values and found is None:
            values[name], found = _pictures(values[name])
    for name in ("conversations", "messages"):
        if name in values and said is None:
            values[name], said = _turns(values[name])
    lists = [_python(column) for column in values.values()]
    return [dict(zip(values, row)) for row in zip(*lists)], found, said


def _python(column) -> list:
    """A column as Python's objects. Lists of turns are taken apart first: one by one Arrow makes them ten times slower."""
    import pyarrow as pa

    if isinstance(column, list):
        return column
    if pa.types.is_string(column.type):  # a tenth of to_pylist's time
        return column.to_numpy(zero_copy_only=False).tolist()
    if not (pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)) or column.null_count:
        return column.to_pylist()
    flat = column.flatten()
    if flat.null_count:
        return column.to_pylist()
    names = [field.name for field in column.type.value_type]
    turns = [dict(zip(names, turn)) for turn in zip(*(_python(values) for values in flat.flatten()))]
    return _apart(turns, column)


def _apart(flat: list, column) -> list[list]:
    """The flat values of a list column as one list for each row."""
    ends = itertools.accumulate(column.value_lengths().to_numpy().tolist(), initial=0)
    return [flat[start:end] for start, end in itertools.pairwise(ends)]


def _turns(column) -> tuple[list, object]:
    """(a column of turns, as rows.Turns where they are plain and as Python's objects elsewhere; the array that the Turns' places mean)"""
    import pyarrow as pa

    turns, said = plain_turns(column)
    odd = [i for i, some in enumerate(turns) if some is None]
    for i, some in zip(odd, _python(column.take(pa.array(odd, pa.int64())))):
        turns[i] = some
    return turns, said


def _pictures(column) -> tuple[object, object]:
    """(a picture column's rows as rows.Picture, None or a list of them; the array of all their bytes). A column of another kind, or
    with other fields, is handed back as it is, with None: its bytes stay where parquet's reader has put them and are not copied."""
    import pyarrow as pa
    import pyarrow.compute as pc

    listed = pa.types.is_list(column.type) and not column.null_count
    flat = column.flatten() if listed else column
    if not pa.types.is_struct(flat.type) or flat.type.get_field_index("bytes") < 0:
        return column, None
    data = pc.struct_field(flat, "bytes")
    if not pa.types.is_binary(data.type):
        return column, None
    paths = _python(pc.struct_field(flat, "path")) if flat.type.get_field_index("path") >= 0 else [None] * len(flat)
    present = data.is_valid().to_numpy(zero_copy_only=False).tolist()
    _, ends, body = data.buffers()
    ends = memoryview(ends).cast("B").cast("i")[data.offset : data.offset + len(data) + 1].tolist() if len(data) else [0]
    body = memoryview(body or b"").cast("B")  # Arrow's own is of signed bytes
    shown = []
    for i, (there, path, (start, end)) in enumerate(zip(present, paths, itertools.pairwise(ends))):
        shown.append(ImageRef(path, body[start:end], i) if there else ImageRef(path, None) if path is not None else None)
    return _apart(shown, column) if listed else shown, data


def json_rows(file: Path, offset: int = 0) -> Iterator[tuple[int, object]]:
    """(byte offset, row) of a JSON list or JSON lines, from the row that starts at `offset`. Raises ValueError where it is neither."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    lines = file.suffix == ".jsonl"
    with file.open("rb") as stream:
        stream.seek(offset)
        text, at, begun = "", offset, offset > 0 or lines
        while piece := stream.read(READ_BYTES):
            text += utf8.decode(piece)
            position = counted = 0  # `at` is the byte where text[counted] stands
            if not begun:
                position = SEPARATORS.match(text).end()
                if not text.startswith("[", position):
                    raise ValueError(f"{file} is not a JSON list of conversations")
                position, begun = position + 1, True
            while (position := SEPARATORS.match(text, position).end()) < len(text):
                if text[position] == "]" and not lines:
                    return
                try:
                    row, end = decoder.raw_decode(text, position)
                except json.JSONDecodeError as e:
                    if len(text) - position > ROW_BYTES:
                        raise ValueError(f"{file} is no JSON after byte {at}: {e}") from e
                    break  # the row goes on in what has not been read yet
                at, counted = at + len(text[counted:position].encode()), position
                yield at, row
                position = end
            at += len(text[counted:position].encode())
            text = text[position:]
    if not lines or text.strip():
        raise ValueError(f"{file} is no whole JSON: what starts at byte {at} does not end. Copy the file again")

"""Conversations as Arrow tables that training maps into memory, each with its digest. Torch-free.

Used by `python -m train_mllm.prepare_data`, which counts what does not pass. A row costs 20 us beside the hash of its picture: a
picture that lies in a parquet column is looked at where parquet's reader has put it, and is written from there.
"""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from genlip.common import digests
from genlip.common.columns import message_type
from genlip.common.conversations import read_row, said
from genlip.common.files import file_aside
from genlip.common.picture_files import read_picture

from . import image_check


def normalise(row: dict, images: Path, decode: bool = False) -> dict:
    """One row in the one form: {"id", "images": [ImageRef], "messages": as Turns has them, "digest", "notes"}, pictures scanned.

    The digest is of what training sees: the turns and each picture's bytes. Raises ValueError with the reason under which the row is
    counted.
    """
    turns, shown = read_row(row)
    sha = hashlib.sha256(turns.said)
    kept, notes = [], []
    for some in shown:
        picture, data = read_picture(some, images)
        notes.append(image_check.check_image(data, decode).note)
        _add_picture(sha, data)
        kept.append(picture)
    name = str(row.get("id", "")).encode(errors="replace").decode()  # half a surrogate pair is no text
    seen = sorted({note for note in notes if note})
    return {"id": name, "images": kept, "messages": turns.messages, "digest": sha.digest(), "notes": seen}


def _add_picture(sha, data: bytes | memoryview) -> None:
    sha.update(b" %d " % len(data))
    sha.update(data)


def schema():
    import pyarrow as pa

    picture = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    return pa.schema(
        [("id", pa.string()), ("images", pa.list_(picture)), ("messages", pa.list_(message_type())), ("digest", pa.binary(32))]
    )


def to_arrow(rows: list[dict], data, turns):
    """Normalised rows as one record batch of `schema()`. `data` and `turns` are the chunk's arrays of pictures and of turns, or None:
    where all rows passed they are written as they are, without a copy."""
    import pyarrow as pa

    shown = [picture for row in rows for picture in row["images"]]
    places = [picture.at for picture in shown]
    if data is None or any(picture.at is None and picture.data is not None for picture in shown):
        found = pa.array([picture.data for picture in shown], pa.binary())
    elif places == list(range(len(data))):
        found = data
    else:
        found = data.take(pa.array(places, pa.int64()))
    whole = schema()
    pictures_type, messages_type = (whole.field(name).type for name in ("images", "messages"))
    paths = pa.array([picture.path for picture in shown], pa.string())
    columns = [
        pa.array([row["id"] for row in rows], pa.string()),
        _lists(rows, "images", pa.StructArray.from_arrays([paths, found], fields=list(pictures_type.value_type)), pictures_type),
        _lists(rows, "messages", _messages([row["messages"] for row in rows], turns, messages_type.value_type), messages_type),
        pa.array([row["digest"] for row in rows], pa.binary(32)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=whole)


def _messages(turns: list[list[dict] | range], known, kind):
    """The turns of all rows as one array of `kind`: their places in `known`, and behind it those that are not in it."""
    import pyarrow as pa

    own = [message for some in turns if isinstance(some, list) for message in some]
    if known is not None and not own and sum(map(len, turns)) == len(known):
        return known
    fresh = [pa.array([message[name] for message in own], pa.string()) for name in ("role", "content")]
    fresh = pa.StructArray.from_arrays(fresh, fields=list(kind))
    if known is None:
        return fresh
    behind = itertools.count(len(known))
    places = [at for some in turns for at in (some if isinstance(some, range) else itertools.islice(behind, len(some)))]
    return pa.concat_arrays([known, fresh]).take(pa.array(places, pa.int64()))


def _lists(rows: list[dict], name: str, flat, kind):
    import pyarrow as pa

    ends = itertools.accumulate((len(row[name]) for row in rows), initial=0)
    return pa.ListArray.from_arrays(pa.array(list(ends), pa.int32()), flat, type=kind)


def open_conversations(folder: Path):
    """The prepared table, mapped into memory: all ranks share its pages. Columns id, images, messages, digest."""
    import pyarrow as pa

    files = sorted((folder / "conversations").glob("*.arrow"))
    if not files:
        raise ValueError(f"{folder} holds no conversations: make it with python -m train_mllm.prepare_data SOURCE --out {folder}")
    return pa.concat_tables([_table(file) for file in files])


def _table(arrow: Path):
    """A piece of the prepared table. ValueError where it was cut short or is none."""
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{arrow} is no whole table of conversations ({error}): remove {arrow.parent.parent}, prepare again") from error


# --- pictures in files of their own -----------------------------------------------------------------------------------------


def picture_paths(table):
    """The paths of a prepared table's pictures in order, null where the bytes lie in the table."""
    import pyarrow.compute as pc

    return pc.struct_field(pc.list_flatten(table["images"]), "path")


def write_signatures(arrow: Path, seen: list[digests.Signature | None]) -> None:
    """Keep what the picture files beside a piece looked like, in order: zeros for what may still change unseen."""
    import numpy as np

    kept = [one if one and digests.settled(one) else (0, 0, 0, 0) for one in seen]
    with file_aside(arrow.with_suffix(".npy")) as aside, aside.open("wb") as stream:
        np.save(stream, np.array(kept, np.uint64).reshape(-1, 4))


def changed_pictures(arrow: Path, rehash: bool = False) -> tuple[list[str], list[str]]:
    """(picture files of a prepared piece that hold other bytes than those prepared, files that are gone).

    Told by size, times and inode, and where one of these moved by the bytes of the whole row, whose digest stands beside it.
    """
    import numpy as np
    import pyarrow.compute as pc

    table = _table(arrow)
    paths = picture_paths(table)
    own = paths.is_valid().to_numpy()
    if not own.any():
        return [], []
    row_of = np.repeat(np.arange(len(table)), pc.list_value_length(table["images"]).to_numpy())[own]
    paths = paths.drop_null().to_pylist()
    now = digests.signatures(paths)
    file = arrow.with_suffix(".npy")
    known = np.load(file) if file.is_file() and not rehash else np.empty((0, 4))
    known = known.tolist() if len(known) == len(paths) else [None] * len(paths)
    gone = [path for path, one in zip(paths, now) if one is None]
    moved = [i for i, one in enumerate(now) if one is not None and list(one) != known[i]]
    if not moved:
        return [], gone
    rows = np.unique(row_of[moved])
    with ThreadPoolExecutor(digests.THREADS) as pool:
        same = {}
        for start in range(0, len(rows), 1000):
            part = rows[start : start + 1000].tolist()
            same |= zip(part, pool.map(_as_prepared, table.take(part).to_pylist()))
    changed = [paths[i] for i in moved if not same[row_of[i]]]
    if not changed and not gone:
        with suppress(OSError):  # a folder that others prepared may not be written to: then it is read again next time
            write_signatures(arrow, now)
    return changed, gone


def _as_prepared(row: dict) -> bool:
    """Whether a row's pictures are, byte for byte, those that its digest was made of. One that is gone says nothing."""
    sha = hashlib.sha256("".join(said(message["role"], message["content"]) for message in row["messages"]).encode())
    for picture in row["images"]:
        try:
            _add_picture(sha, picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes())
        except FileNotFoundError:
            return True
    return sha.digest() == row["digest"]

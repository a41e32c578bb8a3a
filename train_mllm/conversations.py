"""Normalise one conversation (LLaVA, OpenAI, parquet) and write Arrow tables that training maps into memory. Torch-free.

Used by `python -m train_mllm.prepare_data`, which counts what does not pass. A row costs 20 us beside the hash of its picture: a
picture that lies in a parquet column is looked at where parquet's reader has put it, and is written from there.
"""

import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from genlip.common import digests
from genlip.common.files import file_aside

from . import image_check

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Turns(NamedTuple):
    """A row's turns, checked: what the digest takes of them, their <image> markers, and the turns themselves: a list of {"role",
    "content"}, or their places in the chunk's own array of turns."""

    said: str | memoryview
    markers: int
    messages: list[dict] | range


class ImageRef(NamedTuple):
    """A picture's absolute path, or its bytes; `at` is its place in the chunk's own array of pictures, None where it is not there.
    `seen` is the signature that the file had when it was read."""

    path: str | None
    data: bytes | memoryview | None
    at: int | None = None
    seen: digests.Signature | None = None


def normalise(row: dict, images: Path, decode: bool = False) -> dict:
    """One row in the one form: {"id", "images": [Picture], "messages": as Turns has them, "digest"}, pictures scanned.

    Turns that `plain_turns` has passed are taken as they are, all others are checked here. The digest is of what training sees: the
    turns and each picture's bytes. Raises ValueError with the reason under which the row is counted.
    """
    if not isinstance(row, dict):
        raise ValueError("malformed row")
    shown = row.get("images") or row.get("image") or []
    shown = list(shown) if isinstance(shown, (list, tuple)) and not isinstance(shown, ImageRef) else [shown]
    turns = row.get("conversations") or row.get("messages") or []
    turns = turns if isinstance(turns, Turns) else _checked(turns, shown)
    if turns.markers != len(shown):
        raise ValueError(f"{IMAGE} markers and pictures do not match")
    try:
        sha = hashlib.sha256(turns.said.encode() if isinstance(turns.said, str) else turns.said)
    except UnicodeEncodeError as e:  # half a surrogate pair, which JSON can hold and no text can
        raise ValueError("malformed turn") from e
    kept = []
    for some in shown:
        picture, data = _picture(some, images)
        image_check.check_image(data, decode)
        _add_picture(sha, data)
        kept.append(picture)
    return {"id": str(row.get("id", "")), "images": kept, "messages": turns.messages, "digest": sha.digest()}


def _add_picture(sha, data: bytes | memoryview) -> None:
    sha.update(b" %d " % len(data))
    sha.update(data)


def _said(role: str, content: str) -> str:
    """What the digest takes of a turn."""
    return f"{role} {len(content)} {content}"


def _checked(turns, shown: list) -> Turns:
    """A row's turns, looked at one by one; pictures among OpenAI's parts are added to `shown`. Raises ValueError with the reason."""
    if not isinstance(turns, list):
        raise ValueError("malformed turn")
    messages, said, markers, due = [], [], 0, "user"
    for turn in turns:
        role, content = _turn(turn, shown)
        if role != "system":
            if role != due:
                raise ValueError("turns do not alternate user, assistant")
            due = "assistant" if role == "user" else "user"
        if role == "assistant":
            if not content:
                raise ValueError("empty answer")
            if IMAGE in content:
                raise ValueError(f"{IMAGE} marker in an answer")
        else:
            markers += content.count(IMAGE)
        messages.append({"role": role, "content": content})
        said.append(_said(role, content))
    if due == "assistant":
        raise ValueError("turns do not alternate user, assistant")
    if not messages or messages[-1]["role"] == "system":
        raise ValueError("no turns")
    return Turns("".join(said), markers, messages)


def plain_turns(column) -> tuple[list[Turns | None], object]:
    """(Turns of each row that needs no closer look, None for the others; the array of all turns, which the Turns' places mean).

    Plain are the turns of user, assistant, user, assistant and so on, of which every answer says something and shows no picture: the
    simplest of what `_checked` passes, told by column in a tenth of its time. No row is refused here: one that is not plain, be it for
    a fault or for a system prompt, is `_checked`'s to judge. A column that is no list of turns with text has no plain rows.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    names = kind.value_type.names if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type) else []
    role, content = ("from" if "from" in names else "role"), ("value" if "value" in names else "content")
    if not all(name in names and pa.types.is_string(kind.value_type.field(name).type) for name in (role, content)):
        return [None] * len(column), None
    flat = column.flatten()
    role, content = pc.struct_field(flat, role), pc.struct_field(flat, content)
    user, answer = (pc.is_in(role, pa.array([name for name in ROLES if ROLES[name] == one])) for one in ("user", "assistant"))
    content = pc.if_else(answer, pc.utf8_trim_whitespace(content), content)  # trims what str.strip does
    length, markers = (pc.fill_null(count, 0) for count in (pc.utf8_length(content), pc.count_substring(content, IMAGE)))
    role = pc.if_else(user, "user", "assistant")
    said = pc.binary_join_element_wise(role, pc.cast(length, pa.string()), content, " ")

    lengths = pc.fill_null(column.value_lengths(), 0).to_numpy()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    place = np.arange(len(flat)) - np.repeat(starts, lengths)
    user, answer, length, markers = (some.to_numpy(zero_copy_only=False) for some in (user, answer, length, markers))
    plain = np.where(place % 2, answer & (length > 0) & (markers == 0), user) & content.is_valid().to_numpy(zero_copy_only=False)
    counted, passed = (np.concatenate([[0], np.cumsum(some)]) for some in (markers, plain))
    good = (passed[ends] - passed[starts] == lengths) & (lengths > 0) & (lengths % 2 == 0)

    _, bounds, body = said.buffers()
    bounds, body = np.frombuffer(bounds, np.int32)[said.offset :], memoryview(body or b"").cast("B")
    numbers = (some.tolist() for some in (good, bounds[starts], bounds[ends], counted[ends] - counted[starts], starts, ends))
    found = [Turns(body[a:b], n, range(start, end)) if ok else None for ok, a, b, n, start, end in zip(*numbers)]
    return found, pa.StructArray.from_arrays([role, content], fields=list(schema().field("messages").type.value_type))


def _turn(turn, shown: list) -> tuple[str, str]:
    """(role, content) of a turn; pictures among OpenAI's parts are added to `shown` where they stand."""
    if not isinstance(turn, dict):
        raise ValueError("malformed turn")
    role = ROLES.get(turn.get("from", turn.get("role")))
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list):
        text = ""
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                text += part["text"]
            elif kind in ("image", "image_url"):
                url = part.get("image_url") or part.get("image")
                shown.append(url["url"] if isinstance(url, dict) and "url" in url else url)
                text += IMAGE + "\n"
            else:
                raise ValueError("malformed turn")
        content = text
    if role is None or not isinstance(content, str):
        raise ValueError("malformed turn")
    return role, content.strip() if role == "assistant" else content


def _picture(picture, images: Path) -> tuple[ImageRef, bytes | memoryview]:
    """(what is kept, bytes) of a picture given as bytes in a parquet row, or as a path."""
    if isinstance(picture, dict):
        picture = ImageRef(picture.get("path"), picture.get("bytes"))
    if isinstance(picture, ImageRef):
        if picture.data is not None:
            return ImageRef(None, picture.data, picture.at), picture.data
        picture = picture.path
    if not isinstance(picture, str):
        raise ValueError("malformed picture")
    for path in (images / picture, images / Path(picture).name):  # exports of other tools carry their own folders in front of the name
        if path.is_file():
            with path.open("rb") as stream:
                seen = digests.signature(os.fstat(stream.fileno()))
                return ImageRef(str(path.absolute()), None, seen=seen), stream.read()
    raise ValueError("missing picture")


def schema():
    import pyarrow as pa

    picture = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema([("id", pa.string()), ("images", pa.list_(picture)), ("messages", pa.list_(message)), ("digest", pa.binary(32))])


def to_arrow(rows: list[dict], data, said):
    """Normalised rows as one record batch of `schema()`. `data` and `said` are the chunk's arrays of pictures and of turns, or None:
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
        _lists(rows, "messages", _messages([row["messages"] for row in rows], said, messages_type.value_type), messages_type),
        pa.array([row["digest"] for row in rows], pa.binary(32)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=whole)


def _messages(turns: list[list[dict] | range], said, kind):
    """The turns of all rows as one array of `kind`: their places in `said`, and behind it those that are not in it."""
    import pyarrow as pa

    own = [message for some in turns if isinstance(some, list) for message in some]
    if said is not None and not own and sum(map(len, turns)) == len(said):
        return said
    fresh = [pa.array([message[name] for message in own], pa.string()) for name in ("role", "content")]
    fresh = pa.StructArray.from_arrays(fresh, fields=list(kind))
    if said is None:
        return fresh
    behind = itertools.count(len(said))
    places = [at for some in turns for at in (some if isinstance(some, range) else itertools.islice(behind, len(some)))]
    return pa.concat_arrays([said, fresh]).take(pa.array(places, pa.int64()))


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
    sha = hashlib.sha256("".join(_said(message["role"], message["content"]) for message in row["messages"]).encode())
    for picture in row["images"]:
        try:
            _add_picture(sha, picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes())
        except FileNotFoundError:
            return True
    return sha.digest() == row["digest"]

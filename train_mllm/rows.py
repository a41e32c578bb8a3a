"""One row: any common form of a conversation -> the one form, checked; rows -> Arrow, mapped into memory by whoever trains. Torch-free.

Used by `python -m train_mllm.prepare_data`, which counts what does not pass. A row costs 20 us beside the hash of its picture: a
picture that lies in a parquet column is looked at where parquet's reader has put it, and is written from there.
"""

import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

from . import pictures

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Picture(NamedTuple):
    """A picture's absolute path, or its bytes; `at` is its place in the chunk's own array of pictures, None where it is not there."""

    path: str | None
    data: bytes | memoryview | None
    at: int | None = None


def normalise(row: dict, images: Path, decode: bool = False) -> dict:
    """One row in the one form: {"id", "images": [Picture], "messages": [{"role", "content"}], "digest"}, pictures scanned.

    The digest is of what training sees: the turns and each picture's bytes. Raises ValueError with the reason under which the row
    is counted.
    """
    if not isinstance(row, dict):
        raise ValueError("malformed row")
    shown = row.get("images") or row.get("image") or []
    shown = list(shown) if isinstance(shown, (list, tuple)) and not isinstance(shown, Picture) else [shown]
    turns = row.get("conversations") or row.get("messages") or []
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
        said.append(f"{role} {len(content)} {content}")
    if due == "assistant":
        raise ValueError("turns do not alternate user, assistant")
    if not messages or messages[-1]["role"] == "system":
        raise ValueError("no turns")
    if markers != len(shown):
        raise ValueError(f"{IMAGE} markers and pictures do not match")
    try:
        sha = hashlib.sha256("".join(said).encode())
    except UnicodeEncodeError as e:  # half a surrogate pair, which JSON can hold and no text can
        raise ValueError("malformed turn") from e
    kept = []
    for some in shown:
        picture, data = _picture(some, images)
        pictures.check(data, decode)
        sha.update(b" %d " % len(data))
        sha.update(data)
        kept.append(picture)
    return {"id": str(row.get("id", "")), "images": kept, "messages": messages, "digest": sha.digest()}


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


def _picture(picture, images: Path) -> tuple[Picture, bytes | memoryview]:
    """(what is kept, bytes) of a picture given as bytes in a parquet row, or as a path."""
    if isinstance(picture, dict):
        picture = Picture(picture.get("path"), picture.get("bytes"))
    if isinstance(picture, Picture):
        if picture.data is not None:
            return Picture(None, picture.data, picture.at), picture.data
        picture = picture.path
    if not isinstance(picture, str):
        raise ValueError("malformed picture")
    for path in (images / picture, images / Path(picture).name):  # exports of other tools carry their own folders in front of the name
        if path.is_file():
            return Picture(str(path.absolute()), None), path.read_bytes()
    raise ValueError("missing picture")


def schema():
    import pyarrow as pa

    picture = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema([("id", pa.string()), ("images", pa.list_(picture)), ("messages", pa.list_(message)), ("digest", pa.binary(32))])


def to_arrow(rows: list[dict], data):
    """Normalised rows as one record batch of `schema()`. `data` is the chunk's array of pictures, or None: where all rows passed it is
    written as it is, without a copy."""
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
    messages = [message for row in rows for message in row["messages"]]
    said = [pa.array([message[key] for message in messages], pa.string()) for key in ("role", "content")]
    columns = [
        pa.array([row["id"] for row in rows], pa.string()),
        _lists(rows, "images", pa.StructArray.from_arrays([paths, found], fields=list(pictures_type.value_type)), pictures_type),
        _lists(rows, "messages", pa.StructArray.from_arrays(said, fields=list(messages_type.value_type)), messages_type),
        pa.array([row["digest"] for row in rows], pa.binary(32)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=whole)


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
    return pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(f))).read_all() for f in files])

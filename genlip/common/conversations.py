"""The one reader of a conversation, whoever wrote it: a row -> checked turns, and its pictures. Torch-free.

Read are LLaVA's form (`conversations`: from/value), OpenAI's and the hub's (`messages`: role/content, a text or a list of parts) and pairs
({"human": ..., "gpt": ...}). A picture is a path, bytes, a `data:` address, or a struct of bytes and path; it stands where `<image>` does.
Fine-tuning, pretraining and a benchmark of one's own read through here; what does not pass is a ValueError whose text is the reason that
the row is counted under.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from .picture_files import ImageRef

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PICTURE_KEYS = ("image", "image_url", "url", "path", "base64")  # of a part of OpenAI's and the hub's form


class Turns(NamedTuple):
    """A row's turns, checked: what the digest takes of them, their <image> markers, and the turns themselves: a list of {"role",
    "content"}, or their places in the chunk's own array of turns."""

    said: bytes | memoryview
    markers: int
    messages: list[dict] | range


def read_row(row: Any) -> tuple[Turns, list]:
    """(a row's turns, its pictures as given, one for each `<image>` marker). ValueError with the reason.

    A part of a message may bring its own picture; a marker without one takes the next of the row's `images` (or `image`).
    """
    if not isinstance(row, dict):
        raise ValueError("malformed row")
    shown = row.get("images") or row.get("image") or []
    shown = list(shown) if isinstance(shown, (list, tuple)) and not isinstance(shown, ImageRef) else [shown]
    turns = row.get("conversations") or row.get("messages") or []
    if isinstance(turns, Turns):
        if turns.markers != len(shown):
            raise ValueError(f"{IMAGE} markers and pictures do not match")
        return turns, shown
    turns, own = read_turns(turns)
    if own.count(None) != len(shown):
        raise ValueError(f"{IMAGE} markers and pictures do not match")
    left = iter(shown)
    return turns, [next(left) if picture is None else picture for picture in own]


def said(role: str, content: str) -> str:
    """What the digest takes of a turn."""
    return f"{role} {len(content)} {content}"


def read_turns(turns: Any) -> tuple[Turns, list]:
    """(a row's turns, looked at one by one; for each marker the picture that its own part brings, or None). ValueError with the reason."""
    if not isinstance(turns, list):
        raise ValueError("malformed turn")
    messages, own, due = [], [], "user"
    for turn in turns:
        for role, content, pictures in _spoken(turn):
            if role != "system":
                if role != due:
                    raise ValueError("turns do not alternate user, assistant")
                due = "assistant" if role == "user" else "user"
            if role == "assistant":
                if not content:
                    raise ValueError("empty answer")
                if IMAGE in content:
                    raise ValueError(f"{IMAGE} marker in an answer")
            own += pictures
            messages.append({"role": role, "content": content})
    if due == "assistant":
        raise ValueError("turns do not alternate user, assistant")
    if not messages or messages[-1]["role"] == "system":
        raise ValueError("no turns")
    text = "".join(said(message["role"], message["content"]) for message in messages)
    try:
        return Turns(text.encode(), len(own), messages), own
    except UnicodeEncodeError as e:  # half a surrogate pair, which JSON can hold and no text can
        raise ValueError("malformed turn") from e


def _spoken(turn: Any) -> Iterable[tuple[str, str, list]]:
    """(role, content, pictures) of what a turn says: one thing, or a question and its answer where it is a pair."""
    if not isinstance(turn, dict):
        raise ValueError("malformed turn")
    if "from" not in turn and "role" not in turn:
        pair = [(ROLES[name], turn[name]) for name in ("system", "human", "user", "gpt", "assistant") if turn.get(name) is not None]
        if not pair:
            raise ValueError("malformed turn")
        return [_turn(role, content) for role, content in pair]
    name = turn.get("from", turn.get("role"))
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError("malformed turn")
    return [_turn(role, turn.get("value", turn.get("content")))]


def _turn(role: str, content: Any) -> tuple[str, str, list]:
    """(role, content, for each `<image>` in it the picture that its part brings, or None)."""
    pictures: list = []
    if isinstance(content, list):
        pieces = []
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                pieces.append(part["text"])
                pictures += [None] * part["text"].count(IMAGE)
            elif kind in ("image", "image_url"):
                pieces.append(IMAGE + "\n" * (i + 1 < len(content)))  # a line of its own, as at evaluation
                pictures.append(next((part[key] for key in PICTURE_KEYS if part.get(key) is not None), None))
            else:
                raise ValueError("malformed turn")
        content = "".join(pieces)
    elif isinstance(content, str):
        pictures = [None] * content.count(IMAGE)
    else:
        raise ValueError("malformed turn")
    return role, content.strip() if role == "assistant" else content, pictures

"""A picture as a row of conversations gives it -> its bytes: a path, bytes, a `data:` address, or a struct of bytes and path. Torch-free.

What cannot be had is a ValueError whose text is the reason that the row is counted under.
"""

import base64
import os
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from . import digests


class ImageRef(NamedTuple):
    """A picture's absolute path, or its bytes; `at` is its place in the chunk's own array of pictures, None where it is not there.
    `seen` is the signature that the file had when it was read."""

    path: str | None
    data: bytes | memoryview | None
    at: int | None = None
    seen: digests.Signature | None = None


def read_picture(picture: Any, images: Path) -> tuple[ImageRef, bytes | memoryview]:
    """(what is kept, bytes) of a picture given as bytes, as a `data:` address, or as a path.

    ValueError with the reason.
    """
    if isinstance(picture, dict):
        url = picture.get("url")
        picture = ImageRef(picture.get("path"), picture.get("bytes")) if url is None else url
    if isinstance(picture, bytes):
        picture = ImageRef(None, picture)
    if isinstance(picture, ImageRef):
        if isinstance(picture.data, (bytes, memoryview)):
            return ImageRef(None, picture.data, picture.at), picture.data
        picture = picture.path
    if not isinstance(picture, str):
        raise ValueError("malformed picture")
    if picture.startswith("data:"):
        data = _of_data_address(picture)
        return ImageRef(None, data), data
    if picture.startswith(("http://", "https://")):
        raise ValueError("picture is a web address")
    try:
        path = find_picture(picture, images)
        with path.open("rb") as stream:
            seen = digests.signature(os.fstat(stream.fileno()))
            return ImageRef(str(path.absolute()), None, seen=seen), stream.read()
    except FileNotFoundError as e:
        raise ValueError("missing picture") from e
    except OSError as e:
        raise ValueError("unreadable picture file") from e


def find_picture(name: str, images: Path) -> Path:
    """The file that a path means: as seen from `images`, or from where the path itself names that folder on (`x/images/1.jpg` in
    `images/`), as other tools export it. Never by its last part alone, which would be some other picture of that name.

    FileNotFoundError where there is none.
    """
    if _is_file(path := images / name):
        return path
    parts, folder = PurePosixPath(name).parts, images.absolute().name
    if folder in parts[:-1] and _is_file(path := images.joinpath(*parts[parts.index(folder) + 1 :])):
        return path
    raise FileNotFoundError(name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for a file, or no text at all
        return False


def _of_data_address(address: str) -> bytes:
    head, _, body = address.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("malformed picture")
        return base64.b64decode(body, validate=True)
    except ValueError as e:
        raise ValueError("malformed picture") from e

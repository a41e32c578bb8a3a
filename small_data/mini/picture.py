"""A scene as the bytes of a picture file, and its pixels' digest."""

from functools import lru_cache
from hashlib import sha256
from io import BytesIO

from small_data.mini.scene import Scene, paint


@lru_cache(maxsize=1)  # several rows about one picture are made in a row
def _encoded(scene: Scene) -> tuple[bytes, str]:
    file = BytesIO()
    paint(scene).save(file, "JPEG", quality=92, subsampling=0)  # full color resolution: thin colored letters stay legible
    return file.getvalue(), decoded(file.getvalue())


def encode(scene: Scene) -> dict:
    """The picture in the hub's form of an image column, JPEG bytes."""
    return {"bytes": _encoded(scene)[0], "path": None}


def pixels(scene: Scene) -> str:
    """Digest of the pixels that a reader of the file gets."""
    return _encoded(scene)[1]


def decoded(jpeg: bytes) -> str:
    """Digest of a file's pixels: two files are the same picture exactly if these are equal."""
    from PIL import Image

    image = Image.open(BytesIO(jpeg)).convert("RGB")
    return sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:24]

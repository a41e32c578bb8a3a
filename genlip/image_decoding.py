"""Bytes -> RGB: the one way in which a file becomes a picture, in pretraining, fine-tuning and evaluation alike.

    read_picture(data)      # bytes or a path -> RgbPicture(image, mode): RGB, turned as EXIF says; the mode that the file holds
    rgb(image)              # the same rule for a picture that is open already
    picture_size(data)      # (height, width) of what read_picture gives, of most files from their header alone

Equal to Pillow's `convert("RGB")` for every 8-bit mode, and so to lmms-eval and LLaVA-NeXT there: an alpha channel is dropped, an
animation counts as its first frame. 16-bit grey is divided by 256, where Pillow would clip all above 255 to white. Float pixels, whose
range nobody knows, are unreadable. Loads without torch.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

# By name: a file is never handed to a program (Ghostscript, for EPS), nor tried with parsers that no data set of pictures needs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
MAX_PIXELS = 178_956_970  # a larger picture is refused before it is decoded, as Pillow does: a few of them fill a machine's memory
ORIENTATION = ExifTags.Base.Orientation
COMMON_MODES = ("RGB", "L")
# What Pillow's parsers raise of bytes that are no picture, or not a whole one.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, OverflowError, struct.error, zlib.error)


class RgbPicture(NamedTuple):
    image: Image.Image  # RGB, upright
    mode: str  # Pillow's name for what the file holds


def read_picture(source: bytes | memoryview | str | Path) -> RgbPicture:
    """A picture's bytes, or its file. Raises ValueError with the reason under which it is counted, OSError of a file that is not there."""
    data = Path(source).read_bytes() if isinstance(source, (str, Path)) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bound on pixels (ours is below), and transparency that is dropped
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{picture.width} x {picture.height}")
            picture.load()
            mode = picture.mode
            image = picture if mode == "F" else rgb(picture)
    except Image.DecompressionBombError as e:
        raise ValueError("too many pixels") from e
    except BROKEN as e:
        raise ValueError("undecodable picture") from e
    if mode == "F":
        raise ValueError("float pixels of unknown range")
    return RgbPicture(image, mode)


def picture_size(source: bytes | memoryview | str | Path) -> tuple[int, int]:
    """(height, width), upright. A JPEG says all of it in front of its pixels; others are decoded. Raises as `read_picture` does."""
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as stream:
            if stream.read(2) == b"\xff\xd8":
                return _jpeg_size(stream)
    elif bytes(source[:2]) == b"\xff\xd8":
        return _jpeg_size(io.BytesIO(source))
    image = read_picture(source).image
    return image.height, image.width


def _jpeg_size(stream: BinaryIO) -> tuple[int, int]:
    stream.seek(0)
    try:
        picture = Image.open(stream, formats=("JPEG",))
        return upright_size(picture)
    except BROKEN as e:
        raise ValueError("undecodable picture") from e


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as seen, after the turn that EXIF asks for."""
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) >= 5 else (height, width)


def rgb(image: Image.Image) -> Image.Image:
    """Any open picture as RGB, turned as its EXIF tag says. Raises ValueError for float pixels, whose range nobody knows."""
    if image.getexif().get(ORIENTATION, 1) != 1:  # Pillow's own function copies every other picture too
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("float pixels of unknown range")
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65_535) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def unusual(mode: str) -> str | None:
    """What a ledger counts of a picture that is used and is not plainly 8-bit RGB or grey; None for one that is."""
    return None if mode in COMMON_MODES else f"picture of mode {mode}"

"""Bytes to RGB: equal to Pillow's own conversion for every 8-bit mode, and what is read otherwise, or not at all."""

import io
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from genlip import image_decoding
from genlip.image_decoding import read_picture, rgb, unusual


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8), "RGBA")
EIGHT_BIT = [
    ("1", "PNG", {}), ("L", "PNG", {}), ("L", "JPEG", {}), ("LA", "PNG", {}), ("P", "PNG", {}), ("P", "GIF", {}), ("RGB", "JPEG", {}),
    ("RGB", "WEBP", {}), ("RGB", "BMP", {}), ("RGB", "TIFF", {}), ("RGB", "PPM", {}), ("RGBA", "PNG", {}), ("RGBA", "WEBP", {}),
    ("CMYK", "JPEG", {}), ("CMYK", "TIFF", {}), ("YCbCr", "JPEG", {}), ("P", "PNG", {"transparency": 3}), ("L", "PNG", {"transparency": 7}),
    ("RGB", "PNG", {"transparency": (1, 2, 3)}),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "form", "options"), EIGHT_BIT)
def test_every_8_bit_mode_is_pillows_own_conversion(mode, form, options):
    data = encoded(NOISE.convert(mode), form, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Image.open(io.BytesIO(data)).convert("RGB")
    picture = read_picture(data)
    assert np.array_equal(picture.image, expected) and picture.image.mode == "RGB"
    assert unusual(picture.mode) == (None if picture.mode in ("RGB", "L") else f"picture of mode {picture.mode}")


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_a_ramp_and_not_white(form, tmp_path):
    ramp = np.linspace(0, 65_535, 256, dtype=np.uint16).reshape(16, 16)
    data = encoded(Image.fromarray(ramp), form)
    image, mode = read_picture(data)
    assert np.array_equal(np.asarray(image)[..., 0], ramp >> 8) and unusual(mode) == "picture of mode I;16"
    (tmp_path / "ramp").write_bytes(data)
    assert np.array_equal(read_picture(tmp_path / "ramp").image, image)  # a file is its bytes


def test_a_turned_picture_stands_upright():
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(NOISE.convert("RGB"), "JPEG", exif=exif)
    assert read_picture(data).image.size == (20, 30)
    assert np.array_equal(read_picture(data).image, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


def no_pictures() -> dict[str, tuple[bytes, str]]:
    """Kind -> (bytes, why they are no picture)."""
    png, jpeg = encoded(NOISE), encoded(NOISE.convert("RGB"), "JPEG")
    size = (20_000).to_bytes(4, "big") * 2 + png[24:29]
    bomb = png[:16] + size + zlib.crc32(b"IHDR" + size).to_bytes(4, "big") + png[33:]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    kinds = {
        "nothing": b"", "one byte": b"\x89", "a text": b"not found", "a page": b"<html>404</html>", "zeros": bytes(5000),
        "half a png": png[: len(png) // 2], "half a jpeg": jpeg[: len(jpeg) // 2], "a header alone": png[:33],
        "damage in the middle": bytes(flipped), "half a gif": encoded(NOISE.convert("P"), "GIF")[:200],
        "half a webp": encoded(NOISE, "WEBP")[:200], "half a tiff": encoded(NOISE.convert("RGB"), "TIFF")[:300],
        "no colour type": png[:25] + b"\x09" + png[26:], "an svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a pdf": b"%PDF-1.7\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a targa": encoded(NOISE, "TGA"),
    }  # fmt: skip
    found = {kind: (data, "undecodable picture") for kind, data in kinds.items()}
    found["a bomb"] = bomb, "too many pixels"
    found["floats"] = encoded(Image.new("F", (9, 9)), "TIFF"), "float pixels of unknown range"
    return found


@pytest.mark.parametrize("kind", no_pictures())
def test_what_is_no_picture_says_why(kind):
    data, why = no_pictures()[kind]
    with pytest.raises(ValueError, match=f"^{why}$"):
        read_picture(data)


def test_the_bound_is_ours_whatever_pillows_is(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(image_decoding, "MAX_PIXELS", 599)
    with pytest.raises(ValueError, match="too many pixels"):
        read_picture(encoded(NOISE))


def test_an_open_picture_follows_the_same_rule():
    deep = Image.fromarray(np.full((4, 4), 51_200, dtype=np.uint16))
    assert rgb(deep).getpixel((0, 0)) == (200, 200, 200)
    with pytest.raises(ValueError, match="float pixels"):
        rgb(Image.new("F", (4, 4)))

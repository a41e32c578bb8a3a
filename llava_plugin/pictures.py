"""Bytes -> RGB (genlip/image_decoding.py, named here for those who may import no more) -> what an encoder is shown. Loads without torch.

picture = read_picture(data).image
squares(picture, spec)                  # arrays (3, 384, 384) fp32: by the spec's view, normalised as it says

Views (views.py): "square" is the whole picture, squashed, which keeps documents whole; "crop" is what the encoder's own processor shows:
the shorter side to so many pixels and the centre of it, or the whole picture where that processor squashes, too; "anyres" is LLaVA-NeXT's
tiles, the whole picture first.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from genlip.image_decoding import BROKEN as BROKEN
from genlip.image_decoding import FORMATS as FORMATS
from genlip.image_decoding import MAX_PIXELS as MAX_PIXELS
from genlip.image_decoding import picture_size as picture_size
from genlip.image_decoding import read_picture as read_picture
from genlip.image_decoding import rgb as rgb
from genlip.image_decoding import unusual as unusual
from genlip.image_decoding import upright_size as upright_size

from . import views

if TYPE_CHECKING:
    from .encoders import EncoderSpec

RESAMPLE = {each.name.lower(): each for each in Image.Resampling}


def pixels(image: Image.Image, spec: "EncoderSpec", height: int, width: int) -> np.ndarray:
    """Any open picture -> (3, height, width) fp32, resized as a whole. ValueError for float pixels."""
    return _normalised(rgb(image).resize((width, height), RESAMPLE[spec.resample]), spec)


def _normalised(image: Image.Image, spec: "EncoderSpec") -> np.ndarray:
    mean, std = (np.array(value, dtype=np.float32) for value in (spec.mean, spec.std))
    return np.ascontiguousarray(((np.asarray(image) / np.float32(255) - mean) / std).transpose(2, 0, 1))


def squares(image: Image.Image, spec: "EncoderSpec") -> list[np.ndarray]:
    """Any open picture -> arrays (3, R, R) fp32 by the spec's view: one, by anyres several. ValueError for float pixels."""
    side, view = spec.resolution, views.parse(spec.view)
    if view.kind == "anyres":
        return [_normalised(tile, spec) for tile in tiles(rgb(image), view, side)]
    if view.kind == "square" or spec.crop is None:
        return [pixels(image, spec, side, side)]
    assert isinstance(spec.crop, float)  # what is no number was refused with the view
    image = rgb(image)
    shorter = round(side * spec.crop)
    width, height = (int(shorter * each / min(image.size)) for each in image.size)  # the longer one is rounded down
    whole = pixels(image, spec, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return [np.ascontiguousarray(whole[:, top : top + side, left : left + side])]


def tiles(image: Image.Image, view: views.View, side: int) -> list[Image.Image]:
    """An RGB picture's tiles by anyres: the whole resized to one, then those of its grid row by row, with LLaVA-NeXT's bicubic filter
    whatever the encoder's own is."""
    across, down = views.grid_of(view, image.height, image.width, side)
    height, width = views.fitted(image.height, image.width, down * side, across * side)
    room = Image.new("RGB", (across * side, down * side))
    room.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((room.width - width) // 2, (room.height - height) // 2))
    corners = [(column * side, row * side) for row in range(down) for column in range(across)]
    whole = image.resize((side, side), Image.Resampling.BICUBIC)
    return [whole, *(room.crop((left, top, left + side, top + side)) for left, top in corners)]

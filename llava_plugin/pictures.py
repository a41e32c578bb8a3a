"""Bytes -> RGB (genlip/image_decoding.py, named here for those who may import no more) -> what an encoder is shown. Loads without torch.

picture = read_picture(data).image
square(picture, spec)                   # (3, 384, 384) fp32: by the spec's view, normalised as it says

Views: "square" is the whole picture, squashed, which keeps documents whole; "crop" is what the encoder's own processor shows: the shorter
side to so many pixels and the centre of it, or the whole picture where that processor squashes, too.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from genlip.image_decoding import BROKEN as BROKEN
from genlip.image_decoding import FORMATS as FORMATS
from genlip.image_decoding import MAX_PIXELS as MAX_PIXELS
from genlip.image_decoding import ORIENTATION
from genlip.image_decoding import read_picture as read_picture
from genlip.image_decoding import rgb as rgb
from genlip.image_decoding import unusual as unusual

if TYPE_CHECKING:
    from .encoders import EncoderSpec

RESAMPLE = {each.name.lower(): each for each in Image.Resampling}


def pixels(image: Image.Image, spec: "EncoderSpec", height: int, width: int) -> np.ndarray:
    """Any open picture -> (3, height, width) fp32, resized as a whole. ValueError for float pixels."""
    resized = rgb(image).resize((width, height), RESAMPLE[spec.resample])
    mean, std = (np.array(value, dtype=np.float32) for value in (spec.mean, spec.std))
    return np.ascontiguousarray(((np.asarray(resized) / np.float32(255) - mean) / std).transpose(2, 0, 1))


def square(image: Image.Image, spec: "EncoderSpec") -> np.ndarray:
    """Any open picture -> (3, R, R) fp32 by the spec's view. ValueError for float pixels."""
    side = spec.resolution
    if spec.view == "square" or spec.crop is None:
        return pixels(image, spec, side, side)
    assert isinstance(spec.crop, float)  # what is no number was refused with the view
    image = rgb(image)
    shorter = round(side * spec.crop)
    width, height = (int(shorter * each / min(image.size)) for each in image.size)  # the longer one is rounded down
    whole = pixels(image, spec, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(whole[:, top : top + side, left : left + side])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as seen, after the turn that EXIF asks for."""
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) >= 5 else (height, width)

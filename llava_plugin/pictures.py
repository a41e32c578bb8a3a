"""Bytes -> RGB (genlip/image_decoding.py, named here for those who may import no more) -> what an encoder is shown. Loads without torch.

picture = read_picture(data).image
pixels(picture, spec, 384, 384)         # (3, 384, 384) fp32: the whole picture as a square, normalised as the spec says
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from genlip.image_decoding import MAX_PIXELS as MAX_PIXELS
from genlip.image_decoding import ORIENTATION, rgb
from genlip.image_decoding import read_picture as read_picture
from genlip.image_decoding import unusual as unusual

if TYPE_CHECKING:
    from .encoders import EncoderSpec

RESAMPLE = {each.name.lower(): each for each in Image.Resampling}


def pixels(image: Image.Image, spec: "EncoderSpec", height: int, width: int) -> np.ndarray:
    """Any open picture -> (3, height, width) fp32, resized as a whole. ValueError for float pixels."""
    resized = rgb(image).resize((width, height), RESAMPLE[spec.resample])
    mean, std = (np.array(value, dtype=np.float32) for value in (spec.mean, spec.std))
    return np.ascontiguousarray(((np.asarray(resized) / np.float32(255) - mean) / std).transpose(2, 0, 1))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) as seen, after the turn that EXIF asks for."""
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) >= 5 else (height, width)

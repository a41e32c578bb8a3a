"""Pictures to GenLIP's input, at a fixed size or at their own shape, with the values of the released training.

    GenLIPImageProcessor(size=224)(pictures)        # pixel_values (B, 3, 224, 224): stage 1
    GenLIPImageProcessor(size="native")(pictures)   # pixel_values (N, 3, 16, 16), grid_hw (B, 2): stage 2, 16 to 1,024 patches each

RGB by image_decoding.py, plain bilinear resize, mean = std = 0.5; an animation that is open counts as the frame it stands on. Mean, std,
filter and bounds are those of the released training configuration, not the (different) defaults of the released processor class.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from .image_decoding import BROKEN, read_picture, rgb

MAX_ASPECT = 200


def native_size(height: int, width: int, min_pixels: int = 4096, max_pixels: int = 262_144, factor: int = 16) -> tuple[int, int]:
    """The height and width, multiples of `factor`, that a picture of height x width pixels is resized to: the released rule.

    Nearest multiples (half to even); beyond `max_pixels` both sides shrink alike and round down, below `min_pixels` they grow and
    round up. Raises ValueError where one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"{height} x {width} pixels: one side is more than {MAX_ASPECT} times the other; cut the picture into parts")
    rows, columns = round(height / factor), round(width / factor)  # Python rounds half to even
    pixels = rows * columns * factor**2
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """A picture as (height, width, 3) uint8 RGB, turned as its EXIF tag says, resized as a whole."""
    image = rgb(image)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def square(image: Image.Image, size: int) -> np.ndarray:
    """A picture as (size, size, 3) uint8 RGB, turned as its EXIF tag says, resized as a whole."""
    return resized(image, size, size)


class GenLIPImageProcessor(BaseImageProcessor):
    """`processor(images)` -> {"pixel_values": (B, 3, R, R)}; with `size="native"` packed
    {"pixel_values": (N, 3, p, p), "grid_hw": (B, 2)}.

    `size`: pixels a side, a multiple of the patch size, or "native" for each picture's own shape
    within `min_pixels` and `max_pixels`.
    """

    model_input_names = ["pixel_values", "grid_hw"]  # noqa: RUF012 (transformers' own convention)

    def __init__(
        self,
        size: int | str = 224,
        min_pixels: int = 4096,
        max_pixels: int = 262_144,
        image_mean: float | Sequence[float] = 0.5,
        image_std: float | Sequence[float] = 0.5,
        patch_size: int = 16,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size, self.min_pixels, self.max_pixels, self.patch_size = size, min_pixels, max_pixels, patch_size
        self.image_mean, self.image_std = image_mean, image_std
        self._check_size(size)
        for name, values, least in (("image_mean", image_mean, -math.inf), ("image_std", image_std, 0)):
            if not all(least < value < math.inf for value in np.asarray(values, float).flat):  # nan too
                wanted = "finite numbers above 0" if least == 0 else "finite numbers"
                raise ValueError(f"{name} {values!r} (as given, or of preprocessor_config.json): it takes {wanted}")

    def _check_size(self, size: int | str) -> None:
        if size != "native" and (not isinstance(size, int) or size < self.patch_size or size % self.patch_size):
            raise ValueError(f"size {size!r} is neither a multiple of the patch size {self.patch_size} nor 'native'")

    def preprocess(self, images, size: int | str | None = None, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """`images`: a picture or a list of them: PIL, file path, or uint8 array (H, W), (H, W, 3 or 4). `size` overrides the own one.

        Raises ValueError, with the file's name or the picture's number, for what cannot be decoded or has no usable shape.
        """
        size = size or self.size
        self._check_size(size)
        images = images if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise ValueError("no pictures were given")
        arrays = [self._array(image, i, size) for i, image in enumerate(images)]
        if size != "native":
            return BatchFeature({"pixel_values": self.normalise(np.stack(arrays))}, tensor_type=return_tensors)
        p = self.patch_size
        grids = [(len(array) // p, array.shape[1] // p) for array in arrays]
        patches = [a.reshape(r, p, c, p, 3).swapaxes(1, 2).reshape(-1, p, p, 3) for a, (r, c) in zip(arrays, grids)]
        data = {"pixel_values": self.normalise(np.concatenate(patches)), "grid_hw": torch.tensor(grids)}
        return BatchFeature(data, tensor_type=return_tensors)

    def _array(self, image, number: int, size: int | str) -> np.ndarray:
        """One picture as a resized (H, W, 3) uint8 array."""
        name = image if isinstance(image, (str, Path)) else getattr(image, "filename", "") or f"picture {number}"
        try:
            if isinstance(image, (str, Path)):
                return self._array_of(read_picture(image).image, size)
            if isinstance(image, np.ndarray):
                if image.dtype != np.uint8:
                    raise ValueError(f"an array of {image.dtype}: give uint8, 0 to 255")
                image = Image.fromarray(image)
            if not isinstance(image, Image.Image):
                raise ValueError(f"a {type(image).__name__}: give a PIL picture, a file path or a uint8 array")
            return self._array_of(image, size)
        except (*BROKEN, Image.DecompressionBombError) as e:
            raise ValueError(f"{name} is not a picture that can be used: {e}") from e

    def _array_of(self, image: Image.Image, size: int | str) -> np.ndarray:
        if size != "native":
            return square(image, size)
        image = rgb(image)
        return resized(image, *native_size(image.height, image.width, self.min_pixels, self.max_pixels, self.patch_size))

    def normalise(self, arrays: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) fp32."""
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255.0
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (self.image_mean, self.image_std))
        return (pixels - mean) / std


class GenLIPProcessor(ProcessorMixin):
    """The image processor and a tokenizer (Qwen's, for released models): `processor(images, text)` -> the model's inputs.

    `text`: a prompt for all pictures, or one each; the pretraining's own if None. No beginning token, no chat template, as in
    pretraining. Fixed size: input_ids (B, L) beside (B, 3, R, R), ready for `generate`. Native aspect: packed input_ids (1, T),
    text_lens (B,), patches and grid_hw.
    """

    def __init__(self, image_processor=None, tokenizer=None, prompt: str = "Describe the image in detail.", chat_template=None):
        self.prompt = prompt
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text: str | list[str] | None = None, size: int | str | None = None, **kwargs) -> BatchFeature:
        """Raises ValueError where texts and pictures differ in number, or texts in length at a fixed size (rows have no padding)."""
        images = images if isinstance(images, (list, tuple)) else [images]
        text = self.prompt if text is None else text
        texts = [text] * len(images) if isinstance(text, str) else list(text)
        if len(texts) != len(images):
            raise ValueError(f"{len(texts)} texts for {len(images)} pictures: give one text, or one for each picture")
        inputs = self.image_processor.preprocess(images, size=size)
        ids = self.tokenizer(texts, add_special_tokens=False).input_ids
        if "grid_hw" in inputs:
            words = {
                "input_ids": torch.tensor([[word for words in ids for word in words]]),
                "text_lens": torch.tensor([len(i) for i in ids]),
            }
        elif len({len(i) for i in ids}) > 1:
            raise ValueError(
                "the texts differ in length, and rows have no padding: group pictures by text, or use size='native' to pack them"
            )
        else:
            words = {"input_ids": torch.tensor(ids)}
        return BatchFeature(words | dict(inputs))

"""Pictures to GenLIP's input at a fixed size: RGB, plain bilinear resize to the square, mean = std = 0.5.

These are the values of the released training, not the (different) defaults of the released processor class.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


def square(image: Image.Image, size: int) -> np.ndarray:
    """A picture as (size, size, 3) uint8 RGB, turned as its EXIF tag says, resized as a whole."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


class GenLIPImageProcessor(BaseImageProcessor):
    """`processor(images) -> {"pixel_values": (B, 3, H, W)}`, H = W = `size`, a multiple of 16."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own convention)

    def __init__(self, size: int = 224, image_mean: float = 0.5, image_std: float = 0.5, patch_size: int = 16, **kwargs):
        super().__init__(**kwargs)
        if size % patch_size:
            raise ValueError(f"size {size} is not a multiple of the patch size {patch_size}")
        self.size, self.image_mean, self.image_std, self.patch_size = size, image_mean, image_std, patch_size

    def preprocess(self, images, size: int | None = None, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """`images`: a PIL picture or a list of them; `size` overrides the processor's own (pixels a side)."""
        size = size or self.size
        images = images if isinstance(images, (list, tuple)) else [images]
        pixels = self.normalise(np.stack([square(image, size) for image in images]))
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def normalise(self, squares: np.ndarray) -> torch.Tensor:
        """(B, R, R, 3) uint8 -> (B, 3, R, R) fp32."""
        pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255.0
        return (pixels - self.image_mean) / self.image_std

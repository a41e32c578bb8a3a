"""Shapes of an encoder outside the table, from one forward of its class without weights (on the meta device)."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from genlip.common import model_folder
from llava_plugin import register

from .families import family_of


class EncoderShapes(NamedTuple):
    grid: int  # patches along a side
    prefix_tokens: int
    width: int
    parameters: int


def measure_shapes(source: str, resolution: int) -> EncoderShapes:
    """Of an encoder of any family, by one forward of its class without weights.

    Raises ValueError where the output is no square grid of features, with nothing but prefix tokens before it.
    """
    register()
    with model_folder.building(Path(source, "config.json")), torch.device("meta"):
        config = AutoConfig.from_pretrained(source)
        config = getattr(config, "vision_config", config)
        encoder = build(config)
    with torch.device("meta"):
        family = family_of(config.model_type)
        try:
            out = family.features[family.feature](encoder.eval(), torch.zeros(1, 3, resolution, resolution))
        except (ValueError, RuntimeError, TypeError) as e:
            raise ValueError(
                f"{source}: its class {type(encoder).__name__} does not take {resolution} x {resolution} pixels alone: {e}"
            ) from e
    if out.ndim == 4:
        if out.shape[2] != out.shape[3]:
            raise ValueError(f"{source} gives features of shape {tuple(out.shape)}: channels behind the grid are not understood here")
        return EncoderShapes(out.shape[2], 0, out.shape[1], encoder.num_parameters())
    patch = getattr(config, "patch_size", None)
    prefix = out.shape[1] - math.isqrt(out.shape[1]) ** 2  # also of a class that joins patches on the way, as Swin does
    if family.prefix_of:
        prefix = family.prefix_of(encoder)
    elif isinstance(patch, int) and (resolution // patch) ** 2 <= out.shape[1]:
        prefix = out.shape[1] - (resolution // patch) ** 2
    grid = math.isqrt(out.shape[1] - prefix) if 0 <= prefix < out.shape[1] else 0
    if grid == 0 or grid**2 + prefix != out.shape[1]:
        raise ValueError(f"{source} gives {out.shape[1]} tokens at {resolution} pixels, which is no square grid behind prefix tokens")
    return EncoderShapes(grid, prefix, out.shape[2], encoder.num_parameters())


def count_parameters(source: str) -> int:
    """Of the vision model in a folder or at a hub id, from its config.json alone."""
    register()
    with model_folder.building(Path(source, "config.json")), torch.device("meta"):
        config = AutoConfig.from_pretrained(source)
        return build(getattr(config, "vision_config", config)).num_parameters()


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """The family's class without weights; ValueError where what it needs cannot be imported."""
    try:
        return AutoModel.from_config(config)
    except (ImportError, RuntimeError) as e:  # a torchvision that does not fit the torch raises RuntimeError at import
        raise ValueError(f"{config.model_type} cannot be built here: {e}; timm needs a torchvision that fits this torch") from e

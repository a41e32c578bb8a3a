"""The projectors between a tower and a language model: the one table that recipes, plans and models read. Torch-free until one is built.

A new one is an entry of PROJECTORS: its name is then a choice of --projector, counted by --dry-run, built, saved and loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Projector:
    """`make` gets a LlavaConfig and returns the torch module."""

    joined: int  # visual tokens that become one
    layers: int  # linear maps: one, or two with a GELU between
    make: Callable[[Any], Any]

    def parameters(self, width: int, text_width: int) -> int:
        """Weights and biases, from a tower's width to a language model's."""
        first = self.joined * width * text_width + text_width
        return first + (self.layers - 1) * (text_width * text_width + text_width)


def _mlp2x_gelu(config: Any) -> Any:
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    return LlavaMultiModalProjector(config)


def _linear(config: Any) -> Any:
    import torch

    return torch.nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)


def _pixel_shuffle(config: Any) -> Any:
    from .pixel_shuffle import PixelShuffleProjector

    return PixelShuffleProjector(config.vision_config.hidden_size, config.text_config.hidden_size)


PROJECTORS = {
    "mlp2x_gelu": Projector(1, 2, _mlp2x_gelu),  # LLaVA's, the paper's
    "linear": Projector(1, 1, _linear),
    "pixel_shuffle": Projector(4, 2, _pixel_shuffle),
}

"""The body of an MLLM that sees pictures in tiles: transformers' LLaVA, whose features are laid out by LLaVA-NeXT's rule (views.py).

Shapes: B pictures, T tiles of all of them, N = G x G tokens of a tile behind the projector, W width of the language model.
"""

import math

import torch
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaModel

from . import views


class AnyresLlavaModel(LlavaModel):
    """`pixel_values` (T, 3, R, R) with `image_sizes` (B, 2), height and width of the pictures in pixels."""

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        self.image_newline = torch.nn.Parameter(torch.empty(config.text_config.hidden_size))

    def get_image_features(self, pixel_values, image_sizes, **kwargs):
        """As transformers' own; `pooler_output` is a list of B tensors (tokens, W)."""
        out = super().get_image_features(pixel_values, **kwargs)
        view, tile, sizes = views.parse(self.vision_tower.spec.view), self.vision_tower.spec.resolution, image_sizes.tolist()
        tiles = torch.stack(list(out.pooler_output))
        counts = [1 + math.prod(views.grid_of(view, height, width, tile)) for height, width in sizes]
        out.pooler_output = [
            laid_out(some, height, width, tile, view, self.image_newline) for some, (height, width) in zip(tiles.split(counts), sizes)
        ]
        return out


def laid_out(tiles: torch.Tensor, height: int, width: int, tile: int, view: views.View, newline: torch.Tensor) -> torch.Tensor:
    """One picture's tiles (1 + tiles of its grid, N, W), the whole first -> (tokens, W): the whole, then the map row by row."""
    side, (across, down) = math.isqrt(tiles.shape[1]), views.grid_of(view, height, width, tile)
    rows, columns = views.unpadded(height, width, down * side, across * side)
    grid = tiles[1:].view(down, across, side, side, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)[:, rows, columns]
    shape = views.shrunk(view, grid.shape[1], grid.shape[2], side)
    if shape != grid.shape[1:]:
        grid = torch.nn.functional.interpolate(grid[None], shape, mode="bilinear")[0]
    lines = torch.cat([grid, newline.to(grid.dtype)[:, None, None].expand(-1, shape[0], 1)], dim=2)
    return torch.cat([tiles[0], lines.flatten(1).T])

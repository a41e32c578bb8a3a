"""The projector that joins 2 x 2 visual tokens to one. Shapes: B pictures, N tokens of a square grid, D tower width, W text width."""

import torch


class PixelShuffleProjector(torch.nn.Module):
    """(B, N, D) -> (B, N/4, W): each 2 x 2 square of tokens becomes one of width 4D, then two linear maps with a GELU between."""

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.linear_1 = torch.nn.Linear(4 * width, text_width)
        self.act = torch.nn.GELU()
        self.linear_2 = torch.nn.Linear(text_width, text_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        b, n, d = features.shape
        half = int(n**0.5) // 2
        squares = features.view(b, half, 2, half, 2, d).transpose(2, 3).reshape(b, half * half, 4 * d)
        return self.linear_2(self.act(self.linear_1(squares)))

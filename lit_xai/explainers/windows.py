"""Square windows that slide over an image, and what their values make of its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.errors import UsageError


@dataclass(frozen=True)
class Windows:
    """K x K windows on a grid: the top and left edges of all of them, row by row.

    With `cover`, a last row and column is set flush with the edge where the stride does not end there, so that every
    pixel lies in a window unless the stride exceeds K; without, there are (side - K) // stride + 1 along a side.

    Raises:
        UsageError: the window is larger than the image, or the stride is not positive.
    """

    height: int
    width: int
    patch: int
    stride: int
    cover: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.patch <= min(self.height, self.width):
            raise UsageError(
                f"patch={self.patch} does not fit images of {self.height} x {self.width} pixels: "
                f"choose 1..{min(self.height, self.width)}"
            )
        if self.stride < 1:
            raise UsageError(f"stride must be at least 1 pixel, found {self.stride}")

    def along(self, side: int) -> list[int]:
        """Where windows begin along one side."""
        starts = list(range(0, side - self.patch + 1, self.stride))
        return [*starts, side - self.patch] if self.cover and starts[-1] < side - self.patch else starts

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return len(self.along(self.height)), len(self.along(self.width))

    def corners(self, device: torch.device | None = None) -> tuple[Int[Tensor, "windows"], Int[Tensor, "windows"]]:
        """Top and left pixel of every window."""
        top, left = (torch.tensor(self.along(side), device=device) for side in (self.height, self.width))
        return top.repeat_interleave(len(left)), left.repeat(len(top))

    def __len__(self) -> int:
        return math.prod(self.grid)

    def covering_mean(self, values: Float[Tensor, "b windows"]) -> Float[Tensor, "b h w"]:
        """Every pixel the mean over the windows that cover it (0 where none does)."""
        top, left = self.corners(values.device)
        both = torch.cat([values.double(), torch.ones_like(values[:1], dtype=torch.float64)])
        change = both.new_zeros(len(both), (self.height + 1) * (self.width + 1))
        for down, sign in ((0, 1.0), (self.patch, -1.0)):
            for right, other in ((0, 1.0), (self.patch, -1.0)):
                change.index_add_(1, (top + down) * (self.width + 1) + left + right, both * (sign * other))
        total = change.view(len(both), self.height + 1, self.width + 1).cumsum(1).cumsum(2)[:, :-1, :-1]
        return torch.where(total[-1:] > 0.5, total[:-1] / total[-1:], 0.0)

    def upsampled(self, values: Float[Tensor, "b windows"]) -> Float[Tensor, "b h w"]:
        """The grid of values enlarged bilinearly to the image."""
        grid = values.view(len(values), 1, *self.grid)
        return F.interpolate(grid, size=(self.height, self.width), mode="bilinear", align_corners=False)[:, 0]

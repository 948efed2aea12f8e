"""RISE: random smooth masks, weighted by the model's output (Petsiuk et al., 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, autocast, evaluating, gated, in_format_of, select_output, walk
from lit_xai.core import RANGE, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.rng import Noise, SampleRng


@dataclass(frozen=True)
class RISE(Explainer):
    """phi = 1 / (p n) sum_i f_c(x * m_i) m_i, with E[m] = p at every pixel.

    A mask is a `grid x grid` Bernoulli(p) pattern, enlarged bilinearly by the cell size and cropped at a random shift.

    Args:
        masks: masks an image (4000 for ImageNet in the paper).
        grid: cells along a side.
        keep: probability p that a cell stays visible, in (0, 1).
        output: `logit`, or `probability` as in the authors' code.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most images per model call.
    """

    count = "masks"
    masks: int = 1000
    grid: int = 7
    keep: float = 0.5
    output: str = "logit"
    precision: str = "float32"
    max_batch: Size = AUTO

    @property
    def legend(self) -> Legend:
        """The mean output under the masks that keep a pixel is near the mean under all masks: 0 means nothing."""
        return Legend(RANGE, f"red = higher {self.output} of {{label}} when the pixel is kept, yellow = lower")

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a mask."""
        return Passes(self.masks)

    def patterns(
        self, noise: Noise, height: int, width: int
    ) -> tuple[Bool[Tensor, "r g g"], Int[Tensor, "r"], Int[Tensor, "r"]]:
        """The cells of masks, a key each, and their two shifts in pixels."""
        drawn = noise.uniform((self.grid**2 + 2,))
        top, left = (
            (drawn[:, c] * math.ceil(side / self.grid)).long() for c, side in enumerate((height, width), start=-2)
        )
        return (drawn[:, :-2] < self.keep).view(-1, self.grid, self.grid), top, left

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        if self.masks < 1 or self.grid < 1 or not 0 < self.keep < 1:
            raise UsageError(f"RISE needs masks >= 1, grid >= 1 and keep in (0, 1), found {self}")
        rng = SampleRng.default(len(images), rng)
        height, width = images.shape[-2:]
        noise = rng.noise("rise", images.device)
        rows_at = enlargement(self.grid, height).to(images)
        columns_at = enlargement(self.grid, width).to(images)
        span_h, span_w = (torch.arange(side, device=images.device) for side in (height, width))
        total = images.new_zeros(len(images), height, width)

        def ask(chunk: Chunk) -> None:
            b = chunk.image
            # a crop of the enlarged pattern = the pattern between two cropped interpolation matrices
            pattern, top, left = self.patterns(noise[b].part(chunk.variant), height, width)
            up = rows_at[top[:, None] + span_h] @ pattern.to(images.dtype)
            mask = up @ columns_at[left[:, None] + span_w].mT
            with autocast(images, self.precision):
                logits = model(in_format_of(images[b] * mask[:, None], images))
            weight = select_output(logits.to(images.dtype), targets[b], self.output)
            total.index_add_(0, b, mask * weight[:, None, None])

        with torch.inference_mode(), evaluating(model):
            walk(model, images, self.masks, self.max_batch, ask)
        return total / (self.keep * self.masks)


def enlargement(grid: int, side: int) -> Float[Tensor, "s g"]:
    """The matrix that enlarges `grid` cells bilinearly to `(grid + 1) * cell` pixels, cell = ceil(side / grid)."""
    size = (grid + 1) * math.ceil(side / grid)
    return F.interpolate(torch.eye(grid)[None], size=size, mode="linear", align_corners=False)[0].T.contiguous()

"""RISE: random smooth masks, weighted by the model's output (Petsiuk et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, autocast, evaluating, gated, in_format_of, select_output, walk
from lit_xai.core import RANGE, Auto, Explainer, Images, Legend, Maps, MaskedSum, Model, Passes, Targets
from lit_xai.errors import UsageError, counted
from lit_xai.rng import Noise, SampleRng
from lit_xai.sequential.confidence import Stopped, cells, until_decided

CAP = 4000  # most masks of `masks=auto`


@dataclass(frozen=True)
class RISE(Explainer):
    """phi = 1 / (p n) sum_i f_c(x * m_i) m_i, with E[m] = p at every pixel.

    A mask is a `grid x grid` Bernoulli(p) pattern, enlarged bilinearly by the cell size and cropped at a random shift.

    Args:
        masks: masks an image (4000 for ImageNet in the paper); `auto` draws until of 65 % of the map's cells (14 a side) it
            is known whether they are among the top 10 %, each at 95 %, valid at every look, at most `CAP`. Its map is
            phi = mean f + Cov(f, m) / p, which has the same expectation and less noise.
        grid: cells along a side.
        keep: probability p that a cell stays visible, in (0, 1).
        output: `logit`, or `probability` as in the authors' code.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most images per model call.
    """

    count = "masks"
    masks: int | Auto = 1000
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
        """One forward pass a mask; with `auto`, at most that."""
        return Passes(self.most)

    @property
    def most(self) -> int:
        """The largest number of masks an image can take."""
        return counted("masks", self.masks, CAP)

    def patterns(
        self, noise: Noise, height: int, width: int
    ) -> tuple[Bool[Tensor, "r g g"], Int[Tensor, "r"], Int[Tensor, "r"]]:
        """The cells of masks, a key each, and their two shifts in pixels."""
        drawn = noise.uniform((self.grid**2 + 2,))
        top, left = (
            (drawn[:, c] * math.ceil(side / self.grid)).long() for c, side in enumerate((height, width), start=-2)
        )
        return (drawn[:, :-2] < self.keep).view(-1, self.grid, self.grid), top, left

    def check(self) -> None:
        """Refuse parameters that draw no masks."""
        if self.most < 1 or self.grid < 1 or not 0 < self.keep < 1:
            raise UsageError(f"RISE needs grid >= 1 and keep in (0, 1), found {self}")

    def masks_of(self, images: Images) -> Callable[[Noise], Float[Tensor, "r h w"]]:
        """What makes masks of these images' size and type, a key each."""
        height, width = images.shape[-2:]
        rows_at = enlargement(self.grid, height).to(images)
        columns_at = enlargement(self.grid, width).to(images)
        span_h, span_w = (torch.arange(side, device=images.device) for side in (height, width))

        def drawn(noise: Noise) -> Float[Tensor, "r h w"]:
            # a crop of the enlarged pattern = the pattern between two cropped interpolation matrices
            pattern, top, left = self.patterns(noise, height, width)
            up = rows_at[top[:, None] + span_h] @ pattern.to(images.dtype)
            return up @ columns_at[left[:, None] + span_w].mT

        return drawn

    def masked_sum(self, images: Images, rng: SampleRng | None = None) -> MaskedSum:
        """Its masks, black fill, and the masks again as weights."""
        self.check()
        if self.masks == "auto" or self.precision != "float32":
            raise UsageError(
                f"certificates need a number of masks and float32, found {self.masks} and {self.precision}"
            )
        noise = SampleRng.default(len(images), rng).noise("rise", images.device).parts(self.most).reshape(-1)
        keep = self.masks_of(images)(noise).view(len(images), self.most, *images.shape[-2:])
        return MaskedSum(keep, torch.zeros_like(images), keep.double() / (self.keep * self.most), self.output)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return self.with_details(model, images, targets, rng)[0]

    @gated
    def with_details(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> tuple[Maps, dict[str, Float[Tensor, "b *cells"]]]:
        """The maps; with `auto` also how many masks each took, the share of its cells that are known, and which are not."""
        self.check()
        rng = SampleRng.default(len(images), rng)
        noise, drawn = rng.noise("rise", images.device), self.masks_of(images)

        def ask(rows: Int[Tensor, "r"], keys: Noise) -> tuple[Float[Tensor, "r h w"], Float[Tensor, "r"]]:
            """Masks, and the outputs behind them."""
            mask = drawn(keys)
            with autocast(images, self.precision):
                logits = model(in_format_of(images[rows] * mask[:, None], images))
            return mask, select_output(logits.to(images.dtype), targets[rows], self.output)

        with torch.inference_mode(), evaluating(model):
            if self.masks == "auto":
                maps, stopped = self.until_decided(model, images, noise, ask)
                return maps, stopped.details("masks", *images.shape[-2:])
            total = images.new_zeros(len(images), *images.shape[-2:])

            def add(chunk: Chunk) -> None:
                mask, weight = ask(chunk.image, noise[chunk.image].part(chunk.variant))
                total.index_add_(0, chunk.image, mask * weight[:, None, None])

            walk(model, images, self.most, self.max_batch, add)
        return total / (self.keep * self.most), {}

    def until_decided(
        self, model: Model, images: Images, noise: Noise, ask: Callable[[Tensor, Noise], tuple[Tensor, Tensor]]
    ) -> tuple[Maps, Stopped]:
        """The maps of as many masks as their top 10 % needs, and what is known of it.

        A pixel's place is that of Cov(f, m). Kept are sums over masks of m - p times 1 and f, and, over pairs of cells, of the products of
        their m - p times 1, f and f^2; f about its first value.
        """
        height, width = images.shape[-2:]
        number = cells(images[:1, 0]).shape[1]
        sums, pairs, scalars = (
            torch.zeros(len(images), *shape, dtype=torch.float64, device=images.device)
            for shape in ((2, height * width), (3, number, number), (2,))  # scalars: the first f, and the sum of f - it
        )

        def draw(active: list[int], start: int, stop: int) -> None:
            rows = torch.tensor(active, device=images.device)

            def add(chunk: Chunk) -> None:
                b = rows[chunk.image]
                masks, outputs = ask(b, noise[b].part(start + chunk.variant))
                more = []  # nothing is added before all is known: a chunk that does not fit is asked again
                for i in chunk.images:
                    image, own = active[i], chunk.rows(i)
                    f, m = outputs[own].double(), masks[own].double() - self.keep
                    first = f[0] if start == 0 and chunk.start <= i * chunk.each else scalars[image, 0]
                    f, places = f - first, cells(m)
                    powers = torch.stack([torch.ones_like(f), f, f * f])
                    found = f.sum(), powers[:2] @ m.flatten(1), (places.mT * powers[:, None]) @ places
                    more.append((image, first, *found))
                for image, first, total, of_pixels, of_pairs in more:
                    scalars[image, 0] = first
                    scalars[image, 1] += total
                    sums[image] += of_pixels
                    pairs[image] += of_pairs

            walk(model, images[rows], stop - start, self.max_batch, add)

        def moments(active: list[int], draws: int) -> tuple[Tensor, Tensor]:
            middle = (scalars[active, 1] / draws)[:, None]
            one, f = (sums[active] / draws).unbind(1)
            mean = cells((f - middle * one).unflatten(1, (height, width)))
            square, f_square, ff_square = (pairs[active] / draws).unbind(1)
            middle = middle[..., None]
            second = ff_square - 2 * middle * f_square + middle**2 * square
            return mean, second - mean[:, :, None] * mean[:, None]

        stopped = until_decided(len(images), draw, moments, CAP)
        draws = stopped.draws.to(images.device)[:, None]
        middle = scalars[:, 1:] / draws
        maps = scalars[:, :1] + middle + (sums[:, 1] - middle * sums[:, 0]) / draws / self.keep
        return maps.view(len(images), height, width).to(images.dtype), stopped


def enlargement(grid: int, side: int) -> Float[Tensor, "s g"]:
    """The matrix that enlarges `grid` cells bilinearly to `(grid + 1) * cell` pixels, cell = ceil(side / grid)."""
    size = (grid + 1) * math.ceil(side / grid)
    return F.interpolate(torch.eye(grid)[None], size=size, mode="linear", align_corners=False)[0].T.contiguous()

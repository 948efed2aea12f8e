"""The map's sum over random subsets of pixels, held against the drops of the output without them: muFidelity."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, admit, evaluate_rows, gated
from lit_xai.core import Filler, Images, Maps, Model, Passes, Scores, Targets
from lit_xai.errors import UsageError
from lit_xai.fillers.constant import Colour
from lit_xai.fitting import describe
from lit_xai.metrics.distance import unit_ranks
from lit_xai.metrics.scored import Hides, check_scored
from lit_xai.rng import Noise, SampleRng

SUMMED = 1 << 22  # pixels of subsets whose sums are taken at once


class Drops(Hides):
    """The map's sum over random subsets S of an image's pixels, held against the drops of the output without S.

    What its heirs hold is said there. The drops do not depend on the map: they are observed once for all explainers.
    """

    count = "subsets"
    stream: ClassVar[str]  # of the noise
    subsets: int
    output: str
    max_batch: Size

    @abstractmethod
    def removed(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "*r h w"]:
        """The subset S of every key, one of an image and a subset's number: True = the pixel is removed."""

    @abstractmethod
    def judged(self, sums: Float[Tensor, "b n"], drops: Float[Tensor, "b n"]) -> Scores:
        """The score, of float64 sums and drops."""

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a subset and one for the image; shared by all explainers of a probe."""
        return Passes(self.subsets + 1)

    def noise(self, rng: SampleRng, device: torch.device | str = "cpu") -> Noise:
        """A key an image; the subsets are its parts."""
        return rng.noise(self.stream, device)

    def sums(self, maps: Maps, noise: Noise) -> Float[Tensor, "b n"]:
        """The map's sum over every subset, in float64."""
        flat, parts = maps.flatten(1).double()[:, :, None], []
        each = max(1, SUMMED // max(1, flat.numel()))  # subsets of every image at once
        for start in range(0, self.subsets, each):
            removed = self.removed(noise.parts(start, min(start + each, self.subsets)), *maps.shape[1:])
            parts.append((removed.flatten(2).double() @ flat)[..., 0])
        return torch.cat(parts, dim=1)

    def observe(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> Float[Tensor, "b n"]:
        """The drops f(x) - f(x without S)."""
        model, images, targets = admit(model, images, targets)
        rng = SampleRng.default(len(images), rng)
        noise, refill = self.noise(rng, images.device), self.refill(images, rng)

        def make(chunk: Chunk) -> Tensor:
            removed = self.removed(noise[chunk.image].part(chunk.variant), *images.shape[-2:])
            return refill(~removed, chunk)

        outputs = evaluate_rows(model, make, images, targets, self.subsets, self.max_batch, self.output)
        whole = evaluate_rows(model, lambda c: images[c.image], images, targets, 1, self.max_batch, self.output)
        return whole - outputs

    @gated
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores:
        check_scored(images, maps)
        rng = SampleRng.default(len(images), rng)
        drops = self.observe(model, images, targets, rng) if observed is None else observed
        return self.judged(self.sums(maps, self.noise(rng, maps.device)), drops.double())


@dataclass(frozen=True)
class MuFidelity(Drops):
    """Correlation, over random subsets S of pixels, of the attribution in S with the drop of the output without S.

    Bhatt et al. (2020), Fel et al. (2022) appendix C. In [-1, 1]; NaN for a map or drops that are constant. Over single pixels
    a smooth map cannot be near 1, however right it is about regions: hence `grid`.

    Args:
        subsets: random subsets an image.
        definition: `default` and `paper` take subsets of exactly |S| pixels and Pearson; `xplique` has that library's
            settings: a 9-grid, cells dropped independently with probability .2, Spearman, undefined counted as 0.
        share: |S| as a share of the image; None = the definition's (.15, or .2).
        grid: side of the grid of cells that subsets are made of, 0 = pixels; None = the definition's (0, or 9).
        correlation: `pearson` or `spearman`; None = the definition's.
        output: `logit` or `probability`.
        filler: what replaces the pixels of S.
        max_batch: most images per model call.
    """

    subsets: int = 200
    definition: str = "default"
    share: float | None = None
    grid: int | None = None
    correlation: str | None = None
    output: str = "logit"
    filler: Filler = field(default_factory=lambda: Colour(0.0))
    max_batch: Size = AUTO
    higher_is_better = True
    stream = "mufidelity"

    def __post_init__(self) -> None:
        if self.definition not in ("default", "paper", "xplique"):
            raise UsageError(f"muFidelity's definition must be default, paper or xplique, found {self.definition!r}")
        share, grid, correlation = (0.2, 9, "spearman") if self.definition == "xplique" else (0.15, 0, "pearson")
        for name, value in (("share", share), ("grid", grid), ("correlation", correlation)):
            if vars(self)[name] is None:
                object.__setattr__(self, name, value)
        if self.correlation not in ("pearson", "spearman"):
            raise UsageError(f"muFidelity's correlation must be pearson or spearman, found {self.correlation!r}")
        if not 0 < self.share < 1 or self.subsets < 3:  # type: ignore[operator]
            raise UsageError(f"muFidelity needs share in (0, 1) and 3 subsets, found {self.share}, {self.subsets}")

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": "Bhatt et al. 2020, def. 3; Fel et al. 2022, appendix C"}

    def removed(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "*r h w"]:
        """The subset S of every key: True = the pixel is removed."""
        assert self.share is not None
        rows, columns = (self.grid, self.grid) if self.grid else (height, width)
        if self.definition == "xplique":
            chosen = noise.uniform((rows * columns,)) <= self.share
        else:
            chosen = noise.subset(rows * columns, max(1, round(self.share * rows * columns)))
        if not self.grid:
            return chosen.unflatten(-1, (height, width))
        cells = chosen.view(-1, 1, rows, columns).float()
        chosen = F.interpolate(cells, size=(height, width), mode="nearest")[:, 0] > 0.5
        return chosen.view(*noise.keys.shape, height, width)

    def judged(self, sums: Float[Tensor, "b n"], drops: Float[Tensor, "b n"]) -> Scores:
        """The correlation of sums and drops."""
        value = correlate(sums, drops, str(self.correlation))
        return torch.nan_to_num(value) if self.definition == "xplique" else value


def correlate(a: Float[Tensor, "b n"], b: Float[Tensor, "b n"], how: str) -> Float[Tensor, "b"]:
    """Row-wise Pearson or Spearman correlation; NaN where a row is constant."""
    if how == "spearman":
        return (unit_ranks(a[:, None]) * unit_ranks(b[:, None])).sum(-1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = a.norm(dim=1) * b.norm(dim=1)
    # rounding leaves a constant row a tiny spread: call it constant
    tiny = 1e-12 * (1 + a.abs().amax(1)) * (1 + b.abs().amax(1))
    return torch.where(size > tiny, (a * b).sum(1) / size, torch.nan)

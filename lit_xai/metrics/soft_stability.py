"""Soft stability: how often does the prediction from a map's top cells survive what is added to them? One number per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Gate, Size, gated, predicted_rows
from lit_xai.core import Auto, Filler, Images, Maps, Model, Passes, Scores, Targets
from lit_xai.errors import UsageError, counted
from lit_xai.fillers.constant import Colour
from lit_xai.fillers.refill import Refill
from lit_xai.fitting import describe
from lit_xai.metrics.scored import Detailed, check_scored
from lit_xai.rng import Noise, SampleRng
from lit_xai.segments import Grid, segment_counts, segment_sums
from lit_xai.sequential.confidence import Bernstein, looks

LEVEL = 0.95
CAP, HALF = 2000, 0.05  # most draws of `auto`, and half of the interval that it wants


@dataclass(frozen=True)
class SoftStability(Detailed):
    """The share of random additions to a map's top cells that leave the predicted class as it is, in [0, 1]: higher is better.

    Features are the cells of a grid. The cells with the largest mean stay, the others are filled: that is alpha; alpha' is drawn uniformly
    from all sets that hold alpha and at most `radius` cells more. The details are `low` and `high`, the exact 95 % interval (Clopper and
    Pearson) of the share over all such sets: a certificate for any network, of sets and not of images. With `auto` they are an
    empirical-Bernstein interval that holds at every look, and `samples` says how many it took. All are NaN where an answer of the model is
    no number.

    Args:
        samples: draws of alpha'; `auto` draws until that interval is at most .05 to either side, at most `CAP`.
        cells: along a side.
        share: of the cells that stay.
        radius: most cells that are added.
        filler: what stands where a cell is hidden.
        max_batch: most images per model call.
    """

    count = "samples"
    samples: int | Auto = 150
    cells: int = 7
    share: float = 0.25
    radius: int = 4
    filler: Filler = field(default_factory=lambda: Colour(0.0))
    max_batch: Size = AUTO
    higher_is_better = True

    def __post_init__(self) -> None:
        number = self.cells**2
        if self.cells < 2 or not 0 < round(self.share * number) < number:
            raise UsageError(f"soft stability needs 2 cells a side, some kept and some not, found {self}")
        counted("samples", self.samples, CAP)
        if not 1 <= self.radius <= number - round(self.share * number):
            raise UsageError(f"soft stability needs a radius of 1 to as many cells as are hidden, found {self}")

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        source = (
            "Jin et al. 2025, Probabilistic Stability Guarantees for Feature Attributions: stability rate, by sampling"
        )
        return {**describe(self), "source": source}

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a draw, with `auto` at most that, and one of the top cells alone."""
        return Passes(self.most + 1)

    @property
    def most(self) -> int:
        """The largest number of draws an image can take."""
        return counted("samples", self.samples, CAP)

    def added(self, keys: Noise, kept: Bool[Tensor, "b d"]) -> Bool[Tensor, "b n d"]:
        """Sets alpha', of keys `[b, n]`: a size with probability as many sets as it has, its members uniform."""
        hidden = int((~kept[0]).sum())
        sizes = torch.arange(self.radius + 1, dtype=torch.float64, device=kept.device)
        whole = torch.tensor(float(hidden), dtype=torch.float64, device=kept.device)
        log = torch.lgamma(whole + 1) - torch.lgamma(sizes + 1) - torch.lgamma(whole - sizes + 1)
        up_to = (log - log.amax()).exp().cumsum(0)
        u = keys.part(0).uniform((1,), torch.float64) * up_to[-1]
        size = torch.searchsorted(up_to, u, right=True).clamp_max(self.radius)
        last = torch.iinfo(torch.long).max
        order = keys.part(1).bits(kept.shape[1]).masked_fill(kept[:, None], last).argsort(2).argsort(2)
        return (order < size) | kept[:, None]

    @gated
    def with_details(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Scores, dict[str, Float[Tensor, "b"]]]:
        """The share, and its interval."""
        check_scored(images, maps)
        rng, gate = SampleRng.default(len(images), rng), Gate.of(model)
        labels = Grid(self.cells)(images)
        size = segment_sums(torch.ones_like(maps), labels).double()
        means, number = segment_sums(maps.double(), labels) / size, int(segment_counts(labels)[0])
        noise = rng.noise("soft_stability", images.device)
        place = noise.part(0).order(number)  # ties of the map are broken at random
        order = place.gather(1, means.gather(1, place).argsort(dim=1, descending=True, stable=True))
        kept = torch.zeros_like(means, dtype=torch.bool).scatter_(1, order[:, : round(self.share * number)], True)
        draws, everyone = noise.part(1), list(range(len(images)))

        def said(active: list[int], sets: Bool[Tensor, "a n d"], start: int) -> Float[Tensor, "a n"]:
            """The predicted class of every set."""
            x, own = images[active], labels[active]
            refill = Refill(self.filler, x, rng.take(active), own)

            def make(chunk: Chunk) -> Tensor:
                shown = sets[chunk.image, chunk.variant].gather(1, own[chunk.image].flatten(1))
                return refill(shown.view(-1, *images.shape[-2:]), chunk, since=start)

            return predicted_rows(gate, make, x, sets.shape[1], self.max_batch).double()

        first = said(everyone, kept[:, None], 0)

        def same(active: list[int], start: int, stop: int) -> Float[Tensor, "a n"]:
            """1 where the predicted class stays, else 0, for draws start..stop-1; NaN where it is no class."""
            found = said(active, self.added(draws[active].parts(start, stop), kept[active]), start + 1)
            return (found == first[active]).double().masked_fill((found + first[active]).isnan(), torch.nan)

        if self.samples == "auto":
            return self.until_known(same, len(images), images.device)
        stays = same(everyone, 0, self.most).sum(1)
        exact = [
            (k, k) if math.isnan(k) else binomtest(round(k), self.most).proportion_ci(LEVEL, method="exact")
            for k in stays.tolist()
        ]
        low, high = (torch.tensor(v, dtype=torch.float64, device=images.device) for v in zip(*exact, strict=True))
        return stays / self.most, {"low": low, "high": high}

    def until_known(
        self, same: Callable[[list[int], int, int], Tensor], number: int, device: torch.device
    ) -> tuple[Scores, dict[str, Float[Tensor, "b"]]]:
        """The shares of as many draws as their intervals need."""
        found = torch.zeros(number, 4, dtype=torch.float64)
        sequences, active = [Bernstein(()) for _ in range(number)], list(range(number))
        for start, stop in looks(CAP):
            for image, stays in zip(active, same(active, start, stop).cpu(), strict=True):
                sequences[image].add(stays)
                low, high = sequences[image].bounds()
                found[image] = torch.stack([sequences[image].sum / stop, low, high, torch.tensor(float(stop))])
                if bool(stays.isnan().any()):
                    found[image, :3] = torch.nan  # it is known by now, and asked no more
            active = [i for i in active if found[i, 2] - found[i, 1] > 2 * HALF]
            if not active:
                break
        share, low, high, samples = found.to(device).unbind(1)
        return share, {"low": low, "high": high, "samples": samples}

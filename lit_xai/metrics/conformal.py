"""What holds for a new image with a stated probability: split conformal prediction (Vovk et al., 2005; Lei et al., 2018).

Of n + 1 exchangeable numbers, the last is at most the k-th smallest of the first n with probability k / (n + 1) where no two
are alike; ties only raise that. With k = ceil((n + 1) * level) it is at least `level` and at most `level + 1 / (n + 1)`, for any
distribution. Given the n numbers, the share of new ones below their k-th smallest is Beta(k, n + 1 - k) (Vovk, 2012).

Here the numbers are of test probes, images that no fold saw: drawn as new images are, while both predictors stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import beta, binom
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.statistics import LEVEL, Estimate

SHARE = 0.95  # of new images that a statement holds for


@dataclass(frozen=True)
class Bound:
    """The k-th smallest of n numbers, which a new one does not exceed with probability `level` or more.

    Attributes:
        value: the bound; infinite where n is too small, or the bound falls on a number that is undefined.
        low, high: 95 % interval for the quantile of all images that it estimates, from order statistics; infinite likewise.
        level: the probability that was asked for.
        rank, samples: k, which is n + 1 where no number will do, and n.
        undefined: how many of the n are undefined, which count as larger than any bound.
    """

    value: float
    low: float
    high: float
    level: float
    rank: int
    samples: int
    undefined: int = 0

    @property
    def coverage(self) -> tuple[float, float, float]:
        """Of new images, the share that the bound holds for: its expectation over the draws of the probes, and the central 95 %
        of its distribution given these (1, 1, 1 of an infinite bound).
        """
        if self.rank > self.samples:
            return 1.0, 1.0, 1.0
        tail, law = (1 - LEVEL) / 2, beta(self.rank, self.samples + 1 - self.rank)
        return self.rank / (self.samples + 1), float(law.ppf(tail)), float(law.ppf(1 - tail))

    @property
    def reason(self) -> str:
        """Why there is no bound; empty if there is one."""
        if math.isfinite(self.value):
            return ""
        if self.rank > self.samples:
            return f"no bound: {self.level:.0%} takes at least {fewest(self.level)} test probes, found {self.samples}"
        return f"no bound: undefined for {self.undefined} of {self.samples} test probes"

    def estimate(self, most: float = math.inf) -> Estimate:
        """The same as a number of a table, NaN where there is no bound; `most` ends an interval that has no end."""
        if not math.isfinite(self.value):
            return Estimate(math.nan, samples=self.samples, dropped=self.undefined, reason=self.reason)
        note = f"undefined for {self.undefined} of {self.samples} test probes" if self.undefined else ""
        high = min(self.high, most)
        low = self.low if math.isfinite(high) else math.nan
        return Estimate(self.value, low, high, samples=self.samples, dropped=self.undefined, reason=note)

    def plain(self) -> dict[str, Any]:
        """JSON-ready; what is infinite becomes null, and `reason` says why."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        numbers = {name: v if math.isfinite(v) else None for name, v in ends.items()}
        mean, low, high = self.coverage
        counts = {"level": self.level, "rank": self.rank, "samples": self.samples, "undefined": self.undefined}
        return {**numbers, **counts, "coverage": {"mean": mean, "low": low, "high": high}, "reason": self.reason}


def bound(numbers: Float[Tensor, "n"], level: float = SHARE) -> Bound:
    """The conformal bound of n exchangeable numbers that are not negative; NaN counts as larger than any.

    Raises:
        UsageError: the level does not lie within (0, 1).
    """
    k, n = rank(len(numbers), level), len(numbers)
    ordered = torch.where(torch.isnan(numbers), math.inf, numbers.double()).sort().values.tolist()
    low, high = around(n, level)
    ends = [ordered[place - 1] if place <= n else math.inf for place in (k, high)]
    return Bound(
        ends[0], ordered[low - 1] if low else 0.0, ends[1], level, min(k, n + 1), n, int(numbers.isnan().sum())
    )


@cache
def rank(samples: int, level: float) -> int:
    """Ceil((n + 1) * level), of the level as it is written: 20 * .95 is 19.

    Raises:
        UsageError: the level does not lie within (0, 1).
    """
    if not 0 < level < 1:
        raise UsageError(f"the probability of a conformal statement must lie within (0, 1), found {level}")
    return math.ceil((samples + 1) * Fraction(str(level)))


def fewest(level: float) -> int:
    """The fewest numbers that give a finite bound: the smallest n with ceil((n + 1) * level) <= n."""
    share = Fraction(str(level))
    return math.ceil(share / (1 - share))


@cache
def around(samples: int, level: float) -> tuple[int, int]:
    """Which order statistics enclose the quantile of all images with 95 % confidence, for any distribution.

    The lower is 0 where none is low enough, the upper n + 1 where none is high enough.
    """
    tail, law = (1 - LEVEL) / 2, binom(samples, level)
    below, above = int(law.ppf(tail)), int(law.isf(tail)) + 1  # P(B < below) < tail, P(B >= above) <= tail
    return max(0, below), min(above, samples + 1)


def kept_from(same: Bool[Tensor, "b t"], shares: Float[Tensor, "t"]) -> Float[Tensor, "b"]:
    """The smallest share from which on a prediction is that of the whole image, and stays it.

    Args:
        same: whether it is at every point of a walk.
        shares: `[t]` the share of the pixels that is visible there, ascending; at the last one all are.
    """
    lost = torch.arange(same.shape[1], device=same.device).expand_as(same).masked_fill(same, -1).amax(1)
    return shares.to(same.device)[(lost + 1).clamp_max(same.shape[1] - 1)]

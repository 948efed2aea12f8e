"""Intervals and paired differences. The unit of resampling is always the sample, never the pair or the map.

Of fewer than `LEAST` samples a value stands alone: an `Estimate` then has no interval, and so nothing that shows one has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95
LEAST = 10  # samples below which there is no interval, and no mark
FEW = f"fewer than {LEAST} probes: no interval, no mark"
CHUNK = 500_000  # elements of one block of resamples: bounds memory


@dataclass
class Estimate:
    """A number with what is needed to read it.

    Attributes:
        value: the estimate; NaN where it is undefined, with `reason`.
        low, high: the 95 % interval; NaN where there is none: below `LEAST` samples, with `reason`.
        se: standard error (bootstrap); NaN like the interval.
        null: the value expected without any signal, where the measure has one of its own.
        samples, pairs, dropped: how many samples and pairs it rests on; pairs dropped for a constant map. 0 = not counted.
        draws: the bootstrap replicates, for paired differences.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    se: float = math.nan
    null: float | None = None
    samples: int = 0
    pairs: int = 0
    dropped: int = 0
    reason: str = ""
    draws: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def __post_init__(self) -> None:
        if self.few and math.isfinite(self.value):
            self.low = self.high = self.se = math.nan
            self.add_reason(FEW)

    def add_reason(self, text: str) -> None:
        """One more thing to say of the number, after what is said already."""
        self.reason = "; ".join(t for t in (self.reason, text) if t)

    @property
    def few(self) -> bool:
        """Whether it rests on too few samples for an interval."""
        return 0 < self.samples < LEAST

    def text(self, digits: int = 3, zeros: bool = False) -> str:
        """`0.580 [.578, .583]`, the value alone where there is no interval, `-` where there is no value.

        `zeros` before the points of the bounds, too.
        """
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{self.value:.{digits}f}"
        low, high = (f"{v:.{digits}f}" for v in (self.low, self.high))
        if not zeros:
            low, high = (re.sub(r"^(-?)0\.", r"\1.", text) for text in (low, high))
        return f"{self.value:.{digits}f} [{low}, {high}]"

    def plain(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        values = {k: v for k, v in self.__dict__.items() if k != "draws"}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def resamples(strata: Int[Tensor, "n"], resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Float[Tensor, "r n"]]:
    """Blocks of bootstrap counts: how often each of n samples was drawn, with replacement within its stratum.

    Scores of one explainer use the same resamples: the last ones are kept, unless they are large.
    """
    rows = max(1, CHUNK // max(1, len(strata)))
    key = (strata.numpy().tobytes(), resamples, seed)
    if key not in KEPT:
        blocks = draw_resamples(strata, resamples, seed, rows)
        if resamples * len(strata) > KEEP:
            yield from map(torch.from_numpy, blocks)
            return
        KEPT.clear()
        kept = [block.astype(np.uint8 if block.max(initial=0) < 256 else np.int64) for block in blocks]
        KEPT[key] = kept
    for block in KEPT[key]:
        yield torch.from_numpy(block.astype(np.float64))


KEEP = 1 << 26  # counts that are kept, a byte each
KEPT: dict[tuple[bytes, int, int], list[np.ndarray]] = {}


def draw_resamples(strata: Int[Tensor, "n"], resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
    """See `resamples`, anew; `rows` of them in a block."""
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.nonzero(strata == s)[:, 0].numpy() for s in strata.unique()]
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        counts = np.zeros((block, len(strata)))
        for members in groups:
            m = len(members)
            drawn = torch.randint(m, (block, m), generator=generator).numpy()
            drawn += np.arange(block)[:, None] * m  # every row has its own bins
            counts[:, members] = np.bincount(drawn.ravel(), minlength=block * m).reshape(block, m)
        yield counts


def quantiles(draws: Tensor) -> tuple[float, float]:
    """The central 95 % of the finite replicates."""
    finite = draws[torch.isfinite(draws)].numpy()
    if len(finite) < 2:
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def percentile_interval(value: float, draws: Tensor) -> tuple[float, float]:
    """The percentile bootstrap interval."""
    return quantiles(draws)


def basic_interval(value: float, draws: Tensor, least: float = 0.0) -> tuple[float, float]:
    """The basic bootstrap interval, 2 * estimate - quantiles, clipped to [least, 1] (for maxima, biased upwards)."""
    low, high = quantiles(draws)
    return min(1.0, max(least, 2 * value - high)), min(1.0, max(least, 2 * value - low))


def finish(
    value: float,
    draws: Tensor,
    interval: Callable[[float, Tensor], tuple[float, float]] = percentile_interval,
    **counts: Any,
) -> Estimate:
    """An estimate from its value and its replicates."""
    finite = draws[torch.isfinite(draws)]
    se = float(finite.std()) if len(finite) > 1 else math.nan
    low, high = interval(value, draws) if math.isfinite(value) else (math.nan, math.nan)
    return Estimate(value, low, high, se, draws=draws, **counts)


def mean_estimate(
    values: Float[Tensor, "n"], seed: int = 0, n_resamples: int = RESAMPLES, reason: str = ""
) -> Estimate:
    """Mean over samples with a percentile bootstrap interval; NaN entries (undefined scores) are left out.

    `reason` is said in place of how many are left out.

    Two calls with the same seed and as many samples use the same resamples, so their draws may be subtracted.
    """
    values = values.double()
    known = torch.isfinite(values)
    if not known.any():
        return Estimate(math.nan, reason="undefined for every sample", dropped=len(values))
    filled = torch.where(known, values, 0.0)
    draws = []
    for counts in resamples(torch.zeros(len(values), dtype=torch.long), n_resamples, seed):
        draws.append((counts @ filled) / (counts @ known.double()))
    dropped = int((~known).sum())
    if dropped and not reason:
        reason = f"undefined for {dropped} of {len(values)} samples"
    return finish(
        float(values[known].mean()), torch.cat(draws), samples=int(known.sum()), dropped=dropped, reason=reason
    )


def share_estimate(correct: Bool[Tensor, "n"], null: float | None = None) -> Estimate:
    """A share of samples (an accuracy) with its Wilson interval; `null` is the share without any skill."""
    n, hits = len(correct), int(correct.sum())
    if n == 0:
        return Estimate(math.nan, reason="no samples")
    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    p = hits / n
    return Estimate(p, float(interval.low), float(interval.high), math.sqrt(p * (1 - p) / n), null, samples=n)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """A - b on the same samples, from replicates drawn with the same resamples."""
    if math.isnan(a.value) or math.isnan(b.value):
        return Estimate(math.nan, reason=a.reason or b.reason)
    if len(a.draws) != len(b.draws):
        raise ValueError("a paired difference needs estimates from the same resamples")
    return finish(a.value - b.value, a.draws - b.draws, samples=min(a.samples, b.samples))


def basic_difference(a: Estimate, b: Estimate) -> Estimate:
    """`difference` with the basic interval, for measures that are maxima (not clipped: a difference may be negative)."""
    d = difference(a, b)
    if math.isfinite(d.value):
        d.low, d.high = 2 * d.value - d.high, 2 * d.value - d.low
    return d


def too_few(samples: int) -> str:
    """What a title says of so few samples; nothing of enough."""
    return f"; {FEW}" if 0 < samples < LEAST else ""


def excludes_zero(d: Estimate) -> bool:
    """Whether the interval of a difference leaves 0 outside."""
    return math.isfinite(d.low) and (d.low > 0 or d.high < 0)

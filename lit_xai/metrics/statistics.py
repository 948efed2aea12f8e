"""Intervals and paired differences. The unit of resampling is always the sample, never the pair or the map; `across_predictors`
adds what other predictors would change. What is made of differences, marks and ranks, is in `comparisons`.

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
from scipy.stats import t as student
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95
NORMAL = 1.96
FEWEST_PREDICTORS = 3  # of which every two leave one out
LEAST = 10  # samples below which there is no interval, and no mark
FEW = f"fewer than {LEAST} probes: no interval, no mark"
CHUNK = 500_000  # elements of one block of resamples: bounds memory


@dataclass
class Estimate:
    """A number with what is needed to read it.

    Attributes:
        value: the estimate; NaN where it is undefined, with `reason`.
        low, high: the 95 % interval; NaN where there is none: below `LEAST` samples, with `reason`. Over samples x predictors
            where `predictors` is not 0, else over samples.
        se: standard error of what the interval is over; NaN like the interval.
        low_samples, high_samples: the 95 % interval over samples alone, about these very predictors, where `predictors` is not 0.
        null: the value expected without any signal, where the measure has one of its own.
        p_above, p_below: one-sided p-values against that null: of a value so large, and so small; NaN = no permutations.
        samples, pairs, dropped: how many samples and pairs it rests on; pairs dropped for a constant map. 0 = not counted.
        predictors: how many the interval is over; 0 = it is over samples alone.
        half: what `widen` has made of its interval's halves.
        draws: the bootstrap replicates, for paired differences.
        without: the values without each predictor, for the same.
        each: the value of every sample, NaN where it has none; empty where a sample alone has no value.
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
    low_samples: float = math.nan
    high_samples: float = math.nan
    p_above: float = math.nan
    p_below: float = math.nan
    predictors: int = 0
    half: float = 0.0
    draws: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    without: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    each: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

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

    @property
    def over(self) -> str:
        """What its interval is over; empty where there is none."""
        return "" if math.isnan(self.low) else "samples x predictors" if self.predictors else "samples"

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `error`."""
        return (self.predictors or self.samples) - 1

    @property
    def error(self) -> float:
        """Its standard error, of an unbiased variance and with what `widen` added."""
        scale = 1.0 if self.predictors or self.samples < 2 else math.sqrt(self.samples / (self.samples - 1))
        return math.hypot(scale * self.se, self.half / NORMAL)

    def widen(self, half: float) -> None:
        """Add a half-width to both halves of the interval, as independent errors add."""
        if math.isfinite(self.low) and half:
            down, up = (math.hypot(max(side, 0.0), half) for side in (self.value - self.low, self.high - self.value))
            self.low, self.high, self.half = self.value - down, self.value + up, half

    def clip(self, least: float, most: float) -> None:
        """Cut the interval off where there is no value."""
        if math.isfinite(self.low):
            self.low, self.high = (min(most, max(least, v)) for v in (self.low, self.high))

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

    def numbers(self) -> dict[str, Any]:
        """What files have of it."""
        known = {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)} | {"interval": self.over}
        return known if self.predictors else known | {"low_samples": self.low, "high_samples": self.high}

    def plain(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        values = self.numbers()
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
    """The central 95 % of the finite replicates among `[r]`; NaN of fewer than two."""
    finite = draws[torch.isfinite(draws)].numpy()
    if len(finite) < 2:
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def percentile_interval(value: float, draws: Tensor) -> tuple[float, float]:
    """The percentile bootstrap interval from replicates `[r]`."""
    return quantiles(draws)


def basic_interval(value: float, draws: Tensor, least: float = 0.0) -> tuple[float, float]:
    """The basic bootstrap interval, 2 * estimate - quantiles of `[r]`, clipped to [least, 1] (for maxima, biased upwards)."""
    low, high = quantiles(draws)
    return min(1.0, max(least, 2 * value - high)), min(1.0, max(least, 2 * value - low))


def finish(
    value: float,
    draws: Tensor,
    interval: Callable[[float, Tensor], tuple[float, float]] = percentile_interval,
    **counts: Any,
) -> Estimate:
    """An estimate from its value and its replicates `draws` `[r]`."""
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
        float(values[known].mean()),
        torch.cat(draws),
        samples=int(known.sum()),
        dropped=dropped,
        reason=reason,
        each=values,
    )


def share_estimate(correct: Bool[Tensor, "n"], null: float | None = None) -> Estimate:
    """A share of samples (an accuracy) with its Wilson interval; `null` is the share without any skill."""
    n, hits = len(correct), int(correct.sum())
    if n == 0:
        return Estimate(math.nan, reason="no samples")
    interval = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    p = hits / n
    return Estimate(p, float(interval.low), float(interval.high), math.sqrt(p * (1 - p) / n), null, samples=n)


def across_predictors(e: Estimate, without: Float[Tensor, "k"]) -> Estimate:
    """The same with the interval over samples x predictors: value +- t(k - 1) x jackknife error over the k predictors.

    `without` are the values without all pairs of one predictor each, its held-out samples among them, so that the jackknife holds
    what other samples would change, too. Of fewer than three predictors the interval over samples stays, with a reason.
    """
    k = len(without)
    if not math.isfinite(e.low) or not k:
        return e
    if k < FEWEST_PREDICTORS or not bool(torch.isfinite(without).all()):
        few = "one predictor is" if k == 1 else f"{k} predictors or their pairs are"
        e.add_reason(f"{few} too few to say what others would change: interval over samples alone")
        return e
    e.se = math.sqrt((k - 1) * float(without.var(unbiased=False)))
    e.low_samples, e.high_samples = e.low, e.high
    reach = float(student.ppf((1 + LEVEL) / 2, k - 1)) * e.se
    e.low, e.high, e.predictors, e.without = e.value - reach, e.value + reach, k, without
    return e


def difference(a: Estimate, b: Estimate) -> Estimate:
    """A - b on the same samples, from replicates drawn with the same resamples; over predictors, too, where both are."""
    if math.isnan(a.value) or math.isnan(b.value):
        return Estimate(math.nan, reason=a.reason or b.reason)
    if len(a.draws) != len(b.draws):
        raise ValueError("a paired difference needs estimates from the same resamples")
    d = finish(a.value - b.value, a.draws - b.draws, samples=min(a.samples, b.samples))
    both = a.predictors == b.predictors and len(a.without) == len(b.without)
    return across_predictors(d, a.without - b.without) if both else d


def basic_difference(a: Estimate, b: Estimate) -> Estimate:
    """`difference` with the basic interval, for measures that are maxima."""
    d = difference(a, b)
    if math.isfinite(d.value):
        d.low, d.high = 2 * d.value - d.high, 2 * d.value - d.low
        d.widen(max(a.half, b.half))
    return d


def share_difference(a: Estimate, b: Estimate, of: Callable[[Estimate, Estimate], Estimate] = difference) -> Estimate:
    """The difference of two numbers in [0, 1], clipped to [-1, 1]."""
    d = of(a, b)
    d.clip(-1.0, 1.0)
    return d


def too_few(samples: int) -> str:
    """What a title says of so few samples; nothing of enough."""
    return f"; {FEW}" if 0 < samples < LEAST else ""

"""Simulated coverage of the 95 % intervals of MeGe and ReCo, and of alternatives to ReCo's.

Distances are `d = Phi(z)`, `z = shift + sqrt(r) u + sqrt(1 - r) e` with `u` of the sample and `e` of the pair, both
standard normal, so that the pairs of a sample are dependent. S_equal has shift 0 and S_differ the setting's. Then
S_equal is uniform, MeGe = 1 / 1.5, and ReCo = 2 Phi(shift / 2) - 1: the truth is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from lit_xai.metrics.gaps import Gaps
from lit_xai.metrics.measures import MEASURES, estimates
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate, resamples

from benchmarks.harness import Report

SIMULATIONS, RESAMPLES = 200, 300
EQUAL_SAMPLES, PAIRS, WITHIN = 300, 4, 0.5  # WITHIN: correlation of two pairs of a sample
SETTINGS = [(name, shift, n) for n in (30, 200) for name, shift in (("none", 0.0), ("weak", 0.5), ("strong", 2.0))]
SUBSAMPLE = 0.7  # m = n ** SUBSAMPLE of m-out-of-n
NORMAL = 1.96
Interval = tuple[float, float]


def phi(x: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def simulate(shift: float, disagreeing: int, seed: int) -> Pairs:
    """Pairs of `EQUAL_SAMPLES` samples that agree and of `disagreeing` that do not, `PAIRS` each."""
    g = torch.Generator().manual_seed(seed)
    n = EQUAL_SAMPLES + disagreeing
    u = torch.randn(n, 1, generator=g, dtype=torch.float64)
    e = torch.randn(n, PAIRS, generator=g, dtype=torch.float64)
    differs = (torch.arange(n) >= EQUAL_SAMPLES)[:, None].expand(n, PAIRS)
    z = math.sqrt(WITHIN) * u + math.sqrt(1 - WITHIN) * e + shift * differs
    sample = torch.arange(n)[:, None].expand(n, PAIRS)
    weight, nobody = torch.ones(sample.numel(), dtype=torch.float64), torch.full((sample.numel(),), -1)
    differs, sample = differs.flatten(), sample.flatten()
    return Pairs(torch.special.ndtr(z).flatten(), ~differs, differs, sample, weight, nobody, nobody)


# ---------------------------------------------------------------------------------------------- intervals for ReCo


def clip(low: float, high: float) -> Interval:
    """ReCo lies in [0, 1]."""
    return min(1.0, max(0.0, low)), min(1.0, max(0.0, high))


def shipped(e: Estimate, d: Pairs) -> Interval:
    """What lit_xai gives: the basic interval."""
    return e.low, e.high


def percentile(e: Estimate, d: Pairs) -> Interval:
    """Quantiles of the replicates."""
    low, high = np.quantile(e.draws.numpy(), [0.025, 0.975])
    return float(low), float(high)


def corrected_normal(e: Estimate, d: Pairs) -> Interval:
    """Estimate less the bootstrap's bias, plus and minus 1.96 standard errors."""
    centre = 2 * e.value - float(e.draws.mean())
    return clip(centre - NORMAL * e.se, centre + NORMAL * e.se)


def m_out_of_n(e: Estimate, d: Pairs) -> Interval:
    """Basic interval from resamples of `m = n ** 0.7` samples of each kind, rescaled by sqrt(m / n)."""
    g = torch.Generator().manual_seed(1)
    n = int(d.sample.max()) + 1
    counts = torch.zeros(RESAMPLES, n, dtype=torch.float64)
    for start, stop in ((0, EQUAL_SAMPLES), (EQUAL_SAMPLES, n)):
        m = round((stop - start) ** SUBSAMPLE)
        drawn = torch.randint(start, stop, (RESAMPLES, m), generator=g)
        counts.scatter_add_(1, drawn, torch.ones(1, dtype=torch.float64).expand_as(drawn))
    few = n - EQUAL_SAMPLES
    shrink = math.sqrt(round(few**SUBSAMPLE) / few)  # the smaller set decides the spread
    error = shrink * (np.concatenate([s.reco() for s in Gaps(d, d.sample, n)(counts)]) - e.value)
    low, high = np.quantile(error, [0.025, 0.975])
    return clip(e.value - float(high), e.value - float(low))


def out_of_bag(e: Estimate, d: Pairs) -> Interval:
    """Plus and minus 1.96 standard errors around the estimate less its optimism.

    Optimism = mean over resamples of (value at the threshold that is best on the resample, there) - (value at that
    threshold on the samples left out).
    """
    n = int(d.sample.max()) + 1
    gaps = Gaps(d, d.sample, n)
    kind = (torch.arange(n) >= EQUAL_SAMPLES).long()
    optimism = []
    for counts in resamples(kind, RESAMPLES, 1):
        inside, outside = (gaps.sums(c.numpy()).balanced() for c in (counts, (counts == 0).double()))
        optimism.append((inside - outside)[np.arange(len(inside)), inside.argmax(1)])
    centre = e.value - float(np.concatenate(optimism).mean())
    return clip(centre - NORMAL * e.se, centre + NORMAL * e.se)


RECO_INTERVALS: dict[str, Callable[[Estimate, Pairs], Interval]] = {
    "basic (shipped)": shipped,
    "percentile": percentile,
    "bias-corrected normal": corrected_normal,
    "m out of n": m_out_of_n,
    "out-of-bag normal": out_of_bag,
}


# ------------------------------------------------------------------------------------------------------- the report


def coverage() -> Report:
    """Share of simulations whose interval holds the truth, with the mean width of the interval in brackets."""
    report = Report(
        f"coverage of 95 % intervals: {SIMULATIONS} simulations, {RESAMPLES} resamples, {EQUAL_SAMPLES} samples agree",
        [
            "separation",
            "disagreeing",
            "MeGe percentile",
            "ReCo",
            "mean",
            "null",
            *(f"ReCo {n}" for n in RECO_INTERVALS),
        ],
    )
    for number, (name, shift, disagreeing) in enumerate(SETTINGS):
        truth = 2 * phi(shift / 2) - 1
        mege_hits: list[Interval] = []
        hits: dict[str, list[Interval]] = {n: [] for n in RECO_INTERVALS}
        values, nulls = [], []
        for seed in range(SIMULATIONS):
            draw = simulate(shift, disagreeing, seed + SIMULATIONS * number)
            found = estimates(draw, {n: MEASURES[n] for n in ("mege", "reco")}, RESAMPLES)
            m, e = found["mege"], found["reco"]
            mege_hits.append((m.low, m.high))
            values.append(e.value)
            nulls.append(e.null or 0.0)
            for interval, make in RECO_INTERVALS.items():
                hits[interval].append(make(e, draw))
        report.rows.append(
            [
                name,
                disagreeing,
                covered(mege_hits, 1 / 1.5),
                round(truth, 3),
                round(float(np.mean(values)), 3),
                round(float(np.mean(nulls)), 3),
                *(covered(h, truth) for h in hits.values()),
            ]
        )
    error = math.sqrt(0.95 * 0.05 / SIMULATIONS)
    report.notes = [
        f"Each cell: coverage (mean width). A coverage of .95 has a standard error of {error:.3f}.",
        "ReCo: the true value; mean: of the estimates; null: mean of the printed nulls.",
    ]
    return report


def covered(intervals: list[Interval], truth: float) -> str:
    """`coverage (mean width)`."""
    inside = np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals])
    width = np.mean([high - low for low, high in intervals])
    return f"{inside:.2f} ({width:.2f})"

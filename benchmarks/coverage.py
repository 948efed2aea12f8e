"""Simulated: how often intervals hold the truth, how often a column without any difference is marked, how often rank sets hold.

Distances are `d = Phi(z)`, `z = shift + c_i + c_j + sqrt(r) u + sqrt(1 - r) e` with `u` of the sample, `e` of the pair, both
standard normal, so that the pairs of a sample are dependent, and `c` of the predictors, of standard deviation sd. S_equal has shift
0 and S_differ the setting's. With s^2 = 1 + 2 sd^2 the truth over samples and predictors is known exactly: MeGe = 1 / 1.5,
ReCo = 2 Phi(shift / 2s) - 1, and the signed mean over thresholds, `reco_auc`, is Phi(shift / (sqrt(2) s)) - 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import torch
from lit_xai.metrics.estimation import estimates
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate, basic_interval, percentile_interval

from benchmarks import errors
from benchmarks.harness import Report, Target

SIMULATIONS, RESAMPLES = 200, 300
AGREEING = 100
WITHIN = 0.5  # correlation of two pairs of a sample
MEGE = [(100, 5, 0.0), (60, 5, 0.3), (100, 5, 0.3), (300, 5, 0.3), (100, 3, 0.3), (100, 10, 0.3)]  # samples, k, sd
RECO = [(n, truth, 0.0) for n in (30, 200) for truth in (0.0, 0.2, 0.68, 0.97, 0.997)] + [(200, 0.68, 0.3)]
NORMAL = NormalDist()
Interval = tuple[float, float]


def simulate(agreeing: int, disagreeing: int, shift: float, k: int, sd: float, seed: int) -> Pairs:
    """Pairs of samples that agree and of samples that do not, k - 1 each."""
    g = torch.Generator().manual_seed(seed)
    n = agreeing + disagreeing
    u = torch.randn(n, 1, generator=g, dtype=torch.float64)
    e = torch.randn(n, k, generator=g, dtype=torch.float64)
    c = sd * torch.randn(k, generator=g, dtype=torch.float64)
    sample, j = torch.meshgrid(torch.arange(n), torch.arange(k), indexing="ij")
    i, differs = sample % k, sample >= agreeing
    z = shift * differs + c[i] + c[j] + math.sqrt(WITHIN) * u + math.sqrt(1 - WITHIN) * e
    z, differs, sample, i, j = (column[i != j] for column in (z, differs, sample, i, j))
    return Pairs(torch.special.ndtr(z), ~differs, differs, sample, torch.ones_like(z), i, j)


# ------------------------------------------------------------------------------------------------------ alternatives


def alone(e: Estimate, pairs: Pairs) -> Interval:
    """Over samples alone."""
    return e.low_samples, e.high_samples


def normal_jackknife(e: Estimate, pairs: Pairs) -> Interval:
    """The jackknife with 1.96 in the place of t."""
    return e.value - 1.96 * e.se, e.value + 1.96 * e.se


def two_way(e: Estimate, pairs: Pairs) -> Interval:
    """Percentiles where samples and predictors are drawn with replacement."""
    g = np.random.default_rng(1)
    k, n = int(pairs.j.max()) + 1, int(pairs.sample.max()) + 1
    p, s = g.multinomial(k, np.ones(k) / k, RESAMPLES), g.multinomial(n, np.ones(n) / n, RESAMPLES)
    weight = p[:, pairs.i] * p[:, pairs.j] * s[:, pairs.sample]
    drawn = weight[weight.sum(1) > 0]
    low, high = np.quantile(1 / (1 + (drawn @ pairs.distance.numpy()) / drawn.sum(1)), [0.025, 0.975])
    return float(low), float(high)


def basic(e: Estimate, pairs: Pairs) -> Interval:
    """The basic interval without the rule of three."""
    return basic_interval(e.value, e.draws)


def percentile(e: Estimate, pairs: Pairs) -> Interval:
    """Quantiles of the replicates."""
    return percentile_interval(e.value, e.draws)


def added(e: Estimate, pairs: Pairs) -> Interval:
    """The basic interval, both ends 3 / disagreeing samples further out."""
    low, high = basic_interval(e.value, e.draws)
    three = 3 / len(pairs.sample[pairs.differ].unique())
    return max(0.0, low - three), min(1.0, high + three)


def corrected_normal(e: Estimate, pairs: Pairs) -> Interval:
    """The estimate less the bootstrap's bias, plus and minus 1.96 standard errors."""
    centre = 2 * e.value - float(e.draws.mean())
    return max(0.0, centre - 1.96 * e.se), min(1.0, centre + 1.96 * e.se)


Alternatives = dict[str, Callable[[Estimate, Pairs], Interval]]
OF_MEGE: Alternatives = {"samples alone": alone, "jackknife with 1.96": normal_jackknife, "two-way bootstrap": two_way}
OF_RECO: Alternatives = {
    "basic": basic,
    "3/n added": added,
    "percentile": percentile,
    "bias-corrected normal": corrected_normal,
}


# ------------------------------------------------------------------------------------------------------- the report


def covered(intervals: Sequence[Interval], truth: float) -> tuple[float, str]:
    """Share of the intervals that hold the truth, and `coverage (mean width)`."""
    inside = float(np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals]))
    return inside, f"{inside:.3f} ({np.mean([high - low for low, high in intervals]):.3f})"


def row(name: str, setting: str, truth: float, draws: Iterator[Pairs], others: Alternatives) -> tuple[float, list[str]]:
    """Coverage of one number in one setting, and a line of the table."""
    measure = replace(MEASURES[name], null=None)  # whose permutations no interval needs
    found = [(estimates(pairs, {name: measure}, RESAMPLES)[name], pairs) for pairs in draws]
    share, text = covered([(e.low, e.high) for e, _ in found], truth)
    beside = [f"{n} {covered([make(e, p) for e, p in found], truth)[1]}" for n, make in others.items()]
    mean = float(np.mean([e.value for e, _ in found]))
    return share, [name, setting, f"{truth:.3f}", f"{mean:.3f}", text, "; ".join(beside)]


def coverage() -> Report:
    """Coverage of intervals with their mean width, wrong marks, and rank sets."""
    report = Report(
        f"{SIMULATIONS} simulations a row, {RESAMPLES} resamples; 95 % is wanted",
        ["number", "setting", "truth", "mean", "found", "beside it"],
    )
    for samples, k, sd in MEGE:
        draws = (simulate(samples, 0, 0.0, k, sd, seed) for seed in range(SIMULATIONS))
        share, line = row("mege", f"{samples} probes, {k} predictors of sd {sd:g}", 1 / 1.5, draws, OF_MEGE)
        report.rows.append(line)
        if sd:
            report.targets.append(Target(f"MeGe {line[1]}: |coverage - .95|", abs(share - 0.95), 0.02 + 1e-9))
    for disagreeing, reco, sd in RECO:
        s = math.sqrt(1 + 2 * sd**2)
        shift = 2 * s * NORMAL.inv_cdf((1 + reco) / 2)
        truths = {"reco": reco, "reco_auc": NORMAL.cdf(shift / (math.sqrt(2) * s)) - 0.5}
        for name, truth in truths.items():
            draws = (simulate(AGREEING, disagreeing, shift, 5, sd, seed) for seed in range(SIMULATIONS))
            setting = f"{AGREEING} agree, {disagreeing} disagree" + (f", predictors of sd {sd:g}" if sd else "")
            share, line = row(name, setting, truth, draws, OF_RECO if name == "reco" else {})
            report.rows.append(line)
            if name == "reco" and not sd:
                report.targets.append(Target(f"ReCo {truth:g}, {disagreeing} disagree: coverage", share, 0.9, True))
    errors.add_to(report)
    report.notes = [
        "intervals: coverage (mean width). A coverage of .95 of 200 simulations has a standard error of .015, one of .90 of .021.",
        "marks: the share of columns with any wrong mark, at most .05 is wanted; ranks: the share of columns whose sets hold all true "
        "ranks, tied ones included.",
    ]
    return report

"""Simulated: wrong marks in columns of explainers that do not differ from their nulls, and sets of ranks that miss."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from lit_xai.metrics.comparisons import Mark, against_nulls, against_permutations, corrected, rank_sets
from lit_xai.metrics.estimation import estimates
from lit_xai.metrics.measures import MEASURES, paired
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate, mean_estimate
from torch import Tensor

from benchmarks.harness import Report, Target

COLUMNS, RANKED, RESAMPLES = 1000, 300, 300
METHODS, PROBES, PREDICTORS = 12, 60, 5
LADDER = [0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.8, 1.2, 2.0]  # true means, in standard deviations of a score


def scores(means: list[float], common: float, skewed: bool, seed: int) -> list[Estimate]:
    """A column of scores, whose values of a probe correlate by `common`; normal, or exponential."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(1, PROBES, generator=g, dtype=torch.float64)
    e = torch.randn(len(means), PROBES, generator=g, dtype=torch.float64)
    z = math.sqrt(common) * u + math.sqrt(1 - common) * e
    if skewed:
        z = -torch.log(torch.special.ndtr(-z)) - 1
    return [mean_estimate(m + v, n_resamples=RESAMPLES) for m, v in zip(means, z, strict=True)]


def pairs(agreeing: int, disagreeing: int, effects: Tensor, mean: float, g: torch.Generator) -> Pairs:
    """Distances Phi(mean + c_i + c_j + noise of the sample and of the pair), alike for both kinds of samples."""
    n, k = agreeing + disagreeing, len(effects)
    u, e = (torch.randn(n, m, generator=g, dtype=torch.float64) for m in (1, k))
    sample, j = torch.meshgrid(torch.arange(n), torch.arange(k), indexing="ij")
    i = sample % k
    z = mean + effects[i] + effects[j] + math.sqrt(0.5) * (u + e)
    z, sample, i, j = (column[i != j] for column in (z, sample, i, j))
    differs = sample >= agreeing
    return Pairs(torch.special.ndtr(z), ~differs, differs, sample, torch.ones_like(z), i, j)


def meges(means: list[float], sd: float, seed: int) -> list[Estimate]:
    """A column of MeGe; every explainer has effects of the predictors of its own."""
    g = torch.Generator().manual_seed(seed)
    effects = sd * torch.randn(len(means), PREDICTORS, generator=g, dtype=torch.float64)
    of = (pairs(PROBES, 0, c, -m, g) for m, c in zip(means, effects, strict=True))
    return [estimates(p, {"mege": MEASURES["mege"]}, RESAMPLES)["mege"] for p in of]


def wrongly_marked(column: str, nulls: list[Estimate], methods: list[Estimate]) -> tuple[bool, bool]:
    """Whether there is any mark, with and without the correction."""
    marks: dict[str, Mark] = {}
    for number, method in enumerate(methods):
        apart = {str(n): paired(column, method, null) for n, null in enumerate(nulls)}
        marks[str(number)] = against_nulls({n: d for n, d in apart.items() if d is not None}, "null", True)
    return any(m.sign for m in corrected(marks, "explainers").values()), any(m.p <= 0.05 for m in marks.values())


def holds(column: str, found: list[Estimate], means: list[float]) -> tuple[bool, float]:
    """Whether the sets hold all true ranks, and their mean size."""
    sets = rank_sets(column, {str(n): e for n, e in enumerate(found)}, True)
    low, high = np.array([sets[str(n)] for n in range(len(means))]).T
    better = np.array([[other > mine for other in means] for mine in means])
    first, last = 1 + better.sum(1), len(means) - better.sum(0)
    return bool((low <= first).all() and (last <= high).all()), float((high - low + 1).mean())


def add_to(report: Report) -> None:
    """The rows of wrong marks, and of ranks."""
    equal = [0.0] * METHODS
    columns: dict[str, tuple[str, int, int, Callable[[int, int], list[Estimate]]]] = {
        f"{METHODS} scores, correlation .5": ("score", 1, COLUMNS, lambda n, s: scores([0.0] * n, 0.5, False, s)),
        f"{METHODS} scores, correlation .9": ("score", 1, COLUMNS, lambda n, s: scores([0.0] * n, 0.9, False, s)),
        f"{METHODS} skewed scores": ("score", 1, COLUMNS, lambda n, s: scores([0.0] * n, 0.5, True, s)),
        f"{METHODS} scores, 5 nulls": ("score", 5, COLUMNS, lambda n, s: scores([0.0] * n, 0.5, False, s)),
        f"{METHODS} MeGe, predictors of sd .3": ("mege", 1, RANKED, lambda n, s: meges([0.0] * n, 0.3, s)),
    }
    for setting, (name, nulls, runs, make) in columns.items():
        hits = []
        for seed in range(runs):
            found = make(nulls + METHODS, seed)
            hits.append(wrongly_marked(name, found[:nulls], found[nulls:]))
        wrong, without = np.mean(hits, axis=0)
        report.rows.append(
            ["marks", f"{setting}, {runs} columns", "-", "-", f"{wrong:.3f}", f"uncorrected {without:.3f}"]
        )
        limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
        report.targets.append(Target(f"columns with a wrong mark: {setting}", float(wrong), limit))
    p = [permuted_p(seed) for seed in range(RANKED)]
    report.rows.append(
        [
            "marks",
            f"ReCo, 60 agree, 30 disagree, {RANKED} columns of one",
            "-",
            "-",
            f"{np.mean(np.array(p) <= 0.05):.3f}",
            "",
        ]
    )
    ranked: dict[str, tuple[str, list[float], Callable[[int], list[Estimate]]]] = {
        f"{METHODS} equal scores": ("score", equal, lambda s: scores(equal, 0.5, False, s)),
        f"{METHODS} scores, some equal": ("score", LADDER, lambda s: scores(LADDER, 0.5, False, s)),
        f"{METHODS} skewed scores, some equal": ("score", LADDER, lambda s: scores(LADDER, 0.5, True, s)),
        "6 MeGe, predictors of sd .3": ("mege", LADDER[::2], lambda s: meges(LADDER[::2], 0.3, s)),
    }
    error = 2 * math.sqrt(
        0.05 * 0.95 / RANKED
    )  # as far as a simulation may lie from the 95 % that the sets are made for
    for setting, (name, means, made) in ranked.items():
        found_sets = [holds(name, made(seed), means) for seed in range(RANKED)]
        share, size = np.mean(found_sets, axis=0)
        report.rows.append(
            ["ranks", f"{setting}, {RANKED} columns", "-", "-", f"{share:.3f}", f"mean size of a set {size:.1f}"]
        )
        report.targets.append(Target(f"columns with all true ranks: {setting}", float(share), 0.95 - error, True))


def permuted_p(seed: int) -> float:
    """The p-value of a ReCo without any signal."""
    g = torch.Generator().manual_seed(seed)
    e = estimates(pairs(60, 30, torch.zeros(PREDICTORS).double(), 0.0, g), {"reco": MEASURES["reco"]}, 50)["reco"]
    return against_permutations(e, True).p

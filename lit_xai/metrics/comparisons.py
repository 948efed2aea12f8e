"""Comparisons within a column of a table: p-values, Holm's correction, sets of ranks, and the share of samples won.

- A mark says that an explainer is better or worse than the strongest null. *Better* is claimed if it is better than every null: the
  largest of the one-sided p-values against each. *Worse* is claimed if it is worse than any: the smallest, times their number,
  since the strongest was picked by its value. The p-value of a mark is twice the smaller of the two, and Holm's method corrects
  it over the explainers of the column (Holm, 1979): the chance of any wrong mark in a column is at most 5 %.
- A rank is a set: 1 + how many are significantly better, up to m - how many are significantly worse, by paired intervals that hold
  for all pairs of the column at once (max-t bootstrap; Mogstad et al., *Inference for ranks*, 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor

from lit_xai.metrics.measures import paired
from lit_xai.metrics.statistics import LEVEL, Estimate

BETTER, WORSE = "+", "-"
PERMUTED_LABELS = "permuted labels"
ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Mark:
    """What is claimed of a difference.

    Attributes:
        against: what it is compared with: the strongest null, or the other one of a pair.
        better: whether the value is the better one.
        p: two-sided, of this comparison alone.
        corrected: the same by Holm over all of the family.
        family: what it is corrected over.
    """

    against: str
    better: bool
    p: float
    corrected: float = math.nan
    family: str = ""

    @property
    def sign(self) -> str:
        """`+` better, `-` worse, empty where nothing can be claimed."""
        return (BETTER if self.better else WORSE) if self.corrected <= ALPHA else ""

    def plain(self) -> dict[str, Any]:
        """What `summary.json` holds of a mark."""
        return {
            "direction": self.sign,
            "null": self.against,
            "p": self.p,
            "p_corrected": self.corrected,
            "correction": self.family,
        }


def tails(d: Estimate) -> tuple[float, float]:
    """One-sided p-values of a paired difference: that it is not above 0, and not below; 1 where it has no interval."""
    if not math.isfinite(d.low) or not math.isfinite(d.error):
        return 1.0, 1.0
    if d.error == 0:
        return float(d.value <= 0), float(d.value >= 0)
    t = d.value / d.error
    return float(student.sf(t, d.freedom)), float(student.cdf(t, d.freedom))


def two_sided(d: Estimate) -> float:
    """The p-value of a paired difference."""
    return min(1.0, 2 * min(tails(d)))


def against_nulls(differences: Mapping[str, Estimate], strongest: str, up: bool) -> Mark:
    """The mark of one explainer before the correction, from its paired differences to every null of the column."""
    ordered = [tails(d) if up else tails(d)[::-1] for d in differences.values()]
    better = max(above for above, _ in ordered)
    worse = min(1.0, len(ordered) * min(below for _, below in ordered))
    return Mark(strongest, better < worse, min(1.0, 2 * min(better, worse)))


def against_permutations(e: Estimate, up: bool) -> Mark:
    """The mark of one explainer before the correction, where labels were permuted."""
    return Mark(PERMUTED_LABELS, (e.p_above < e.p_below) == up, min(1.0, 2 * min(e.p_above, e.p_below)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values such that any wrong one at or below alpha has a chance of at most alpha, whatever their dependence."""
    out, least = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: p[n])):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        out[name] = least
    return {name: out[name] for name in p}


def corrected(marks: Mapping[str, Mark], of: str) -> dict[str, Mark]:
    """The marks of one family, corrected; `of` says what they are, e.g. `explainers of the column`."""
    adjusted = holm({name: mark.p for name, mark in marks.items()})
    family = f"Holm over {len(marks)} {of}"
    return {n: Mark(m.against, m.better, m.p, adjusted[n], family) for n, m in marks.items()}


def critical(deviations: Float[np.ndarray, "p r"]) -> float:
    """The 95 % quantile, over r replicates, of the largest of p standardised deviations."""
    largest = np.nanmax(np.abs(deviations), axis=0)
    return float(np.quantile(largest[np.isfinite(largest)], LEVEL, method="higher"))


def told_apart(column: str, estimates: Mapping[str, Estimate]) -> list[tuple[str, str]]:
    """The pairs of a column that differ, the larger one first; all of them are right at once in 95 % of experiments.

    Args:
        column: the measure or score, which says how differences are made.
        estimates: of the same samples and the same resamples, all with an interval.
    """
    apart = {
        (a, b): d
        for a, b in combinations(estimates, 2)
        if (d := paired(column, estimates[a], estimates[b])) is not None
    }
    drawn = [d for d in apart.values() if len(d.draws)]  # of a Wilson interval there are none
    deviations = [
        ((d.draws - d.value) / s).numpy() for d in drawn if (s := float(d.draws[d.draws.isfinite()].std())) > 0
    ]
    reach = critical(np.stack(deviations)) if deviations else 0.0
    return [
        (a, b) if d.value > 0 else (b, a)
        for (a, b), d in apart.items()
        # the t that is as rare as this normal deviate: an error known from few samples, or from few predictors, is itself uncertain
        if abs(d.value) > float(student.isf(norm.sf(reach), d.freedom)) * d.error
    ]


def rank_sets(column: str, estimates: Mapping[str, Estimate], up: bool) -> dict[str, tuple[int, int]]:
    """First and last rank that each may have; the true ranks lie in all of the sets at once in 95 % of experiments.

    Args:
        column: the measure or score, which says how differences are made.
        estimates: of the same samples and the same resamples; those without a value or an interval have no set.
        up: whether the largest value has rank 1.
    """
    known = {n: e for n, e in estimates.items() if math.isfinite(e.low)}
    better, worse = dict.fromkeys(known, 0), dict.fromkeys(known, 0)
    for larger, smaller in told_apart(column, known):
        first, second = (larger, smaller) if up else (smaller, larger)
        better[second] += 1
        worse[first] += 1
    return {n: (1 + better[n], len(known) - worse[n]) for n in known}


def share_won(a: Tensor, b: Tensor, up: bool) -> float:
    """The share of samples on which a `[n]` beats b `[n]`, ties half; NaN where their numbers differ or none has both values."""
    if len(a) != len(b):
        return math.nan
    known = a.isfinite() & b.isfinite()
    if not bool(known.any()):
        return math.nan
    apart = (a - b)[known] * (1 if up else -1)
    return float(((apart > 0).double() + 0.5 * (apart == 0).double()).mean())

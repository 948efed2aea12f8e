"""Does a column order methods as another list of numbers does, printed in a paper, say? Rank correlations with intervals.

- rho and tau are Spearman's and Kendall's (tau-b) over the methods that both have; ties have average ranks.
- Their interval is over what the column's own intervals are over, the methods given: the smallest and the largest value among all
  orders of the methods that the paired differences leave open, which hold the true order with 95 % confidence (max-t bootstrap, as
  sets of ranks). A percentile bootstrap of rho would miss the truth where methods lie close: noise in both ranks lowers every replicate.
- p is over orders of the methods: how often as large a |rho| comes of methods that are put in any order (all of them are tried).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau, rankdata, spearmanr
from scipy.stats import t as student

from lit_xai.metrics.comparisons import ALPHA, told_apart
from lit_xai.metrics.statistics import Estimate

FEWEST = 3  # methods that have an order worth the name
MOST = 12  # methods of which all open orders are looked at: 2^12 sets
TRIED = 8  # methods of which every order is tried for p; of more, Student's t
EQUAL = 1e-9  # correlations that differ by rounding


@dataclass(frozen=True)
class RankCorrelation:
    """How alike two orders of methods are.

    Attributes:
        methods: how many both have.
        rho, tau: Spearman's and Kendall's.
        p: two-sided, of rho.
        least: the smallest |rho| that so many methods need for p <= .05; NaN where there is none.
    """

    methods: int
    rho: Estimate
    tau: Estimate
    p: float = math.nan
    least: float = math.nan


def rank_correlation(column: str, ours: Mapping[str, Estimate], theirs: Mapping[str, float]) -> RankCorrelation:
    """The rank correlations of a column with other numbers of the same methods.

    Args:
        column: the measure or score, which says how differences are made.
        ours: its estimates by method, of the same samples and the same resamples; NaN = undefined.
        theirs: numbers by method. Those that only one side has are left out.
    """
    names = [n for n in ours if n in theirs and math.isfinite(ours[n].value)]
    mine, printed = np.array([ours[n].value for n in names]).round(12), np.array([float(theirs[n]) for n in names])
    reason = ""
    if len(names) < FEWEST:
        reason = f"{len(names)} methods in common are too few for an order"
    elif len(set(mine)) == 1 or len(set(printed)) == 1:
        reason = "all methods are alike on one side"
    if reason:
        return RankCorrelation(len(names), Estimate(math.nan, reason=reason), Estimate(math.nan, reason=reason))
    rho, tau = float(spearmanr(mine, printed).statistic), float(kendalltau(mine, printed).statistic)
    p, least = of_any_order(mine, printed)
    known = {n: ours[n] for n in names}
    samples = min(e.samples for e in known.values())
    lacks = [n for n, e in known.items() if not math.isfinite(e.low)]
    why = f"no interval: {lacks[0]} has none" if lacks else ""
    if len(names) > MOST:
        why = f"no interval: the open orders of more than {MOST} methods are too many"
    if why:
        return RankCorrelation(len(names), Estimate(rho, reason=why), Estimate(tau, reason=why), p, least)
    place = {n: i for i, n in enumerate(names)}
    above = [(place[a], place[b]) for a, b in told_apart(column, known)]
    predictors = min(e.predictors for e in known.values())
    of_rho, of_tau = (
        Estimate(v, min(v, low), max(v, high), samples=samples, predictors=predictors)
        for v, (low, high) in zip((rho, tau), open_orders(printed, above), strict=True)
    )
    return RankCorrelation(len(names), of_rho, of_tau, p, least)


def open_orders(
    printed: Float[np.ndarray, "m"], above: Sequence[tuple[int, int]]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The range of rho and of tau over all orders of m methods without ties in which, of every pair of `above`, the first is larger.

    Both are sums over the places that methods take from the smallest up, so sets of methods that are placed are all that counts.
    """
    m, ranks = len(printed), rankdata(printed)
    centred = ranks - ranks.mean()
    sign = np.sign(printed[:, None] - printed[None])
    places = np.arange(m) - (m - 1) / 2
    first = [0] * m  # those that must have been placed
    for larger, smaller in above:
        first[larger] |= 1 << smaller
    members = np.array([[s >> i & 1 for i in range(m)] for s in range(1 << m)], dtype=float)
    gains = np.stack(
        [places[members.sum(1).astype(int) % m][:, None] * centred, members @ sign.T]
    )  # of placing i after a set
    least, most = np.full((2, 1 << m), np.inf), np.full((2, 1 << m), -np.inf)
    least[:, 0] = most[:, 0] = 0.0
    for s in range(1 << m):
        if not np.isfinite(least[0, s]):
            continue
        for i in range(m):
            if not s >> i & 1 and first[i] & ~s == 0:
                after, gain = s | 1 << i, gains[:, s, i]
                least[:, after] = np.minimum(least[:, after], least[:, s] + gain)
                most[:, after] = np.maximum(most[:, after], most[:, s] + gain)
    pairs = m * (m - 1) / 2
    ties = sum(1 for a, b in combinations(printed, 2) if a == b)
    scale = np.array([math.sqrt((places**2).sum() * (centred**2).sum()), math.sqrt(pairs * (pairs - ties))])
    low, high = least[:, -1] / scale, most[:, -1] / scale
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def of_any_order(mine: Float[np.ndarray, "m"], printed: Float[np.ndarray, "m"]) -> tuple[float, float]:
    """The two-sided p-value of rho where every order of the methods is as likely, and the smallest |rho| with p <= .05."""
    m = len(mine)
    if m > TRIED:
        return float(spearmanr(mine, printed).pvalue), student_least(m)
    a, b = rankdata(mine) - (m + 1) / 2, rankdata(printed) - (m + 1) / 2
    orders = np.array(list(permutations(range(m))))
    every = np.abs(a[orders] @ b) / math.sqrt((a**2).sum() * (b**2).sum())
    found = abs(float(spearmanr(mine, printed).statistic))
    p = float((every >= found - EQUAL).mean())
    values = np.unique(every.round(9))
    enough = [v for v in values if (every >= v - EQUAL).mean() <= ALPHA + EQUAL]
    return p, float(enough[0]) if enough else math.nan


def student_least(m: int) -> float:
    """The smallest |rho| of m methods with p <= .05 by Student's t."""
    t = float(student.isf(ALPHA / 2, m - 2))
    return t / math.sqrt(m - 2 + t * t)

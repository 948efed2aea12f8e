"""Rank correlations of a column with printed numbers, against scipy, brute force and simulation."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from lit_xai.metrics.rank_correlation import of_any_order, open_orders, rank_correlation, student_least
from lit_xai.metrics.statistics import Estimate, mean_estimate, share_estimate
from scipy.stats import kendalltau, permutation_test, spearmanr

PRINTED = (0.45, 0.55, 0.58, 0.46, 0.72, 0.83, 0.57)  # table 2 of Fel et al.


def column(means, probes: int = 60, seed: int = 0, apart: float = 1.0) -> dict[str, Estimate]:
    """A score of methods a, b, c ... on the same probes, with noise that they share and noise of their own."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(probes, generator=g, dtype=torch.float64)
    own = torch.randn(len(means), probes, generator=g, dtype=torch.float64)
    return {
        n: mean_estimate(apart * m + 0.5 * shared + 0.5 * o) for n, m, o in zip("abcdefg", means, own, strict=False)
    }


def named(values) -> dict[str, float]:
    return dict(zip("abcdefg", values, strict=False))


def test_both_correlations_are_scipys_also_with_ties():
    for printed in (PRINTED, (0.30, 0.90, 0.90, 0.36, 0.77, 0.84, 0.52)):
        ours = column(np.random.default_rng(1).normal(size=7))
        found, mine = rank_correlation("score", ours, named(printed)), [e.value for e in ours.values()]
        assert found.rho.value == pytest.approx(spearmanr(mine, printed).statistic)
        assert found.tau.value == pytest.approx(kendalltau(mine, printed).statistic)


def test_values_that_differ_by_rounding_are_tied():
    one, other = (
        rank_correlation("score", {n: Estimate(v) for n, v in zip("abcd", values, strict=True)}, named(PRINTED[:4]))
        for values in ((0.3, 0.1 + 0.2, 0.5, 0.1), (0.3, 0.3, 0.5, 0.1))
    )
    assert (one.rho.value, one.tau.value) == (other.rho.value, other.tau.value)


@pytest.mark.parametrize("printed", [PRINTED[:6], (0.3, 0.9, 0.9, 0.36, 0.77, 0.36)])
def test_the_interval_is_the_range_over_all_orders_that_are_left_open(printed):
    above = [(0, 3), (5, 1), (2, 4)]
    open_ = [o for o in itertools.permutations(range(6)) if all(o[a] > o[b] for a, b in above)]
    for low_high, of in zip(open_orders(np.array(printed), above), (spearmanr, kendalltau), strict=True):
        every = [of(order, printed).statistic for order in open_]
        assert low_high == pytest.approx((min(every), max(every)))


def test_methods_that_nothing_tells_apart_leave_every_order_open_and_clear_ones_a_single_one():
    alike = rank_correlation("score", column([0] * 7, apart=0), named(PRINTED))
    assert (alike.rho.low, alike.rho.high) == pytest.approx((-1, 1))
    clear = rank_correlation("score", column([7, 6, 5, 4, 3, 2, 1]), named(PRINTED))
    assert [clear.rho.low, clear.rho.high] == pytest.approx([clear.rho.value] * 2)


def size(theirs, mine) -> float:
    return abs(spearmanr(mine, theirs).statistic)


def test_p_is_that_of_all_orders_of_the_methods():
    rng = np.random.default_rng(2)
    for printed in (PRINTED[:5], (0.3, 0.9, 0.9, 0.36, 0.36)):
        mine, theirs = rng.normal(size=5), np.array(printed)
        exact = permutation_test((mine,), partial(size, theirs), permutation_type="pairings", alternative="greater")
        p, least = of_any_order(mine, theirs)
        assert p == pytest.approx(exact.pvalue)
        every = np.abs([spearmanr(o, theirs).statistic for o in itertools.permutations(mine)])
        assert (every >= least - 1e-9).mean() <= 0.05
        assert (every > least + 1e-9).sum() == 0 or (every >= least - 1e-9).sum() > (every > least + 1e-9).sum()
    assert of_any_order(np.arange(7.0), np.array(PRINTED))[1] == pytest.approx(0.7857, abs=1e-4)  # tables of rho, n = 7


def test_of_more_methods_p_is_that_of_students_t():
    mine, theirs = np.random.default_rng(3).normal(size=(2, 10))
    p, least = of_any_order(mine, theirs)
    assert p == pytest.approx(spearmanr(mine, theirs).pvalue)
    t = least * math.sqrt(8 / (1 - least**2))
    assert t == pytest.approx(2.306, abs=1e-3)
    assert student_least(10) == least


def test_methods_that_one_side_lacks_are_left_out():
    ours = {**column(range(5)), "undefined": Estimate(math.nan)}
    found = rank_correlation("score", ours, {"undefined": 3.0, "elsewhere": 1.0, "a": 0.1, "b": 0.2, "d": 0.3})
    assert found.methods == 3
    assert found.rho.value == pytest.approx(1)
    assert math.isnan(found.least)  # of six orders the best one has p = 1 / 3, with its reverse
    assert found.p == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("ours", "printed", "reason"),
    [
        (column([1, 2]), {"a": 1.0, "b": 2.0}, "2 methods in common are too few for an order"),
        (column([1, 2, 3]), {"a": 1.0, "b": 1.0, "c": 1.0}, "all methods are alike on one side"),
    ],
)
def test_an_order_that_means_nothing_has_no_correlation(ours, printed, reason):
    found = rank_correlation("score", ours, printed)
    assert math.isnan(found.rho.value)
    assert math.isnan(found.tau.value)
    assert found.rho.reason == reason


def test_a_correlation_of_few_probes_or_of_a_method_without_an_interval_has_none():
    few = rank_correlation("score", column([1, 2, 3], probes=6), named((1.0, 2.0, 3.0)))
    assert math.isnan(few.rho.low)
    lacking = column([1, 2, 3]) | {"c": Estimate(9.0)}
    found = rank_correlation("score", lacking, named((1.0, 2.0, 3.0)))
    assert found.rho.value == pytest.approx(1)
    assert math.isnan(found.rho.low)
    assert found.rho.reason == "no interval: c has none"


@pytest.mark.filterwarnings("error")
def test_shares_that_have_no_replicates_leave_every_order_open():
    accuracies = {n: share_estimate(torch.arange(40) < k) for n, k in zip("abcd", (10, 20, 30, 40), strict=True)}
    found = rank_correlation("accuracy", accuracies, named((1.0, 2.0, 3.0, 4.0))).rho
    assert (found.value, found.low, found.high) == pytest.approx((1, -1, 1))


def cover(spread: float, agree: float, runs: int, replicates: int = 2) -> tuple[float, float]:
    """How often the interval holds the rank correlation of the true means, and how often one of bootstrap percentiles does."""
    rng, hits = np.random.default_rng(4), []
    for seed in range(runs):
        printed = rng.normal(size=7)
        true = spread * (agree * printed + math.sqrt(1 - agree**2) * rng.normal(size=7))
        ours = column(true, 100, seed)
        found, rho = rank_correlation("score", ours, named(printed)).rho, spearmanr(true, printed).statistic
        draws = np.stack([e.draws.numpy() for e in ours.values()], 1)[:replicates]
        low, high = np.quantile([spearmanr(d, printed).statistic for d in draws], [0.025, 0.975])
        hits.append((found.low - 1e-9 <= rho <= found.high + 1e-9, low - 1e-9 <= rho <= high + 1e-9))
    return tuple(np.mean(hits, axis=0))


def test_the_interval_holds_the_true_correlation_in_95_of_100_columns():
    assert cover(0.1, 0.9, 15)[0] >= 14 / 15  # of 200: the slow test


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("agree", [0.0, 0.8, 0.99])
def test_the_interval_holds_the_true_correlation_however_close_the_methods_lie(spread, agree):
    ours, percentile = cover(spread, agree, 200, 300)
    assert ours >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / 200)
    assert (spread, agree) != (0.05, 0.99) or percentile < 0.5  # what it is for

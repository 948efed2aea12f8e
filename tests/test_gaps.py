"""Sums between the distances of S_differ give what every threshold, one after the other, gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.metrics.estimation import estimates
from lit_xai.metrics.gaps import Gaps, Repeated, of_two_weights
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import resamples
from torch import Tensor

from conftest import pairs_of, seeded

SHAPES = [(40, 1), (40, 30), (1, 40), (200, 12), (3, 3)]
FORMS = ["reco", "reco_eq6", "reco_auc"]


def at_every_threshold(name: str, pairs: Pairs, weight: np.ndarray) -> float:
    """A form of ReCo from the rates at every distance, for one weighting of the pairs."""
    d, equal = pairs.distance.numpy(), pairs.equal.numpy()
    e, f = weight * equal, weight * ~equal
    found = []
    for g in np.unique(d[weight > 0]):
        e_below, f_below = e[d < g].sum(), f[d < g].sum()
        if name == "reco_eq6":
            below, above = weight[d < g].sum(), weight[d > g].sum()
            if below > 1e-9 and above > 1e-9:
                found.append(e_below / below + f[d > g].sum() / above - 1)
        else:
            times = weight[d == g].sum() if name == "reco_auc" else 1
            found.append(times * (e_below / e.sum() - f_below / f.sum()))
    return sum(found) / weight.sum() if name == "reco_auc" else max(0.0, *found, -1.0)


def pairs(equal: int, differ: int, levels: int, seed: int) -> tuple[Pairs, Tensor]:
    """Pairs of some samples with `levels` distinct distances, and their samples."""
    g = seeded(seed)
    n = equal + differ
    weight = torch.cat([torch.full((equal,), 1.5), 0.5 + torch.rand(differ, generator=g)])
    distance = torch.randint(levels, (n,), generator=g) / levels
    cluster = torch.randint(max(2, n // 3), (n,), generator=g)
    return pairs_of(distance[:equal], distance[equal:], cluster, weight), cluster


@pytest.mark.parametrize("levels", [2, 5, 50, 10_000_000])
@pytest.mark.parametrize(("equal", "differ"), SHAPES)
def test_forms_from_sums_equal_those_over_all_thresholds(levels, equal, differ):
    known, cluster = pairs(equal, differ, levels, equal)
    n = int(cluster.max()) + 1
    counts = torch.randint(3, (8, n), generator=seeded(1)).double()
    counts[0] = 1
    (sums,) = Gaps(known, cluster, n)(counts)
    for name in FORMS:
        with np.errstate(all="ignore"):
            found = MEASURES[name].value.statistic(sums)
            weights = (counts[:, cluster] * known.weight).numpy()
            expected = [at_every_threshold(name, known, w) for w in weights]
        both = (weights * known.equal.numpy()).any(1) & (weights * known.differ.numpy()).any(1)
        np.testing.assert_allclose(found[both], np.array(expected)[both], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 5, 10_000_000])
@pytest.mark.parametrize(("equal", "differ"), SHAPES)
def test_sums_of_two_weights_equal_the_general_ones(levels, equal, differ):
    known, cluster = pairs(equal, differ, levels, 1)
    known = pairs_of(*known.sets(), weight=torch.where(known.equal, 2.5, 0.75))
    gaps = Gaps(known, torch.zeros_like(cluster), 1)
    (general,) = gaps(torch.ones(1, 1, dtype=torch.float64))
    found = of_two_weights(gaps.equal, gaps.first, 2.5, 0.75)
    for name in ("gap", "tie", "differ", "squares"):
        np.testing.assert_allclose(getattr(found, name), getattr(general, name), rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.last(), general.last(), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=60))
def test_xpliques_reco_of_counts_is_that_of_the_repeated_pairs(rows):
    rows.sort(key=lambda row: not row[1])
    distance = torch.tensor([d / 5 for d, _, _ in rows], dtype=torch.float64)
    number, counts = sum(e for _, e, _ in rows), torch.tensor([c for _, _, c in rows]).double()
    known = pairs_of(distance[:number], distance[number:])
    (found,) = Repeated(known, torch.arange(len(rows)), len(rows))(counts[None])
    repeated = known.take(torch.arange(len(rows)).repeat_interleave(counts.long()))
    if not (repeated.equal.any() and repeated.differ.any()):
        assert math.isnan(found[0])
    else:
        assert found[0] == MEASURES["reco_xplique"].value(repeated)


def test_measures_made_together_equal_each_alone():
    g = seeded(7)
    sample, weight = torch.randint(60, (300,), generator=g), torch.rand(300, generator=g) + 0.5
    known = pairs_of(torch.rand(240, generator=g), torch.rand(60, generator=g), sample, weight)
    for name, together in estimates(known, MEASURES, 50).items():
        alone = estimates(known, {name: MEASURES[name]}, 50)[name]
        assert alone.plain() == together.plain()
        assert torch.equal(alone.draws, together.draws)


def test_resamples_are_draws_with_replacement_within_strata_and_the_same_when_asked_again():
    strata = torch.tensor([0, 1, 0, 1, 1, 0, 2])
    first, again = (torch.cat(list(resamples(strata, 50, 3))) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(list(resamples(strata, 50, 4))))
    for s in range(3):
        assert (first[:, strata == s].sum(1) == (strata == s).sum()).all()
    g = torch.Generator().manual_seed(3)  # the numbers that torch draws, stratum by stratum
    for members in ([0, 2, 5], [1, 3, 4], [6]):
        drawn = torch.randint(len(members), (50, len(members)), generator=g)
        for column, member in enumerate(members):
            assert torch.equal((drawn == column).sum(1).double(), first[:, member])


def test_large_resamples_are_not_kept(monkeypatch):
    from lit_xai.metrics import statistics

    kept = torch.cat(list(resamples(torch.zeros(30, dtype=torch.long), 20, 0)))
    monkeypatch.setattr(statistics, "KEEP", 0)
    monkeypatch.setattr(statistics, "KEPT", {})
    assert torch.equal(torch.cat(list(resamples(torch.zeros(30, dtype=torch.long), 20, 0))), kept)
    assert not statistics.KEPT

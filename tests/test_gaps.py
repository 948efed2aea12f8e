"""Sums between the distances of S_differ give what every threshold, one after the other, gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.metrics import ReCo
from lit_xai.metrics.gaps import Gaps, dealt
from lit_xai.metrics.stability import FORMS, MEASURES, Thresholds, reco_xplique, xplique_of_counts
from lit_xai.metrics.statistics import resamples

from conftest import seeded

SHAPES = [(40, 1), (40, 30), (1, 40), (200, 12), (3, 3)]


def pairs(equal: int, differ: int, levels: int, seed: int) -> tuple[Thresholds, np.ndarray, np.ndarray]:
    """Pairs of some samples with `levels` distinct distances, sorted; their samples and weights."""
    g = seeded(seed)
    n = equal + differ
    t = Thresholds(torch.randint(levels, (n,), generator=g) / levels, torch.randperm(n, generator=g) < equal)
    cluster = torch.randint(max(2, n // 3), (n,), generator=g).numpy()
    return t, cluster, np.where(t.equal.numpy(), 1.5, 0.5 + torch.rand(n, generator=g).double().numpy())


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("levels", [2, 5, 50, 10_000_000])
@pytest.mark.parametrize(("equal", "differ"), SHAPES)
def test_forms_from_sums_equal_those_over_all_thresholds(form, levels, equal, differ):
    for seed in range(4):
        t, cluster, weight = pairs(equal, differ, levels, seed)
        gaps = Gaps(t.equal.numpy(), t.first.numpy(), cluster, weight)
        counts = torch.randint(3, (25, int(cluster.max()) + 1), generator=seeded(seed)).double()
        counts[0] = 1
        expected = MEASURES[ReCo.KINDS[form]](t, t.rates(counts[:, cluster] * torch.from_numpy(weight)))
        with np.errstate(all="ignore"):
            found = FORMS[form](gaps.sums(counts.numpy()))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("levels", [2, 5, 10_000_000])
@pytest.mark.parametrize(("equal", "differ"), SHAPES)
def test_two_weights_dealt_to_pairs_equal_the_general_sums(form, levels, equal, differ):
    for seed in range(4):
        t, cluster, _ = pairs(equal, differ, levels, seed)
        weight = np.where(t.equal.numpy(), 2.5, 0.75)
        ones = np.ones((1, int(cluster.max()) + 1))
        general = Gaps(t.equal.numpy(), t.first.numpy(), cluster, weight).sums(ones)
        found = dealt(t.equal.numpy(), t.first.numpy(), 2.5, 0.75)
        for name, values in vars(general).items():
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12, err_msg=name)
        assert float(FORMS[form](found)[0]) == pytest.approx(float(FORMS[form](general)[0]), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=60))
def test_xplique_of_counts_is_xpliques_of_the_repeated_pairs(rows):
    distance = torch.tensor([d / 5 for d, _, _ in rows], dtype=torch.float64)
    equal = torch.tensor([e for _, e, _ in rows])
    t = Thresholds(distance, equal)
    counts = torch.tensor([c for _, _, c in rows])[t.order]
    drawn, kind = t.distance.repeat_interleave(counts), t.equal.repeat_interleave(counts)
    expected = reco_xplique(drawn[kind], drawn[~kind])
    found = xplique_of_counts(t, counts.numpy())
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_forms_together_equal_each_alone():
    g = seeded(7)
    distance, equal = torch.rand(300, generator=g).double(), torch.rand(300, generator=g) < 0.8
    sample, weight = torch.randint(60, (300,), generator=g), torch.rand(300, generator=g).double() + 0.5
    together = ReCo()
    together.add_distances(distance, equal, sample, weight)
    for form, estimate in together.forms([*FORMS, "xplique"]).items():
        alone = ReCo(form)
        alone.share(together)
        one = alone.estimate()
        assert one.plain() == estimate.plain()
        assert torch.equal(one.draws, estimate.draws)


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

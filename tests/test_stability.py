"""MeGe and ReCo: oracle values, a slow restatement of their definitions, and their life as torchmetrics."""

from __future__ import annotations

import itertools
import json
import math
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.errors import UsageError
from lit_xai.metrics import MeGe, ReCo
from lit_xai.metrics.stability import mege, of_sets, reco_xplique
from scipy.stats import spearmanr
from torch import Tensor

from conftest import seeded

EQUAL, DIFFER = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.8]), torch.tensor([0.35, 0.6, 0.7, 0.9])
RECO_DEFINITIONS = ["default", "paper", "auc", "xplique"]


# ------------------------------------------------------------------------------------------------- the slow restatement


def slow_reco(equal: list[float], differ: list[float], definition: str) -> float:
    """ReCo by loops over thresholds and distances."""
    thresholds = sorted(equal + differ)
    if definition == "xplique":
        thresholds = thresholds[:: len(thresholds) // 20 + 1]
    values = []
    for gamma in thresholds:
        tp, fn = sum(d < gamma for d in equal), sum(d >= gamma for d in equal)
        tn, fp = sum(d >= gamma for d in differ), sum(d < gamma for d in differ)
        if definition == "paper":
            above = sum(d > gamma for d in differ), sum(d > gamma for d in equal + differ)
            if not tp + fp or not above[1]:
                continue
            values.append(tp / (tp + fp) + above[0] / above[1] - 1)
            continue
        if definition == "xplique":
            fn, tn = sum(d > gamma for d in equal), sum(d > gamma for d in differ)
        values.append(tp / (tp + fn + 1e-10) + tn / (tn + fp + 1e-10) - 1)
    return sum(values) / len(values) if definition == "auc" else max(0.0, *values)


class Ensemble:
    """Maps and predictions of three predictors on 60 samples of three folds, with ties and constant maps."""

    def __init__(self, seed: int, signal: float = 0.45) -> None:
        generator, self.k, n = seeded(seed), 3, 60
        self.fold_of = torch.arange(n) % self.k
        common = torch.randn(n, 7, 7, generator=generator)
        self.correct = torch.rand(self.k, n, generator=generator) < 0.7
        own = torch.randn(self.k, n, 7, 7, generator=generator)
        share = torch.where(self.correct, signal, 0.0)[:, :, None, None]
        self.maps = (10 * (share * common + (1 - share) * own)).round().double() / 10  # about 60 levels on 49 pixels
        self.maps[0, 7] = self.maps[1, 12] = 0.3

    def pairs(self) -> list[tuple[int, int, int]]:
        """(sample, the predictor that never saw it, another predictor)."""
        n = range(len(self.fold_of))
        return [(x, int(self.fold_of[x]), j) for x in n for j in range(self.k) if j != int(self.fold_of[x])]

    def slow_sets(self, rooted: bool) -> tuple[list[float], list[float], int]:
        """S_equal, S_differ and the number of pairs dropped, one sample after the other."""
        equal, differ, dropped = [], [], 0
        for x, i, j in self.pairs():
            right_i, right_j = bool(self.correct[i, x]), bool(self.correct[j, x])
            if not right_i and not right_j:
                continue
            a, b = self.maps[i, x].flatten().numpy(), self.maps[j, x].flatten().numpy()
            if np.ptp(a) == 0 or np.ptp(b) == 0:
                dropped += 1
                continue
            distance = 1 - abs(spearmanr(a, b).statistic)
            (equal if right_i and right_j else differ).append(distance**0.5 if rooted else distance)
        return equal, differ, dropped

    def feed(self, metric: MeGe | ReCo, batch: int = 1000) -> MeGe | ReCo:
        """All pairs into a metric, `batch` at a time."""
        x, i, j = (torch.tensor(column) for column in zip(*self.pairs(), strict=True))
        for part in torch.arange(len(x)).split(batch):
            x_, i_, j_ = x[part], i[part], j[part]
            metric.update(self.maps[i_, x_], self.maps[j_, x_], self.correct[i_, x_], self.correct[j_, x_], x_)
        return metric


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("definition", ["default", "paper", "xplique"])
def test_mege_equals_its_restatement(seed, definition):
    ensemble = Ensemble(seed)
    equal, _, _ = ensemble.slow_sets(rooted=definition == "xplique")
    assert float(ensemble.feed(MeGe(definition)).compute()) == pytest.approx(1 / (1 + np.mean(equal)), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("definition", RECO_DEFINITIONS)
def test_reco_equals_its_restatement(seed, definition):
    ensemble = Ensemble(seed)
    equal, differ, _ = ensemble.slow_sets(rooted=definition == "xplique")
    expected = slow_reco(equal, differ, definition)
    assert 0.1 < expected < 1
    assert float(ensemble.feed(ReCo(definition)).compute()) == pytest.approx(expected, abs=1e-9)


def test_pairs_with_a_constant_map_are_dropped_and_counted():
    ensemble = Ensemble(0)
    equal, differ, dropped = ensemble.slow_sets(rooted=False)
    assert dropped > 0
    estimate = ensemble.feed(ReCo()).estimate()
    assert (estimate.pairs, estimate.dropped) == (len(equal) + len(differ), dropped)


def test_mege_counts_only_its_own_pairs():
    ensemble = Ensemble(0)
    estimate = ensemble.feed(MeGe()).estimate()
    assert estimate.pairs == len(ensemble.slow_sets(rooted=False)[0])


TIED = st.lists(st.integers(0, 6).map(lambda i: i / 7), min_size=1, max_size=25)


@given(TIED, TIED)
@settings(max_examples=60, deadline=None, derandomize=True)
@pytest.mark.parametrize(("kind", "definition"), [("reco", "default"), ("reco_eq6", "paper"), ("reco_auc", "auc")])
def test_reco_with_ties_equals_its_restatement(kind, definition, equal, differ):
    both = torch.tensor(equal, dtype=torch.float64), torch.tensor(differ, dtype=torch.float64)
    try:
        expected = slow_reco(equal, differ, definition)
    except TypeError:  # no threshold is usable
        expected = 0.0
    assert of_sets(kind, *both) == pytest.approx(expected, abs=1e-8)


@given(TIED, TIED)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_xplique_reco_with_ties_equals_its_restatement(equal, differ):
    both = torch.tensor(equal, dtype=torch.float64), torch.tensor(differ, dtype=torch.float64)
    assert reco_xplique(*both) == pytest.approx(slow_reco(equal, differ, "xplique"), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- hand values


def test_mege_of_the_worked_example():
    assert mege(EQUAL) == pytest.approx(0.735294, abs=1e-6)


@pytest.mark.parametrize(("kind", "value"), [("reco", 0.6), ("reco_eq6", 0.666667)])
def test_reco_of_the_worked_example(kind, value):
    assert of_sets(kind, EQUAL, DIFFER) == pytest.approx(value, abs=1e-6)


def test_reco_is_one_when_a_threshold_separates_the_sets():
    assert of_sets("reco", torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])) == 1


def test_reco_is_floored_at_zero_when_contradictions_look_more_alike():
    assert of_sets("reco", torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.2])) == 0


@pytest.mark.parametrize("kind", ["reco", "reco_eq6", "reco_auc"])
def test_integer_weights_equal_repeated_pairs(kind):
    weight = torch.tensor([3, 1, 2, 1, 4, 1, 2, 1, 3])
    repeated = EQUAL.repeat_interleave(weight[:5]), DIFFER.repeat_interleave(weight[5:])
    assert of_sets(kind, EQUAL, DIFFER, weight.double()) == pytest.approx(of_sets(kind, *repeated), abs=1e-12)


def test_a_weight_common_to_a_set_changes_eq6_but_not_the_balanced_reco():
    weight = torch.tensor([5.0] * 5 + [1.0] * 4)
    assert of_sets("reco", EQUAL, DIFFER, weight) == pytest.approx(of_sets("reco", EQUAL, DIFFER), abs=1e-12)
    assert of_sets("reco_eq6", EQUAL, DIFFER, weight) != pytest.approx(of_sets("reco_eq6", EQUAL, DIFFER), abs=1e-3)


def test_mege_of_identical_predictors_is_one():
    maps, right = torch.rand(6, 5, 5, generator=seeded(1)), torch.ones(6, dtype=torch.bool)
    metric = MeGe()
    metric.update(maps, maps, right, right, torch.arange(6))
    assert float(metric.compute()) == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- what is NaN


def known_pairs(metric: MeGe | ReCo, equal: Tensor, differ: Tensor) -> MeGe | ReCo:
    """Pairs of given distances, every one of a sample of its own."""
    both, n = torch.cat([equal, differ]).double(), len(equal) + len(differ)
    metric.add_distances(both, torch.arange(n) < len(equal), torch.arange(n))
    return metric


def spread(n: int, low: float, high: float, seed: int) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", [MeGe(), ReCo()], ids=["mege", "reco"])
def test_without_pairs_the_value_is_nan_with_a_reason(metric):
    assert math.isnan(metric.compute())
    assert "no pair of predictors is right" in metric.estimate().reason


def test_mege_without_agreement_is_nan():
    estimate = known_pairs(MeGe(), torch.empty(0), DIFFER).estimate()
    assert math.isnan(estimate.value)
    assert estimate.reason


def test_reco_without_disagreement_is_nan():
    estimate = known_pairs(ReCo(), EQUAL, torch.empty(0)).estimate()
    assert math.isnan(estimate.value)
    assert "no disagreements" in estimate.reason


def test_reco_below_ten_disagreeing_samples_is_nan_with_that_reason():
    estimate = known_pairs(ReCo(), EQUAL, spread(9, 0.5, 1, 0)).estimate()
    assert math.isnan(estimate.value)
    assert "only 9 disagreeing samples" in estimate.reason


def test_reco_from_ten_disagreeing_samples_on_is_a_number():
    assert math.isfinite(known_pairs(ReCo(), EQUAL, spread(10, 0.5, 1, 0)).compute())


def test_ten_disagreeing_pairs_of_one_sample_are_not_enough():
    metric = known_pairs(ReCo(), EQUAL, torch.empty(0))
    metric.add_distances(spread(10, 0.5, 1, 0), torch.zeros(10, dtype=torch.bool), torch.full((10,), 99))
    assert math.isnan(metric.compute())


def test_a_disagreement_whose_distance_is_undefined_does_not_count():
    metric = known_pairs(ReCo(), EQUAL, torch.cat([spread(9, 0.5, 1, 0), torch.tensor([math.nan])]))
    assert "only 9" in metric.estimate().reason


def test_both_wrong_is_ignored():
    maps, wrong = torch.rand(2, 3, 5, 5, generator=seeded(1)), torch.zeros(3, dtype=torch.bool)
    metric = MeGe()
    metric.update(maps[0], maps[1], wrong, wrong, torch.arange(3))
    assert metric.estimate().pairs == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_that_are_not_finite_are_refused(value):
    maps, right = torch.rand(3, 5, 5, generator=seeded(1)), torch.ones(3, dtype=torch.bool)
    broken = maps.clone()
    broken[1, 2, 3] = value
    with pytest.raises(UsageError, match="NaN or infinite"):
        MeGe().update(maps, broken, right, right, torch.arange(3))


@pytest.mark.parametrize("make", [lambda: MeGe("auc"), lambda: ReCo("best")])
def test_an_unknown_definition_is_refused(make):
    with pytest.raises(UsageError, match="choose one of"):
        make()


# ------------------------------------------------------------------------------------------------ life as a torchmetric


@pytest.mark.parametrize("definition", RECO_DEFINITIONS)
def test_a_metric_fed_in_a_loop_equals_one_update(definition):
    ensemble = Ensemble(2)
    whole, parts = ensemble.feed(ReCo(definition)), ensemble.feed(ReCo(definition), batch=7)
    assert float(parts.compute()) == float(whole.compute())


def test_forward_gives_the_batch_and_accumulates_the_whole():
    ensemble = Ensemble(2)
    x, i, j = (torch.tensor(column) for column in zip(*ensemble.pairs(), strict=True))

    def pairs(rows: slice) -> tuple[Tensor, ...]:
        xs, a, b = x[rows], i[rows], j[rows]
        correct = ensemble.correct
        return ensemble.maps[a, xs], ensemble.maps[b, xs], correct[a, xs], correct[b, xs], xs

    metric, second = MeGe(), MeGe()
    metric(*pairs(slice(0, 50)))
    of_batch = metric(*pairs(slice(50, None)))
    second.update(*pairs(slice(50, None)))
    assert float(of_batch) == float(second.compute())
    assert float(metric.compute()) == float(ensemble.feed(MeGe()).compute())


def test_reset_forgets_every_pair():
    metric = known_pairs(MeGe(), EQUAL, DIFFER)
    metric.reset()
    assert metric.estimate().pairs == 0


@pytest.mark.parametrize("make", [MeGe, ReCo])
def test_distances_added_after_a_value_was_computed_change_it(make):
    metric = known_pairs(make(), spread(30, 0, 0.5, 1), spread(20, 0.4, 1, 2))
    metric.compute()
    known_pairs(metric, spread(30, 0.5, 1, 3), spread(20, 0, 0.4, 4))
    assert float(metric.compute()) == metric.estimate().value


def test_order_of_the_pairs_does_not_matter():
    metric, turned = ReCo(), ReCo()
    distance, equal = torch.cat([spread(40, 0, 0.7, 1), spread(20, 0.3, 1, 2)]), torch.arange(60) < 40
    metric.add_distances(distance, equal, torch.arange(60))
    turned.add_distances(distance.flip(0), equal.flip(0), torch.arange(60).flip(0))
    a, b = metric.estimate(), turned.estimate()
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)


# ----------------------------------------------------------------------------------------------- intervals and the null


def separated(metric: MeGe | ReCo) -> MeGe | ReCo:
    return known_pairs(metric, spread(80, 0, 0.7, 1), spread(40, 0.3, 1, 2))


@pytest.mark.parametrize("make", [MeGe, *(lambda d=d, **k: ReCo(d, **k) for d in RECO_DEFINITIONS)])
def test_interval_contains_the_estimate_and_has_width(make):
    estimate = separated(make(resamples=200)).estimate()
    assert estimate.low <= estimate.value <= estimate.high
    assert 0 < estimate.high - estimate.low < 0.5
    assert estimate.se > 0


@pytest.mark.parametrize("make", [MeGe, ReCo])
def test_interval_repeats_with_its_seed_and_changes_with_another(make):
    first, again, other = (separated(make(seed=s, resamples=200)).estimate() for s in (3, 3, 4))
    assert (first.low, first.high) == (again.low, again.high)
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize("make", [MeGe, ReCo])
def test_repeated_pairs_of_a_sample_do_not_narrow_the_interval(make):
    once, often = separated(make(resamples=200)), make(resamples=200)
    for _ in range(4):
        separated(often)
    a, b = once.estimate(), often.estimate()
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-9)


@pytest.mark.parametrize(("n_equal", "n_differ"), [(400, 50), (200, 200)])
def test_null_of_independent_pairs_is_the_mean_of_a_brownian_bridges_maximum(n_equal, n_differ):
    metric = known_pairs(ReCo(resamples=2), spread(n_equal, 0, 1, 3), spread(n_differ, 0, 1, 4))
    expected = 0.627 * math.sqrt(1 / n_equal + 1 / n_differ)
    assert metric.estimate().null == pytest.approx(expected, rel=0.12)


def test_null_does_not_know_which_pairs_disagree():
    far = known_pairs(ReCo(resamples=2), spread(100, 0, 0.4, 3), spread(50, 0.6, 1, 4)).estimate()
    assert far.value == 1
    assert far.null < 0.2


def test_null_deals_labels_to_samples_not_to_pairs():
    equal, differ, copies = spread(40, 0, 1, 3), spread(20, 0, 1, 4), 5
    metric = ReCo(resamples=2)
    for _ in range(copies):
        known_pairs(metric, equal, differ)
    single = known_pairs(ReCo(resamples=2), equal, differ)
    assert metric.estimate().null == pytest.approx(single.estimate().null, rel=0.15)


# -------------------------------------------------------------------------------------------------------- two processes

SHARES = {"one rank without pairs": [60, 0], "uneven ranks": [45, 15]}


def all_pairs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.cat([spread(36, 0, 0.7, 1), spread(24, 0.3, 1, 2)]), torch.arange(60) < 36, torch.arange(60) // 2


def on_rank(rank: int, folder: str) -> None:
    """What each of the two processes does: its share of the pairs, then values over both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    out = {}
    for name, share in SHARES.items():
        order = torch.randperm(60, generator=seeded(9)).split(share) if min(share) else (torch.arange(60), None)
        for kind in (MeGe, ReCo):
            metric = kind(resamples=100)
            if order[rank] is not None:
                metric.add_distances(*(column[order[rank]] for column in all_pairs()))
            e = metric.estimate()
            out[f"{name}/{kind.__name__}"] = [float(metric.compute()), e.value, e.low, e.high, e.pairs, e.samples]
            out[f"{name}/{kind.__name__}/rows kept"] = len(metric.table())
    Path(folder, f"rank{rank}.json").write_text(json.dumps(out))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_value_and_interval_of_one(tmp_path):
    # forked, because a spawned process imports everything again
    torch.multiprocessing.start_processes(on_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for (name, share), kind, rank in itertools.product(SHARES.items(), (MeGe, ReCo), range(2)):
        alone = kind(resamples=100)
        alone.add_distances(*all_pairs())
        e = alone.estimate()
        expected = [float(alone.compute()), e.value, e.low, e.high, e.pairs, e.samples]
        assert results[rank][f"{name}/{kind.__name__}"] == pytest.approx(expected, abs=1e-12)
        assert results[rank][f"{name}/{kind.__name__}/rows kept"] == share[rank]  # the state is local again


def test_a_measure_of_constant_maps_says_so():
    mege, reco = MeGe(), ReCo()
    nan = torch.full((12,), float("nan"))
    for m in (mege, reco):
        m.add_distances(nan, torch.ones(12, dtype=torch.bool), torch.arange(12))
        m.add_distances(nan, torch.zeros(12, dtype=torch.bool), torch.arange(20, 32))
    assert "constant map" in mege.estimate().reason
    assert "constant map" in reco.estimate().reason
    some = ReCo()
    some.add_distances(torch.rand(12), torch.ones(12, dtype=torch.bool), torch.arange(12))
    some.add_distances(nan, torch.zeros(12, dtype=torch.bool), torch.arange(20, 32))
    assert some.estimate().reason == "only 0 disagreeing samples, fewer than 10: the maps of 12 more are constant"

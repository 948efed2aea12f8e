"""MeGe and ReCo: oracle values, a slow restatement of their definitions, their intervals, and their life as torchmetrics."""

from __future__ import annotations

import dataclasses
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
from lit_xai.metrics.estimation import Measure, estimates
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate
from scipy.stats import spearmanr
from torch import Tensor

from conftest import pairs_of, seeded

EQUAL, DIFFER = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.8]), torch.tensor([0.35, 0.6, 0.7, 0.9])
RECO_DEFINITIONS = {"reco": "default", "reco_eq6": "paper", "reco_auc": "auc", "reco_xplique": "xplique"}


def value(name: str, equal: Tensor, differ: Tensor, weight: Tensor | None = None) -> float:
    return MEASURES[name].value(pairs_of(equal, differ, weight=weight))


def estimate(measure: str | Measure, pairs: Pairs, resamples: int = 20) -> Estimate:
    measure = MEASURES[measure] if isinstance(measure, str) else measure
    return estimates(pairs, {"it": measure}, resamples)["it"]


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

    def feed(self, metric: MeGe | ReCo, batch: int = 1000, rows: Tensor | None = None) -> MeGe | ReCo:
        """All pairs (or some) into a metric, `batch` at a time."""
        x, i, j = (torch.tensor(column) for column in zip(*self.pairs(), strict=True))
        for part in (torch.arange(len(x)) if rows is None else rows).split(batch):
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
@pytest.mark.parametrize("definition", RECO_DEFINITIONS.values())
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
@pytest.mark.parametrize("name", RECO_DEFINITIONS)
def test_reco_with_ties_equals_its_restatement(name, equal, differ):
    both = torch.tensor(equal, dtype=torch.float64), torch.tensor(differ, dtype=torch.float64)
    try:
        expected = slow_reco(equal, differ, RECO_DEFINITIONS[name])
    except TypeError:  # no threshold is usable
        expected = 0.0
    assert value(name, *both) == pytest.approx(expected, abs=1e-8)


# ---------------------------------------------------------------------------------------------------------- hand values


@pytest.mark.parametrize(("name", "expected"), [("mege", 0.735294), ("reco", 0.6), ("reco_eq6", 0.666667)])
def test_the_worked_example(name, expected):
    pairs = pairs_of(EQUAL, DIFFER)
    assert MEASURES[name].value(MEASURES[name].rests_on(pairs)) == pytest.approx(expected, abs=1e-6)


def test_reco_is_one_when_a_threshold_separates_the_sets():
    assert value("reco", torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4])) == 1


def test_reco_is_floored_at_zero_when_contradictions_look_more_alike():
    assert value("reco", torch.tensor([0.8, 0.9]), torch.tensor([0.1, 0.2])) == 0


@pytest.mark.parametrize("name", ["reco", "reco_eq6", "reco_auc"])
def test_integer_weights_equal_repeated_pairs(name):
    weight = torch.tensor([3, 1, 2, 1, 4, 1, 2, 1, 3])
    repeated = EQUAL.repeat_interleave(weight[:5]), DIFFER.repeat_interleave(weight[5:])
    assert value(name, EQUAL, DIFFER, weight) == pytest.approx(value(name, *repeated), abs=1e-12)


def test_a_weight_common_to_a_set_changes_eq6_but_not_the_balanced_reco():
    weight = torch.tensor([5.0] * 5 + [1.0] * 4)
    assert value("reco", EQUAL, DIFFER, weight) == pytest.approx(value("reco", EQUAL, DIFFER), abs=1e-12)
    assert value("reco_eq6", EQUAL, DIFFER, weight) != pytest.approx(value("reco_eq6", EQUAL, DIFFER), abs=1e-3)


def test_mege_of_identical_predictors_is_one():
    maps, right = torch.rand(6, 5, 5, generator=seeded(1)), torch.ones(6, dtype=torch.bool)
    metric = MeGe()
    metric.update(maps, maps, right, right, torch.arange(6))
    assert float(metric.compute()) == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- what is NaN

NONE = torch.empty(0)
UNKNOWN = torch.full((12,), math.nan)


def spread(n: int, low: float, high: float, seed: int) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "equal", "differ", "reason"),
    [
        ("mege", NONE, NONE, "no pair of predictors is right on the same sample"),
        ("reco", NONE, NONE, "no pair of predictors is right on the same sample"),
        ("mege", NONE, DIFFER, "no pair of predictors is right on the same sample"),
        ("mege", UNKNOWN, UNKNOWN, "every pair of predictors that are right on the same sample has a constant map"),
        ("reco", UNKNOWN, UNKNOWN, "every pair of predictors that are right on the same sample has a constant map"),
        ("reco", EQUAL, NONE, "no disagreements explained: run lit_xai.explain with probes=disagreements"),
        ("reco", EQUAL, spread(9, 0.5, 1, 0), "only 9 disagreeing samples, fewer than 10"),
        ("reco", EQUAL, torch.cat([spread(9, 0.5, 1, 0), UNKNOWN[:1]]), "only 9 disagreeing samples, fewer than 10"),
        ("reco", EQUAL, UNKNOWN, "only 0 disagreeing samples, fewer than 10: the maps of 12 more are constant"),
    ],
)
def test_what_is_undefined_is_nan_with_a_reason(name, equal, differ, reason):
    found = estimate(name, pairs_of(equal, differ))
    assert math.isnan(found.value)
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"mend": "run this"}, "only 4 disagreeing samples, fewer than 10; run this"),
        ({"found": 4}, "only 4 disagreeing samples, fewer than 10"),
        ({"found": 0}, "the predictors never contradict each other"),
    ],
)
def test_too_few_disagreements_are_explained_by_what_is_known_of_them(known, reason):
    assert estimate("reco", dataclasses.replace(pairs_of(EQUAL, DIFFER), **known)).reason == reason


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_measure_without_pairs_is_nan_as_a_metric():
    assert math.isnan(MeGe().compute())
    assert math.isnan(ReCo().compute())


def test_reco_from_ten_disagreeing_samples_on_is_a_number():
    assert math.isfinite(estimate("reco", pairs_of(EQUAL, spread(10, 0.5, 1, 0))).value)


def test_ten_disagreeing_pairs_of_one_sample_are_not_enough():
    sample = torch.cat([torch.arange(5), torch.full((10,), 99)])
    assert "only 1 disagreeing" in estimate("reco", pairs_of(EQUAL, spread(10, 0.5, 1, 0), sample)).reason


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


@pytest.mark.parametrize("definition", RECO_DEFINITIONS.values())
def test_a_metric_fed_in_a_loop_equals_one_update(definition):
    ensemble = Ensemble(2)
    whole, parts = ensemble.feed(ReCo(definition)), ensemble.feed(ReCo(definition), batch=7)
    assert float(parts.compute()) == float(whole.compute())


def test_a_metric_gives_what_the_registry_gives():
    metric = Ensemble(2).feed(ReCo("paper", resamples=50, seed=4))
    assert metric.estimate().plain() == estimate("reco_eq6", metric.pairs(), 50).plain()
    assert metric.meaning() == MEASURES["reco_eq6"].definition("spearman")


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
    metric.reset()
    assert metric.estimate().pairs == 0


# ----------------------------------------------------------------------------------------------- intervals and the null

SEPARATED = (spread(80, 0, 0.7, 1), spread(40, 0.3, 1, 2))
IN_TABLES = ["mege", *RECO_DEFINITIONS]


@pytest.mark.parametrize("name", IN_TABLES)
def test_interval_contains_the_estimate_and_has_width(name):
    pairs = pairs_of(*SEPARATED).on(MEASURES[name].distance)
    found = estimate(name, pairs, 200)
    assert found.low <= found.value <= found.high
    assert 0 < found.high - found.low < 0.5
    assert found.se > 0


@pytest.mark.parametrize("name", ["mege", "reco"])
def test_interval_repeats_with_its_seed_and_changes_with_another(name):
    pairs = pairs_of(*SEPARATED)
    first, again, other = (estimate(name, dataclasses.replace(pairs, seed=s), 50) for s in (3, 3, 4))
    assert (first.low, first.high) == (again.low, again.high)
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize("name", ["mege", "reco"])
def test_repeated_pairs_of_a_sample_do_not_narrow_the_interval(name):
    once = pairs_of(*SEPARATED)
    a, b = (estimate(name, p, 200) for p in (once, once.take(torch.arange(120).repeat(4))))
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-9)


@pytest.mark.parametrize("name", IN_TABLES)
def test_order_of_the_pairs_does_not_matter(name):
    pairs = pairs_of(spread(40, 0, 0.7, 1), spread(20, 0.3, 1, 2)).on(MEASURES[name].distance)
    a, b = estimate(name, pairs), estimate(name, pairs.take(torch.arange(59, -1, -1)))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)


@pytest.mark.parametrize(("n_equal", "n_differ"), [(400, 50), (200, 200)])
def test_null_of_independent_pairs_is_the_mean_of_a_brownian_bridges_maximum(n_equal, n_differ):
    pairs = pairs_of(spread(n_equal, 0, 1, 3), spread(n_differ, 0, 1, 4))
    expected = 0.627 * math.sqrt(1 / n_equal + 1 / n_differ)
    assert estimate("reco", pairs, 2).null == pytest.approx(expected, rel=0.12)


def test_null_does_not_know_which_pairs_disagree():
    far = estimate("reco", pairs_of(spread(100, 0, 0.4, 3), spread(50, 0.6, 1, 4)), 2)
    assert far.value == 1
    assert far.null < 0.2


def test_null_gives_labels_to_samples_not_to_pairs():
    single = pairs_of(spread(40, 0, 1, 3), spread(20, 0, 1, 4))
    one, five = (estimate("reco", p, 2).null for p in (single, single.take(torch.arange(60).repeat(5))))
    assert five == pytest.approx(one, rel=0.15)


def test_xpliques_measures_are_of_the_root_of_the_tables_distance():
    pairs = pairs_of(*SEPARATED)
    rooted = estimate("mege_xplique", dataclasses.replace(pairs, distance=pairs.distance.sqrt(), name="sqrt_spearman"))
    assert estimate("mege_xplique", pairs).plain() == rooted.plain()
    assert estimate("mege_xplique", dataclasses.replace(pairs, name="l2")).reason == "only for distance=spearman"


# ------------------------------------------------------------------------------------------------- a measure of one's own


def middle(pairs: Pairs) -> float:
    return float(pairs.distance.median())


@pytest.mark.parametrize(("over", "expected"), [("equal", EQUAL), ("all", torch.cat([EQUAL, DIFFER]))])
def test_a_plain_function_is_given_the_pairs_it_asks_for(over, expected):
    unknown = torch.cat([EQUAL, torch.tensor([math.nan])])
    found = estimate(Measure(middle, "median", over=over), pairs_of(unknown, DIFFER))
    assert found.value == pytest.approx(float(expected.double().median()))
    assert (found.pairs, found.dropped) == (len(expected), 1)


def test_a_plain_function_is_resampled_like_its_quick_form():
    plain = dataclasses.replace(MEASURES["mege"], quick=None)
    sample = torch.arange(120) // 3
    pairs = pairs_of(*SEPARATED, sample)
    quick, slow = estimate("mege", pairs), estimate(plain, pairs)
    assert torch.allclose(quick.draws, slow.draws, atol=1e-12)
    assert (quick.low, quick.high) == pytest.approx((slow.low, slow.high), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"better": "more"}, "up, down"), ({"over": "some"}, "equal, both, labels, randomised, repeated, test, all")],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Measure(middle, "median", **options)


# -------------------------------------------------------------------------------------------------------- two processes

SHARES = {"one rank without pairs": [120, 0], "uneven ranks": [90, 30]}


def on_rank(rank: int, folder: str) -> None:
    """What each of the two processes does: its share of the pairs, then values over both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    out = {}
    for name, share in SHARES.items():
        for kind in (MeGe, ReCo):
            metric = kind(resamples=100, min_samples=2) if kind is ReCo else kind(resamples=100)
            rows = torch.arange(120).split(share)[rank] if min(share) else torch.arange(share[rank])
            Ensemble(0).feed(metric, rows=rows)
            e = metric.estimate()
            out[f"{name}/{kind.__name__}"] = [float(metric.compute()), e.value, e.low, e.high, e.pairs, e.samples]
    Path(folder, f"rank{rank}.json").write_text(json.dumps(out))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_value_and_interval_of_one(tmp_path):
    # forked, because a spawned process imports everything again
    torch.multiprocessing.start_processes(on_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for kind in (MeGe, ReCo):
        alone = Ensemble(0).feed(kind(resamples=100, min_samples=2) if kind is ReCo else kind(resamples=100))
        e = alone.estimate()
        assert e.pairs > 40
        expected = [float(alone.compute()), e.value, e.low, e.high, e.pairs, e.samples]
        for name, rank in itertools.product(SHARES, range(2)):
            assert results[rank][f"{name}/{kind.__name__}"] == pytest.approx(expected, abs=1e-12)

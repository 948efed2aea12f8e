"""Marks, ranks and shares of samples won: corrected over a column, against brute force and against known truths."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai import explainers
from lit_xai.metrics import MeGe, ReCo
from lit_xai.metrics.comparisons import (
    Mark,
    against_nulls,
    against_permutations,
    corrected,
    critical,
    holm,
    rank_sets,
    share_won,
    two_sided,
)
from lit_xai.metrics.estimation import estimates
from lit_xai.metrics.measures import MEASURES, view
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate, difference, mean_estimate, resamples, share_difference
from lit_xai.quality.sampler_quality import SamplerQuality
from lit_xai.report import page, show, tables
from lit_xai.report.summarise import compare_with_nulls
from lit_xai.report.summary import Row, Summary
from rich.console import Console
from scipy.stats import t as student
from scipy.stats import ttest_rel
from torch import Tensor

from conftest import pairs_of, seeded

PROBES = 60


def values(*means: float, seed: int = 0, spread: float = 1.0) -> list[Tensor]:
    """The scores of explainers with these means, each probe's in common in half of their variance."""
    g = seeded(seed)
    common = torch.randn(PROBES, generator=g, dtype=torch.float64)
    own = torch.randn(len(means), PROBES, generator=g, dtype=torch.float64)
    return [m + spread * (common + o) / math.sqrt(2) for m, o in zip(means, own, strict=True)]


def scored(*means: float, seed: int = 0, n_resamples: int = 200, spread: float = 1.0) -> list[Estimate]:
    return [mean_estimate(v, n_resamples=n_resamples) for v in values(*means, seed=seed, spread=spread)]


# ---------------------------------------------------------------------------------------------------------------- marks


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_holm_is_the_closed_test_of_all_intersections_by_bonferroni(p):
    found = holm({str(i): v for i, v in enumerate(p)})
    groups = [g for size in range(1, len(p) + 1) for g in itertools.combinations(range(len(p)), size)]
    for i in range(len(p)):
        closed = max(min(1.0, len(g) * min(p[j] for j in g)) for g in groups if i in g)
        assert found[str(i)] == pytest.approx(closed, abs=1e-12)


def test_the_p_value_of_a_paired_difference_is_that_of_the_paired_t_test():
    a, b = values(0.4, 0)
    found = two_sided(difference(mean_estimate(a, n_resamples=20_000), mean_estimate(b, n_resamples=20_000)))
    assert found == pytest.approx(float(ttest_rel(a, b).pvalue), rel=0.1)


@pytest.mark.parametrize(("up", "sign"), [(True, "+"), (False, "-")])
def test_a_mark_has_the_direction_of_the_column(up, sign):
    one, null = scored(2, 0)
    mark = corrected({"it": against_nulls({"null": difference(one, null)}, "null", up)}, "explainers")["it"]
    assert mark.sign == sign
    assert mark.plain()["correction"] == "Holm over 1 explainers"


def test_better_is_better_than_every_null_and_worse_than_any_is_worse():
    between, low, high = scored(1, 0, 2)
    apart = {"low": difference(between, low), "high": difference(between, high)}
    mark = corrected({"it": against_nulls(apart, "high", True)}, "explainers")["it"]
    assert mark.sign == "-"
    alone = corrected({"it": against_nulls({"low": apart["low"]}, "low", True)}, "explainers")["it"]
    assert alone.sign == "+"


def test_what_stands_out_alone_does_not_among_twenty():
    mark = Mark("null", True, 0.01)
    assert corrected({"it": mark}, "explainers")["it"].sign == "+"
    crowd = {f"{i}": Mark("null", True, 0.9) for i in range(19)}
    assert corrected({"it": mark, **crowd}, "explainers")["it"].sign == ""


def marked(methods: list[Estimate], nulls: list[Estimate]) -> tuple[bool, bool]:
    """Whether any of the methods is marked, with and without the correction."""
    strongest = max(range(len(nulls)), key=lambda n: nulls[n].value)
    marks = {
        str(i): against_nulls({str(n): difference(m, e) for n, e in enumerate(nulls)}, str(strongest), True)
        for i, m in enumerate(methods)
    }
    return any(m.sign for m in corrected(marks, "").values()), any(m.p <= 0.05 for m in marks.values())


@pytest.mark.parametrize("nulls", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_no_explainer_is_marked_in_95_of_100_columns_where_none_differs_from_the_null(nulls):
    runs = 200
    hits = []
    for seed in range(runs):
        column = scored(*[0.0] * (12 + nulls), seed=seed)
        hits.append(marked(column[nulls:], column[:nulls]))
    with_, without = np.mean(hits, axis=0)
    assert with_ <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    assert nulls > 1 or without > 0.2  # what the correction is for


def test_reco_is_marked_against_permuted_labels_in_both_directions():
    g = seeded(3)
    low, high = 0.5 * torch.rand(80, generator=g), 0.4 + 0.6 * torch.rand(30, generator=g)
    told = estimates(pairs_of(low, high), {n: MEASURES[n] for n in ("reco", "reco_auc")}, 50)
    assert all(against_permutations(e, True).better and against_permutations(e, True).p < 0.01 for e in told.values())
    reversed_ = estimates(pairs_of(high, low), {"it": MEASURES["reco_auc"]}, 50)["it"]
    mark = against_permutations(reversed_, True)
    assert not mark.better
    assert mark.p < 0.01


# ---------------------------------------------------------------------------------------------------------------- ranks


def test_the_critical_value_of_resamples_is_that_of_all_of_them():
    """Five probes have 3,125 resamples."""
    x = torch.tensor([[0.1, 0.9, 0.4, 0.3, 0.8], [0.2, 0.5, 0.9, 0.1, 0.4], [0.7, 0.3, 0.2, 0.6, 0.1]]).double()
    everything = torch.tensor(list(itertools.product(range(5), repeat=5)))
    counts = torch.cat(list(resamples(torch.zeros(5, dtype=torch.long), 20_000, 1)))

    def value(draws: Tensor) -> float:
        pairs = [(draws[a] - draws[b], float(x[a].mean() - x[b].mean())) for a, b in ((0, 1), (0, 2), (1, 2))]
        return critical(np.stack([((d - centre) / d.std()).numpy() for d, centre in pairs]))

    exact, found = value(x[:, everything].mean(-1)), value(x @ counts.T / 5)
    assert found == pytest.approx(exact, abs=0.06)


@pytest.mark.parametrize(("up", "expected"), [(True, [(1, 1), (2, 3), (2, 3)]), (False, [(3, 3), (1, 2), (1, 2)])])
def test_ranks_are_sets_of_what_cannot_be_told_apart(up, expected):
    column = dict(zip("abc", scored(3, 0, 0.01), strict=True))
    assert list(rank_sets("score", column, up).values()) == expected


def test_an_explainer_without_an_interval_has_no_rank():
    column = dict(zip("abc", [*scored(3, 0), mean_estimate(torch.rand(9))], strict=True))
    assert rank_sets("score", column, True) == {"a": (1, 1), "b": (2, 2)}


def test_all_sets_hold_the_true_ranks_in_95_of_100_columns():
    means, runs = [0, 0, 0.3, 0.6, 1.5], 200
    better = np.array([[other > mine for other in means] for mine in means])
    first, last = 1 + better.sum(1), len(means) - better.sum(0)
    hold = []
    for seed in range(runs):
        column = dict(zip("abcde", scored(*means, seed=seed), strict=True))
        low, high = np.array(list(rank_sets("score", column, True).values())).T
        hold.append(bool((low <= first).all() and (last <= high).all()))
    assert np.mean(hold) >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / runs)


def test_the_share_of_samples_won_counts_ties_half_and_leaves_out_what_has_no_value():
    a, b = torch.tensor([1, 2, 3, 4, math.nan]), torch.tensor([0, 2, 3, 5, 1])
    assert share_won(a, b.double(), True) == pytest.approx((1 + 0.5 + 0.5) / 4)
    assert share_won(a, b.double(), False) == pytest.approx((0.5 + 0.5 + 1) / 4)
    assert math.isnan(share_won(a, b[:3].double(), True))


# ------------------------------------------------------------------------------------------ MeGe over other predictors


def ensemble(effects: list[float], samples: int = PROBES, seed: int = 0) -> Pairs:
    """Distances .5 + c_i + c_j + noise of a sample, c of the predictors."""
    k, g = len(effects), seeded(seed)
    c, own = torch.tensor(effects).double(), 0.05 * torch.randn(samples, generator=g, dtype=torch.float64)
    rows = [(x, x % k, j) for x in range(samples) for j in range(k) if j != x % k]
    x, i, j = torch.tensor(rows).T
    yes = torch.ones(len(x), dtype=torch.bool)
    return Pairs(0.5 + c[i] + c[j] + own[x], yes, ~yes, x, yes.double(), i, j)


def mege(pairs: Pairs) -> Estimate:
    return estimates(pairs, {"mege": MEASURES["mege"]}, 200)["mege"]


def test_meges_interval_is_a_jackknife_over_predictors_and_that_over_samples_stands_beside_it():
    pairs = ensemble([0.2, -0.1, 0.0, 0.1, -0.2])
    found = mege(pairs)
    left = [pairs.distance[(pairs.i != p) & (pairs.j != p)].mean() for p in range(5)]
    without = np.array([1 / (1 + float(m)) for m in left])
    reach = student.ppf(0.975, 4) * math.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach))
    assert found.high - found.low > 5 * (found.high_samples - found.low_samples) > 0
    assert found.plain()["interval"] == "samples x predictors"
    assert mean_estimate(torch.rand(20)).plain()["interval"] == "samples"


@pytest.mark.parametrize(("predictors", "over"), [(2, "samples"), (3, "samples x predictors")])
def test_from_three_predictors_on_meges_interval_is_over_predictors_too(predictors, over):
    found = mege(ensemble([0.1, -0.1, 0.05][:predictors]))
    assert found.over == over
    assert ("interval over samples alone" in found.reason) == (predictors == 2)


def test_what_all_explainers_share_of_the_predictors_cancels_in_a_difference():
    apart = MEASURES["mege"].interval.difference
    effects = [0.2, -0.1, 0.0, 0.1, -0.2]
    one, other = mege(ensemble(effects, seed=1)), mege(ensemble(effects, seed=2))
    assert apart(one, other).high - apart(one, other).low < 0.3 * (one.high - one.low)
    opposite = mege(ensemble([-e for e in effects], seed=2))
    assert apart(one, opposite).high - apart(one, opposite).low > one.high - one.low


# ------------------------------------------------------------------------------------------------------- ReCo's interval


@pytest.mark.parametrize(("name", "half"), [("reco", 0.1), ("reco_eq6", 0.1), ("reco_auc", 0.05)])
def test_disagreements_that_are_all_told_leave_room_for_three_that_are_not(name, half):
    g = seeded(1)
    apart = pairs_of(0.4 * torch.rand(100, generator=g), 0.6 + 0.4 * torch.rand(30, generator=g))
    found = estimates(apart, {"it": MEASURES[name]}, 50)["it"]
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high <= 1


def test_the_difference_of_two_shares_ends_where_no_difference_lies():
    wide = Estimate(1.0, samples=20, draws=torch.linspace(0, 2, 50)), Estimate(0.2, samples=20, draws=torch.zeros(50))
    found = share_difference(*wide)
    assert (found.low, found.high) == (pytest.approx(0.05), 1)


def test_the_default_table_has_the_signed_reco_and_not_eq6():
    assert "reco_auc" in view("default")
    assert "reco_eq6" not in view("default")
    assert "reco_eq6" in view("paper")
    assert "pure noise" in MEASURES["reco_eq6"].definition("spearman")["warning"]


# --------------------------------------------------------------------------------------------- a map without the model


def test_an_explainer_that_ignores_the_model_has_distance_0_mege_1_and_reco_0(digits):
    images, labels = digits.train.images(list(range(60))), torch.arange(60) % 10
    one, other = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10)) for _ in range(2))
    maps = [explainers.Image()(model, images, labels) for model in (one, other)]
    for distance in ("spearman", "sqrt_spearman"):
        mege, reco = MeGe(distance=distance), ReCo(distance=distance)
        for metric in (mege, reco):
            metric.update(*maps, torch.ones(60), torch.arange(60) < 40, torch.arange(60))
        assert bool((mege.pairs().distance == 0).all())
        assert float(mege.compute()) == 1
        assert float(reco.compute()) == 0


# -------------------------------------------------------------------------------------------------- nulls in the tables


def summary_of(means: dict[str, float], classes: dict[str, str], column: str = "insertion") -> Summary:
    rows = [Row(n, {column: e}) for n, e in zip(means, scored(*means.values(), spread=0.1), strict=True)]
    head = {
        "name": "some",
        "folds": 3,
        "folds_present": [0, 1, 2],
        "samples": 100,
        "disagreements": None,
        "distance": {"name": "spearman", "meaning": "1 - |rho|"},
        "held_out_accuracy": {},
        "empirical_lipschitz": {},
        **dict.fromkeys(("warnings", "alarms"), ()),
        "unfinished": None,
    }
    described = {"explainers": {n: {"name": classes.get(n, "RISE")} for n in means}}
    distances = {n: (torch.ones(4), torch.ones(4)) for n in means}
    summary = Summary(
        head, {column: True}, rows, described, distances, probes=dict.fromkeys(means, torch.arange(PROBES))
    )
    for a, b in itertools.pairwise(means):
        summary.pair(a, b)
    compare_with_nulls(summary)
    return summary


NULLS = {"noise": "Random", "noise__2": "Random"}
MEANS = {"noise": 0.0, "good": 2.0, "noise__2": 1.0, "poor": 0.5}


def test_a_null_is_told_by_its_class_and_the_strongest_is_compared_with():
    assert explainers.Random.null
    assert not explainers.RISE.null
    summary = summary_of(MEANS, NULLS)
    assert [row.explainer for row in summary.rows] == ["good", "poor", "noise", "noise__2"]
    cells = {row.explainer: row.plain()["insertion"] for row in summary.rows}
    assert {n: cells[n]["mark"]["null"] for n in ("good", "poor")} == dict.fromkeys(("good", "poor"), "noise__2")
    assert [cells[n]["mark"]["direction"] for n in ("good", "poor")] == ["+", "-"]
    assert cells["poor"]["mark"]["p"] <= cells["poor"]["mark"]["p_corrected"] <= 0.05
    assert cells["good"]["difference_to_null"]["share_won"] == 1
    assert cells["good"]["difference_to_null"]["null"] == "noise__2"
    assert (cells["good"]["rank_set"], cells["poor"]["rank_set"]) == ([1, 1], [2, 2])
    assert not {"mark", "rank_set"} & (set(cells["noise"]) | set(cells["noise__2"]))


def test_a_null_whose_maps_do_not_depend_on_the_model_is_no_null_of_mege():
    summary = summary_of(MEANS, NULLS, "mege")
    summary.distances["noise__2"] = torch.zeros(4), torch.zeros(4)
    for row in summary.rows:
        row.marks.clear()
    compare_with_nulls(summary)
    marks = {row.explainer: row.marks for row in summary.rows}
    assert marks["poor"]["mege"].against == "noise"
    assert marks["poor"]["mege"].sign == "+"


def test_nulls_stand_below_a_line_in_every_table_and_are_flagged_in_files(tmp_path: Path):
    summary = summary_of(MEANS, NULLS)
    page.write(summary, tmp_path)
    screen = io.StringIO()
    show.main_table(summary, ["insertion"]).show(Console(file=screen, width=120))
    shown = screen.getvalue()
    assert shown.index("poor") < shown.index("├") < shown.index("noise")
    tex = (tmp_path / "summary.tex").read_text()
    assert tex.index("poor") < tex.rindex(r"\midrule") < tex.index("noise")
    html = (tmp_path / "report.html").read_text()
    assert html.index("<th>poor") < html.index('<tr class="below line"><th>noise</th>') < html.index("<th>noise__2")
    rows = csv.DictReader((tmp_path / "summary.csv").open())
    assert {row["explainer"]: row["is_null"] for row in rows} == {n: str(n in NULLS) for n in MEANS}
    assert json.loads((tmp_path / "summary.json").read_text())["nulls"] == ["noise", "noise__2"]


def test_pairs_are_corrected_over_the_pairs_of_a_column_and_say_who_wins_how_often():
    summary = summary_of({"a": 2.0, "b": 0.0, "c": 0.0}, {})
    found = summary.plain()["pairs"]
    assert found["a - b"]["insertion"]["mark"]["direction"] == "+"
    assert found["b - c"]["insertion"]["mark"]["direction"] == ""
    assert found["a - b"]["insertion"]["mark"]["correction"] == "Holm over 2 pairs of the column"
    assert found["a - b"]["insertion"]["share_won"] == 1
    text = show.further_tables(summary, ["insertion"])["Differences"].texts()
    assert text[0][1].endswith(" 100%+")


def test_samplers_are_marked_after_a_correction_over_the_samplers_of_a_column():
    """A difference whose p is .02 is marked alone, and not among five."""
    for others, sign in ((0, True), (4, False)):
        reference, one, *rest = values(0, 0, *[0] * others, seed=5)
        apart = one - reference
        one += 2.3 * apart.std() / math.sqrt(PROBES) - apart.mean()
        rows = {f"r{i}": {"l2": mean_estimate(v)} for i, v in enumerate([reference, one, *rest])}
        p = two_sided(difference(rows["r1"]["l2"], rows["r0"]["l2"]))
        assert 0.01 < p < 0.05
        quality = SamplerQuality(rows, {}, dict.fromkeys(rows, 0.5), "r0", 1, "cpu")
        assert (("r1", "l2") in tables.differing(quality, quality.to_reference)) == sign

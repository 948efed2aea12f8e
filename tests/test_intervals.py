"""Of fewer than ten samples a value stands alone: no interval, no mark, whoever shows it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from lit_xai.metrics.comparisons import two_sided
from lit_xai.metrics.estimation import Measure, estimates
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.robustness import robustness_table
from lit_xai.metrics.statistics import (
    FEW,
    LEAST,
    Estimate,
    basic_difference,
    difference,
    mean_estimate,
    share_estimate,
)
from lit_xai.report import draw_samplers, page, show
from lit_xai.report.summarise import compare_with_nulls
from lit_xai.report.summary import Row, Summary
from torch import Tensor

from conftest import pairs_of, seeded


def values(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=seeded(seed), dtype=torch.float64)


def pairs(measure: Measure, samples: int) -> Estimate:
    """Two pairs a sample, one of S_equal and one of S_differ."""
    of_sets = pairs_of(values(samples), values(samples, 1), torch.arange(samples).repeat(2))
    return estimates(of_sets, {"it": dataclasses.replace(measure, least=2)}, 20)["it"]


MAKERS = {
    "mean": lambda n: mean_estimate(values(n)),
    "share": lambda n: share_estimate(values(n) < 0.5),
    "difference": lambda n: difference(mean_estimate(values(n)), mean_estimate(values(n, 1))),
    "difference of maxima": lambda n: basic_difference(mean_estimate(values(n)), mean_estimate(values(n, 1))),
    "MeGe": lambda n: pairs(MEASURES["mege"], n),
    "ReCo": lambda n: pairs(MEASURES["reco"], n),
    "robustness": lambda n: robustness_table({"f": torch.rand(2, n, 9, 9, generator=seeded(1))})["f"]["spearman"],
}


@pytest.mark.parametrize("kind", MAKERS)
def test_ten_samples_have_an_interval_and_nine_have_a_reason(kind: str) -> None:
    nine, ten = MAKERS[kind](LEAST - 1), MAKERS[kind](LEAST)
    assert ten.low <= ten.high
    assert ten.se >= 0
    assert FEW not in ten.reason
    assert math.isfinite(nine.value)
    assert all(math.isnan(v) for v in (nine.low, nine.high, nine.se))
    assert FEW in nine.reason
    assert two_sided(nine) == 1


def test_the_null_of_permuted_labels_goes_with_the_interval() -> None:
    assert MAKERS["ReCo"](LEAST).null is not None
    assert MAKERS["ReCo"](LEAST - 1).null is None


def test_what_is_left_out_does_not_count() -> None:
    known = torch.cat([values(9), torch.full((20,), torch.nan, dtype=torch.float64)])
    found = mean_estimate(known)
    assert found.reason == f"undefined for 20 of 29 samples; {FEW}"
    assert found.text() == f"{found.value:.3f}"


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5, 0.25, 0.75, samples=10), "0.500 [.250, .750]"),
        (Estimate(0.5, 0.25, 0.75, samples=9), "0.500"),
        (Estimate(math.nan, samples=9), "-"),
    ],
)
def test_the_text_of_a_number(estimate: Estimate, text: str) -> None:
    assert estimate.text() == text


def summary_of(samples: int) -> Summary:
    """An explainer and a null that lie far apart, explained on so many samples."""
    low, high = mean_estimate(values(samples) / 10), mean_estimate(values(samples, 1) / 10 + 5)
    rows = [Row("random", {"deletion": low}), Row("rise", {"deletion": high})]
    head = {
        "name": "few",
        "folds": 2,
        "folds_present": [0, 1],
        "samples": 100,
        "probes": samples,
        "disagreements": None,
        "distance": {"name": "spearman", "meaning": "1 - |rho|"},
        "held_out_accuracy": {f: share_estimate(values(samples) < 0.9, 0.1).plain() for f in (0, 1)},
        "accuracy_spread": 0.0,
        "empirical_lipschitz": {},
        "warnings": [],
        "alarms": [],
        "unfinished": None,
    }
    sets = {row.explainer: (values(4), values(4)) for row in rows}
    similar = {"f": {"spearman": high}}
    described = {"explainers": {"rise": {"name": "RISE", "masks": 10}, "random": {"name": "Random"}}}
    probes = dict.fromkeys(("rise", "random"), torch.arange(samples))
    summary = Summary(head, {"deletion": False}, rows, described, sets, similar, probes=probes)
    summary.pair("rise", "random")
    compare_with_nulls(summary)
    return summary


@pytest.mark.parametrize("samples", [9, 10])
def test_every_form_of_the_table_follows(samples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(samples)
    page.write(summary, tmp_path)
    show.show(summary)
    out = capsys.readouterr().out
    known = samples >= LEAST
    value = f"{summary.rows[0].estimates['deletion'].value:.3f}"
    texts = {name: (tmp_path / name).read_text() for name in ("summary.tex", "report.html")}
    for name, text in {**texts, "terminal": out}.items():
        assert value in text, name
        assert (f"{value} [" in text) == known, name
        assert (f"{value} [" in text and "]-" in text) == known, name
    for text in (texts["report.html"], out):
        assert (FEW in text) != known
    cell = json.loads((tmp_path / "summary.json").read_text())["rows"]["rise"]["deletion"]
    assert (cell["low"] is None) == ("mark" not in cell) == ("difference_to_null" not in cell) == (not known)
    assert (FEW in cell["reason"]) != known
    line, _ = csv.DictReader((tmp_path / "summary.csv").open())
    assert [bool(line[k]) for k in ("low", "high", "se", "mark", "mark_p_corrected")] == [known] * 5


def test_pictures_of_samplers_draw_a_value_without_its_interval(tmp_path: Path) -> None:
    few = mean_estimate(values(9))
    plane = {"real": torch.rand(9, 2, generator=seeded(1)), "black": torch.rand(9, 2, generator=seeded(2))}
    draw_samplers.alignment(plane, {"black": few}, tmp_path / "plane.png")
    draw_samplers.tradeoff({"black": (few, few)}, tmp_path / "trade.png")
    assert all((tmp_path / n).stat().st_size > 1000 for n in ("plane.png", "trade.png"))

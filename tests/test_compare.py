"""Several folders on one page: paired where the probes are the same, else not, and the page says which."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from lit_xai import engine
from lit_xai.data.folds import Split
from lit_xai.explainers import Centre, Random, Saliency
from lit_xai.metrics import Deletion
from lit_xai.metrics.statistics import difference, mean_estimate
from lit_xai.report import audit
from lit_xai.report.audit import Audit
from lit_xai.report.compare import compared, independent
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from scipy.stats import ttest_ind

from conftest import seeded
from test_audit_page import Page
from test_engine import SOURCE, job

EXPLAINERS = {"saliency": Saliency(), "random": Random(), "centre": Centre()}


def audited(root: Path, gain: float = 1.0, split_seed: int = 0, explainers: dict = EXPLAINERS) -> Audit:
    """Two linear predictors whose logits are multiplied."""
    for fold in (0, 1):
        work = job(root, fold=fold, split_seed=split_seed)
        with torch.no_grad():
            work.model[1].weight.mul_(gain)
        engine.predictions_of(work, Split.make(SOURCE.labels, 2, split_seed, 200), fold)
        engine.explain(work, explainers, {"deletion": Deletion(step=32)}, progress=False)
    ensemble = Ensemble(root)
    return Audit.of(ensemble, summarise(ensemble, progress=False))


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Audit:
    return audited(tmp_path_factory.mktemp("stores") / "first")


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> Audit:
    return audited(tmp_path_factory.mktemp("stores") / "second", gain=9.0)


def row_of(found: dict, explainer: str, column: str) -> dict:
    (row,) = [r for r in found["rows"] if (r["explainer"], r["column"]) == (explainer, column)]
    return row


def test_scores_on_the_same_probes_are_paired_and_measures_are_not(first: Audit, second: Audit) -> None:
    found = compared(first, second)
    a, b = (x.summary.rows[0].estimates["deletion"] for x in (first, second))
    row, d = row_of(found, "saliency", "deletion"), difference(a, b)
    assert row["test"] == "paired"
    assert (row["value"], row["low"], row["high"]) == pytest.approx((d.value, d.low, d.high))
    assert "paired" in found["how"]
    assert {r["test"] for r in found["rows"] if r["column"] == "mege"} <= {"unpaired"}


def test_the_better_one_is_named_in_the_direction_of_the_column(first: Audit, second: Audit) -> None:
    rows = [dataclasses.replace(row, estimates=dict(row.estimates)) for row in first.summary.rows]
    for row in rows:
        row.estimates["deletion"] = mean_estimate(row.estimates["deletion"].each + 0.1, 0)  # higher, which is worse
    worse = dataclasses.replace(second, summary=dataclasses.replace(first.summary, rows=rows, head=second.summary.head))
    row = row_of(compared(first, worse), "saliency", "deletion")
    assert row["value"] == pytest.approx(-0.1)
    assert row["better"] == "first"
    assert row_of(compared(worse, first), "saliency", "deletion")["better"] == "first"


def test_a_folder_beside_itself_differs_in_nothing(first: Audit) -> None:
    for row in compared(first, first)["rows"]:
        assert row["value"] == 0
        assert row["better"] == ""


def test_another_split_is_compared_unpaired_and_says_so(first: Audit, tmp_path: Path) -> None:
    other = audited(tmp_path / "other", split_seed=1)
    found = compared(first, other)
    assert found["how"].startswith("other data or another split: nothing is paired")
    assert {row["test"] for row in found["rows"]} == {"unpaired"}


def test_a_method_of_other_settings_is_left_out_by_name(first: Audit, tmp_path: Path) -> None:
    changed = EXPLAINERS | {"saliency": Saliency(channels="mean")}
    found = compared(first, audited(tmp_path / "other", explainers=changed))
    assert not [row for row in found["rows"] if row["explainer"] == "saliency"]
    assert "left out, for other settings or as only one has them: saliency" in found["how"]


def test_an_unpaired_difference_is_welchs() -> None:
    g = seeded(1)
    x, y = torch.randn(40, generator=g).double(), 0.4 + 3 * torch.randn(15, generator=g).double()
    d = independent(*(mean_estimate(v, n_resamples=20_000) for v in (x, y)))
    welch = ttest_ind(x, y, equal_var=False)
    interval = welch.confidence_interval()
    assert d.value == pytest.approx(float(x.mean() - y.mean()))
    assert (d.low, d.high) == pytest.approx((interval.low, interval.high), rel=0.03)
    assert d.freedom == pytest.approx(math.floor(welch.df), abs=1)


def test_several_networks_stand_on_one_page_with_their_differences(first: Audit, second: Audit, tmp_path: Path) -> None:
    audit.write([first, second], tmp_path, [compared(first, second)])
    page = Page((tmp_path / "audit.html").read_text())
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {"a0-verdict", "a1-verdict", "compared"} <= set(ids)
    document = json.loads((tmp_path / "audit.json").read_text())
    assert [a["name"] for a in document["audits"]] == ["first", "second"]
    assert document["comparisons"][0]["rows"]
    assert compared(first, second)["how"] in " ".join(page.texts)


def test_what_was_scored_otherwise_is_not_compared(first: Audit, second: Audit) -> None:
    definitions = second.summary.definitions | {"deletion": {"definition": {"step": 1}}}
    other = dataclasses.replace(second, summary=dataclasses.replace(second.summary, definitions=definitions))
    assert not [row for row in compared(first, other)["rows"] if row["column"] == "deletion"]

"""Ours beside what a paper prints: what is shown, what is missing, which network it is of, and what is refused."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import pytest
import torch
from lit_xai import engine
from lit_xai.cli.build import plain, training_of
from lit_xai.cli.compose import compose
from lit_xai.cli.schema import chosen_by, config_dir, options, read_experiment, with_lists
from lit_xai.errors import UsageError
from lit_xai.evaluate import measured
from lit_xai.explainers import GradientInput, Random, Saliency
from lit_xai.metrics import Deletion
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.rank_correlation import rank_correlation
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.quality.sampler import MEASURES as OF_SAMPLERS
from lit_xai.report import page, printed, show
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from scipy.stats import spearmanr

from test_engine import job, predicted

KEYS = {"paper_mege_cifar10": ["data.path=x"]}  # what an experiment leaves to the user
PAPERS = [name for name in options("experiment") if name.startswith("paper_")]


def rows(*means: float, column: str = "score") -> dict[str, dict[str, Estimate]]:
    noise = torch.randn(len(means), 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {n: {column: mean_estimate(m + 0.1 * e)} for n, m, e in zip("abcde", means, noise, strict=False)}


def table(columns: dict, **more: str) -> printed.Printed:
    return printed.read([{"source": "a paper", "columns": columns, **more}])[0]


def test_methods_of_either_side_have_a_row_and_say_what_the_other_side_lacks() -> None:
    found = printed.beside(
        table({"score": {"a": 0.9, "b": 0.5, "c": 0.1, "z": 0.3}}), rows(3, 2, 1, 0), {"score": True}
    )
    texts = {row[0]: row[1:] for row in found.table.texts()}
    assert list(texts)[:5] == ["a", "b", "c", "d", "z"]
    assert texts["d"][1] == "not printed"
    assert texts["z"] == ["missing", "0.300"]
    assert texts["Spearman's rho"] == ["1.000 [1.000, 1.000]", "3 methods"]
    assert texts["p of any order"][0] == "0.333"
    assert found.lines() == ["a paper: z is printed and not here: ours are a, b, c, d"]


def test_a_column_that_is_not_here_is_one_line_and_the_others_stand() -> None:
    both = {"sc0re": {"a": 1.0}, "score": {"a": 0.9, "b": 0.5, "c": 0.1}}
    found = printed.beside(table(both), rows(1, 2, 3))
    assert "a paper: no column sc0re is here: ours are score" in found.lines()
    assert found.found["score"].rho.value == pytest.approx(-1)
    assert {row[0]: row[1] for row in found.table.texts()}["a"] == "missing"


def test_files_hold_every_number_and_latex_a_table_each(tmp_path: Path) -> None:
    of = table({"score": {"a": 0.9, "b": 0.5, "c": 0.1}, "sc0re": {"a": 1.0}})
    printed.leave([printed.beside(of, rows(3, 2, 1))], tmp_path, "printed")
    read = list(csv.DictReader((tmp_path / "printed.csv").read_text().splitlines()))
    (rho,) = [r for r in read if (r["column"], r["method"]) == ("score", printed.RHO)]
    assert [float(rho[k]) for k in ("value", "low", "high")] == pytest.approx([1, 1, 1])
    (b,) = [r for r in read if (r["column"], r["method"]) == ("score", "b")]
    assert float(b["value"]) == pytest.approx(2, abs=0.1)
    assert float(b["printed"]) == 0.5
    assert "\nb & " in (tmp_path / "printed.tex").read_text()
    assert printed.leave([], tmp_path, "nothing") == []


def test_a_table_of_one_network_stands_beside_that_network_alone() -> None:
    both = [table({"score": {"a": 1.0}}, model=m) for m in ("resnet18", "lipschitz")]
    everywhere, fillers = table({"score": {"a": 1.0}}), table({"accuracy": {"a": 1.0}}, table="removal")
    every = (*both, everywhere, fillers)
    assert printed.of_table(every, "summary", "lipschitz") == (both[1], everywhere)
    assert printed.of_table(every, "summary", None) == (everywhere,)
    assert printed.of_table(every, "removal", "vgg") == (fillers,)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        ({"source": "x"}, "must be a list of tables"),
        (["mege"], "must be a list of tables"),
        ([{"columns": {"mege": {"a": 1}}}], "found no source"),
        ([{"source": "x", "colums": {}}], "found unknown key colums"),
        ([{"source": "x", "columns": {}}], "columns holds the values of every method"),
        ([{"source": "x", "columns": {"mege": [1, 2]}}], "columns holds the values of every method"),
        ([{"source": "x", "columns": {"mege": {"a": ".5 %"}}}], "mege of a must be a number, found '.5 %'"),
        ([{"source": "x", "columns": {"mege": {"a": True}}}], "must be a number, found True"),
        ([{"source": "x", "columns": {"mege": {"a": float("nan")}}}], "must be a number, found nan"),
        ([{"source": "x", "columns": {"mege": {"a": 1}}, "model": m} for m in ("", "vgg")], "has two tables of x"),
        ([{"source": "x", "columns": {"mege": {"a": 1}}, "table": "cases"}], "table is summary, samplers or removal"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(node: object, text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)) as e:
        printed.read(node)
    assert "\n" not in str(e.value)


# ----------------------------------------------------------------------------------------------------------- of a folder

OURS = {
    "random": Random(),
    "saliency": Saliency(),
    "gradient_input": GradientInput(),
    "signed": GradientInput(signed=True),
}
PRINTED = {"saliency": 0.5, "gradient_input": 0.9, "signed": 0.4, "rise": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, explained by four methods, of a network that is called `linear`."""
    root = tmp_path_factory.mktemp("printed") / "digits-linear"
    for fold in (0, 1):
        engine.explain(predicted(job(root, fold=fold)), OURS, {"deletion": Deletion(step=64)}, progress=False)
        (root / f"fold={fold}" / "config.yaml").write_text("model: {name: linear}\n")
    return root


def test_it_stands_on_the_terminal_on_the_page_in_latex_and_in_json(folder: Path) -> None:
    found = summarise(Ensemble(folder), progress=False)
    found.compare_with(table({"deletion": PRINTED}))
    mine = {row.explainer: row.estimates["deletion"].value for row in found.rows}
    expected = spearmanr([mine[n] for n in list(PRINTED)[:3]], list(PRINTED.values())[:3]).statistic
    said = found.plain()["printed"]["a paper"]["deletion"]
    assert said["rho"]["value"] == pytest.approx(expected)
    assert said["methods"] == 3
    with show.console() as screen, screen.capture() as seen:
        show.show(found, to=screen)
    for text in (
        seen.get(),
        html.unescape(page.page(found, ["deletion"], folder)),
        found.beside[0].table.latex(found.beside[0].lines()),
    ):
        assert "Spearman's rho" in text
        assert "not printed" in text
        assert "rise is printed and not here: ours are" in " ".join(text.split())


def test_evaluate_takes_the_tables_of_the_network_that_the_folder_has(folder: Path) -> None:
    cfg = compose("evaluate", ["explainer=[]", "score=[]", "progress=false", "logger=none"])
    cfg.printed = [{"source": m, "model": m, "columns": {"mege": {"saliency": 1}}} for m in ("linear", "resnet18")]
    _, found = measured(cfg, folder)
    assert [b.source for b in found.beside] == ["linear"]
    cfg.printed = [{"source": "x", "columns": {"mege": {"saliency": "high"}}}]
    with pytest.raises(UsageError, match="mege of saliency must be a number"):
        measured(cfg, folder)


# ----------------------------------------------------------------------------------------------------------- experiments


def test_what_is_printed_is_no_part_of_a_training() -> None:
    with_, without = (
        plain(compose("train", with_lists([f"experiment={e}"]))) for e in ("paper_mege_fashion_mnist", "fashion_mnist")
    )
    assert with_["printed"] != without["printed"] == []
    assert training_of(with_) == training_of(without)
    assert {**with_, "printed": []} == without


def test_an_experiment_that_builds_on_another_has_its_lists(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - fashion_mnist\n  - _self_\nseed: 1\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert "explainer" in chosen_by(read_experiment("mine", [tmp_path, config_dir()]))
    assert read_experiment("nowhere", [tmp_path, config_dir()]) == []
    assert not any(o.startswith("explainer=") for o in with_lists(["experiment=mine"], [str(tmp_path)]))
    for way in (
        "defaults: [fashion_mnist, {override /data: npz}, _self_]\n",
        "defaults:\n- /experiment/fashion_mnist # base\nseed: 1\n",
    ):
        (tmp_path / "experiment" / "way.yaml").write_text(way)
        assert len(read_experiment("way", [tmp_path, config_dir()])) == 2
    for name, way in {
        "round": "defaults: [way_round]\n",
        "way_round": "defaults: [round]\n",
        "torn": "a: [",
        "odd": "defaults: 3",
    }.items():
        (tmp_path / "experiment" / f"{name}.yaml").write_text(way)
    assert [len(read_experiment(n, [tmp_path])) for n in ("round", "torn", "odd")] == [2, 0, 1]
    (tmp_path / "experiment" / "fashion_mnist.yaml").write_text("seed: 2\n")  # the user's own goes before ours
    assert any(o.startswith("explainer=") for o in with_lists(["experiment=mine"], [str(tmp_path)]))


def test_decisions_of_1_lipschitz_networks_order_methods_as_the_paper_does_and_labels_do_not() -> None:
    """10,000 images of Fashion-MNIST, 200 disagreements."""
    cfg = plain(compose("evaluate", with_lists(["experiment=paper_mege_fashion_mnist"])))
    (reco,) = (p.columns["reco"] for p in printed.of_table(printed.read(cfg["printed"]), "summary", "lipschitz")[:1])
    measured = {
        "reco": (1.00, 0.56, 0.77, 1.00, 0.85, 0.45, 0.98),
        "reco_label": (0.14, 0.16, 0.21, 0.18, 0.08, 0.06, 0.32),
    }
    found = {
        c: rank_correlation(c, dict(zip(reco, map(Estimate, of), strict=True)), reco) for c, of in measured.items()
    }
    assert found["reco"].rho.value == pytest.approx(0.94, abs=0.005)
    assert found["reco"].p < 0.05 < found["reco_label"].p


@pytest.mark.parametrize("name", PAPERS)
def test_every_printed_method_and_column_of_an_experiment_is_one_that_it_has(name: str) -> None:
    cfg = plain(compose("explain", with_lists([f"experiment={name}", *KEYS.get(name, ())])))
    families = {n.partition("__")[0] for n in cfg["explainer"]}
    fillers = {*options("filler"), "real", "noise"}
    removal = ("accuracy", "ms_ssim", "lpips")
    scores = (*MEASURES, *cfg.get("score", ()), *show.SIMILARITIES)
    for p in printed.read(cfg["printed"]):
        methods = {"summary": {*cfg["explainer"], *families}, "samplers": fillers, "removal": fillers}[p.table]
        columns = {"summary": scores, "samplers": (*OF_SAMPLERS,), "removal": removal}[p.table]
        assert set(p.columns) <= set(columns)
        assert {n for values in p.columns.values() for n in values} <= methods
    assert cfg["printed"]

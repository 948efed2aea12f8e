"""Test probes: images that no fold saw, explained by every predictor, and what holds for new ones."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_xai.callbacks import Context, Explain
from lit_xai.data.folds import FoldData
from lit_xai.data.shapes import shapes
from lit_xai.data.split import Split
from lit_xai.data.unseen import Unseen
from lit_xai.errors import UsageError
from lit_xai.explainers import GradientInput, Random
from lit_xai.metrics import Insertion, KeptShare
from lit_xai.metrics.conformal import bound
from lit_xai.models.classifier import Classifier
from lit_xai.report import audit
from lit_xai.report.audit import Audit
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.show import further_tables
from lit_xai.report.summarise import summarise
from lit_xai.report.tested import Conformal
from lit_xai.rng import SampleRng
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import TEST
from scipy.stats import beta, spearmanr
from torch import nn

from conftest import seeded


def test_probes_of_a_test_split_are_numbered_on_from_the_training_images() -> None:
    source = shapes(size=16, samples=60, test=40)
    unseen = Unseen.draw(source, Split.make(source.labels, 3, 0), 25)
    rows = unseen.samples - 60
    assert source.test is not None
    assert source.test_labels is not None
    assert torch.equal(unseen.images.images(unseen.samples.tolist()), source.test.images(rows.tolist()))
    assert torch.equal(unseen.split.labels, source.test_labels[rows])
    assert len(rows.unique()) == 25


def test_without_a_test_split_they_are_what_no_fold_was_given(digits) -> None:
    split = Split.make(digits.labels, 3, 0, subset=1000)
    unseen = Unseen.draw(digits, split, None)
    assert sorted([*unseen.samples.tolist(), *split.samples.tolist()]) == list(range(1797))
    assert torch.equal(unseen.split.labels, digits.labels[unseen.samples])


def test_a_sample_whose_group_a_fold_holds_is_no_test_probe(digits) -> None:
    groups = torch.arange(1797) // 3
    split = Split.make(digits.labels, 3, 0, subset=300, groups=groups)
    unseen = Unseen.draw(digits, split, None, groups)
    assert 0 < len(unseen.samples) < 1497
    assert not set(groups[unseen.samples].tolist()) & set(groups[split.samples].tolist())


def test_of_a_network_that_is_not_trained_here_every_image_is_unseen(digits) -> None:
    unlabelled = replace(digits, labels=torch.full_like(digits.labels, -1), classes=())
    unseen = Unseen.draw(unlabelled, Split.make(unlabelled.labels, 1, 0), None)
    assert unseen.samples.tolist() == list(range(1797))


def test_a_test_split_without_labels_is_none() -> None:
    source = replace(SOURCE, test_labels=None)
    with pytest.raises(UsageError, match="has no test split"):
        Unseen.draw(source, Split.make(source.labels, 3, 0), 10)


def test_one_predictor_alone_says_what_it_needs_of_an_image_and_nothing_of_pairs(tmp_path) -> None:
    data = FoldData(lambda: SOURCE, 0, 1, probes_per_fold=5)
    on = replace(context(0), data=data)
    for probes in ("random", "test"):
        explain(tmp_path, 0, probes).run(on)
    summary = summarise(Ensemble(tmp_path), progress=False)
    found = summary.plain()["conformal"]["gradient_input"]
    assert (found["pairs"], "any_two" in found, found["kept_by_all"]["samples"]) == ({}, False, 30)
    assert "one predictor alone" in summary.rows[0].estimates["mege_test"].reason
    assert further_tables(summary, ["insertion"])["Test probes"].texts()[0][1:3] == ["-", ""]


def test_fewer_probes_are_some_of_more_and_all_images_are_as_likely() -> None:
    source = shapes(size=16, samples=60, test=40)
    found = [set(Unseen.draw(source, Split.make(source.labels, 3, s), 10).samples.tolist()) for s in range(200)]
    number = torch.tensor([sum(60 + i in f for f in found) for i in range(40)])
    assert bool(((number - 50).abs() < 30).all())  # 50 +- 6 each
    split = Split.make(source.labels, 3, 0)
    assert found[0] < set(Unseen.draw(source, split, 30).samples.tolist())


def test_data_whose_images_all_lie_in_folds_say_what_to_do(digits) -> None:
    with pytest.raises(UsageError, match=r"digits has no test split.* data\.train_subset=1437 and another name="):
        Unseen.draw(digits, Split.make(digits.labels, 5, 0), 100)


# ------------------------------------------------------------------------------------------------------- the pass over them


class Flat(nn.Sequential):
    """One linear layer."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * side**2, classes))


SOURCE = shapes(size=16, samples=60, test=40)
METHODS = {"gradient_input": GradientInput(), "random": Random()}


def context(fold: int) -> Context:
    """A linear classifier that is right on many test images, and a little another one for every fold."""
    module = Classifier(Flat, 3, 6, 16).eval()
    assert SOURCE.test is not None
    assert SOURCE.test_labels is not None
    x = module.normalise(SOURCE.test.images(range(40))).flatten(1)
    fitted = torch.linalg.lstsq(x, torch.nn.functional.one_hot(SOURCE.test_labels, 6).float()).solution.T
    with torch.no_grad():
        module.network[1].weight.copy_(fitted + 0.01 * torch.randn(fitted.shape, generator=seeded(fold)))
        module.network[1].bias.zero_()
    data = FoldData(lambda: SOURCE, fold, 2, probes_per_fold=5)
    return Context(module, data, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unseen")
    for fold in range(2):
        explain(root, fold).run(context(fold))
        explain(root, fold, "random").run(context(fold))
    return root


def explain(root: Path, fold: int, probes: str = "test", **options: Any) -> Explain:
    store = FoldStore(root / f"fold={fold}")
    return Explain(METHODS, {"insertion": Insertion()}, store, probes, tests=30, progress=False, **options)


def test_every_predictor_explains_the_same_test_probes_for_their_labels(folder) -> None:
    unseen = context(0).data.unseen(30)
    for fold in range(2):
        reader, model = MapReader(FoldStore(folder / f"fold={fold}"), TEST, "gradient_input"), context(fold).model
        images = unseen.images.images(unseen.samples.tolist())
        own = GradientInput()(model, images, unseen.split.labels)
        assert torch.equal(reader.samples, unseen.samples)
        assert torch.allclose(reader.rows(unseen.samples), own, atol=1e-6)
        assert reader.scores() == ["kept_share"]
        score = KeptShare().fitted(context(fold).data.trained_on)
        kept = score(model, images, own, unseen.split.labels, SampleRng(0, tuple(unseen.samples.tolist())))
        assert torch.allclose(reader.rows(unseen.samples, "score/kept_share"), kept)


def test_their_predictions_are_kept_beside_those_of_the_training_images(folder) -> None:
    on, store = context(1), FoldStore(folder / "fold=1")
    tests, whole = store.read_predictions(store.test_file), store.read_predictions()
    unseen = on.data.unseen(30)
    for p, images in ((tests, unseen.images), (whole, SOURCE.train)):
        assert torch.equal(p.predicted, on.model(images.images(p.split.samples.tolist())).argmax(1))
    assert torch.equal(tests.split.samples, unseen.samples)
    assert torch.equal(tests.correct, tests.predicted == unseen.split.labels)


def test_a_finished_pass_has_nothing_left_to_do_and_another_number_of_probes_is_refused(folder) -> None:
    again = explain(folder, 0)
    again.run(context(0))
    assert again.written == 0
    with pytest.raises(UsageError, match=r"of another shard_size or probe count|was computed otherwise"):
        Explain(METHODS, {}, FoldStore(folder / "fold=0"), "test", tests=29, progress=False).run(context(0))


def test_maps_of_predictions_explain_what_a_predictor_says_of_a_test_probe(tmp_path) -> None:
    explain(tmp_path, 0, target="prediction").run(context(0))
    unseen, model = context(0).data.unseen(30), context(0).model
    images = unseen.images.images(unseen.samples.tolist())
    own = GradientInput()(model, images, model(images).argmax(1))
    reader = MapReader(FoldStore(tmp_path / "fold=0"), TEST, "gradient_input")
    assert torch.allclose(reader.rows(unseen.samples), own, atol=1e-6)


@pytest.mark.parametrize("number", [0, -3, 2.5, True])
def test_a_number_of_test_probes_is_whole_and_positive(tmp_path, unchecked, number) -> None:
    with pytest.raises(UsageError, match="test_probes"):
        Explain({}, {}, FoldStore(tmp_path / "fold=0"), "test", tests=number)


# ----------------------------------------------------------------------------------------------------------- what they say


def maps_of(root: Path, explainer: str) -> list[Any]:
    """Both predictors' maps of the test probes, flat."""
    readers = [MapReader(FoldStore(root / f"fold={f}"), TEST, explainer) for f in range(2)]
    return [r.rows(r.samples).flatten(1).numpy() for r in readers]


def test_the_table_rests_on_every_pair_of_predictors_on_the_test_probes(folder) -> None:
    summary = summarise(Ensemble(folder), progress=False)
    plain, unseen = summary.plain(), context(0).data.unseen(30)
    images = unseen.images.images(unseen.samples.tolist())
    right = [(context(f).model(images).argmax(1) == unseen.split.labels).numpy() for f in range(2)]
    for name in METHODS:
        apart = [1 - abs(spearmanr(a, b).statistic) for a, b in zip(*maps_of(folder, name), strict=True)]
        found = plain["conformal"][name]
        assert found["pairs"]["0,1"]["value"] == pytest.approx(max(apart))  # the 30th of 30
        assert found["any_two"]["value"] == found["pairs"]["0,1"]["value"]
        both = [d for d, a, b in zip(apart, *right, strict=True) if a and b]
        e = plain["rows"][name]["mege_test"]
        assert both
        assert e["value"] == pytest.approx(1 / (1 + sum(both) / len(both)))
        assert e["samples"] == len(both)
        stores = [FoldStore(folder / f"fold={f}") for f in range(2)]
        kept = torch.stack([MapReader(s, TEST, name).rows(unseen.samples, "score/kept_share") for s in stores])
        assert [found["kept"][f]["value"] for f in ("0", "1")] == kept.amax(1).tolist()
        assert found["kept_by_all"]["value"] == float(kept.max())


def test_every_bound_has_its_sentence_rounded_up(folder) -> None:
    found = summarise(Ensemble(folder), progress=False).plain()["conformal"]["random"]["pairs"]["0,1"]
    value = float(re.findall(r"at most ([\d.]+) apart", found["sentence"])[0])
    assert found["value"] <= value < found["value"] + 0.001
    assert found["sentence"].startswith(
        "with probability 95% or more, the maps of a new image by the predictors 0 and 1"
    )
    low, high = beta(30, 1).ppf([0.025, 0.975])
    assert f"{low:.1%} to {high:.1%}" in found["sentence"]


def test_a_kept_share_of_the_whole_image_is_said_to_show_nothing() -> None:
    whole, half = bound(torch.ones(30)), bound(torch.full((30,), 0.5))
    plain = Conformal(torch.arange(30), "label", "spearman", {}, None, {0: whole, 1: half}, whole).plain()
    assert "no smaller one is shown" in plain["kept"]["0"]["sentence"]
    assert "keeping the share 0.500" in plain["kept"]["1"]["sentence"]
    assert "any_two" not in plain


def test_the_terminal_and_the_pages_show_the_test_probes_with_the_nulls_below(folder, tmp_path) -> None:
    table = further_tables(summarise(Ensemble(folder), progress=False), ["mege"])["Test probes"]
    assert [row[0] for row in table.texts()] == ["gradient_input", "random"]
    assert table.below == ["random"]
    assert "30 test probes" in table.title
    ensemble = Ensemble(folder)
    audit.write([Audit.of(ensemble, summarise(ensemble, progress=False))], tmp_path)
    text = (tmp_path / "audit.html").read_text()
    rows = text[text.index("What holds for a new image") :].split("</table>")[0]
    assert rows.index("gradient_input</th>") < rows.index('<tr class="null"><th scope="row">random</th>')
    assert rows.count(">30<") == 2


def test_a_folder_without_test_probes_says_how_to_explain_them(tmp_path) -> None:
    for fold in range(2):
        explain(tmp_path, fold, "random").run(context(fold))
    summary = summarise(Ensemble(tmp_path), progress=False)
    assert "conformal" not in summary.plain()
    assert summary.rows[0].estimates["mege_test"].reason.startswith("no test probes explained: run python -m")
    assert "Test probes" not in further_tables(summary, ["mege"])


def test_explainers_with_other_test_probes_are_not_compared(tmp_path) -> None:
    for fold in range(2):
        explain(tmp_path, fold, "random").run(context(fold))
        for number, (name, method) in enumerate(METHODS.items()):
            store = FoldStore(tmp_path / f"fold={fold}")
            Explain({name: method}, {}, store, "test", tests=40 - 5 * number, progress=False).run(context(fold))
    summary, right = summarise(Ensemble(tmp_path), progress=False), []
    row, unseen = summary.rows[0], context(0).data.unseen(40)
    for fold in range(2):  # predictions of the 40 are there though 35 were explained last
        p, model = FoldStore(tmp_path / f"fold={fold}"), context(fold).model
        found = p.read_predictions(p.test_file)
        assert torch.equal(found.split.samples, unseen.samples)
        right.append(model(unseen.images.images(unseen.samples.tolist())).argmax(1) == unseen.split.labels)
        assert torch.equal(found.correct, right[-1])
    assert row.estimates["mege_test"].samples == int((right[0] & right[1]).sum()) > 0
    assert "mege_test" not in row.strongest
    assert "insertion" in row.strongest


def test_a_pass_that_some_folds_lack_is_unfinished(tmp_path) -> None:
    for fold in range(2):
        explain(tmp_path, fold, "random").run(context(fold))
    half = explain(tmp_path, 0)
    half.write_plans(30)
    half.run(context(0))
    (tmp_path / "fold=0" / "config.yaml").write_text("{}")  # as a command leaves it
    lack = summarise(Ensemble(tmp_path), progress=False).head["unfinished"]
    assert "30 of 60 maps of test probes" in lack["message"]
    assert any("probes=test" in c and "fold=1" in c for c in lack["commands"])

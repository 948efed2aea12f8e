"""What maps depend on: the network's weights, and the method's own noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_xai.crossval import explain_folds, load
from lit_xai.explainers import GradientInput, Image, Random, Saliency, SmoothGrad
from lit_xai.metrics.sanity import sanity
from lit_xai.report.ensemble import Ensemble
from lit_xai.rng import SampleRng, stable_hash
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.utils import parametrize

from test_decisions import DATA, Net

METHODS = {"saliency": Saliency(), "smoothgrad": SmoothGrad(samples=2), "image": Image(), "random": Random()}


def explained(root: Path, module: Any = Net, methods: Any = None, **options: Any) -> Any:
    trainer = dict(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    options = {"k": 3, "scores": {}, "progress": False, "training_batch": 16, **options}
    return explain_folds(module, DATA, methods or METHODS, root=root, trainer=trainer, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checks")
    explained(root)
    return root


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["rows"]


def own_maps(folder: Path, explainer: str, fold: int) -> tuple[Tensor, Tensor]:
    """The first twelve held-out probes of a fold, and their maps."""
    _, split, maps, _ = load(folder, fold, Net(), DATA)
    mine = (split.fold(maps.samples) == fold).nonzero()[:12, 0]
    return maps.samples[mine], maps[explainer][mine]


def rho(a: Tensor, b: Tensor) -> list[float]:
    return [abs(spearmanr(x.ravel(), y.ravel()).statistic) for x, y in zip(a.numpy(), b.numpy(), strict=True)]


@pytest.mark.parametrize("explainer", ["saliency", "smoothgrad"])
def test_sanity_is_the_similarity_with_maps_of_the_same_network_with_fresh_weights(folder, rows, explainer) -> None:
    found = []
    for fold in range(3):
        samples, _ = own_maps(folder, explainer, fold)
        model, split, _, images = load(folder, fold, Net(), DATA)
        rng = SampleRng(0, tuple(samples.tolist()))
        fresh = SampleRng(stable_hash(0, "fold", fold), rng.samples)
        other = sanity(model, images[samples], split.label(samples), {"x": Saliency()}, fresh, stages=1)
        assert other.stages[0].layers == 2
        if explainer == "saliency":
            found += other.similarity["x"][0].spearman.abs().tolist()
    if explainer == "saliency":
        assert rows[explainer]["sanity"]["value"] == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert rows[explainer]["sanity"]["value"] < 0.6
    assert rows[explainer]["sanity"]["samples"] == 36


def test_maps_that_ignore_the_model_are_stable_and_depend_on_nothing(rows) -> None:
    image = rows["image"]
    assert [image[m]["value"] for m in ("mege", "sanity", "reco")] == [1.0, 1.0, 0.0]
    assert (image["sanity"]["low"], image["sanity"]["high"]) == (1.0, 1.0)


def test_noise_is_like_nothing(rows) -> None:
    assert rows["random"]["sanity"]["high"] < 0.25
    assert rows["random"]["repeat"]["high"] < 0.25


def test_repeat_is_the_similarity_of_two_runs_of_the_method_by_one_predictor(folder, rows) -> None:
    found = []
    for fold in range(3):
        samples, maps = own_maps(folder, "smoothgrad", fold)
        model, split, _, images = load(folder, fold, Net(), DATA)
        again = SmoothGrad(samples=2)(
            model, images[samples], split.label(samples), SampleRng(0, tuple(samples.tolist())).repeated(1)
        )
        found += rho(maps, again.detach())
    assert rows["smoothgrad"]["repeat"]["value"] == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert rows["saliency"]["repeat"]["value"] == 1.0


def test_neither_is_marked_against_nulls(rows) -> None:
    assert all("mark" not in row[m] for row in rows.values() for m in ("sanity", "repeat"))


def test_a_null_that_is_at_its_best_by_construction_is_not_named_as_one(folder) -> None:
    columns = json.loads((folder / "summary.json").read_text())["columns"]
    assert columns["mege"]["null"] == "random"  # the maps of `image` are the same for all predictors


def test_two_predictors_get_fresh_weights_of_their_own(folder) -> None:
    maps = [Ensemble(folder).readers("saliency", "randomised")[f] for f in range(3)]
    (a, *_), (b, *_), _ = (m.rows(m.samples) for m in maps)
    assert not torch.allclose(a, b)


@pytest.mark.slow
def test_a_folder_without_them_says_which_command_adds_them_and_the_same_call_does(tmp_path) -> None:
    methods = {"saliency": Saliency()}
    without = explained(tmp_path, methods=methods, checks=0).rows[0].estimates["sanity"]
    assert "run python -m lit_xai.explain for every fold" in without.reason
    maps = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("maps/*/*.safetensors")}
    assert explained(tmp_path, methods=methods).rows[0].estimates["sanity"].value < 1
    assert {f: f.stat().st_mtime_ns for f in maps} == maps


class Halved(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / 2


class Parametrised(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.net[1], "weight", Halved())


def test_a_network_whose_layers_cannot_be_made_anew_is_explained_without_sanity(tmp_path, capsys) -> None:
    summary = explained(tmp_path, Parametrised, {"gradient_input": GradientInput()})
    assert "sanity is left out: the weights of net.1 are parametrised" in capsys.readouterr().out
    estimates = summary.rows[0].estimates
    assert estimates["sanity"].reason
    assert estimates["repeat"].value == 1
    assert estimates["mege"].value > 0

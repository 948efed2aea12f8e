"""One trained model without folds: what can be said of its maps, and what needs others."""

from __future__ import annotations

import json
from pathlib import Path

import lit_xai
import pytest
import torch
from lit_xai.crossval import explain_model
from lit_xai.errors import UsageError
from lit_xai.explainers import Image, Random, Saliency, SmoothGrad
from lit_xai.report.show import show
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

DATA = TensorDataset(torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3)
METHODS = {"saliency": Saliency(), "smoothgrad": SmoothGrad(samples=2), "image": Image(), "random": Random()}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    summary = explain_model(model(), DATA, METHODS, root, progress=False)
    with open(root / "table.txt", "w") as file:
        show(summary, to=Console(file=file, width=180))
    return root


def test_faithfulness_dependence_and_noise_are_measured_and_persistence_says_what_it_needs(folder: Path) -> None:
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    for name in ("saliency", "smoothgrad"):
        measured = {"deletion", "insertion", "mufidelity", "sanity", "repeat"}
        assert {c for c in rows[name] if rows[name][c]["value"] is not None} >= measured
        assert rows[name]["sanity"]["value"] < 0.3
        assert rows[name]["mege"]["reason"] == "one predictor alone: persistence needs those of other folds"
    assert rows["saliency"]["deletion"]["samples"] == 30
    assert rows["image"]["sanity"]["value"] == 1
    assert rows["smoothgrad"]["repeat"]["value"] < 1 == rows["saliency"]["repeat"]["value"]


def test_columns_that_nobody_can_fill_are_left_out_and_said_below(folder: Path) -> None:
    text = (folder / "table.txt").read_text()
    head = next(line for line in text.splitlines() if "sanity" in line and "deletion" in line)
    assert "mege" not in head
    assert "reco" not in head
    assert "mege: one predictor alone: persistence needs those of other folds" in text


def test_a_second_call_computes_nothing(folder: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*.safetensors")}
    explain_model(model(), DATA, METHODS, folder, progress=False)
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_every_column_names_direction_target_version_null_and_correction(folder: Path) -> None:
    columns = json.loads((folder / "summary.json").read_text())["columns"]
    score, noise, reco = (columns[c] for c in ("deletion", "sanity", "reco"))
    assert (score["direction"], score["target"], score["version"]) == ("down", "label", 1)
    assert (score["null"], score["correction"]) == ("image, random", "Holm over the explainers of the column")
    assert (noise["direction"], noise["null"], noise["correction"]) == ("down", None, None)
    assert reco["target"] == "in S_differ each predictor's map explains the class that it says"
    assert reco["null"] == "mean of 1000 permutations of the labels of samples"
    assert columns["mege"]["version"] == 2


def test_the_users_model_stays_as_it_was(tmp_path: Path) -> None:
    mine = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    mine.append(nn.Linear(4, 3))
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    explain_model(mine, DATA, {"saliency": Saliency()}, tmp_path, scores={}, progress=False)
    assert all(m.training for m in mine.modules())
    assert mine[0].weight.is_contiguous()
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())


class Pair(nn.Module):
    """A model of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.net(x), x


def test_the_first_of_two_outputs_are_the_logits(tmp_path: Path) -> None:
    pair, one = Pair(), {"saliency": Saliency()}
    found = [explain_model(m, DATA, one, tmp_path / type(m).__name__, progress=False) for m in (pair, pair.net)]
    for name in ("deletion", "insertion", "mufidelity"):
        assert found[0].rows[0].estimates[name].value == found[1].rows[0].estimates[name].value


def test_probabilities_are_explained_where_somebody_says_that_they_are(tmp_path: Path) -> None:
    declared, one = nn.Sequential(*model(), nn.Softmax(1)), {"image": Image()}
    found = explain_model(declared, DATA, one, tmp_path / "p", outputs="probabilities", progress=False)
    expected = explain_model(model(), DATA, one, tmp_path / "z", progress=False)
    for name in ("deletion", "insertion"):
        assert found.rows[0].estimates[name].value == pytest.approx(expected.rows[0].estimates[name].value, abs=1e-6)


@pytest.mark.parametrize(
    ("network", "labels", "text"),
    [
        (nn.Conv2d(3, 4, 3), DATA.tensors[1], r"gives shape \(1, 4, 14, 14\) for 1 images"),
        (nn.Sequential(model(), nn.Softmax(1)), DATA.tensors[1], "remove its softmax"),
        (model(), DATA.tensors[1] % 2 + 6, r"labels are 6, 7 \(2 different\) and the model has 3 classes: give"),
    ],
)
def test_a_model_or_labels_that_do_not_fit_are_refused_in_a_line(tmp_path: Path, network, labels, text) -> None:
    with pytest.raises(UsageError, match=text):
        explain_model(network, TensorDataset(DATA.tensors[0], labels), METHODS, tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_audit_leaves_the_mode_as_it_was_where_labels_are_numbered(tmp_path: Path) -> None:
    mine, words = model().train(), TensorDataset(DATA.tensors[0], DATA.tensors[1] + 5)
    lit_xai.audit(mine, words, {"saliency": Saliency()}, tmp_path, scores={}, checks=0, progress=False)
    assert all(m.training for m in mine.modules())

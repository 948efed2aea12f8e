"""ReCo compares decisions: on a disagreement every predictor's map explains the class that this predictor says."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_xai.crossval import explain_folds, load
from lit_xai.explainers import GradientInput, SmoothGrad
from lit_xai.store.fold import FoldStore
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

LABELS = torch.arange(180) % 3
G = torch.Generator().manual_seed(0)
CLASSES = torch.rand(3, 1, 6, 6, generator=G)
DATA = TensorDataset((0.25 * CLASSES[LABELS] + 0.75 * torch.rand(180, 1, 6, 6, generator=G)).clamp(0, 1), LABELS)
FOLDS = range(3)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decisions")
    trainer = dict(max_epochs=8, accelerator="cpu", enable_progress_bar=False)
    explainers = {"gradient_input": GradientInput(), "smoothgrad": SmoothGrad(samples=2)}
    explain_folds(Net, DATA, explainers, k=3, root=root, trainer=trainer, scores={}, training_batch=16, progress=False)
    return root


def maps_of(folder: Path, kind: str, explainer: str) -> dict[tuple[int, int], np.ndarray]:
    """The maps of a kind by fold and sample, flat."""
    out = {}
    for fold in FOLDS:
        for file in (folder / f"fold={fold}" / kind / explainer).glob("*.safetensors"):
            t = load_file(file)
            out |= {(fold, int(s)): m.numpy().ravel() for s, m in zip(t["sample"], t["maps"], strict=True)}
    return out


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return round(1 - abs(spearmanr(a, b).statistic), 12)


def balanced(equal: list[float], differ: list[float]) -> float:
    rates = [np.mean(np.array(equal) < g) + np.mean(np.array(differ) >= g) - 1 for g in equal + differ]
    return max(0.0, *rates)


@pytest.mark.parametrize("explainer", ["gradient_input", "smoothgrad"])
def test_reco_is_of_what_the_predictors_say_and_reco_label_of_the_label(folder: Path, explainer: str) -> None:
    predictions = [FoldStore(folder / f"fold={f}").read_predictions() for f in FOLDS]
    home = dict(zip(predictions[0].split.samples.tolist(), predictions[0].split.fold_of.tolist(), strict=True))
    right = [dict(zip(home, p.correct.tolist(), strict=True)) for p in predictions]
    random, labels, own = (maps_of(folder, kind, explainer) for kind in ("maps", "disagreements", "decisions"))
    said = {key: own.get(key, labels[key]) for key in labels}

    def pairs(maps: dict) -> list[tuple[int, int, int]]:
        return [(x, home[x], j) for (f, x), j in product(maps, FOLDS) if f == home[x] != j and (j, x) in maps]

    equal = [apart(random[i, x], random[j, x]) for x, i, j in pairs(random) if right[i][x] and right[j][x]]
    cells = json.loads((folder / "summary.json").read_text())["rows"][explainer]
    values = []
    for measure, maps in (("reco", said), ("reco_label", labels)):
        differ = [apart(maps[i, x], maps[j, x]) for x, i, j in pairs(maps) if right[i][x] != right[j][x]]
        assert len(differ) > 10
        values.append(balanced(equal, differ))
        assert cells[measure]["value"] == pytest.approx(values[-1], abs=1e-9)
    assert values[0] != pytest.approx(values[1], abs=0.05)


def test_every_wrong_predictor_explains_what_it_says(folder: Path) -> None:
    own, labels = (maps_of(folder, kind, "gradient_input") for kind in ("decisions", "disagreements"))
    for fold in FOLDS:
        model, split, _, _ = load(folder, fold, Net(), DATA)
        says = FoldStore(folder / f"fold={fold}").read_predictions()
        mine = torch.tensor([x for f, x in labels if f == fold])
        wrong = says.of(mine) != split.label(mine)
        assert {x for f, x in own if f == fold} == set(mine[wrong].tolist())
        images = torch.stack([DATA[int(x)][0] for x in mine[wrong]])
        expected = GradientInput()(model, images, says.of(mine[wrong]))
        found = np.stack([own[fold, int(x)] for x in mine[wrong]])
        assert np.allclose(found, expected.flatten(1).numpy(), atol=1e-6)


def test_the_summary_names_the_target_of_every_number(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["head"]["target"] == "label"
    assert "class that it says" in summary["definitions"]["reco"]["target"]
    assert "explain the label" in summary["definitions"]["reco_label"]["target"]

"""The library's command on anybody's model, data and explainers: what is reused, what is taken, what is given back."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lit_xai.crossval import explain_folds, load
from lit_xai.errors import UsageError
from lit_xai.explainers import Random, Saliency
from torch import Tensor, nn
from torch.utils.data import TensorDataset

LABELS = torch.arange(60) % 2
IMAGES = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2 + LABELS.view(-1, 1, 1, 1) / 2
DATA = TensorDataset(IMAGES, LABELS)


class Net(pl.LightningModule):
    def __init__(self, lr: float = 0.01, gain: float = 1.0) -> None:
        super().__init__()
        self.lr, self.gain = lr, gain
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.gain

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class Squared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * x)


def explained(root: Path, module: Any = Net, explainers: Any = None, trainer: Any = None, **options: Any) -> Any:
    options = {"k": 2, "scores": {}, "probes_per_fold": 12, "progress": False, **options}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, **(trainer or {})}
    return explain_folds(module, DATA, explainers or {"saliency": Saliency()}, root=root, trainer=trainer, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folds")
    explained(root)
    return root


def test_fillers_learn_what_a_predictor_was_trained_on(tmp_path: Path) -> None:
    told = []

    @dataclasses.dataclass(frozen=True)
    class Asking(Saliency):
        def fitted(self, trained_on):
            told.append(trained_on)
            return self

    explained(tmp_path, explainers={"asking": Asking()})
    assert {(t.fold, t.shape) for t in told} == {(0, (1, 8, 8)), (1, (1, 8, 8))}
    assert all(f"60 samples, seed 0, fold {t.fold} of 2 held out" in t.about for t in told)


# ------------------------------------------------------------------------------------------------------------- staleness


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [
        (Net, {"trainer": {"max_epochs": 3}}, "trainer.max_epochs: 2 there, 3 here"),
        (functools.partial(Net, lr=0.1), {}, "hyper_parameters.lr: 0.01 there, 0.1 here"),
        (functools.partial(Net, gain=2.0), {}, "hyper_parameters.gain"),
        (Squared, {}, "code: "),
        (Net, {"training_batch": 16}, "training_batch: 64 there, 16 here"),
        (Net, {"train": lambda module, data, fold: None}, "train: "),
    ],
)
def test_predictors_that_were_trained_otherwise_are_not_taken(
    folder: Path, module: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match="was trained otherwise") as refused:
        explained(folder, module, **options)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_same_training_elsewhere_on_the_machine_is_reused(folder: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*.ckpt")}
    explained(folder, trainer={"enable_progress_bar": False, "log_every_n_steps": 3, "logger": None})
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*.ckpt")} == before


def test_a_predictor_that_does_not_say_how_it_was_trained_is_reused_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "old")
    for file in (tmp_path / "old").rglob("*.ckpt"):
        content = torch.load(file, weights_only=True)
        del content["config"]["training"]
        torch.save(content, file)
    explained(tmp_path / "old", trainer={"max_epochs": 7})
    assert "does not say how it was trained" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- explainers from outside


def by_function(model: Any, images: Tensor, targets: Tensor, rng: Any = None) -> Tensor:
    return images.mean(1)


class ByObject:
    """No dataclass, and its maps still carry gradients."""

    def __init__(self, power: float) -> None:
        self.power, self.filter = power, torch.ones(3)

    def __call__(self, model: Any, images: Tensor, targets: Tensor, rng: Any = None) -> Tensor:
        return images.clone().requires_grad_().pow(self.power).mean(1)


def by_options(model: Any, images: Tensor, targets: Tensor, rng: Any = None, power: float = 1.0) -> Tensor:
    return images.mean(1) ** power


@pytest.mark.slow
def test_functions_and_objects_of_any_class_explain(tmp_path: Path) -> None:
    explainers = {
        "function": by_function,
        "object": ByObject(2.0),
        "options": functools.partial(by_options, power=2.0),
        "random": Random(),
    }
    summary = explained(tmp_path, explainers=explainers)
    mege = {row.explainer: row.estimates["mege"].value for row in summary.rows}
    assert mege["function"] == mege["object"] == mege["options"] == pytest.approx(1)
    assert mege["random"] < 0.7
    explained(tmp_path, explainers=explainers)  # reused
    with pytest.raises(UsageError, match=r"explainer\.power"):
        explained(tmp_path, explainers={"object": ByObject(3.0)})
    with pytest.raises(UsageError, match="was computed otherwise"):
        explained(tmp_path, explainers={"options": functools.partial(by_options, power=3.0)})
    with pytest.raises(UsageError, match=r"explainer\.code"):
        explained(tmp_path, explainers={"function": lambda model, images, targets, rng=None: images.sum(1)})


# ------------------------------------------------------------------------------------------------------------------ load


def test_a_loaded_fold_has_its_images_and_says_what_it_takes(folder: Path) -> None:
    loaded = load(folder, 1, Net(), DATA)
    model, split, maps, images = loaded
    assert len(images) == 60
    assert torch.equal(images[3], IMAGES[3])
    assert torch.equal(images[[1, 5]], IMAGES[[1, 5]])
    assert torch.equal(images[-2:], IMAGES[-2:])
    assert split.k == 2
    samples = maps.samples[:4]
    again = Saliency()(model, images[samples], split.label(samples))
    assert torch.allclose(again, maps["saliency"][:4], atol=1e-6)
    assert loaded.takes == "images [b, 1, 8, 8] in [0, 1] -> logits [b, 2]"


def test_a_fold_of_an_unknown_data_set_says_so_when_images_are_asked_for(folder: Path) -> None:
    images = load(folder, 0, Net()).images
    with pytest.raises(UsageError, match="pass dataset="):
        images[0]

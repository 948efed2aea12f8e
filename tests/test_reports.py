"""What is made from a trained module: by a command, by a Trainer's test loop, with and without labels."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_xai.callbacks import Context, Curves, Explain, Gallery
from lit_xai.core import Score
from lit_xai.data.folds import FoldData
from lit_xai.data.sources import digits
from lit_xai.explainers import Random, Saliency
from lit_xai.metrics import Insertion
from lit_xai.models import Classifier
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from lit_xai.store.fold import FoldStore
from torch import nn


class Flat(nn.Sequential):
    """One linear layer."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * side**2, classes))


@dataclasses.dataclass(frozen=True)
class OfTwoSettings(Score):
    """A score whose columns are noise: which one is chosen, and what it is worth, depends on the half that chooses."""

    higher_is_better = True

    def __call__(self, model, images, maps, targets, rng=None, observed=None):
        return torch.stack([maps.mean((1, 2)), maps[:, 0, 0]], 1)

    def meaning(self):
        return {"measure": "noise"}

    def settings(self):
        return [0.1, 0.2]


def data(labelled: bool = True, **options) -> FoldData:
    source = digits(8)
    if not labelled:
        source = dataclasses.replace(source, labels=torch.full_like(source.labels, -1))
    return FoldData(lambda: source, train_subset=None if not labelled else 100, folds=2 if labelled else 1, **options)


def context(of: FoldData) -> Context:
    torch.manual_seed(0)
    return Context(Classifier(Flat, 1, 10, 8).eval(), of, torch.device("cpu"))


def test_a_curve_of_images_without_labels_is_that_of_the_predicted_class(tmp_path: Path) -> None:
    on, store = context(data(labelled=False, probes_per_fold=8)), FoldStore(tmp_path / "fold=0")
    Explain({"saliency": Saliency()}, {"insertion": Insertion()}, store, progress=False).run(on)
    curves = Curves(store, ["saliency"], {"insertion": Insertion()}, target="label")
    curves.run(on)
    found = list(csv.DictReader((store.root / "curves-insertion.csv").read_text().splitlines()))
    with torch.no_grad():
        images = on.data.source.train.images(on.data.probes.tolist())
        sure = on.model(images).softmax(1).amax(1).double().mean()
    assert float(found[-1]["probability"]) == pytest.approx(float(sure), abs=1e-6)  # the whole image is back


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_csv_chooses_a_setting_on_the_half_that_the_summary_chooses_on(tmp_path: Path, seed: int) -> None:
    on, store = context(data(probes_per_fold=12)), FoldStore(tmp_path / "fold=0")
    Explain({"random": Random()}, {"noise": OfTwoSettings()}, store, seed=seed, progress=False).run(on)
    rows = csv.DictReader((store.root / "scores.csv").read_text().splitlines())
    values = [float(row["noise"]) for row in rows if row["noise"] not in ("", "nan")]
    (row,) = summarise(Ensemble(tmp_path, seed), progress=False).rows
    assert row.estimates["noise"].value == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_a_trainers_test_loop_leaves_what_a_command_leaves(tmp_path: Path) -> None:
    on, files = context(data(probes_per_fold=4)), []
    for name in ("alone", "trainer"):
        store = FoldStore(tmp_path / name / "fold=0")
        explain, gallery = Explain({"saliency": Saliency()}, {}, store, progress=False), Gallery(store, {})
        if name == "alone":
            explain.run(on)
        else:
            quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
            trainer = pl.Trainer(**quiet, callbacks=[explain, gallery], inference_mode=False)
            trainer.test(on.module, on.data, verbose=False)
        files.append({str(f.relative_to(store.root)): f.read_bytes() for f in store.root.rglob("*.safetensors")})
    assert files[0] == files[1]
    assert len(files[0]) == 4  # predictions, probabilities, maps, thumbnails

"""Calibration: the temperature's data and fit, the expected calibration error against torchmetrics, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path

import lit_xai
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_xai.cli.build import plain, read_config
from lit_xai.data.folds import FoldData
from lit_xai.data.sources import digits
from lit_xai.errors import UsageError
from lit_xai.metrics.calibration import BINS, CALIBRATED, calibration_error, in_bins, reliability
from lit_xai.models import Classifier
from lit_xai.models.calibration import SPREAD, CalibratedData
from lit_xai.models.lipschitz import fitted_temperature, temperature_of
from lit_xai.report import evidence
from lit_xai.report.ensemble import Ensemble
from lit_xai.store.files import load_weights, save_weights
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from conftest import seeded
from test_commands import run

SOURCE = digits(8)


def answers(n: int, sharp: float = 1.0, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Logits of four classes and labels drawn from their softmax, the logits then multiplied by `sharp`."""
    z = 2 * torch.randn(n, 4, generator=seeded(seed), dtype=torch.float64)
    return sharp * z, torch.multinomial(z.softmax(1), 1, generator=seeded(seed + 1))[:, 0]


def sure(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The confidence, and whether what is said is right."""
    confidence, said = z.softmax(1).max(1)
    return confidence, said == labels


# -------------------------------------------------------------------------------------------- expected calibration error


@pytest.mark.parametrize(("n", "sharp"), [(40, 1.0), (700, 3.0), (700, 0.3)])
def test_the_error_is_torchmetrics(n: int, sharp: float) -> None:
    z, labels = answers(n, sharp)
    expected = float(multiclass_calibration_error(z.softmax(1), labels, 4, n_bins=15, norm="l1"))
    assert calibration_error(*sure(z, labels), n_resamples=20).value == pytest.approx(expected, abs=1e-6)


def test_one_bin_has_the_difference_of_confidence_and_accuracy() -> None:
    correct = torch.arange(50) < 30
    e = calibration_error(torch.full((50,), 0.83), correct)
    assert e.value == pytest.approx(0.83 - 0.6, abs=1e-6)
    assert e.low < e.value < e.high


def test_bins_are_open_below_and_closed_above() -> None:
    confidence = torch.tensor(
        [0.0, 1e-9, 1 / 15, 1 / 15 + 1e-6, 0.5, 14 / 15, 14 / 15 + 1e-6, 1.0], dtype=torch.float64
    )
    assert in_bins(confidence).argmax(1).tolist() == [0, 0, 0, 1, 7, 13, 14, 14]


def test_of_a_perfectly_calibrated_predictor_the_error_is_its_null_and_the_interval_reaches_down_to_it() -> None:
    errors = [calibration_error(*sure(*answers(400, seed=s)), n_resamples=200) for s in range(0, 40, 2)]
    values, nulls = np.array([e.value for e in errors]), np.array([e.null for e in errors])
    assert abs(values.mean() - nulls.mean()) < 3 * values.std() / len(errors) ** 0.5
    assert nulls.std() < 0.2 * values.std() * CALIBRATED**0.5
    assert np.mean([e.low == 0 for e in errors]) >= 0.85  # .95 in the long run
    far = calibration_error(*sure(*answers(400, 4.0)))
    assert far.low > 3 * (far.null or 0)


def test_the_bins_of_the_picture_sum_up_to_the_error() -> None:
    confidence, correct = sure(*answers(300, 2.0))
    found = reliability(confidence, correct)
    total = sum(b["n"] * abs(b["value"] - b["confidence"]) for b in found) / 300
    assert total == pytest.approx(calibration_error(confidence, correct, n_resamples=20).value)
    assert sum(b["n"] for b in found) == 300
    assert len(found) < BINS  # four classes are never less sure than 1 / 4
    assert all(b["from"] < b["confidence"] <= b["to"] for b in found)


# ------------------------------------------------------------------------------------------------------- the temperature


@pytest.mark.parametrize("spread", [math.inf, SPREAD])
def test_the_temperature_that_sharpened_the_logits_is_found_again(spread: float) -> None:
    z, labels = answers(20_000, 3.0)
    assert fitted_temperature(z, labels, spread) == pytest.approx(1 / 3, rel=0.04)


@pytest.mark.parametrize("right", [1.0, 0.8])
def test_of_few_images_the_temperature_is_the_most_probable_one(right: float) -> None:
    z, labels = torch.zeros(50, 2, dtype=torch.float64), (torch.arange(50) < 50 * right).long()
    z[:, 1] = 0.7
    tau = torch.linspace(0.2, 8, 780_001, dtype=torch.float64)
    p, n = torch.sigmoid(0.7 * tau), 50 * right
    posterior = n * p.log() + (50 - n) * (1 - p).log() - (tau.log() / 0.5) ** 2 / 2
    assert fitted_temperature(z, labels, 0.5) == pytest.approx(float(tau[posterior.argmax()]), rel=1e-4)


def test_without_anything_known_beforehand_images_that_are_all_right_ask_for_a_large_one() -> None:
    z = torch.zeros(50, 2)
    z[:, 1] = 0.7
    assert fitted_temperature(z, torch.ones(50).long()) > 100
    assert 1 < fitted_temperature(z, torch.ones(50).long(), SPREAD) < math.e**2


# -------------------------------------------------------------------------------------------------- what is kept back


def data(fold: int = 0, kind: type[FoldData] = CalibratedData, **options) -> FoldData:
    return kind(lambda: SOURCE, fold=fold, folds=3, train_subset=600, batch_size=30, **options)


def test_a_tenth_of_the_training_folds_is_kept_back_whichever_fold_is_held_out() -> None:
    of = [data(fold) for fold in range(3)]
    everything = set(of[0].split.samples.tolist())
    back = set().union(*(set(d.kept_back.tolist()) for d in of))
    assert 40 < len(back) < 80
    for d in of:
        training, kept, held = (set(s.tolist()) for s in (d.split.training(d.fold), d.kept_back, d.held_out))
        assert training | kept | held == everything
        assert len(training) + len(kept) + len(held) == len(everything)
        assert kept == back - held
        assert torch.equal(d.held_out, data(d.fold, FoldData).held_out)  # V_i and the probes are what they are without
        assert torch.equal(d.probes, data(d.fold, FoldData).probes)
        assert d.about == data(d.fold, FoldData).about


def test_no_batch_of_the_training_holds_what_is_kept_back() -> None:
    d = data()
    seen = torch.cat([images for images, _ in d.train_dataloader()]).flatten(1)
    for part, there in ((d.split.training(0), True), (d.kept_back, False), (d.held_out, False)):
        alike = torch.cdist(
            SOURCE.train.images(part.tolist()).flatten(1), seen, compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert float(((alike == 0).any(1)).double().mean()) > 0.9 if there else not bool((alike == 0).any())


def test_images_of_one_group_are_kept_back_together(tmp_path: Path) -> None:
    groups = np.arange(len(SOURCE.train)) // 7
    np.save(tmp_path / "groups.npy", groups)
    d = data(groups=str(tmp_path / "groups.npy"))
    kept, training = (set(groups[s.numpy()]) for s in (d.kept_back, d.split.training(0)))
    assert len(d.kept_back) > len(kept) > 3
    assert not kept & training


def test_too_few_images_are_no_calibration() -> None:
    with pytest.raises(UsageError, match="needs 10: give more data"):
        _ = CalibratedData(lambda: SOURCE, folds=2, train_subset=60).split


# ------------------------------------------------------------------------------------------------------ what is trained


def flat(channels: int, classes: int, side: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes))


def trained(loss: str, scale: float = 30.0) -> tuple[Classifier, FoldData]:
    """A linear network, in a trainer for no step, its outputs far too sure."""
    torch.manual_seed(0)
    module, d = Classifier(flat, 1, 10, 8, loss=loss, tau=5.0), data()
    x = SOURCE.train.images(d.split.training(0).tolist()).flatten(1)
    onehot = nn.functional.one_hot(d.split.label(d.split.training(0)), 10).float()
    with torch.no_grad():
        module.network[1].weight.copy_(
            scale
            * torch.linalg.lstsq(torch.cat([x, torch.eye(64)]), torch.cat([onehot, torch.zeros(64, 10)])).solution.T
        )
        module.network[1].bias.zero_()
    trainer = pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.datamodule = d  # type: ignore[attr-defined]
    module.trainer = trainer
    module.on_train_end()
    return module, d


@pytest.mark.parametrize("loss", ["cross_entropy", "tau_cross_entropy", "hkr"])
def test_every_network_is_calibrated_alike_and_says_what_it_said(loss: str) -> None:
    module, d = trained(loss)
    z, labels = module.answers(d, d.held_out)
    predictor = module.predictor()
    images = SOURCE.train.images(d.held_out.tolist())
    with torch.no_grad():
        logits = predictor(images)
    assert module.calibration is not None
    assert float(module.calibration) > 0
    assert torch.equal(logits.argmax(1), z.argmax(1))
    assert torch.allclose(logits, z * module.tau * module.calibration, rtol=1e-5)
    assert temperature_of(predictor) == pytest.approx(module.tau * float(module.calibration))
    before, after = (calibration_error(*sure(x, labels), n_resamples=20).value for x in (z * module.tau, logits))
    assert after < before if loss != "hkr" else after < 0.2  # whose own temperature is fitted to what it was trained on
    assert not set(d.kept_back.tolist()) & set(d.held_out.tolist())


def test_the_calibration_is_kept_with_the_weights_and_an_old_file_has_none(tmp_path: Path) -> None:
    module, _ = trained("cross_entropy")
    save_weights(module, tmp_path / "new.ckpt", {})
    again = Classifier(flat, 1, 10, 8)
    assert "calibration" not in again.state_dict()
    save_weights(again, tmp_path / "old.ckpt", {})
    load_weights(again, tmp_path / "new.ckpt")
    assert float(again.calibration) == float(module.calibration)  # type: ignore[arg-type]
    old = Classifier(flat, 1, 10, 8)
    load_weights(old, tmp_path / "old.ckpt")
    assert old.calibration is None
    assert temperature_of(old.predictor()) == 1


def test_a_calibrated_fold_has_a_folder_of_its_own_its_temperature_and_its_reliability(tmp_path: Path) -> None:
    few = [
        "data.train_subset=400",
        "data.folds=2",
        "data.probes_per_fold=3",
        "checks=0",
        "data.size=16",
        "trainer.max_epochs=1",
    ]
    few += ["model.network.width=2", "explainer=[saliency]", "score=[]", "logger=none", "progress=false"]
    run("train", tmp_path, "calibrate=true", small=few)
    folder = tmp_path / "digits-resnet18-calibrated"
    assert plain(read_config(folder / "fold=0" / "config.yaml"))["calibrate"] is True
    model, split, *_ = lit_xai.load(folder, 0)
    tau = temperature_of(model)
    assert tau != 1
    found = evidence.calibration(Ensemble(folder))
    assert found[0]["temperature"] == pytest.approx(tau)
    assert sum(b["n"] for b in found[0]["bins"]) == len(split.held_out(0))
    other = run("train", tmp_path, "name=digits-resnet18-calibrated", small=few, check=False)
    assert "holds another configuration (calibrate: True there, None here" in other.stderr

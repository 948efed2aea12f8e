"""Consensus and contradiction: what the maps of all predictors share, and where they give different reasons."""

from __future__ import annotations

import csv
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lit_xai.crossval import explain_folds
from lit_xai.explainers import RISE, GradientInput, Saliency, SmoothGrad
from lit_xai.metrics.distance import average_ranks
from lit_xai.report.cases import Seen, core, draw_worst, highest, low_quantile
from lit_xai.report.ensemble import Ensemble, Growing
from lit_xai.report.summarise import summarise
from lit_xai.store.fold import FoldStore
from lit_xai.store.names import THUMBNAILS
from lit_xai.store.tensors import write_tensors
from scipy.stats import norm, rankdata, spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

LABELS = torch.arange(150) % 2
NOISE = torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = 0.4 * NOISE + 0.5 * LABELS.view(-1, 1, 1, 1) * torch.ones(1, 1, 8, 8)  # either half tells the class
DATA = TensorDataset(IMAGES, LABELS)


class Looks(nn.Module):
    """The class by the brightness of the left half, of the right, or of both."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def look_at(module: nn.Module, columns: slice) -> None:
    """Teach a network to look at some columns."""
    weight = torch.zeros(8, 8)
    weight[:, columns] = 1 + 0.1 * torch.rand(
        8, weight[:, columns].shape[1], generator=torch.Generator().manual_seed(1)
    )
    weight = 20 * weight / weight.sum()
    with torch.no_grad():
        module.layer.weight.copy_(torch.stack([-weight.flatten(), weight.flatten()]))
        module.layer.bias.copy_(torch.tensor([9.0, -9.0]))


def left_or_right(module: nn.Module, data: Any, fold: int) -> None:
    look_at(module, slice(0, 4) if fold < 2 else slice(4, 8))


def everywhere(module: nn.Module, data: Any, fold: int) -> None:
    look_at(module, slice(0, 8))
    with torch.no_grad():
        module.layer.bias.add_(1e-4 * fold)  # another predictor, for the noise that knows it


def noisy(model: nn.Module, images: Tensor, targets: Tensor, rng: Any) -> Tensor:
    """What the network looks at, with noise of this very predictor."""
    stream = f"noisy/{float(model.layer.bias[0].detach()):.6f}"
    noise = rng.normal(stream, range(len(images)), [0] * len(images), images.shape[-2:])
    return images[:, 0] + 0.5 * noise


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


METHODS = {
    "saliency": Saliency(),
    "gradient_input": GradientInput(),
    "smoothgrad": SmoothGrad(samples=8),
    "rise": RISE(masks=600),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    explain_folds(Looks, DATA, METHODS, root=root, train=left_or_right, scores={}, probes_per_fold=10, progress=False)
    return root


@pytest.mark.parametrize("explainer", list(METHODS))
def test_predictors_that_look_left_and_right_contradict_each_other(folder: Path, explainer: str) -> None:
    mine = [r for r in rows_of(folder) if r["explainer"] == explainer]
    assert len(mine) == 50
    assert all(r["prediction"] == r["label"] for r in mine)
    if explainer == "rise":  # which sees nothing in dark images: hiding black changes nothing
        mine = [r for r in mine if r["label"] == "1"]
    assert all(r["contradiction"] == "yes" for r in mine)
    assert all({int(r["fold_a"]) < 2, int(r["fold_b"]) < 2} == {True, False} for r in mine)


@pytest.mark.parametrize("share", [0.05, 0.005])
def test_the_tail_of_the_noise_is_that_of_normal_noise(share: float) -> None:
    z = 0.8 + 0.2 * torch.randn(4000, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = np.arctanh([low_quantile(row, share) for row in z.tanh()])
    assert found.mean() == pytest.approx(0.8 + 0.2 * norm.ppf(share), abs=0.04)


@pytest.mark.slow
def test_sampling_noise_alone_is_no_contradiction(tmp_path: Path) -> None:
    methods = {"noisy": noisy, "rise": RISE(masks=8)}
    summary = explain_folds(
        Looks, DATA, methods, root=tmp_path, train=everywhere, scores={}, probes_per_fold=30, progress=False
    )
    assert max(float(r["worst_rho"]) for r in rows_of(tmp_path) if r["explainer"] == "noisy") < 0.95
    assert summary.consensus["noisy"]["contradictions"] <= 0.08 * 150
    assert summary.consensus["rise"]["contradictions"] == 0


def test_the_worst_pair_is_that_of_the_smallest_rank_correlation(folder: Path) -> None:
    ensemble = Ensemble(folder)
    for row in rows_of(folder)[:60:7]:
        maps = ensemble.maps_of(row["explainer"], torch.tensor([int(row["probe"])]))[:, 0].flatten(1).numpy()
        found = {(a, b): spearmanr(maps[a], maps[b]).statistic for a, b in combinations(range(5), 2)}
        assert float(row["worst_rho"]) == pytest.approx(min(found.values()), abs=1e-9)
        assert found[int(row["fold_a"]), int(row["fold_b"])] == pytest.approx(min(found.values()), abs=1e-9)


def test_the_core_is_what_all_maps_have_on_top() -> None:
    maps = torch.rand(3, 20, 6, 7, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 2, 42).view(6, 7)
    sets = [[set(np.argsort(m.ravel())[-4:]) for m in fold] for fold in maps.numpy()]
    expected = [len(set.intersection(*of)) / 4 for of in zip(*sets, strict=True)]
    assert core(np.stack([np.packbits(highest(m).numpy(), axis=1) for m in maps])).tolist() == expected


def test_equal_values_are_on_top_together_or_not_at_all() -> None:
    tied = torch.zeros(1, 10, 10)
    assert not highest(tied).any()
    tied[0, 0] = 1  # exactly a tenth
    assert highest(tied)[0].nonzero()[:, 0].tolist() == list(range(10))
    tied[0, :3] = 1  # three tenths, none of them above the others
    assert not highest(tied).any()


def test_the_highest_are_those_of_the_highest_mean_ranks() -> None:
    for levels in (2, 3, 5, 9, 40):
        maps = torch.randint(levels, (60, 5, 6), generator=torch.Generator().manual_seed(levels)).float()
        ranks = rankdata(maps.flatten(1).numpy(), axis=1) - 1
        assert torch.equal(highest(maps), torch.from_numpy(ranks > 30 - 3 - 0.5))


def test_maps_are_ranked_once_for_their_distances_and_for_cases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[int] = []
    monkeypatch.setattr("lit_xai.metrics.distance.average_ranks", lambda x: ranked.append(len(x)) or average_ranks(x))
    ensemble = Ensemble(folder)
    readers = ensemble.readers("rise")
    probes = ensemble.probes(readers)
    ensemble.distances(readers, probes, "spearman", Seen(ensemble))
    assert sum(ranked) == 5 * len(probes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.long, torch.bool])
def test_numbers_that_come_some_at_a_time_are_one_tensor(dtype: torch.dtype) -> None:
    parts = [torch.arange(8).view(2, 4).T[n : n + 2].to(dtype) for n in range(3)]  # not contiguous
    numbers = Growing(dtype)
    assert numbers.tensor().shape == (0,)
    for part in parts:
        numbers.add(part)
    assert torch.equal(numbers.tensor(), torch.cat([part.flatten() for part in parts]))
    assert numbers.tensor().dtype == dtype


def test_the_core_of_unrelated_maps_is_what_chance_gives(folder: Path) -> None:
    ensemble = Ensemble(folder, folds=[0, 1])
    seen, g = Seen(ensemble), torch.Generator().manual_seed(0)
    seen(ensemble.split.samples[:60], {f: torch.rand(60, 20, 20, generator=g) for f in range(2)})
    shared, chance = seen.shared(0)
    assert chance == pytest.approx(0.1, abs=0.01)
    assert shared.low < 0.1 < shared.high


def test_the_worst_are_drawn_with_images_and_all_folds(folder: Path, tmp_path: Path) -> None:
    summary = summarise(Ensemble(folder), ["rise"], progress=False)
    files = draw_worst(Ensemble(folder), summary.cases, summary.worst, tmp_path)
    assert [f.stem for f in files] == ["rise"]
    assert all(f.stat().st_size > 10_000 for f in files)


def test_small_copies_of_held_out_probes_are_kept(folder: Path) -> None:
    ensemble = Ensemble(folder)
    samples = ensemble.probes(ensemble.readers("rise"))
    expected = (IMAGES[samples] * 255).round().to(torch.uint8)
    assert torch.equal(ensemble.thumbnails(samples), expected)
    assert ensemble.thumbnails(torch.tensor([10_000])) is None


def test_thumbnails_of_another_kind_are_as_good_as_none(tmp_path: Path) -> None:
    store = FoldStore(tmp_path / "fold=0")
    write_tensors(store.root / THUMBNAILS, {"other": torch.zeros(3)}, {})
    assert not len(store.read_thumbnails()[0])
    write_tensors(store.root / THUMBNAILS, {"sample": torch.arange(2), "images": torch.zeros(3, 4)}, {})
    assert not len(store.read_thumbnails()[0])

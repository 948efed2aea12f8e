"""Of what maps vary: components of variance against simulation and sums written out, and two networks beside each other."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_xai import engine
from lit_xai.cli.build import training_of
from lit_xai.data.folds import FoldData, Split
from lit_xai.errors import UsageError
from lit_xai.explainers import GradientInput, Image, Random
from lit_xai.metrics.components import PARTS, components, moments
from lit_xai.report import audit
from lit_xai.report.audit import Audit
from lit_xai.report.compare import compared, comparisons
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from scipy.stats import spearmanr
from torch import Tensor

from conftest import seeded
from test_commands import ENVIRONMENT, ROOT, command, run
from test_engine import SOURCE, job

METHODS = {"gradient_input": GradientInput(), "image": Image(), "random": Random()}


def simulated(seed: int, sizes: tuple[float, ...], n: int = 60, k: int = 4, s: int = 3, p: int = 20) -> Tensor:
    """Maps of effects with these standard deviations: of samples, folds, networks, and the rest."""
    g = seeded(seed)
    shapes = ((n, 1, 1, p), (n, k, 1, p), (n, 1, s, p), (n, k, s, p))
    return sum(size * torch.randn(*shape, generator=g).double() for size, shape in zip(sizes, shapes, strict=True))


@pytest.mark.parametrize("sizes", [(1.0, 0.7, 0.5, 0.8), (0.2, 1.0, 0.3, 0.5), (1.0, 0.0, 0.0, 1.0)])
def test_simulated_components_are_found_and_lie_within_their_intervals(sizes) -> None:
    truth = torch.tensor(sizes).square() / torch.tensor(sizes).square().sum()
    inside, values = torch.zeros(4), []
    for seed in range(60):
        squares, means = moments(simulated(seed, sizes))
        found = components(squares, means, 4, 3)
        values.append([found[part].value for part in PARTS])
        inside += torch.tensor([found[p].low <= t <= found[p].high for p, t in zip(PARTS, truth.tolist(), strict=True)])
    assert torch.tensor(values).mean(0) == pytest.approx(truth, abs=0.015)
    assert bool((inside >= 52).all())  # of 60; 95 % are 57, less three standard errors


def test_mean_squares_are_those_written_out() -> None:
    x = simulated(0, (1.0, 1.0, 1.0, 1.0), n=5, k=3, s=2, p=4).numpy()
    squares, means = moments(torch.from_numpy(x))
    for sample in range(5):
        fold = network = rest = 0.0
        for pixel in range(4):
            m = x[sample, :, :, pixel]
            fold += 2 * sum((m[j].mean() - m.mean()) ** 2 for j in range(3)) / 2
            network += 3 * sum((m[:, s].mean() - m.mean()) ** 2 for s in range(2)) / 1
            left = [m[j, s] - m[j].mean() - m[:, s].mean() + m.mean() for j in range(3) for s in range(2)]
            rest += float(np.square(left).sum()) / 2
        assert squares[sample].tolist() == pytest.approx([fold, network, rest])
    assert means.numpy() == pytest.approx(x.mean((1, 2)))


def test_what_differs_between_networks_alone_is_the_networks() -> None:
    one = torch.randn(12, 1, 2, 9, generator=seeded(1)).expand(-1, 3, -1, -1)
    found = components(*moments(one.double()), 3, 2)
    assert found["fold"].value == found["rest"].value == pytest.approx(0, abs=1e-12)
    assert found["network"].value > 0.3
    assert sum(e.value for e in found.values()) == pytest.approx(1)


@pytest.mark.parametrize(("n", "k", "s"), [(2, 2, 2), (9, 1, 2), (9, 2, 1)])
def test_too_few_for_components_is_said(n, k, s) -> None:
    with pytest.raises(UsageError, match="need 2 folds, 2 networks and 3 samples"):
        components(torch.rand(n, 3), torch.rand(n, 5), k, s)


# ------------------------------------------------------------------------------------------------ two networks on one split


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Audit]:
    """Two linear networks a fold, the second of other weights, and both right on many samples."""
    found = []
    for network, size in (("one", 0.0), ("other", 0.06)):
        root = tmp_path_factory.mktemp("networks") / network
        for fold in (0, 1):
            work = job(root, fold=fold)
            split = Split.make(SOURCE.labels, 2, 0, 200)
            x = SOURCE.train.images(range(400)).flatten(1)
            fitted = torch.linalg.lstsq(x, torch.nn.functional.one_hot(SOURCE.labels[:400], 10).float()).solution.T
            noise = torch.randn(fitted.shape, generator=seeded(fold)) * 0.02
            noise += size * torch.randn(fitted.shape, generator=seeded(5))
            with torch.no_grad():
                work.model[1].weight.copy_(fitted + noise)
                work.model[1].bias.zero_()
            work = replace(work, checkpoint=None)
            engine.predictions_of(work, split, fold)
            engine.explain(work, METHODS, {}, progress=False)
        ensemble = Ensemble(root)
        found.append(Audit.of(ensemble, summarise(ensemble, progress=False)))
    return found


def test_maps_of_one_fold_by_two_networks_are_compared_where_both_held_the_sample_out(two) -> None:
    found, expected = compared(*two)["between"]["gradient_input"], []
    for fold in (0, 1):
        readers = [a.ensemble.readers("gradient_input")[fold] for a in two]
        samples = readers[0].samples
        samples = samples[two[0].ensemble.split.fold(samples) == fold]
        right = [a.ensemble.predictions[fold].right(samples).tolist() for a in two]
        maps = [r.rows(samples).flatten(1).numpy() for r in readers]
        expected += [1 - abs(spearmanr(*m).statistic) for *m, x, y in zip(*maps, *right, strict=True) if x and y]
    assert len(expected) > 4
    assert found["mege"]["value"] == pytest.approx(1 / (1 + np.mean(expected)))
    assert found["mege"]["pairs"] == len(expected)


def test_a_network_beside_itself_has_no_part_in_the_variance(two) -> None:
    one = compared(two[0], two[0])["between"]["gradient_input"]
    both = compared(*two)["between"]["gradient_input"]
    assert one["mege"]["value"] == 1.0
    assert one["components"]["network"]["value"] == 0.0
    assert both["components"]["network"]["value"] > both["components"]["fold"]["value"]
    assert sum(e["value"] for e in both["components"].values()) == pytest.approx(1)
    assert (both["kind"], both["samples"]) == ("maps", 20)


def test_noise_and_the_image_bound_what_two_networks_can_have_in_common(two) -> None:
    found = compared(*two)["between"]
    assert found["image"]["mege"]["value"] == 1.0
    assert found["image"]["components"]["sample"]["value"] == pytest.approx(1)
    assert found["random"]["components"]["rest"]["value"] > 0.9


def test_the_page_shows_what_two_networks_have_in_common(two, tmp_path: Path) -> None:
    audit.write(two, tmp_path, comparisons(two))
    text = (tmp_path / "audit.html").read_text()
    assert "<h4>Reproducibility</h4>" in text
    assert "gradient_input" in text[text.index("<h4>Reproducibility</h4>") :]


# ------------------------------------------------------------------------------------------------ two seeds of one network


def batches(data: FoldData) -> list[list[int]]:
    """The labels of every training batch of the first epoch."""
    return [y.tolist() for _, y in data.train_dataloader()]


def test_a_seed_of_the_training_alone_leaves_split_and_probes_and_moves_the_order() -> None:
    one, other = (
        FoldData(lambda: SOURCE, folds=2, train_subset=200, probes_per_fold=5, train_seed=s) for s in (None, 1)
    )
    assert torch.equal(one.split.fold_of, other.split.fold_of)
    assert torch.equal(one.probes, other.probes)
    assert batches(one) != batches(other)


def test_two_seeds_of_training_are_two_trainings_and_the_runs_own_seed_is_none_of_its_own() -> None:
    known = {"data": {}, "model": {}, "seed": 3, "label_noise": 0.0, "weight_noise": 0.0}
    assert training_of({**known, "train_seed": None}) == training_of({**known, "train_seed": 3}) == training_of(known)
    assert training_of({**known, "train_seed": 4}) != training_of(known)


@pytest.mark.parametrize("value", ["-1", "1.5", "true", "many"])
def test_a_training_seed_that_is_no_whole_number_is_refused(value, tmp_path: Path) -> None:
    found = run("train", tmp_path, f"train_seed={value}", check=False)
    assert found.returncode == 1
    assert "train_seed must be null or a whole number of at least 0" in found.stderr


@pytest.mark.slow  # two trainings
def test_two_seeds_of_one_network_on_one_split_are_compared(tmp_path: Path) -> None:
    few = [
        "data=digits",
        "data.size=16",
        "data.folds=2",
        "data.train_subset=200",
        "data.probes_per_fold=20",
        "trainer.max_epochs=8",
    ]
    few += ["model.network.width=4", "explainer=[gradient_input,random]", "score=[]", "checks=0"]
    warns = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONWARNINGS"}
    line = command("train", tmp_path, "name=one", "fold=all", small=few)
    done = subprocess.run(line, env=warns, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    assert "RuntimeWarning" not in done.stderr
    run("train", tmp_path, "name=other", "fold=all", "train_seed=1", small=few)
    run("evaluate", tmp_path, "compare=[one,other]", small=[])
    weights = [tmp_path / name / "fold=0" / "model.ckpt" for name in ("one", "other")]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    found = json.loads((tmp_path / "compared-one-other" / "audit.json").read_text())
    network = {n: b["components"]["network"]["value"] for n, b in found["comparisons"][0]["between"].items()}
    assert network["gradient_input"] > 0.02 > network["random"]

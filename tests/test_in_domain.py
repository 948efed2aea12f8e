"""Training with parts hidden, and scores that hide in the same way: the law, by hand, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_xai.callbacks.domain import HELD_OUT, NOISE
from lit_xai.cli.build import filler_named, training_of
from lit_xai.cli.compose import compose
from lit_xai.cli.run import Run, check_values
from lit_xai.core import Filler, Score
from lit_xai.errors import UsageError
from lit_xai.fillers import Colour, Hiding, Mean, SegmentMean, UniformNoise
from lit_xai.fillers.hiding import keys_by_content
from lit_xai.metrics import Deletion, InDomainDeletion, InDomainInsertion, InDomainMuFidelity, MuFidelity
from lit_xai.metrics.fidelity import descending_position
from lit_xai.models import Classifier
from lit_xai.quality.domain import Known, shown_by
from lit_xai.quality.sampler import Mahalanobis
from lit_xai.report import evidence
from lit_xai.report.ensemble import Ensemble
from lit_xai.rng import Noise, SampleRng
from lit_xai.segments import Grid
from omegaconf import OmegaConf
from torch import Tensor, nn

from conftest import Linear, seeded, two_logits
from test_commands import run

BLACK = Colour(0.0)
SCORES = [InDomainDeletion, InDomainInsertion, InDomainMuFidelity]


def cells_of(images: Tensor, cells: int) -> Tensor:
    """The cell of every pixel, from the superpixels that LIME has."""
    return Grid(cells)(images[:, :1])[0]


def blobs(n: int, side: int = 12) -> Tensor:
    """Images without a black pixel."""
    return torch.rand(n, 3, side, side, generator=seeded(5)) * 0.8 + 0.1


# ------------------------------------------------------------------------------------------------------------ the law


def test_half_of_the_images_have_a_share_of_their_cells_hidden_that_is_uniform_up_to_a_half() -> None:
    n, cells = 40_000, 7
    hidden = Hiding(BLACK, cells).drawn(Noise(torch.arange(n))).sum(1)
    counts = torch.bincount(hidden, minlength=25).double()
    assert len(counts) == 25  # at most 24 of 49
    assert float(counts[1:].sum()) == pytest.approx(n / 2 * 24 / 25, abs=4 * (n / 4) ** 0.5)
    expected = float(counts[1:].mean())
    assert float(((counts[1:] - expected) ** 2 / expected).sum()) < 49.7  # chi², 23 degrees of freedom, p = .001


def test_every_cell_is_hidden_as_often_as_any_other() -> None:
    share = Hiding(BLACK, 4).drawn(Noise(torch.arange(40_000))).double().mean(0)
    assert float((share - share.mean()).abs().max()) < 4.5 * (0.13 * 0.87 / 40_000) ** 0.5


@pytest.mark.parametrize(("side", "cells"), [(12, 5), (28, 7), (9, 9)])
def test_whole_cells_turn_to_the_filler_and_nothing_else_changes(side: int, cells: int) -> None:
    images = blobs(64, side)
    shown = Hiding(BLACK, cells).shown(images, 0, 0)
    changed = (shown != images).any(1)
    assert bool(((shown == images) | (shown == 0)).all())
    cell = cells_of(images, cells)
    for c in range(cells**2):
        inside = changed[:, cell == c]
        assert bool((inside.all(1) | ~inside.any(1)).all())
    assert 16 < int(changed.flatten(1).any(1).sum()) < 48


@pytest.mark.parametrize("filler", [BLACK, UniformNoise(), SegmentMean()], ids=lambda f: type(f).__name__)
def test_what_is_hidden_belongs_to_seed_epoch_and_image_and_not_to_the_batch(filler: Filler) -> None:
    hiding, images = Hiding(filler, 4), blobs(24)
    order = torch.randperm(24, generator=seeded(1))
    whole = hiding.shown(images, 3, 7)
    assert torch.equal(hiding.shown(images[order], 3, 7), whole[order])
    assert torch.equal(torch.cat([hiding.shown(part, 3, 7) for part in images.split(5)]), whole)
    assert torch.equal(hiding.shown(images.contiguous(memory_format=torch.channels_last), 3, 7), whole)
    for other in (hiding.shown(images, 3, 8), hiding.shown(images, 4, 7)):
        assert int((other != whole).flatten(1).any(1).sum()) > 8


def test_images_that_differ_in_a_bit_have_keys_of_their_own() -> None:
    image = blobs(1).expand(433, -1, -1, -1).clone()
    for row in range(1, 433):
        image[row].view(-1)[row - 1] += 1e-6
    assert len(keys_by_content(image).unique()) == 433


def test_a_filler_is_told_of_the_cells_as_superpixels() -> None:
    images = blobs(40)
    shown, cell = Hiding(SegmentMean(), 3).shown(images, 0, 0), cells_of(images, 3)
    hidden = (shown != images).any(1)
    row, c = next((r, c) for r in range(40) for c in range(9) if hidden[r][cell == c].all())
    mean = images[row][:, cell == c].mean(1)
    assert torch.allclose(shown[row][:, cell == c], mean[:, None].expand(-1, int((cell == c).sum())))


@pytest.mark.parametrize("cells", [1, 0, 2.5, True])
def test_a_grid_of_less_than_two_cells_a_side_is_refused(cells: float, unchecked) -> None:
    with pytest.raises(UsageError, match="at least 2 a side"):
        Hiding(BLACK, cells)  # type: ignore[arg-type]


def small(channels: int = 1, classes: int = 10, side: int = 8) -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 6), nn.ReLU(), nn.Linear(6, classes))


def test_a_training_step_sees_the_hidden_images_and_a_prediction_the_whole_ones() -> None:
    torch.manual_seed(0)
    module, images, labels = Classifier(small, 3, 4, 12), blobs(32), torch.arange(32) % 4
    module.network = small(3, 4, 12)
    whole = module.batch_loss((images, labels)).item()
    hiding = Hiding(BLACK, 4)
    module.hides = partial(hiding.shown, seed=5)
    expected = module.loss(module(hiding.shown(images, 5, 0)), labels)
    assert module.batch_loss((images, labels)).item() == expected.item() != whole


# ----------------------------------------------------------------------------------------------------------- the scores


def by_hand(
    model: nn.Module, image: Tensor, map_: Tensor, target: int, filler: float, cells: int, insert: bool
) -> float:
    """The area as its definition reads, cell by cell."""
    cell = cells_of(image[None], cells)
    means = [float(map_[cell == c].double().mean()) for c in range(cells**2)]
    order = sorted(range(cells**2), key=lambda c: -means[c])
    most = cells**2 // 2
    counts = range(cells**2 - most, cells**2 + 1) if insert else range(most + 1)
    curve = []
    for n in counts:
        hidden = order[n:] if insert else order[:n]
        x = image.clone()
        for c in hidden:
            x[:, cell == c] = filler
        curve.append(float(model(x[None]).softmax(1)[0, target]))
    return sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / cells**2


@pytest.mark.parametrize(("kind", "insert"), [(InDomainDeletion, False), (InDomainInsertion, True)])
@pytest.mark.parametrize("cells", [3, 5])
def test_the_area_is_that_of_its_definition(kind, insert, cells, convnet, rgb, targets) -> None:
    maps = torch.randn(5, 12, 12, generator=seeded(3))
    found = kind(filler=Colour(0.3), cells=cells)(convnet, rgb, maps, targets)
    with torch.no_grad():
        expected = [
            by_hand(convnet, x, m, int(t), 0.3, cells, insert) for x, m, t in zip(rgb, maps, targets, strict=True)
        ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_map_that_is_right_about_every_cell_has_the_correlation_one(linear: Linear, rgb, targets) -> None:
    exact = (linear.weight[targets] * rgb).sum(1)  # what every pixel adds to the logit
    score = InDomainMuFidelity(filler=BLACK, cells=3, subsets=30)
    assert score(linear, rgb, exact, targets).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    blurred = Hiding(BLACK, 3)
    means = torch.stack([m.view(-1) for m in nn.functional.adaptive_avg_pool2d(exact[:, None], 3)])
    cellwise = blurred.places(means, rgb)
    assert score(linear, rgb, cellwise, targets).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    assert (
        MuFidelity(filler=BLACK, subsets=30)(linear, rgb, cellwise, targets).mean().item() < 0.9
    )  # of pixels it is not right


@pytest.mark.parametrize("kind", SCORES)
def test_a_score_shows_images_of_the_law_that_the_network_was_trained_on(
    kind: type[Score], convnet, rgb, targets
) -> None:
    maps = torch.randn(5, 12, 12, generator=seeded(3))
    score, cell = kind(filler=BLACK, cells=4), cells_of(rgb, 4)
    shown = shown_by(score, convnet, rgb[:1] + 0.001, maps[:1], targets[:1], SampleRng(0, (7,)))
    hidden = (shown == 0).all(1)
    assert bool((hidden | (shown == rgb[:1] + 0.001).all(1)).all())
    by_cell = torch.stack([hidden[:, cell == c] for c in range(16)], 1)
    assert bool((by_cell.all(2) | ~by_cell.any(2)).all())
    count = by_cell.all(2).sum(1)
    assert int(count.max()) <= 8
    assert int(count.max()) >= 2


def test_deletion_of_pixels_shows_what_no_training_did(convnet, rgb, targets) -> None:
    maps = torch.randn(5, 12, 12, generator=seeded(3))
    shown = shown_by(Deletion(filler=BLACK), convnet, rgb[:1], maps[:1], targets[:1], SampleRng(0, (7,)))
    assert float((shown == 0).all(1).flatten(1).float().mean(1).max()) == 1


def test_a_curve_is_drawn_over_the_shares_at_which_it_was_walked() -> None:
    assert InDomainDeletion(filler=BLACK, cells=7).span(28, 28) == (0.0, 24 / 49)
    assert InDomainInsertion(filler=BLACK, cells=7).span(28, 28) == (25 / 49, 1.0)
    assert Deletion(fraction=0.5).span(28, 28) == (0.0, 0.5)


def test_ties_of_cells_are_broken_at_random_by_the_sample() -> None:
    score = InDomainDeletion(filler=BLACK, cells=3, repeats=2)
    maps = torch.zeros(3, 9, 9)
    a, b = (score.position(maps, SampleRng(0, samples)) for samples in ((1, 2, 3), (3, 2, 9)))
    assert not torch.equal(a[0], a[1])
    assert torch.equal(a[1], b[1])
    assert torch.equal(a[2], b[0])
    assert sorted(a[0].unique().tolist()) == list(range(9))
    expected = descending_position(torch.zeros(3, 3, 3), SampleRng(0, (1, 2, 3)))
    assert a[0].unique().tolist() == expected[0].sort().values.tolist()


@pytest.mark.parametrize("kind", SCORES)
def test_a_network_that_was_trained_on_whole_images_is_refused_and_a_filler_that_is_given_stands(
    kind, convnet, rgb, targets
):
    maps = torch.randn(5, 12, 12, generator=seeded(3))
    for refused in (lambda: kind().within(None, "score.x"), lambda: kind()(convnet, rgb, maps, targets)):
        with pytest.raises(UsageError, match=r"lit_xai\.train hide=mean") as e:
            refused()
        assert "\n" not in str(e.value)
    own = kind().within(Hiding(Mean(), 5))
    assert (own.filler, own.cells) == (Mean(), 5)
    insisted = kind(filler=BLACK).within(None)
    assert (insisted.filler, insisted.cells) == (BLACK, 7)
    assert kind(filler=BLACK, cells=3).within(Hiding(Mean(), 5)).hiding == Hiding(BLACK, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: InDomainDeletion(filler=BLACK, fraction=0.6).counts(8, 8),
        lambda: InDomainInsertion(filler=BLACK, step=0).counts(8, 8),
        lambda: InDomainMuFidelity(filler=BLACK, share=0.6),
        lambda: InDomainMuFidelity(filler=BLACK, grid=3),
        lambda: InDomainMuFidelity(filler=BLACK, definition="xplique"),
    ],
)
def test_what_leaves_the_domain_is_refused(make) -> None:
    with pytest.raises(UsageError, match="in the network's domain"):
        make()


# ----------------------------------------------------------------------------------------------- has it seen such images?


def test_one_in_twenty_of_images_like_the_held_out_ones_lies_beyond_them() -> None:
    x = torch.randn(400, 4, generator=seeded(1)).double()
    score = Mahalanobis.fit(x[:200], torch.zeros(200).long(), 0.0)
    known = Known(score, score(x[200:]))
    assert float(known.beyond(known.held_out).double().mean()) == pytest.approx(0.05, abs=0.002)
    assert float(known.beyond(score(4 * x[:200])).double().mean()) > 0.6


# ---------------------------------------------------------------------------------------------------------- the commands

FEW = [
    "data.train_subset=120",
    "data.folds=2",
    "data.probes_per_fold=11",
    "checks=11",
    "data.size=16",
    "trainer.max_epochs=1",
]
FEW += ["model.network.width=4", "explainer=[saliency]", "logger=none", "progress=false", "hide_cells=4"]
ASKED = "score=[deletion,in_domain/deletion,in_domain/mufidelity]"


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fold, trained with a colour in random cells."""
    root = tmp_path_factory.mktemp("hidden")
    insists = "score.in_domain_deletion.filler={_target_: lit_xai.fillers.Colour, value: 0.0}"
    run("train", root, "hide=grey", ASKED, "score.in_domain_mufidelity.subsets=10", insists, small=FEW)
    return root


def test_the_folder_says_that_its_network_was_trained_with_parts_hidden(hidden: Path) -> None:
    assert [p.name for p in hidden.iterdir()] == ["digits-resnet18-hide=grey"]
    plain = run("train", hidden, "name=digits-resnet18-hide=grey", "score=[deletion]", small=FEW, check=False)
    assert "holds another configuration (hide: grey there, None here" in plain.stderr
    other = run("explain", hidden, "name=digits-resnet18-hide=grey", "hide=mean", small=FEW, check=False)
    assert "hide: grey there, mean here" in other.stderr


def test_a_folder_that_says_nothing_of_hiding_is_a_plain_networks() -> None:
    known = {"data": {}, "model": {}, "seed": 0, "label_noise": 0.0, "weight_noise": 0.0}
    assert training_of({**known, "hide": None, "hide_cells": 7, "calibrate": False}) == training_of(known)
    hidden = {**known, "hide": "mean", "calibrate": False}
    assert training_of({**hidden, "hide_cells": 7}) != training_of({**hidden, "hide_cells": 4})


def test_a_later_command_hides_as_the_folder_does_and_has_nothing_left_to_do(hidden: Path) -> None:
    again = run("explain", hidden, "name=digits-resnet18-hide=grey", small=["logger=none", "progress=false"])
    assert "nothing to do" in again.stdout
    shard = next(hidden.glob("*/fold=0/maps/saliency/*.safetensors")).read_bytes()
    header = json.loads(shard[8 : 8 + int.from_bytes(shard[:8], "little")])["__metadata__"]["lit_xai"]
    definition = json.loads(header)["scores"]["in_domain_mufidelity"]["definition"]
    assert (definition["filler"], definition["cells"]) == ({"name": "Colour", "value": 0.5}, 4)


def test_the_page_has_how_far_the_images_of_each_score_lie(hidden: Path) -> None:
    folder = hidden / "digits-resnet18-hide=grey"
    with open(folder / "fold=0" / "domain.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = [float(r["mahalanobis"]) for r in rows if r["shown_by"] == HELD_OUT]
    found = evidence.domain(Ensemble(folder))
    assert list(found) == ["deletion", "in_domain_deletion", "in_domain_mufidelity", HELD_OUT, NOISE]
    assert [d["trained_on"] for d in found.values()] == [False, False, True, None, None]  # one insists on black
    assert found[HELD_OUT]["distance"]["value"] == pytest.approx(1)
    deleted = [float(r["mahalanobis"]) for r in rows if r["shown_by"] == "deletion"]
    assert len(deleted) == found["deletion"]["distance"]["samples"] == 11
    expected = (sum(deleted) / len(deleted)) / (sum(own) / len(own))
    assert found["deletion"]["distance"]["value"] == pytest.approx(expected)
    file = folder / "fold=0" / "domain.csv"
    of_others = file.read_text().replace(rows[0]["checkpoint"], "0123456789abcdef")
    for damaged in (of_others, "shown_by,mahalanobis\nheld out,much\n"):
        file.write_text(damaged)
        assert evidence.domain(Ensemble(folder)) == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["score=[in_domain/deletion]"], "train it by python -m lit_xai.train hide=mean"),
        (["calibrate=true", "data.train_subset=60"], "needs 10: give more data or leave it out"),
    ],
)
def test_what_a_network_cannot_be_trained_or_judged_with_is_refused_in_a_line(options, says, tmp_path: Path) -> None:
    done = run("train", tmp_path, *(o for o in FEW if "cells" not in o), *options, small=[], check=False)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("option", ["hide=mean", "calibrate=true"])
def test_a_sampler_hides_nothing_and_is_not_calibrated(option: str) -> None:
    cfg: Any = compose("train", ["model=ddim", option])
    with pytest.raises(UsageError, match="model=ddim is no classifier that is trained here"):
        Run(cfg, "train")


@pytest.mark.parametrize("cells", [1, 2.5, True])
def test_cells_that_are_no_grid_are_refused_by_their_option(cells: float) -> None:
    cfg: Any = compose("train", ["hide=mean"])
    cfg.hide_cells = cells  # as a saved configuration may say
    with pytest.raises(UsageError, match="hide_cells must be a whole number of at least 2"):
        check_values(cfg)


@pytest.mark.parametrize("name", ["meen", "../score/deletion", ["mean"], ""])
def test_what_is_no_filler_is_refused_with_those_that_there_are(name) -> None:
    with pytest.raises(UsageError, match="is no filler: choose one of biharmonic, black"):
        filler_named(name, OmegaConf.create({"root": "checkpoints", "data": {"name": "digits"}}))


def test_a_filler_of_a_yaml_reads_what_lies_below_the_root() -> None:
    cfg = OmegaConf.create({"root": "there", "data": {"name": "digits"}})
    assert filler_named("mean", cfg) == Mean()
    assert filler_named("inpainter", cfg).checkpoint == "there/digits-inpainter"


def test_two_models_of_logits_are_told_apart_by_their_cells() -> None:
    model = lambda x: two_logits(x[:, 0, :6].mean((1, 2)))  # noqa: E731  # only the upper half counts
    image, right, wrong = torch.ones(1, 1, 12, 12), torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)
    right[:, :6], wrong[:, 6:] = 1, 1
    for kind, up in ((InDomainDeletion, False), (InDomainInsertion, True)):
        score = kind(filler=BLACK, cells=4)
        good, bad = (float(score(model, image, m, torch.tensor([0]))) for m in (right, wrong))
        assert (good > bad) == up

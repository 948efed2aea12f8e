"""Nothing waits for the device in a loop: what a call copies or reads is the same for more masks, samples, steps and images."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_xai.explainers import RISE, Saliency, SlidingPatch
from lit_xai.fillers import Colour, ConditionalGaussian, UniformNoise
from lit_xai.fillers.gaussian import GaussianModule
from lit_xai.incremental import COSTS, Costs
from lit_xai.metrics import CertifiedRadius
from lit_xai.rng import SampleRng
from torch import Tensor, nn

from conftest import seeded
from generators import made
from test_contracts import CONFIGS, COUNTS, build, network_for
from transfers import DEVICE, Counted, There, moved


@pytest.fixture(autouse=True)
def modes(monkeypatch):
    """torch knows no autocast for this device, and tensors that hold others no inference mode."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "inference_mode", lambda on=True: torch.no_grad() if on else torch.enable_grad())


def grown(node: Any, times: int) -> Any:
    """A yaml's content, small, with its counts times as large, and four images a model call."""
    if not isinstance(node, dict):
        return node
    node = {k: grown(v, times) for k, v in node.items()}
    more = {k: v * times for k, v in node.items() if k in COUNTS and isinstance(v, int)}
    return {**node, **more, **({"max_batch": 4} if "max_batch" in node else {})}


def network(file: Path) -> nn.Module:
    """A small one that the method of this yaml takes."""
    if file.parent.name == "attention":
        return network_for(file)
    layers = nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 4)).eval()


def waits(file: Path, times: int, images: int, of: Any) -> Counter[str]:
    """What a call on so many images copies and reads."""
    thing, model = build(file, lambda node: grown(node, times)), network(file)
    x, targets = torch.rand(images, 1, 16, 16, generator=seeded(1)), torch.arange(images) % 4
    rng = SampleRng(7, tuple(range(images)))
    with Counted() as counted:
        model, x, targets = moved(model), moved(x), moved(targets)
        of(thing, model, x, targets, rng)  # what is loaded and kept once is no loop
        counted.counts.clear()
        out = of(thing, model, x, targets, rng)
    assert isinstance(out, There)
    return counted.counts


SLOW = ("pomelo", "information", "variants", "replaced", "captum", "in_domain", "generative")


def free_of_waits(group: str) -> Any:
    """A parameter for every yaml of a group; what takes seconds here is slow."""
    files = sorted((CONFIGS / group).rglob("*.yaml"))
    slow = {f: [pytest.mark.slow] if f.parent.name in SLOW else [] for f in files}
    names = {f: str(f.relative_to(CONFIGS / group).with_suffix("")) for f in files}
    return pytest.mark.parametrize("file", [pytest.param(f, id=names[f], marks=slow[f]) for f in files])


@free_of_waits("explainer")
def test_an_explainer_waits_as_often_for_many_as_for_few(file):
    def of(thing, model, x, targets, rng) -> Tensor:
        return thing(model, x, targets, rng)

    few = waits(file, 1, 2, of)
    assert waits(file, 3, 2, of) == few
    assert waits(file, 1, 5, of) == few


@free_of_waits("score")
def test_a_score_waits_as_often_for_many_as_for_few(file):
    explainer = (
        RISE(masks=6, grid=3, output="probability", max_batch=4) if file.stem == "certified_radius" else Saliency()
    )

    def of(thing, model, x, targets, rng) -> Tensor:
        masks = (x[:, 0] > 0.5) if thing.truth is not None else None
        others = thing.again(explainer, model, x, targets, rng) if thing.explanations else masks
        return thing(model, x, x.mean(1), targets, rng, others)

    few = waits(file, 1, 2, of)
    assert waits(file, 3, 2, of) == few
    assert waits(file, 1, 5, of) == few


def gaussian() -> ConditionalGaussian:
    """One of windows with surroundings, which keeps nothing between calls."""
    filler = made(GaussianModule, 1, 4, patch=2, margin=1).sampler()
    filler.opened.kept.limit = 0
    return filler


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_windows_of_a_gaussian_wait_as_often_for_many_as_for_few_where_no_pattern_is_kept(precision):
    def counted(images: int, draws: int, height: int, width: int) -> Counter[str]:
        explainer = SlidingPatch(None, 1, gaussian(), draws, scale=False, precision=precision, max_batch=4)
        network, x = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 3)), torch.rand(images, 1, height, width)
        with Counted() as counted:
            explainer(moved(network), moved(x), moved(torch.zeros(images, dtype=torch.long)))
        return counted.counts

    assert counted(3, 2, 5, 4) == counted(1, 1, 4, 4)


class Beside(nn.Module):
    """A residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


@pytest.mark.parametrize("draws", [1, 2])
def test_carried_windows_wait_as_often_for_many_as_for_few(draws, monkeypatch):
    free = Costs(1e12, 1e12, 1e12, 1e12, 1e12, 0.0, 0.0)
    monkeypatch.setitem(COSTS, DEVICE.type, free)
    layers = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), Beside()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    filler = UniformNoise() if draws > 1 else Colour(0.5)

    def counted(images: int, stride: int) -> Counter[str]:
        method = SlidingPatch(3, stride, filler, draws, scale=False, incremental="always", max_batch=4)
        given = torch.rand(images, 1, 24, 24, generator=seeded(1)), torch.zeros(images, dtype=torch.long)
        with Counted() as counted:
            method(moved(copy.deepcopy(network)), *map(moved, given))
        return counted.counts

    assert counted(3, 3) == counted(1, 7)


def test_the_device_carries_windows_to_the_maps_of_the_host(monkeypatch):
    monkeypatch.setitem(COSTS, DEVICE.type, Costs(1e12, 1e12, 1e12, 1e12, 1e12, 0.0, 0.0))
    layers = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), Beside()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    given = torch.rand(3, 1, 24, 20, generator=seeded(1)), torch.arange(3)

    def maps(mode: str, network: nn.Module, *given: Tensor) -> Tensor:
        return SlidingPatch(3, 2, Colour(0.5), scale=False, incremental=mode, max_batch=4)(network, *given)

    with Counted():
        found = maps("always", moved(copy.deepcopy(network)), *map(moved, given))
    torch.testing.assert_close(found.held, maps("never", network, *given), rtol=1e-4, atol=1e-6)


def test_the_device_finds_the_radii_that_the_host_finds():
    layers = nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AvgPool2d(7), nn.Flatten(), nn.Linear(4, 4)
    x, targets, rng = torch.rand(5, 1, 16, 16, generator=seeded(1)), torch.arange(5) % 4, SampleRng(7, tuple(range(5)))
    network, score = nn.Sequential(*layers).eval(), CertifiedRadius(cells=4, steps=3)
    explainer = RISE(masks=40, grid=3, output="probability", max_batch=8)
    expected = score.again(explainer, network, x, targets, rng)
    with Counted():
        found = score.again(explainer, moved(copy.deepcopy(network)), moved(x), moved(targets), rng)
    assert bool((expected[:, 0] > 0).all())
    torch.testing.assert_close(found.held, expected, rtol=1e-5, atol=0)


def test_bits_of_a_gaussians_windows_read_their_places_alone():
    places = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    with Counted() as counted:
        gaussian().window_bits(moved(torch.rand(49, 1, 8, 8, generator=seeded(1))), *moved(places.T))
    moments = 2  # mean and covariance, once
    assert counted.counts == {"to the host": 1, "to the device": moments}


def test_a_covariance_that_has_no_factor_draws_nothing_on_a_device_where_the_check_would_wait():
    filler = gaussian()
    filler.module.covariance.neg_()
    images, places = torch.rand(1, 1, 8, 8, generator=seeded(1)), torch.zeros(2, 1, dtype=torch.long)
    with Counted():
        found = filler.window_bits(moved(images), *moved(places))
    assert bool(found.held.isnan())
    with pytest.raises(torch.linalg.LinAlgError):
        filler.window_bits(images, *places)

"""One thread, shape annotations checked, and the small models and images that the tests share."""

from __future__ import annotations

import builtins
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

import checker

torch.set_num_threads(1)
yaml.SafeLoader = (
    yaml.CSafeLoader
)  # the same language read faster: commands compose the same few files a thousand times
checker.install()  # before the first import of lit_xai


def pytest_runtest_setup() -> None:
    """The calls of every test are checked anew."""
    checker.Switch.test += 1


class Linear(nn.Module):
    """f_k(x) = w_k . x + b_k on images."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weight) + self.bias


def two_logits(z: Tensor) -> Tensor:
    """A function of images `[b]` as a model of two classes: its logits (z, -z)."""
    return torch.stack([z, -z], 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs_of(equal: Tensor, differ: Tensor, sample: Tensor | None = None, weight: Tensor | None = None):
    """Pairs with these distances; every one is of a sample of its own and counts once, unless told otherwise."""
    from lit_xai.metrics.pairs import Pairs

    distance, n = torch.cat([equal, differ]).double(), len(equal) + len(differ)
    is_equal, nobody = torch.arange(n) < len(equal), torch.full((n,), -1)
    sample = torch.arange(n) if sample is None else sample
    weight = torch.ones(n, dtype=torch.float64) if weight is None else weight.double()
    return Pairs(distance, is_equal, ~is_equal, sample, weight, nobody, nobody)


@pytest.fixture
def rgb() -> Tensor:
    """Five random RGB images of 12 x 12 pixels."""
    return torch.rand(5, 3, 12, 12, generator=seeded(1))


@pytest.fixture
def targets() -> Tensor:
    """One class for each of the five images."""
    return torch.tensor([0, 3, 1, 2, 3])


@pytest.fixture
def linear() -> Linear:
    """A linear model of four classes on RGB images of 12 x 12 pixels."""
    return Linear(torch.randn(4, 3, 12, 12, generator=seeded(2)), torch.randn(4, generator=seeded(3)))


@pytest.fixture
def convnet() -> nn.Module:
    """A seeded convolutional network of four classes for RGB images, with every kind of layer but dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 4),
        )
    return net.eval()


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, enlarged to 16 pixels."""
    from lit_xai.data.sources import digits

    return digits(16)


@pytest.fixture
def unchecked():
    """Shape annotations off, to see the errors of a user who has no type checker."""
    checker.Switch.on = False
    yield
    checker.Switch.on = True


@pytest.fixture
def opens(monkeypatch) -> Counter[Path]:
    """How often each shard is opened from now on."""
    counts: Counter[Path] = Counter()
    real = builtins.open

    def counted(file, *arguments, **options):
        if str(file).endswith(".safetensors") and "predictions" not in str(file):
            counts[Path(file)] += 1
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", counted)
    return counts

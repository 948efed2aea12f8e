"""Of what maps vary: components of variance against simulation and sums written out, and two networks beside each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.metrics.components import PARTS, components, moments
from torch import Tensor

from conftest import seeded


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

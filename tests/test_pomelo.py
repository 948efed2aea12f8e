"""POMELO: LIME on samples that may change every pixel, against samplers whose surrogate is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.core import Filler
from lit_xai.explainers import Lime
from lit_xai.explainers.lime import Kernel, PixelCosineKernel, Rows, SegmentDistance, Toggle
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid
from torch import Tensor

from conftest import Linear, seeded

SIDE, CELLS = 12, 3
SEGMENTS = Grid(CELLS)
WEIGHTS = torch.tensor([0.0, 2.0, -1.0, 0.5, 0.0, -3.0, 1.0, 4.0, -0.5])  # of each segment's mean


@dataclass(frozen=True)
class Redraws(Filler):
    """Every pixel of these segments anew, uniform in [low, 1], whatever is kept; the others stay."""

    which: tuple[int, ...] = tuple(range(CELLS**2))
    low: float = 0.0

    def __call__(self, images, keep, rng, draws=1, segments=None):
        b, n = keep.shape[:2]
        out = images[:, None, None].repeat(1, n, draws, 1, 1, 1)
        inside = torch.isin(SEGMENTS(images[:1]), torch.tensor(self.which))[0]
        for row in range(b):
            for t in range(n * draws):
                new = torch.rand(images.shape[1:], generator=rng.generator("redraw", row, t)).to(images)
                new = self.low + (1 - self.low) * new
                out[row, t // draws, t % draws] = torch.where(inside, new, out[row, t // draws, t % draws])
        return out


@dataclass(frozen=True)
class Even(Kernel):
    """All alike."""

    def __call__(self, rows: Rows) -> Tensor:
        return torch.ones(len(rows.image_of), dtype=torch.float64)


def model(weights: Tensor = WEIGHTS) -> Linear:
    """The first class's logit is the weighted sum of the segments' means."""
    labels = SEGMENTS(torch.zeros(1, 1, SIDE, SIDE))[0]
    pixels = weights[labels] / torch.bincount(labels.flatten())[labels]
    return Linear(torch.stack([pixels, torch.zeros_like(pixels)])[:, None], torch.zeros(2))


def pomelo(sampler: Redraws, **options) -> Lime:
    whole = Toggle(filler=sampler, keep=0.0, whole_first=False)
    setting = {"samples": 800, "ridge": 0.0, "output": "logit", "kernel": Even(), **options}
    return Lime(SEGMENTS, whole, SegmentDistance(), **setting)


TARGET = torch.tensor([0])
WHITE = torch.ones(1, 1, SIDE, SIDE)


def test_on_a_white_image_the_coefficients_of_a_linear_model_are_its_weights():
    """There r is the segment's mean, of which the model is linear."""
    found = pomelo(Redraws()).explain(model(), WHITE, TARGET).coefficients[0]
    assert torch.allclose(found, WEIGHTS.double(), atol=1e-4)


def test_on_a_black_image_they_are_its_negative_weights():
    found = pomelo(Redraws()).explain(model(), 0 * WHITE, TARGET).coefficients[0]
    assert torch.allclose(found, -WEIGHTS.double(), atol=1e-4)


@pytest.mark.parametrize("kernel", [Even(), PixelCosineKernel()])
def test_the_order_of_the_weights_is_recovered_on_a_bright_image(kernel):
    image = 0.8 + 0.2 * torch.rand(1, 1, SIDE, SIDE, generator=seeded(0))
    found = pomelo(Redraws(), samples=3000, kernel=kernel).explain(model(), image, TARGET).coefficients[0]
    strong = WEIGHTS.abs() > 0.4
    assert torch.equal(found.sign()[strong], WEIGHTS.double().sign()[strong])
    assert torch.equal(found.argsort(descending=True)[:3], WEIGHTS.double().argsort(descending=True)[:3])


@pytest.mark.parametrize("which", [1, 5])
def test_one_segment_redrawn_alone_is_the_only_one_with_a_coefficient(which):
    """All others do not vary: the ridge leaves them at 0, and the one's slope is shrunk by a known factor."""
    ridge, n = 1.0, 800
    method = pomelo(Redraws((which,)), samples=n, ridge=ridge)
    found = method.explain(model(), WHITE, TARGET)
    others = torch.arange(CELLS**2) != which
    assert float(found.coefficients[0][others].abs().max()) < 1e-6
    rng = SampleRng(0, (0,)).take([0] * n, list(range(n)))
    keep = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.bool)
    means = Redraws((which,))(WHITE.expand(n, -1, -1, -1), keep, rng)
    inside = SEGMENTS(WHITE)[0] == which
    spread = float(means[:, 0, 0, 0][:, inside].mean(1).double().var(unbiased=False)) * n
    expected = float(WEIGHTS[which]) * spread / (spread + ridge)
    assert float(found.coefficients[0, which]) == pytest.approx(expected, rel=1e-3)


def test_samples_further_away_weigh_less():
    image = WHITE.clone()
    rows = torch.cat([image, 0.9 * image, image - 0.9 * torch.rand(1, 1, SIDE, SIDE, generator=seeded(0))])
    visible = torch.zeros(3, CELLS**2, dtype=torch.bool)
    weights = PixelCosineKernel()(
        Rows(image, SEGMENTS(image), torch.zeros(3, dtype=torch.long), visible, rows, torch.full((3,), 9))
    )
    assert float(weights[0]) == pytest.approx(1)
    assert float(weights[1]) == pytest.approx(1)  # the cosine does not see brightness
    assert float(weights[2]) < 0.99


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.booleans())
def test_the_representation_lies_between_0_and_1(seed, channels, extreme):
    x, y = torch.rand(2, 4, channels, SIDE, SIDE, generator=seeded(seed))
    if extreme:
        x, y = x.round(), y.round()
    segments = SEGMENTS(x)
    visible = torch.zeros(4, CELLS**2, dtype=torch.bool)
    r = SegmentDistance()(Rows(x, segments, torch.arange(4), visible, y, torch.full((4,), CELLS**2)))
    assert float(r.min()) >= 0
    assert float(r.max()) <= 1
    same = SegmentDistance()(Rows(x, segments, torch.arange(4), visible, x, torch.full((4,), CELLS**2)))
    assert torch.equal(same, torch.ones_like(same))
    far = (x < 0.5).float()
    least = SegmentDistance()(Rows(x, segments, torch.arange(4), visible, far, torch.full((4,), CELLS**2)))
    assert float(least.abs().max()) < 1e-6


def test_repeats_draw_other_samples():
    method = pomelo(Redraws(), samples=60, kernel=PixelCosineKernel())
    image = 0.5 * WHITE
    maps = [replace(method, repeat=r)(model(), image, TARGET) for r in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])

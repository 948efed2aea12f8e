"""Nulls: maps that know the image, or not even that, and nothing of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lit_xai.core import LUMA
from lit_xai.errors import UsageError
from lit_xai.explainers import Centre, Edges, Image, ImageRandom, Random, Saliency
from lit_xai.rng import SampleRng
from skimage.filters import sobel_h, sobel_v
from torch import nn

TARGETS = torch.zeros(5, dtype=torch.long)
NULLS = [Image(), Edges(), Centre(), ImageRandom(), Random()]


def model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))


@pytest.mark.parametrize("explainer", NULLS, ids=lambda e: type(e).__name__)
def test_a_null_says_so_and_asks_no_model(explainer, rgb):
    def never(_):
        raise AssertionError("asked")

    assert explainer.null
    assert not Saliency().null
    assert explainer.passes(12, 12) == (0, 0)
    maps = explainer(never, rgb, TARGETS, SampleRng(0, tuple(range(5))))
    assert maps.shape == (5, 12, 12)


@pytest.mark.parametrize(
    ("explainer", "alike"), [(Image(), True), (Edges(), True), (Centre(), True), (ImageRandom(), False)]
)
def test_maps_of_two_models_are_equal_but_for_noise_of_their_own(explainer, alike, rgb):
    rng = SampleRng(0, tuple(range(5)))
    one, other = (explainer(model(s), rgb, TARGETS, rng) for s in (0, 1))
    assert torch.equal(one, other) == alike


def test_the_image_is_its_luma_above_what_hides(rgb):
    expected = sum(weight * rgb[:, c] for c, weight in enumerate(LUMA))
    assert torch.allclose(Image(0.5)(model(0), rgb, TARGETS), expected - 0.5)
    grey = rgb[:, :1]
    assert torch.equal(Image()(model(0), grey, TARGETS), grey[:, 0])
    with pytest.raises(UsageError, match="hidden must lie in"):
        Image(2.0)


def test_edges_are_sobels(rgb):
    found = Edges()(model(0), rgb, TARGETS)[:, 1:-1, 1:-1]
    for image, map_ in zip(Image()(model(0), rgb, TARGETS).double().numpy(), found, strict=True):
        expected = np.hypot(sobel_h(image), sobel_v(image))[1:-1, 1:-1]
        assert np.allclose(map_.numpy(), expected / 2, atol=1e-5)  # skimage's is of two pixels


def test_the_centre_is_a_gaussian_of_a_quarter_of_the_side():
    images = torch.rand(2, 1, 41, 21)
    found = Centre()(model(0), images, TARGETS[:2])[0]
    y, x = np.mgrid[:41, :21]
    expected = np.exp(-(((y - 20) / (41 / 4)) ** 2 + ((x - 10) / (21 / 4)) ** 2) / 2)
    assert np.allclose(found, expected, atol=1e-6)


def test_image_random_is_the_product(rgb):
    rng = SampleRng(3, tuple(range(5)))
    parts = [e(model(0), rgb, TARGETS, rng) for e in (Image(), Random())]
    assert torch.equal(ImageRandom()(model(0), rgb, TARGETS, rng), parts[0] * parts[1])

"""Fillers without training by hand, by their moments, and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lit_xai.calls import Chunk, chunks
from lit_xai.core import LUMA, Filler, TrainedOn
from lit_xai.errors import UsageError
from lit_xai.fillers import Biharmonic, GaussianNoise, SegmentMean, Shuffle, UniformNoise
from lit_xai.fillers.constant import Blur, BlurOrMean, Colour, Mean
from lit_xai.fillers.refill import Refill
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid
from scipy.stats import norm
from torch import Tensor

from conftest import seeded

RNG = SampleRng(3, (4, 9))
BACKGROUNDS = [Colour(0.3), Colour((0.1, 0.5, 0.9)), Mean((0.2, 0.4, 0.6)), Blur(kernel=61, sigma=40.0), SegmentMean()]
NOISY = [UniformNoise(), GaussianNoise(), Shuffle()]
EVERY = [*BACKGROUNDS, *NOISY, Biharmonic()]
every_filler = pytest.mark.parametrize("filler", EVERY, ids=lambda f: type(f).__name__)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=seeded(1))


@pytest.fixture
def keep() -> Tensor:
    """Three masks for each of two images."""
    return torch.rand(2, 3, 8, 8, generator=seeded(2)) < 0.6


@pytest.fixture
def segments(images) -> Tensor:
    return Grid(3)(images)


# ---------------------------------------------------------------------------------------------------------- every filler


@every_filler
def test_kept_pixels_are_untouched_and_the_shape_is_images_masks_draws(filler, images, keep, segments):
    out = filler(images, keep, RNG, draws=2, segments=segments)
    assert out.shape == (2, 3, 2, 3, 8, 8)
    kept = keep[:, :, None, None].expand_as(out)
    assert torch.equal(out[kept], images[:, None, None].expand_as(out)[kept])


@every_filler
def test_hidden_pixels_are_not_the_image_and_stay_in_range(filler, images, keep, segments):
    out = filler(images, keep, RNG, segments=segments)
    hidden = ~keep[:, :, None, None].expand_as(out)
    assert float((out - images[:, None, None])[hidden].abs().mean()) > 0.05
    assert 0 <= float(out.min()) <= float(out.max()) <= 1


@every_filler
def test_a_filling_does_not_depend_on_the_batch(filler, images, keep, segments):
    whole = filler(images, keep, RNG, 2, segments)
    alone = [filler(images[[i]], keep[[i]], RNG.take([i]), 2, segments[[i]]) for i in (0, 1)]
    assert torch.equal(torch.cat(alone), whole)


# -------------------------------------------------------------------------------------------------------- superpixel mean


def test_the_superpixel_mean_by_hand():
    image = torch.tensor([[[[0.0, 0.2, 1.0], [0.4, 0.6, 0.5]]]])
    labels = torch.tensor([[[0, 0, 1], [0, 0, 1]]])
    expected = torch.tensor([[[[0.3, 0.3, 0.75], [0.3, 0.3, 0.75]]]])
    assert torch.allclose(SegmentMean().background(image, labels), expected)


def test_the_superpixel_mean_of_every_channel_and_image_equals_a_loop(images):
    labels = torch.cat([Grid(2)(images[:1]), Grid(3)(images[1:])])  # 4 and 9 superpixels
    result = SegmentMean().background(images, labels)
    for row in range(2):
        for j in labels[row].unique():
            here = labels[row] == j
            mean = images[row][:, here].mean(1, keepdim=True)
            assert torch.allclose(result[row][:, here], mean.expand(-1, int(here.sum())), atol=1e-6)


def test_without_superpixels_the_whole_image_counts_as_one(images):
    one = torch.zeros(2, 8, 8, dtype=torch.long)
    assert torch.allclose(SegmentMean().background(images), SegmentMean().background(images, one), atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------- noise


@pytest.fixture
def large() -> Tensor:
    """Two painted fillings of 40,000 values: mask 0 and 1."""
    return torch.zeros(1, 1, 200, 200)


def painted(filler, images: Tensor) -> Tensor:
    hidden = torch.zeros(len(images), 1, *images.shape[-2:], dtype=torch.bool)
    return filler(images, hidden, SampleRng.default(len(images)))[:, 0, 0].double()


def test_uniform_noise_has_the_moments_of_the_uniform_distribution(large):
    out = painted(UniformNoise(), large)
    assert abs(float(out.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 40_000)
    assert abs(float(out.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / 40_000)


def test_gaussian_noise_is_a_clipped_normal(large):
    out = painted(GaussianNoise(mean=0.4, sigma=0.3), large)
    for at in (0.0, 0.2, 0.4, 0.9):
        share = norm.cdf((at - 0.4) / 0.3)
        assert abs(float((out <= at).double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / 40_000)
    assert float(out.max()) == 1


@pytest.mark.parametrize("filler", NOISY, ids=lambda f: type(f).__name__)
def test_noise_is_independent_between_images_masks_and_draws(filler, images):
    one = images[:1].expand(2, -1, -1, -1)
    hidden = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    rows = filler(one, hidden, RNG, draws=2).reshape(12, -1)
    correlation = torch.corrcoef(rows) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / math.sqrt(192)


def test_noise_changes_with_the_seed_and_not_between_calls(images, keep):
    first, again = (UniformNoise()(images, keep, RNG) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, UniformNoise()(images, keep, SampleRng(4, (4, 9))))


def test_gaussian_noise_without_a_width_is_refused(images, keep):
    with pytest.raises(UsageError, match="sigma > 0"):
        GaussianNoise(sigma=0.0)(images, keep, RNG)


def test_shuffling_keeps_the_pixels_and_moves_them(images):
    out = Shuffle()(images, torch.zeros(2, 1, 8, 8, dtype=torch.bool), RNG)[:, 0, 0]

    def sorted_pixels(x: Tensor) -> Tensor:
        pixels = x.flatten(1).T
        return pixels[pixels[:, 0].argsort()]  # the channels of a pixel stay together

    for before, after in zip(images, out, strict=True):
        assert torch.equal(sorted_pixels(after), sorted_pixels(before))
        assert not torch.equal(after, before)


# ------------------------------------------------------------------------------------------------------------ biharmonic


def test_biharmonic_in_painting_is_scikit_images(images, keep):
    from skimage.restoration import inpaint_biharmonic

    out = Biharmonic()(images, keep, RNG)
    for row in range(2):
        for n in range(3):
            pixels = images[row].permute(1, 2, 0).double().numpy()
            expected = np.clip(inpaint_biharmonic(pixels, ~keep[row, n].numpy(), channel_axis=-1), 0, 1)
            assert np.allclose(out[row, n, 0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_biharmonic_in_painting_restores_a_ramp():
    y, x = torch.meshgrid(torch.linspace(0, 0.5, 12), torch.linspace(0, 0.4, 12), indexing="ij")
    ramp = (y + x)[None, None]
    keep = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    keep[..., 4:8, 5:9] = False
    assert torch.allclose(Biharmonic()(ramp, keep, SampleRng.default(1))[:, 0, 0], ramp, atol=1e-4)


def test_biharmonic_in_painting_of_nothing_visible_is_grey(images):
    out = Biharmonic()(images, torch.zeros(2, 1, 8, 8, dtype=torch.bool), RNG)
    assert bool((out == 0.5).all())


# --------------------------------------------------------------------------------------------------------------- colours


def test_a_colour_on_grey_images_is_its_luma():
    out = Colour((0.1, 0.5, 0.9)).background(torch.zeros(1, 1, 2, 2))
    assert torch.allclose(out, torch.tensor(0.299 * 0.1 + 0.587 * 0.5 + 0.114 * 0.9))
    assert sum(LUMA) == pytest.approx(1)


def test_a_grey_value_fills_every_channel(images):
    assert bool((Colour(0.25).background(images) == 0.25).all())


def test_a_colour_of_two_values_is_refused_on_three_channels(images):
    with pytest.raises(UsageError, match="fills images of 3 channels by a colour of 2 values"):
        Colour((0.1, 0.2)).background(images)


def test_a_list_and_a_tuple_are_the_same_colour():
    assert Colour([0.1, 0.2, 0.3]) == Colour((0.1, 0.2, 0.3))


# ---------------------------------------------------------------------------------------------------------------- refill


def walk(filler, images: Tensor, masks: Tensor, labels: Tensor, chunk: int, draws: int = 1) -> Tensor:
    """Every image through every mask, `chunk` rows at a time."""
    refill = Refill(filler, images, RNG, labels)
    walked = chunks(2, masks.shape[1], chunk)
    return torch.cat([refill(masks[c.image, c.variant], c, draws=draws) for c in walked])


@every_filler
@pytest.mark.parametrize("draws", [1, 3])
def test_a_refilled_row_does_not_depend_on_its_chunk(filler, images, keep, segments, draws):
    whole = walk(filler, images, keep, segments, 6, draws)
    assert whole.shape == (6 * draws, 3, 8, 8)
    for chunk in (1, 2, 4):
        assert torch.equal(walk(filler, images, keep, segments, chunk, draws), whole)


@pytest.mark.parametrize("filler", BACKGROUNDS, ids=lambda f: type(f).__name__)
def test_refilling_with_a_background_equals_calling_the_filler(filler, images, keep, segments):
    direct = filler(images, keep, RNG, 2, segments).flatten(0, 2)
    assert torch.equal(walk(filler, images, keep, segments, 5, draws=2), direct)


def test_a_background_is_made_once(images, keep, segments, monkeypatch):
    calls, background = [], Blur.background
    monkeypatch.setattr(Blur, "background", lambda *a: calls.append(1) or background(*a))
    walk(Blur(), images, keep, segments, 1)
    assert len(calls) == 1


@pytest.mark.parametrize("filler", NOISY, ids=lambda f: type(f).__name__)
def test_refilled_noise_is_independent_between_variants_draws_and_images(filler, images):
    one, hidden = images[:1].expand(2, -1, -1, -1), torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    rows = walk(filler, one, hidden, torch.zeros(2, 8, 8, dtype=torch.long), 4, draws=2).flatten(1)
    correlation = torch.corrcoef(rows) - torch.eye(12)
    assert float(correlation.abs().max()) < 5 / math.sqrt(192)


def test_a_variant_is_a_stream_of_its_own_and_taking_keeps_the_sample():
    part = RNG.take([1, 1, 0], [5, 6, 5])
    assert part.samples == (9, 9, 4)
    drawn = [part.uniform("any", row, (6,)) for row in range(3)]
    assert not any(torch.equal(drawn[a], drawn[b]) for a, b in [(0, 1), (0, 2), (1, 2)])
    assert torch.equal(RNG.take([0, 1], [9, 5]).uniform("any", 1, (6,)), drawn[0])
    assert torch.equal(RNG.take([1]).uniform("any", 0, (6,)), RNG.uniform("any", 1, (6,)))


def test_a_filler_that_returns_another_shape_is_refused_by_name(images, keep):
    class Forgetful(Filler):
        def __call__(self, images, keep, rng, draws=1, segments=None):
            return images[:, None]  # no axis for the draws

    with pytest.raises(UsageError, match=r"Forgetful returned shape .* expected \(2, 1, 1, 3, 8, 8\)"):
        Refill(Forgetful(), images, RNG)(keep[:, 0], Chunk(0, 2, 1, images.device), 0)


def test_a_background_of_another_shape_is_refused_by_name(images):
    from lit_xai.fillers.base import BackgroundFiller

    class Small(BackgroundFiller):
        def background(self, images, segments=None):
            return images[..., 1:]

    with pytest.raises(UsageError, match="Small returned a background of shape"):
        Refill(Small(), images, RNG)


@pytest.mark.parametrize(("side", "start"), [(28, "mean"), (63, "mean"), (64, "blur"), (96, "blur")])
def test_a_small_image_is_not_left_readable_by_a_blur(side, start):
    images = torch.rand(2, 3, side, side, generator=seeded(0))
    filler = BlurOrMean().fitted(TrainedOn((0.2, 0.4, 0.6)))
    expected = Blur() if start == "blur" else Mean((0.2, 0.4, 0.6))
    assert torch.equal(filler.background(images), expected.background(images))
    assert filler.resolve(lambda x: x, images) == {"start": start}

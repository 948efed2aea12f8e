"""Superpixels against scikit-image's own partition, and sums over them against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lit_xai import segments as module
from lit_xai.cache import Cache
from lit_xai.errors import UsageError
from lit_xai.segments import Grid, Quickshift, Slic, segment_counts, segment_sums, to_pixels
from skimage import segmentation
from torch import Tensor

from conftest import seeded

EVERY = [Grid(3), Quickshift(kernel_size=2, max_dist=4, scale=False), Slic(segments=9, compactness=10.0)]
every_segmenter = pytest.mark.parametrize("segmenter", EVERY, ids=lambda s: type(s).__name__)


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """An empty cache for every test."""
    monkeypatch.setattr(module, "CACHE", Cache(1 << 20))
    return module


@pytest.fixture
def counted(monkeypatch):
    """The calls that reach scikit-image's SLIC."""
    calls = []
    slic = segmentation.slic
    monkeypatch.setattr(segmentation, "slic", lambda *a, **k: calls.append(1) or slic(*a, **k))
    return calls


def blobs(channels: int, size: tuple[int, int] = (20, 24), batch: int = 3) -> Tensor:
    """Images with a few large patches of colour and a little noise."""
    coarse = torch.rand(batch, channels, 3, 4, generator=seeded(5))
    noise = torch.rand(batch, channels, *size, generator=seeded(6))
    return 0.8 * torch.nn.functional.interpolate(coarse, size=size) + 0.2 * noise


def same_partition(a: Tensor, b: np.ndarray) -> bool:
    """Whether two labellings cut an image into the same pieces."""
    pairs = np.unique(np.stack([a.numpy().ravel(), b.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(a.numpy())) == len(np.unique(b))


def as_rgb(image: Tensor) -> np.ndarray:
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


# --------------------------------------------------------------------------------------------------------------- labels


@every_segmenter
@pytest.mark.parametrize("channels", [1, 3])
def test_labels_run_from_0_without_gaps_in_every_image(segmenter, channels):
    labels = segmenter(blobs(channels))
    assert labels.dtype == torch.int64
    assert labels.shape == (3, 20, 24)
    for one in labels:
        assert one.unique().tolist() == list(range(int(one.max()) + 1))
        assert int(one.max()) >= 3


@pytest.mark.parametrize("channels", [1, 3])
def test_quickshift_is_scikit_images_and_grey_is_repeated(channels):
    images = blobs(channels)
    for labels, image in zip(EVERY[1](images), images, strict=True):
        expected = segmentation.quickshift(as_rgb(image), ratio=0.2, kernel_size=2, max_dist=4)
        assert same_partition(labels, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_slic_is_scikit_images_and_grey_is_repeated(channels):
    images = blobs(channels)
    for labels, image in zip(Slic(9, 10.0, 3.0)(images), images, strict=True):
        expected = segmentation.slic(as_rgb(image), 9, 10.0, sigma=3 * 20 / 224, start_label=0)
        assert same_partition(labels, expected)


@pytest.mark.parametrize(("side", "kernel"), [(224, 4), (112, 2), (32, 1), (8, 1), (448, 8)])
def test_the_kernel_of_quickshift_scales_with_the_side_and_is_at_least_1(side, kernel):
    assert Quickshift().resolve(lambda x: x, torch.zeros(1, 1, side, side + 3)) == {"kernel_size": kernel}
    assert Quickshift(scale=False).kernel(side) == 4


def test_sigma_of_slic_scales_with_the_shorter_side():
    assert Slic(sigma=3.0).resolve(lambda x: x, torch.zeros(1, 1, 112, 224)) == {"sigma": 1.5}


def test_a_grid_that_divides_the_side_by_hand():
    expected = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    assert torch.equal(Grid(2)(torch.zeros(1, 3, 4, 4))[0], expected)


def test_a_grid_that_does_not_divide_the_sides_by_hand():
    rows, columns = [0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 2, 2]  # 5 = 2 + 2 + 1, 7 = 3 + 2 + 2
    expected = torch.tensor([[3 * r + c for c in columns] for r in rows])
    assert torch.equal(Grid(3)(torch.zeros(1, 1, 5, 7))[0], expected)


@pytest.mark.parametrize(("height", "width", "cells"), [(12, 17, 7), (7, 7, 7), (30, 11, 4)])
def test_the_cells_of_a_grid_differ_by_at_most_one_pixel_a_side(height, width, cells):
    labels = Grid(cells)(torch.zeros(1, 1, height, width))[0]
    for side, starts in ((height, labels[:, 0] // cells), (width, labels[0] % cells)):
        sizes = starts.bincount(minlength=cells)
        assert int(sizes.sum()) == side
        assert int(sizes.max() - sizes.min()) <= 1


@every_segmenter
def test_labels_do_not_depend_on_the_batch(segmenter, cache, monkeypatch):
    images = blobs(3)
    whole = segmenter(images)
    monkeypatch.setattr(cache, "CACHE", Cache(1 << 20))
    assert torch.equal(torch.cat([segmenter(images[[i]]) for i in (2, 0, 1)])[[1, 2, 0]], whole)


@every_segmenter
def test_labels_do_not_depend_on_memory_format_or_gradient(segmenter):
    images = blobs(3)
    other = images.clone(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(segmenter(other), segmenter(images))


# ---------------------------------------------------------------------------------------------------------------- cache


def test_a_second_call_asks_the_cache(counted):
    images, segmenter = blobs(3), EVERY[2]
    first = segmenter(images)
    assert torch.equal(segmenter(images.flip(0)), first.flip(0))
    assert len(counted) == 3


def test_another_parameter_is_computed_anew(counted):
    images = blobs(3)
    Slic(9, 10.0)(images)
    Slic(9, 20.0)(images)
    assert len(counted) == 6


def test_another_image_is_computed_anew(counted):
    images = blobs(3)
    EVERY[2](images)
    images[1, 0, 0, 0] += 0.1
    EVERY[2](images)
    assert len(counted) == 4


def test_images_of_the_same_bytes_and_other_shapes_are_not_confused():
    flat = torch.zeros(1, 1, 4, 16)
    assert Grid(4)(flat).shape == (1, 4, 16)
    assert Grid(4)(flat.view(1, 1, 8, 8)).shape == (1, 8, 8)


def test_changing_the_returned_labels_does_not_change_the_cache():
    images = blobs(3)
    first = Grid(3)(images)
    expected = first.clone()
    first.zero_()
    assert torch.equal(Grid(3)(images), expected)


def test_the_cache_drops_the_least_recently_used_at_its_limit():
    cache = Cache(limit=3 * 40)
    labels = np.zeros(10, dtype=np.int32)  # 40 bytes
    for key in (b"a", b"b", b"c"):
        cache.put(key, labels, labels.nbytes)
    assert cache.get(b"a") is not None
    cache.put(b"d", labels, labels.nbytes)
    assert set(cache.known) == {b"a", b"c", b"d"}
    assert cache.size == 120


def test_labels_larger_than_the_cache_are_not_kept():
    cache = Cache(limit=10)
    cache.put(b"a", np.zeros(10, dtype=np.int32), 40)
    assert cache.get(b"a") is None
    assert cache.size == 0


# ----------------------------------------------------------------------------------------------------------------- sums


@pytest.fixture
def uneven() -> Tensor:
    """Labels of two images with 4 and 9 superpixels."""
    images = torch.zeros(1, 1, 5, 7)
    return torch.cat([Grid(2)(images), Grid(3)(images)])


def test_counts_are_one_more_than_the_largest_label(uneven):
    assert segment_counts(uneven).tolist() == [4, 9]


@pytest.mark.parametrize("labels", [[[0, 2]], [[1, 2]], [[-1, 0]], [[-1, 1]]])
def test_labels_with_gaps_or_below_0_are_refused(labels):
    with pytest.raises(UsageError, match="without gaps") as error:
        segment_counts(torch.tensor([labels]))
    assert "\n" not in str(error.value)


def test_a_gap_in_one_image_of_a_batch_is_refused(uneven):
    uneven[0][uneven[0] == 3] = 8
    with pytest.raises(UsageError, match="in every image"):
        segment_counts(uneven)


def test_sums_equal_a_loop_and_are_0_beyond_an_images_own(uneven):
    values = torch.randn(2, 5, 7, generator=seeded(1)).double()
    sums = segment_sums(values, uneven)
    assert sums.shape == (2, 9)
    assert bool((sums[0, 4:] == 0).all())
    for row in range(2):
        for j in range(int(uneven[row].max()) + 1):
            assert torch.isclose(sums[row, j], values[row][uneven[row] == j].sum())


def test_every_pixel_gets_the_value_of_its_superpixel(uneven):
    values = torch.randn(2, 9, generator=seeded(2))
    pixels = to_pixels(values, uneven)
    for row in range(2):
        for y in range(5):
            for x in range(7):
                assert pixels[row, y, x] == values[row, uneven[row, y, x]]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "segmenter",
    [
        Grid(0),
        Grid(21),
        Quickshift(kernel_size=0),
        Quickshift(kernel_size=-1, scale=False),
        Quickshift(ratio=1.5),
        Slic(segments=1),
        Slic(compactness=0.0),
        Slic(sigma=-1.0),
    ],
    ids=str,
)
def test_parameters_that_mean_nothing_are_refused(segmenter):
    with pytest.raises(UsageError) as error:
        segmenter(blobs(3))
    assert "\n" not in str(error.value)


@pytest.mark.kind("4 and more channels")
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_colours_of_other_than_one_or_three_channels_are_refused_and_a_grid_needs_none(channels):
    for segmenter in (Quickshift(), Slic()):
        with pytest.raises(UsageError, match=r"of 1 or 3 channels: take a grid, .*segments\.Grid"):
            segmenter(torch.zeros(1, channels, 4, 4))
    assert torch.equal(Grid(2)(torch.rand(1, channels, 4, 4)), Grid(2)(torch.zeros(1, 3, 4, 4)))

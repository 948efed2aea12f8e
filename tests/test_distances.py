"""Distances between maps: axioms, hand values, and the blob and noise tests of Fel et al. (2022), appendix F."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.errors import UsageError
from lit_xai.metrics import DISTANCES, map_distance
from lit_xai.metrics.distance import average_ranks, mass, ranks_there, unit_ranks
from torch import Tensor

from conftest import seeded

every_distance = pytest.mark.parametrize("name", DISTANCES)


def random_maps(n: int, side: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, side, side, generator=seeded(seed), dtype=torch.float64)


def blob_path(diagonal: bool, side: int = 32, sigma: float = 3.0, steps: int = 100) -> Tensor:
    """A Gaussian blob on its way from the top left corner to the top (or bottom) right one."""
    y, x = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    at = torch.linspace(0, side - 1, steps, dtype=torch.float64)
    return torch.stack([torch.exp(-((y - t * diagonal) ** 2 + (x - t) ** 2) / (2 * sigma**2)) for t in at])


def distances_from_start(path: Tensor, name: str) -> Tensor:
    return map_distance(path[:1].expand_as(path), path, name)


# --------------------------------------------------------------------------------------------------------------- axioms


@every_distance
def test_equal_maps_have_distance_zero(name):
    maps = random_maps(4)
    assert torch.allclose(map_distance(maps, maps, name), torch.zeros(4, dtype=torch.float64), atol=1e-6)


@every_distance
def test_different_maps_have_a_positive_distance(name):
    assert bool((map_distance(random_maps(4), random_maps(4, seed=1), name) > 1e-3).all())


@every_distance
def test_distance_is_symmetric(name):
    a, b = random_maps(4), random_maps(4, seed=1)
    assert torch.allclose(map_distance(a, b, name), map_distance(b, a, name), atol=1e-12)


@every_distance
def test_distance_of_a_batch_equals_the_distances_one_by_one(name):
    a, b = random_maps(5), random_maps(5, seed=1)
    alone = [map_distance(a[[i]], b[[i]], name) for i in range(5)]
    assert torch.allclose(map_distance(a, b, name), torch.cat(alone), atol=1e-12)


@every_distance
def test_float32_maps_give_float64_distances_close_to_those_of_float64_maps(name):
    a, b = random_maps(3), random_maps(3, seed=1)
    single = map_distance(a.float(), b.float(), name)
    assert single.dtype == torch.float64
    assert torch.allclose(single, map_distance(a, b, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["spearman", "sqrt_spearman"])
def test_a_constant_map_has_no_rank_correlation(name):
    maps = random_maps(3)
    other = maps.clone()
    other[1] = 0.25
    assert torch.isnan(map_distance(maps, other, name)).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["wasserstein", "dice", "ssim"])
def test_a_map_of_zeros_has_no_shape_to_compare(name):
    maps = random_maps(3)
    other = maps.clone()
    other[1] = 0
    assert torch.isnan(map_distance(maps, other, name)).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["spearman", "sqrt_spearman"])
def test_rank_distance_ignores_increasing_transformations(name):
    a, b = random_maps(3), random_maps(3, seed=1)
    assert torch.allclose(map_distance(a.exp(), b * 3 + 1, name), map_distance(a, b, name), atol=1e-12)


def test_rank_distance_takes_the_absolute_correlation():
    maps = random_maps(3)
    assert torch.allclose(map_distance(maps, -maps), torch.zeros(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", ["dice", "ssim", "wasserstein"])
def test_shape_distances_ignore_the_scale_of_a_map(name):
    a, b = random_maps(3), random_maps(3, seed=1)
    assert torch.allclose(map_distance(7 * a, b / 3, name), map_distance(a, b, name), atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- hand values


def test_spearman_by_hand():
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    b = torch.tensor([[[2.0, 1.0], [3.0, 4.0]]])  # rho = 1 - 6 * (1 + 1) / (4 * 15) = .8
    assert map_distance(a, b).item() == pytest.approx(0.2, abs=1e-6)


def test_sqrt_spearman_is_the_root_of_spearman():
    a, b = random_maps(3), random_maps(3, seed=1)
    assert torch.allclose(map_distance(a, b, "sqrt_spearman") ** 2, map_distance(a, b), atol=1e-12)


def test_tied_values_share_the_mean_of_their_ranks():
    values = torch.tensor([[3.0, 1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 3.0, 1.0]])
    expected = torch.tensor([[3.0, 1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0], [4.0, 3.0, 1.5, 1.5, 0.0]])
    assert average_ranks(values.numpy()).tolist() == expected.tolist()


def test_ranks_on_several_threads_equal_those_on_one():
    maps = torch.randn(4, 256, 300, generator=seeded(3)).mul(50).round()  # more than one block of rows, with ties
    expected = unit_ranks(maps)
    torch.set_num_threads(2)
    try:
        assert torch.equal(unit_ranks(maps), expected)
    finally:
        torch.set_num_threads(1)


def test_wasserstein_of_two_points_is_how_far_they_lie_apart():
    a, b = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    a[0, 1, 2], b[0, 4, 6] = 2.0, -5.0  # only |map| counts
    assert map_distance(a, b, "wasserstein").item() == pytest.approx(5.0)


def test_wasserstein_pools_large_maps_to_32_pixels():
    large = torch.rand(2, 64, 64, generator=seeded(4))
    assert mass(large).shape == (2, 32, 32)
    pooled = torch.nn.functional.avg_pool2d(large[:, None], 2)[:, 0]
    assert torch.allclose(mass(large), mass(pooled), atol=1e-7)


def test_dice_by_hand():
    a, b = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    a[0, 0] = torch.tensor([1.0, -0.8, 0.6])  # three pixels above half the maximum
    b[0, 0] = torch.tensor([0.0, 4.0, 1.0])  # one of them
    assert map_distance(a, b, "dice").item() == pytest.approx(1 - 2 * 1 / (3 + 1))


def test_l1_and_l2_by_hand():
    a, b = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 0.0], [0.0, -4.0]]])
    assert map_distance(a, b, "l1").item() == pytest.approx(7)
    assert map_distance(a, b, "l2").item() == pytest.approx(5)


# ---------------------------------------------------------------------- Fel et al. (2022), appendix F: moving, blurring


@pytest.mark.parametrize(("name", "side"), [("spearman", 32), ("sqrt_spearman", 32), ("wasserstein", 16)])
def test_distance_grows_as_a_blob_moves_along_the_top_row(name, side):
    assert bool((distances_from_start(blob_path(diagonal=False, side=side), name).diff() > 0).all())


def test_dice_grows_in_plateaus_as_a_blob_moves_along_the_top_row():
    d = distances_from_start(blob_path(diagonal=False), "dice")
    assert bool((d.diff() > -0.01).all())  # areas are whole pixels
    assert d[-1] == 1


@pytest.mark.parametrize("name", ["ssim", "l1", "l2"])
def test_distance_grows_while_the_moving_blob_lies_inside_the_map(name):
    # at the right edge the blob loses mass, and these distances with it
    d = distances_from_start(blob_path(diagonal=False), name)
    inside = d[:60]  # the blob's centre is at least four of its sigmas from the edge
    assert bool((inside.diff() > -1e-3 * d.max()).all())
    assert d[-1] < d.max()


def test_limit_rank_distance_falls_again_as_a_blob_leaves_along_the_diagonal():
    # far tails of the two blobs are ranked in opposite order: |rho| calls that agreement
    d = distances_from_start(blob_path(diagonal=True), "spearman")
    assert float(d.max()) > 0.95
    assert float(d[-1]) < 0.2


def test_wasserstein_has_no_such_limit_along_the_diagonal():
    assert bool((distances_from_start(blob_path(diagonal=True, side=16), "wasserstein").diff() > 0).all())


@every_distance
def test_mean_distance_grows_with_the_noise_on_a_map(name):
    blob = blob_path(diagonal=False)[30].expand(50, -1, -1)[:, ::2, ::2]
    sigmas = [0.0, 0.05, 0.15, 0.4, 1.2]
    generator = seeded(5)
    means = []
    for sigma in sigmas:
        noise = sigma * torch.randn(blob.shape, generator=generator, dtype=torch.float64)
        means.append(float(map_distance(blob, blob + noise, name).mean()))
    assert all(a < b for a, b in itertools.pairwise(means)), means


# ------------------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_distance_names_the_known_ones():
    with pytest.raises(UsageError, match="spearman"):
        map_distance(random_maps(1), random_maps(1), "cosine")


def test_maps_of_different_sizes_are_refused(unchecked):
    with pytest.raises(UsageError, match="must agree"):
        map_distance(torch.rand(2, 4, 4), torch.rand(2, 5, 4))


def test_ssim_of_maps_smaller_than_its_window_is_refused():
    with pytest.raises(UsageError, match="at least 5 pixels"):
        map_distance(random_maps(1, side=4), random_maps(1, side=4), "ssim")


def test_mass_sums_to_one():
    assert mass(random_maps(3)).sum((1, 2)).tolist() == pytest.approx([1, 1, 1])


def test_ranks_have_unit_length_and_no_mean():
    ranks = unit_ranks(random_maps(3))
    assert ranks.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert math.isclose(float(ranks.sum()), 0, abs_tol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 8))
def test_ranks_of_a_device_are_those_of_the_cpu(seed, pixels, levels):
    maps = torch.randint(levels, (5, pixels), generator=seeded(seed)).float() - 2
    assert torch.equal(ranks_there(maps), torch.from_numpy(average_ranks(maps.numpy())))

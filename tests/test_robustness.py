"""Similarities of several maps of one image, against plain restatements with scipy, NumPy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.metrics.robustness import robustness, robustness_table, similarities, stability
from scipy.stats import spearmanr
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor

from conftest import seeded

NAMES = ["ssim", "hog", "spearman"]


def random_maps(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def plain(a: Tensor, b: Tensor, cell: int) -> dict[str, float]:
    """The three similarities of one pair."""
    x, y = ((m.double() / m.abs().max()).numpy() for m in (a, b))
    features = [hog(m, pixels_per_cell=(cell, cell)) for m in (x, y)]
    return {
        "ssim": structural_similarity(x, y, win_size=5, data_range=2),
        "hog": np.corrcoef(*features)[0, 1],
        "spearman": spearmanr(a.flatten(), b.flatten()).statistic,
    }


def means(values: dict[str, Tensor]) -> list[float]:
    return [float(values[n].mean()) for n in NAMES]


@pytest.mark.parametrize(("side", "cell"), [(224, 16), (56, 4), (12, 3)])
def test_similarities_equal_a_plain_restatement(side, cell):
    a, b = random_maps(2, side, side), random_maps(2, side, side, seed=2)
    a[1] = a[1].round()  # ties
    found = similarities(a, b)
    assert list(found) == NAMES
    for row in range(2):
        assert {n: float(v[row]) for n, v in found.items()} == pytest.approx(plain(a[row], b[row], cell), abs=1e-9)


def test_cells_follow_the_shorter_side():
    a, b = random_maps(1, 28, 40), random_maps(1, 28, 40, seed=2)
    expected = plain(a[0], b[0], 3)
    assert {n: float(v) for n, v in similarities(a, b).items()} == pytest.approx(expected, abs=1e-9)


def test_identical_maps_are_alike_in_every_way():
    maps = random_maps(3, 32, 32)
    assert means(similarities(maps, maps.clone())) == pytest.approx([1, 1, 1], abs=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_a_maps_scale_does_not_matter(factor):
    a, b = random_maps(2, 32, 32), random_maps(2, 32, 32, seed=2)
    assert means(similarities(a * factor, b)) == pytest.approx(means(similarities(a, b)), abs=1e-5)


def test_the_opposite_map_has_the_opposite_ranks_and_the_same_edges():
    maps = random_maps(2, 32, 32)
    ssim, edges, spearman = means(similarities(maps, -maps))
    assert (edges, spearman) == pytest.approx((1, -1), abs=1e-9)
    assert 0 < ssim < 1  # the means and the covariance both change sign: their product does not


def test_every_similarity_falls_as_noise_grows():
    at = torch.linspace(-1, 1, 64)
    blob = torch.exp(-4 * (at[:, None] ** 2 + at[None] ** 2)).expand(20, 64, 64)
    noise = random_maps(20, 64, 64)
    found = torch.tensor([means(similarities(blob, blob + s * noise)) for s in (0.0, 0.05, 0.1, 0.2, 0.4)])
    assert bool((found.diff(dim=0) < 0).all())


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_constant_map_is_like_nothing(value):
    a, b = random_maps(2, 32, 32), random_maps(2, 32, 32, seed=2)
    b[1] = value
    for found in similarities(a, b).values():
        assert torch.isnan(found).tolist() == [False, True]


def test_robustness_is_the_mean_over_all_pairs():
    maps = random_maps(4, 2, 32, 32)
    found = robustness(maps)
    for row in range(2):
        pairs = [plain(maps[i, row], maps[j, row], 3) for i in range(4) for j in range(i)]
        assert len(pairs) == 6
        expected = {n: np.mean([p[n] for p in pairs]) for n in NAMES}
        assert {n: float(found[n][row]) for n in NAMES} == pytest.approx(expected, abs=1e-9)


def test_pairs_with_a_constant_map_are_left_out():
    maps = random_maps(3, 2, 32, 32)
    maps[2, 0], maps[1:, 1] = 0.5, 0.0
    expected, found = similarities(maps[0], maps[1]), robustness(maps)
    for name in NAMES:
        assert float(found[name][0]) == pytest.approx(float(expected[name][0]), abs=1e-12)
        assert bool(torch.isnan(found[name][1]))


def test_the_table_has_an_interval_for_every_family():
    base = random_maps(1, 30, 32, 32)
    families = {"steady": base + 0.1 * random_maps(3, 30, 32, 32, seed=2), "noise": random_maps(5, 30, 32, 32, seed=3)}
    table = robustness_table(families)
    assert list(table) == ["steady", "noise"]
    for name, family in families.items():
        assert [table[name][n].value for n in NAMES] == pytest.approx(means(robustness(family)))
    for name in NAMES:
        steady, noise = table["steady"][name], table["noise"][name]
        assert steady.low < steady.value < steady.high
        assert noise.high < steady.low
        assert steady.samples == 30


def test_one_map_cannot_be_compared():
    with pytest.raises(UsageError, match="at least two maps"):
        robustness(random_maps(1, 2, 32, 32))


def test_maps_of_other_shapes_are_refused(unchecked):
    with pytest.raises(UsageError, match="must agree"):
        similarities(random_maps(1, 32, 32), random_maps(1, 32, 30))


def test_maps_too_small_for_a_block_of_cells_are_refused():
    with pytest.raises(UsageError, match="at least 9 pixels"):
        similarities(random_maps(1, 8, 8), random_maps(1, 8, 8))


def test_a_map_with_nan_is_refused():
    maps = random_maps(2, 1, 32, 32)
    maps[1, 0, 3, 3] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        robustness(maps)


# ------------------------------------------------------------------------------------------------------------ stability


def test_stability_is_the_mean_distance_of_the_superpixels_values_to_their_mean():
    from lit_xai.segments import Grid, to_pixels

    segments = Grid(3)(torch.zeros(2, 1, 12, 12))
    values = torch.randn(4, 2, 9, generator=seeded(0), dtype=torch.float64)
    maps = torch.stack([to_pixels(v, segments) for v in values])
    expected = (values - values.mean(0)).norm(dim=2).mean(0)
    assert torch.allclose(stability(maps), expected, atol=1e-12)


def test_superpixels_of_any_size_weigh_alike():
    maps = torch.zeros(2, 1, 10, 10)
    maps[1] = 1.0
    maps[:, :, 0, 0] = torch.tensor([5.0, 8.0])[:, None]
    assert float(stability(maps)) == pytest.approx((0.5**2 + 1.5**2) ** 0.5)


def test_equal_explanations_are_perfectly_stable():
    assert float(stability(random_maps(1, 1, 12, 12).expand(5, -1, -1, -1))) == 0

"""What holds for a new image: conformal bounds, and the share of an image that its prediction needs."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.fillers import Colour
from lit_xai.metrics import KeptShare
from lit_xai.metrics.conformal import around, bound, fewest, kept_from, rank
from scipy.stats import beta, binom

from conftest import Linear, seeded


@pytest.mark.parametrize(("n", "level"), [(19, 0.95), (40, 0.9), (137, 0.95), (9, 0.5)])
def test_a_new_number_is_below_the_bound_as_often_as_its_rank_says(n, level) -> None:
    draws = torch.rand(20_000, n, generator=seeded(0), dtype=torch.float64)
    k = rank(n, level)
    shares = draws.sort(dim=1).values[:, k - 1]  # of uniform numbers, the share below the bound is the bound
    assert bound(draws[0], level).value == float(shares[0])
    mean, low, high = bound(draws[0], level).coverage
    assert level <= k / (n + 1) <= level + 1 / (n + 1)
    assert mean == k / (n + 1) == pytest.approx(float(shares.mean()), abs=4 * float(shares.std()) / 20_000**0.5)
    tails = [float((shares < low).double().mean()), float((shares > high).double().mean())]
    assert tails == pytest.approx([0.025, 0.025], abs=0.005)
    found = np.quantile(shares.numpy(), [0.1, 0.5, 0.9])
    assert found == pytest.approx(beta(k, n + 1 - k).ppf([0.1, 0.5, 0.9]), abs=0.01)


def test_ties_only_raise_the_coverage() -> None:
    draws = torch.randint(4, (3_000, 31), generator=seeded(1)).double()
    bounds = torch.tensor([bound(row[:30], 0.8).value for row in draws])
    assert float((draws[:, 30] <= bounds).double().mean()) > 0.8 + 1 / 31


@pytest.mark.parametrize(("n", "level"), [(60, 0.95), (100, 0.8), (25, 0.5)])
def test_the_interval_of_a_bound_holds_the_quantile_of_all_images(n, level) -> None:
    below, above = around(n, level)
    law = binom(n, level)
    assert law.cdf(below - 1) <= 0.025 < law.cdf(below)  # closed form: the lower end lies above the quantile so often
    assert above == n + 1 or law.sf(above - 1) <= 0.025 < law.sf(above - 2)
    draws = torch.rand(2_000, n, generator=seeded(2), dtype=torch.float64)
    found = [bound(row, level) for row in draws]
    assert sum(b.low <= level <= b.high for b in found) / 2_000 >= 0.94


def test_the_level_is_taken_as_it_is_written() -> None:
    assert [rank(19, 0.95), rank(99, 0.95), rank(9, 0.9), rank(99, 0.07)] == [19, 95, 9, 7]
    for level in (0.5, 0.9, 0.95, 0.99):
        least = fewest(level)
        assert [rank(n, level) <= n for n in (least - 1, least)] == [False, True]


def test_too_few_probes_and_undefined_numbers_have_no_bound_and_say_why() -> None:
    few = bound(torch.rand(18), 0.95)
    assert (few.value, few.coverage, few.plain()["value"]) == (math.inf, (1.0, 1.0, 1.0), None)
    assert few.reason == "no bound: 95% takes at least 19 test probes, found 18"
    numbers = torch.arange(40.0)
    numbers[:3] = math.nan
    undefined = bound(numbers, 0.95)
    assert undefined.reason == "no bound: undefined for 3 of 40 test probes"
    assert math.isnan(undefined.estimate().value)
    numbers[:3] = torch.tensor([math.nan, 0.0, 0.0])  # one that is undefined counts as larger than all others
    assert bound(numbers, 0.95).value == 39.0


@pytest.mark.parametrize("level", [0, 1, 95, -0.1])
def test_a_level_is_a_probability(level) -> None:
    with pytest.raises(UsageError, match="within"):
        bound(torch.rand(30), level)


def test_a_prediction_is_kept_from_the_point_on_where_it_stays() -> None:
    same = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]).bool()
    assert kept_from(same, torch.tensor([0.0, 0.25, 0.5, 1.0])).tolist() == [0.0, 1.0, 0.5, 0.25]


def test_the_kept_share_is_that_of_a_search_pixel_by_pixel(rgb, linear) -> None:
    images, maps = rgb.double(), torch.rand(5, 12, 12, generator=seeded(5))
    model = linear.double()
    found = KeptShare(step=1, filler=Colour(0.0))(model, images, maps, torch.zeros(5, dtype=torch.long))
    expected = []
    for x, m in zip(images, maps, strict=True):
        order, classes = m.flatten().argsort(descending=True), []
        for n in range(145):
            kept = torch.zeros(144, dtype=torch.float64)
            kept[order[:n]] = 1
            classes.append(int(model((x * kept.view(12, 12))[None]).argmax()))
        changes = [n for n, (a, b) in enumerate(pairwise(classes), 1) if a != b]
        expected.append((changes[-1] if changes else 0) / 144)
    assert found.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 2


def test_the_kept_share_is_small_where_the_map_names_what_decides() -> None:
    weight = torch.zeros(2, 1, 12, 12)
    weight[0, :, :3, :4] = 1.0  # twelve pixels decide
    model, images = Linear(weight, torch.tensor([0.0, 5.5])), torch.ones(2, 1, 12, 12)
    maps = torch.stack([weight[0, 0], -weight[0, 0]])
    maps += torch.rand(2, 12, 12, generator=seeded(6)) * 0.1
    score = KeptShare(step=1, filler=Colour(0.0))
    assert score(model, images, maps, torch.zeros(2, dtype=torch.long))[0] == pytest.approx(6 / 144)
    assert score(model, images, maps, torch.zeros(2, dtype=torch.long))[1] == pytest.approx(138 / 144)

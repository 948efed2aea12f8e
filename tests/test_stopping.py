"""Drawing until decided: intervals hold at every look, what is said of places is right, and maps are those of the draws that were made."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.explainers import RISE, SmoothGrad
from lit_xai.fitting import describe
from lit_xai.metrics.certificates import Question
from lit_xai.rng import SampleRng
from lit_xai.sequential.confidence import CELLS, FIRST, Bernstein, cells, looks, sides, width
from torch import Tensor, nn

from conftest import Linear, seeded

RNG = SampleRng(5, (7, 2, 9))
RUNS = 1000
MOST_MISSED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


class Half(nn.Module):
    """Reads one quarter of an image, and says how much of it is there."""

    def forward(self, x: Tensor) -> Tensor:
        z = 4 * torch.tanh(x[:, :, :4, :4].mean((1, 2, 3)) * 3) + x.mean((1, 2, 3))
        return torch.stack([z, -z], 1)


@pytest.fixture
def images() -> Tensor:
    return 0.5 + 0.5 * torch.rand(3, 1, 8, 8, generator=seeded(1))


# --------------------------------------------------------------------------------------------------------- intervals


def test_looks_grow_from_the_first_one_to_the_cap():
    blocks = list(looks(4000))
    assert blocks[0] == (0, FIRST)
    assert [stop for _, stop in blocks[:-1]] == [start for start, _ in blocks[1:]]
    assert blocks[-1][1] == 4000
    assert len(blocks) < 20
    assert list(looks(50)) == [(0, 50)]


def test_an_empirical_bernstein_interval_is_the_papers_sum_draw_by_draw():
    values = torch.rand(60, generator=seeded(2), dtype=torch.float64) ** 2
    sequence, blocks = Bernstein(()), (0, 10, 25, 60)
    top = bottom = spent = 0.0
    for start, stop in pairwise(blocks):
        before = values[:start]
        centre = (0.5 + float(before.sum())) / (start + 1)
        spread = (0.25 + float(((before - centre) ** 2).sum())) / (start + 1)
        weight = min(0.75, math.sqrt(2 * math.log(40) / (spread * stop * math.log(1 + stop))))
        for x in values[start:stop].tolist():
            top, bottom = top + weight * x, bottom + weight
            spent += 4 * (x - centre) ** 2 * (-math.log(1 - weight) - weight) / 4
        sequence.add(values[start:stop])
    low, high = sequence.bounds()
    half = (math.log(40) + spent) / bottom
    assert float(high - low) / 2 == pytest.approx(half)
    assert float(low + high) / 2 == pytest.approx(top / bottom)


@pytest.mark.parametrize("mean", [0.02, 0.5])
def test_bernstein_intervals_of_coins_hold_at_every_look(mean):
    coins = (torch.rand(1500, RUNS, generator=seeded(3)) < mean).float()
    sequence, missed, before = Bernstein((RUNS,)), torch.zeros(RUNS, dtype=torch.bool), None
    for start, stop in looks(1500):
        sequence.add(coins[start:stop])
        low, high = sequence.bounds()
        missed |= (low > mean) | (high < mean)
        before = high - low if before is None else before
    assert float(missed.double().mean()) <= MOST_MISSED
    assert float((high - low).mean()) < 0.5 * float(before.mean())


def ever_missed(values: Tensor, mean: float, half) -> float:
    """The share of the runs (columns) whose interval misses at any look."""
    missed = torch.zeros(values.shape[1], dtype=torch.bool)
    for _, stop in looks(len(values)):
        now = values[:stop]
        missed |= (now.mean(0) - mean).abs() > now.std(0) * half(stop)
    return float(missed.double().mean())


def test_asymptotic_intervals_of_skewed_values_hold_at_every_look_where_usual_ones_do_not():
    values = -torch.rand(2000, RUNS, generator=seeded(4)).log()
    assert ever_missed(values, 1.0, lambda t: width(t, 0.05)) <= MOST_MISSED
    assert ever_missed(values, 1.0, lambda t: 1.96 / math.sqrt(t)) > 0.15


def test_an_asymptotic_interval_costs_half_again_what_one_look_does():
    assert 2.5 < width(1000, 0.05) * math.sqrt(1000) < 3.3
    assert width(4000, 0.05) < width(1000, 0.05) < width(1000, 0.01)


# -------------------------------------------------------------------------------------------------------------- sides


def test_places_are_decided_by_differences_not_by_what_all_share():
    mean = torch.tensor([[3.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    own, common = torch.eye(4, dtype=torch.float64)[None], torch.full((1, 4, 4), 1e6, dtype=torch.float64)
    inside, outside = sides(mean, own + common, 1000, 1)
    assert inside.tolist() == [[True, False, False, False]]
    assert outside.tolist() == [[False, True, True, True]]
    wide = [s.any() for s in sides(mean, own + 1e6 * own, 1000, 1)]
    assert not any(map(bool, wide))


def test_equal_means_are_never_decided():
    zeros = torch.zeros(2, 6, 6, dtype=torch.float64)
    assert not any(bool(s.any()) for s in sides(torch.ones(2, 6, dtype=torch.float64), zeros, 1000, 2))


@pytest.mark.parametrize("runs", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_what_is_said_of_a_place_is_wrong_at_any_look_for_at_most_5_per_cent(runs):
    number, top, cap = 20, 4, 1500
    truth = torch.linspace(0, 0.3, number, dtype=torch.float64)
    in_top = truth >= truth.sort().values[-top]
    values = torch.randn(runs, cap, number, generator=seeded(5), dtype=torch.float64).exp() / 2 + truth
    wrong, known = torch.zeros(runs, number, dtype=torch.bool), None
    for _, stop in looks(cap):
        now = values[:, :stop]
        mean = now.mean(1)
        covariance = now.mT @ now / stop - mean[:, :, None] * mean[:, None]
        inside, outside = sides(mean, covariance, stop, top)
        wrong |= (inside & ~in_top) | (outside & in_top)
        known = (inside | outside).double().mean()
    assert float(known) > 0.3
    assert float(wrong.double().mean(0).max()) <= 0.05


def test_cells_are_pixels_of_small_images_and_means_of_large_ones():
    small, large = torch.rand(2, 8, 9, generator=seeded(1)), torch.rand(2, 28, 42, generator=seeded(1))
    assert torch.equal(cells(small), small.flatten(1))
    blocks = large.unflatten(1, (CELLS, 2)).unflatten(3, (CELLS, 3)).mean((2, 4))
    assert torch.allclose(cells(large), blocks.flatten(1))


# ---------------------------------------------------------------------------------------------------------- explainers


@pytest.fixture
def soon(monkeypatch) -> None:
    """Less than usual is enough."""
    monkeypatch.setattr("lit_xai.sequential.confidence.SHARE", 0.35)


@pytest.mark.parametrize("output", ["logit", "probability"])
def test_rise_until_decided_is_the_mean_and_the_covariance_over_its_masks(images, output, soon):
    model, targets = Half(), torch.tensor([0, 1, 0])
    maps, details = RISE(masks="auto", output=output, keep=0.4).with_details(model, images, targets, RNG)
    assert set(details) == {"masks", "decided", "undecided"}
    assert torch.allclose(1 - details["undecided"].mean((1, 2)), details["decided"])
    for i, number in enumerate(details["masks"].long().tolist()):
        fixed = RISE(masks=number, output=output, keep=0.4)
        question = Question.of(fixed, model, images, targets, RNG)
        f, m = question.outputs(images)[i], question.sums.keep[i].double()
        expected = f.mean() + ((f - f.mean())[:, None, None] * m).mean(0) / 0.4
        assert torch.allclose(maps[i].double(), expected, atol=1e-5)
    assert bool((details["decided"] >= 0.35).all())
    assert FIRST <= int(details["masks"].min()) < int(details["masks"].max()) < 1500


def test_rise_until_decided_tends_to_rise_and_faster(images, soon):
    model, targets, images = Half(), torch.tensor([0]), images[:1]
    auto, details = RISE(masks="auto").with_details(model, images, targets)
    fixed = RISE(masks=int(details["masks"]))(model, images, targets)
    long = RISE(masks=8000, max_batch=1000)(model, images, targets)
    assert float((auto - long).abs().mean()) < 0.7 * float((fixed - long).abs().mean())


def test_an_image_takes_as_many_masks_alone_as_among_others(images, soon):
    model, targets = Half(), torch.tensor([0, 1, 0])
    maps, details = RISE(masks="auto", max_batch=50).with_details(model, images, targets, RNG)
    alone, known = RISE(masks="auto", max_batch=7).with_details(model, images[1:2], targets[1:2], RNG.take([1]))
    assert torch.allclose(maps[1:2], alone, atol=1e-5)
    assert float(known["masks"]) == float(details["masks"][1])


def test_smoothgrad_of_a_linear_model_is_decided_at_the_first_look(linear, rgb, targets):
    maps, details = SmoothGrad(samples="auto").with_details(linear, rgb, targets)
    assert details["samples"].tolist() == [FIRST] * 5
    assert torch.allclose(maps, linear.weight[targets].mean(1), atol=1e-5)


def test_smoothgrad_until_decided_is_that_of_as_many_copies(images):
    model, targets = Half(), torch.tensor([0, 1, 0])
    maps, details = SmoothGrad(samples="auto").with_details(model, images, targets, RNG)
    for i, number in enumerate(details["samples"].long().tolist()):
        fixed = SmoothGrad(samples=number)(model, images[i : i + 1], targets[i : i + 1], RNG.take([i]))
        assert torch.allclose(maps[i : i + 1], fixed, atol=1e-5)


def test_an_image_that_decides_nothing_takes_the_most_masks(monkeypatch):
    monkeypatch.setattr("lit_xai.explainers.rise.CAP", 200)
    flat = Linear(torch.zeros(2, 1, 8, 8), torch.zeros(2))
    maps, details = RISE(masks="auto").with_details(flat, torch.rand(1, 1, 8, 8), torch.tensor([1]))
    assert details["masks"].tolist() == [200]
    assert details["decided"].tolist() == [0]
    assert bool((maps == 0).all())


def test_numbers_are_described_as_before_and_words_but_auto_are_refused(images):
    assert describe(RISE(masks=12))["masks"] == 12
    assert set(describe(RISE())) == {"name", "masks", "grid", "keep", "output", "precision"}
    assert RISE(masks="auto").passes(8, 8).forward == 4000
    assert RISE(masks=12).with_details(Half(), images, torch.tensor([0, 1, 0]))[1] == {}
    for wrong in (RISE(masks="some"), SmoothGrad(samples="some"), SmoothGrad(samples="auto", channels="max")):
        with pytest.raises(UsageError, match="auto"):
            wrong(Half(), images, torch.tensor([0, 1, 0]))
    with pytest.raises(UsageError, match="certificates need a number of masks"):
        RISE(masks="auto").masked_sum(images)

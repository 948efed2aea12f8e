"""The conditional Gaussian against random fields of known covariance, textbook formulas and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lit_xai.calls import chunks
from lit_xai.core import Filler
from lit_xai.data import FoldData, Source
from lit_xai.data.images import InMemory
from lit_xai.errors import UsageError
from lit_xai.explainers import SlidingPatch
from lit_xai.explainers.sweep import PMI
from lit_xai.fillers import ConditionalGaussian
from lit_xai.fillers.gaussian import ROUNDING, GaussianModule, moments
from lit_xai.fillers.refill import Refill
from lit_xai.fillers.tiles import plan, windows
from lit_xai.rng import SampleRng
from scipy.stats import norm
from torch import Tensor, nn

from conftest import seeded

MIX = torch.tensor([[1.0, 0.5], [0.5, 0.8]], dtype=torch.float64)  # covariance of the two channels of a pixel
SD, CENTRE = 0.05, 0.5  # so that nothing is ever clipped
DRAWS = 4000


def field_covariance(height: int, width: int) -> Tensor:
    """Covariance [2 h w, 2 h w] of a stationary random field of two channels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], 1).double()
    return SD**2 * torch.kron(MIX, torch.exp(-torch.cdist(place, place) / 2))


def field(number: int, height: int, width: int, seed: int = 1) -> Tensor:
    """Samples of that field."""
    z = torch.randn(number, 2 * height * width, generator=seeded(seed), dtype=torch.float64)
    return CENTRE + (z @ torch.linalg.cholesky(field_covariance(height, width)).T).view(number, 2, height, width)


def of_moments(mean: Tensor, covariance: Tensor, patch: int, margin: int) -> ConditionalGaussian:
    """A Gaussian that was not fitted."""
    module = GaussianModule(len(mean), mean.shape[-1], patch=patch, margin=margin)
    module.mean.copy_(mean)
    module.covariance.copy_(covariance)
    return module.sampler()


def known_field(patch: int, margin: int) -> ConditionalGaussian:
    """The Gaussian of that field."""
    side = patch + 2 * margin
    return of_moments(torch.full((2, side, side), CENTRE).double(), field_covariance(side, side), patch, margin)


def fit(images: Tensor, **options) -> ConditionalGaussian:
    """The Gaussian of some images."""
    module = GaussianModule(images.shape[1], min(images.shape[-2:]), **options)
    module.fit(images)
    return module.sampler()


def conditional(covariance: Tensor, deviation: Tensor, known: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (of the deviation) and covariance of the hidden entries, as in any textbook."""
    k, u = torch.nonzero(known)[:, 0], torch.nonzero(hidden)[:, 0]
    gain = covariance[u][:, k] @ torch.linalg.inv(covariance[k][:, k])
    return gain @ deviation[k], covariance[u][:, u] - gain @ covariance[k][:, u]


def square(height: int, width: int, top: int, left: int, side: int) -> Tensor:
    """A mask [1, 1, h, w] that hides a square."""
    keep = torch.ones(1, 1, height, width, dtype=torch.bool)
    keep[..., top : top + side, left : left + side] = False
    return keep


def drawn(filler, image: Tensor, keep: Tensor, draws: int = DRAWS) -> Tensor:
    """The hidden values of many draws, [draws, 2 hidden]."""
    out = filler(image, keep, SampleRng(5, (3,)), draws)[0, 0]
    return out[..., ~keep[0, 0]].flatten(1)


def check_moments(values: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Mean and covariance of the rows within 4 standard errors."""
    variance = covariance.diagonal()
    assert bool(((values.mean(0) - mean).abs() < 4 * (variance / len(values)).sqrt()).all())
    error = ((variance[:, None] * variance + covariance**2) / len(values)).sqrt()
    assert bool(((torch.cov(values.T) - covariance).abs() < 4 * error).all())


# ------------------------------------------------------------------------------------------------------------- windows


def test_windows_are_pieces_of_the_images_everywhere_and_every_image_gives_as_many():
    images = torch.arange(3.0).view(3, 1, 1, 1) * 1000 + torch.arange(35.0).view(1, 1, 5, 7)
    found = torch.cat(list(windows(images, 3, 1001)))
    assert found.shape == (1001, 1, 3, 3)
    first = found[:, 0, 0, 0].long()
    assert sorted((first // 1000).bincount().tolist()) == [333, 334, 334]
    offset = torch.tensor([[0, 1, 2], [7, 8, 9], [14, 15, 16]])
    assert torch.equal(found[:, 0].long(), first[:, None, None] + offset)
    places = (first % 1000).bincount(minlength=35).view(5, 7)
    assert bool((places[:3, :5] > 0).all())
    assert int(places[:3, :5].sum()) == 1001
    expected = 1001 / 15
    assert float(((places[:3, :5] - expected) ** 2 / expected).sum()) < 14 + 4 * math.sqrt(28)  # chi-squared


class Thousand:
    """A thousand grey images that remember which of them were asked for."""

    def __init__(self) -> None:
        self.asked = []

    def __len__(self) -> int:
        return 1000

    def images(self, indices):
        self.asked.extend(indices)
        return torch.zeros(len(indices), 1, 4, 4)


def test_windows_take_only_the_samples_named_and_only_as_many_images_as_windows():
    images = Thousand()
    assert sum(len(w) for w in windows(images, 2, 7, samples=range(500, 600))) == 7
    assert len(set(images.asked)) == 7
    assert set(images.asked) <= set(range(500, 600))


def test_windows_are_a_function_of_the_seed():
    images = torch.rand(4, 1, 9, 9, generator=seeded(1))
    a, b, c = (torch.cat(list(windows(images, 3, 20, seed))) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# ------------------------------------------------------------------------------------------------------------- fitting


@pytest.fixture(scope="module")
def fitted() -> ConditionalGaussian:
    return fit(field(12_000, 6, 6), patch=2, positions=12_000)


def test_the_default_margin_is_the_patch_or_what_the_images_allow(fitted):
    assert (fitted.patch, fitted.margin, fitted.module.channels) == (2, 2, 2)
    assert fit(torch.rand(50, 1, 7, 9, generator=seeded(1)), patch=4, positions=100).margin == 1


def test_fitted_mean_and_covariance_are_those_of_the_samples():
    images = torch.rand(60, 2, 4, 4, generator=seeded(2))
    g = fit(images, patch=2, margin=1, positions=60)  # every image once
    flat = images.double().flatten(1)
    assert torch.allclose(g.module.mean.flatten(), flat.mean(0), rtol=0, atol=1e-12)
    expected = torch.cov(flat.T) + ROUNDING * torch.eye(32).double()
    assert torch.allclose(g.module.covariance, expected, rtol=0, atol=1e-12)
    shrunk = fit(images, patch=2, margin=1, positions=60, shrinkage=0.25)
    away = expected - torch.diag(expected.diagonal())
    assert torch.allclose(shrunk.module.covariance, expected - 0.25 * away, rtol=0, atol=1e-12)


def test_fitted_moments_are_those_of_the_field(fitted):
    truth, n = field_covariance(6, 6), 12_000
    variance = truth.diagonal()
    z = (fitted.module.mean.flatten() - CENTRE) / (variance / n).sqrt()
    assert float(z.abs().max()) < 4
    error = ((variance[:, None] * variance + truth**2) / n).sqrt()
    z = (fitted.module.covariance - ROUNDING * torch.eye(72).double() - truth) / error
    assert float(z.abs().max()) < 5  # of 2,628 numbers
    assert 0.8 < float(z.square().mean()) < 1.2


def test_draws_of_a_fitted_gaussian_have_the_fields_conditional_moments(fitted):
    image, keep, n, k = field(1, 9, 9, seed=7), square(9, 9, 3, 4, 2), 12_000, 64
    window = image[0, :, 1:7, 2:8].flatten()
    hidden = (~keep[0, 0, 1:7, 2:8]).flatten().repeat(2)
    deviation = window - CENTRE
    mean, covariance = conditional(field_covariance(6, 6), deviation, ~hidden, hidden)
    known = field_covariance(6, 6)[~hidden][:, ~hidden]
    distance = deviation[~hidden] @ torch.linalg.solve(known, deviation[~hidden])
    values, variance = drawn(fitted, image, keep), covariance.diagonal()
    # of a regression on k numbers from n samples, and of the draws
    error = (variance * ((1 + distance) / n + 1 / DRAWS)).sqrt()
    assert bool(((values.mean(0) - CENTRE - mean).abs() < 4 * error).all())
    error = ((variance[:, None] * variance + covariance**2) * (1 / (n - k) + 1 / DRAWS)).sqrt()
    difference = torch.cov(values.T) - covariance * (n - k) / n - ROUNDING * torch.eye(8).double()
    assert bool((difference.abs() < 4 * error).all())


def test_constant_pixels_do_no_harm():
    g = fit(torch.full((5, 3, 8, 8), 0.25), patch=2, positions=200)
    out = drawn(g, torch.full((1, 3, 8, 8), 0.25), square(8, 8, 3, 3, 2), 500)
    assert float((out - 0.25).abs().max()) < 5 * math.sqrt(ROUNDING)


def test_a_folds_gaussian_never_sees_the_held_out_samples():
    pixels = torch.randint(0, 256, (90, 1, 6, 6), generator=seeded(1)).to(torch.uint8)
    asked = []

    class Recorder(InMemory):
        def images(self, indices):
            asked.extend(indices)
            return super().images(indices)

    source = Source("toy", Recorder(pixels), torch.arange(90) % 3, ("a", "b", "c"), "abc")
    data = FoldData(lambda: source, fold=1, folds=3)
    GaussianModule(1, 6, patch=2, positions=300).prepare(data)
    assert set(asked) == set(data.split.training(1).tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 7}, "patch=7 does not fit images of 6 x 8"),
        ({"patch": 0}, "patch=0 does not fit"),
        ({"margin": 3}, r"margin=3 around patch=2 .* choose 0..2"),
        ({"margin": -1}, r"margin=-1"),
        ({"positions": 36}, "positions=36 cannot determine the covariance of 36 values"),
        ({"shrinkage": 1.5}, r"shrinkage must lie in \[0, 1\]"),
        ({"samples": []}, "found none"),
    ],
    ids=str,
)
def test_fits_that_mean_nothing_are_refused(options, message):
    images = torch.rand(50, 1, 6, 8, generator=seeded(1))
    with pytest.raises(UsageError, match=message) as error:
        moments(images, **{"patch": 2, "positions": 40, **options})
    assert "\n" not in str(error.value)


def test_fewer_positions_than_values_will_do_with_shrinkage():
    g = fit(torch.rand(9, 1, 6, 6, generator=seeded(1)), patch=2, positions=20, shrinkage=0.1)
    assert float(torch.linalg.eigvalsh(g.module.covariance).min()) > 0


# ------------------------------------------------------------------------------------------------------------- filling

PLACES = {"inside": (3, 4), "corner": (0, 0), "edge": (4, 7), "last corner": (7, 7), "near the edge": (1, 3)}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_square_is_drawn_given_the_part_of_its_window_inside_the_image(place):
    top, left = place
    image, keep = field(1, 9, 9, seed=2), square(9, 9, *place, side=2)
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[max(0, top - 2) : top + 4, max(0, left - 2) : left + 4] = True
    known, hidden = ((m).flatten().repeat(2) for m in (inside & keep[0, 0], ~keep[0, 0]))
    mean, covariance = conditional(field_covariance(9, 9), image.flatten() - CENTRE, known, hidden)
    check_moments(drawn(known_field(2, 2), image, keep), CENTRE + mean, covariance)


def test_any_hole_is_drawn_jointly_where_windows_see_the_whole_image():
    image = field(1, 5, 5, seed=3)
    keep = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    keep[0, 0, 1:4, 1:4] = keep[0, 0, 4, 0] = keep[0, 0, 0, 2] = False
    assert len(plan(keep[0, 0].numpy(), 2, 4)) > 4
    hidden = (~keep[0, 0]).flatten().repeat(2)
    mean, covariance = conditional(field_covariance(5, 5), image.flatten() - CENTRE, ~hidden, hidden)
    check_moments(drawn(known_field(2, 4), image, keep), CENTRE + mean, covariance)


def test_an_image_of_which_nothing_is_visible_is_a_draw_of_the_field():
    values = drawn(known_field(2, 3), torch.zeros(1, 2, 4, 4).double(), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    check_moments(values, torch.full((32,), CENTRE).double(), field_covariance(4, 4))


def test_values_are_clipped_to_the_unit_interval():
    g = known_field(2, 1)
    wide = of_moments(g.module.mean, 100 * g.module.covariance, 2, 1)
    values = drawn(wide, field(1, 6, 6), square(6, 6, 2, 2, 2))
    assert float(values.min()) == 0
    assert float(values.max()) == 1


# ---------------------------------------------------------------------------------------------------------- tiles' order


def test_a_hidden_square_is_one_tile_wherever_it_lies():
    for top in range(6):
        for left in range(5):
            steps = plan(square(8, 7, top, left, 3)[0, 0].numpy(), 3, 2)
            assert [(s.top, s.left) for s in steps] == [(top, left)]


def test_the_tile_with_most_known_pixels_around_is_next():
    keep = square(10, 10, 2, 2, 6)[0, 0].numpy()
    steps = plan(keep, 2, 2)
    known, order = keep.copy(), []
    tiles = [(t, s) for t in (2, 4, 6) for s in (2, 4, 6)]
    while tiles:
        count = [known[max(0, t - 2) : t + 4, max(0, s - 2) : s + 4].sum() for t, s in tiles]
        t, s = tiles.pop(int(np.argmax(count)))
        known[t : t + 2, s : s + 2] = True
        order.append((t, s))
    assert [(s.top, s.left) for s in steps] == order
    assert order[0] == (2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_every_hidden_pixel_of_any_mask_is_filled_once_and_known_pixels_are_known(seed):
    keep = (torch.rand(9, 7, generator=seeded(seed)) < 0.6).numpy()
    known = keep.copy()
    for step in plan(keep, 3, 2):
        expected = np.zeros((7, 7), bool)  # outside of the image nothing is known
        for i in range(7):
            for j in range(7):
                y, x = step.top - 2 + i, step.left - 2 + j
                expected[i, j] = 0 <= y < 9 and 0 <= x < 7 and known[y, x]
        assert np.array_equal(step.known, expected)
        tile = known[step.top : step.top + 3, step.left : step.left + 3]
        assert tile.shape == (3, 3)
        assert not tile.all()
        tile[:] = True
    assert known.all()


def test_nothing_hidden_changes_nothing():
    image, keep = field(2, 6, 6), torch.ones(2, 1, 6, 6, dtype=torch.bool)
    out = known_field(2, 1)(image, keep, SampleRng.default(2), 2)
    assert torch.equal(out[:, 0, 1], image)


# ---------------------------------------------------------------------------------------------------------- the protocol


@pytest.fixture
def masks() -> Tensor:
    """For each of two images: a square, another, and any hole."""
    keep = torch.cat([square(8, 8, 0, 3, 2), square(8, 8, 4, 4, 2)], 1).repeat(2, 1, 1, 1)
    return torch.cat([keep, torch.rand(2, 1, 8, 8, generator=seeded(2)) < 0.6], 1)


def test_draws_masks_images_and_seeds_have_noise_of_their_own(masks):
    images, hidden = field(1, 8, 8).repeat(2, 1, 1, 1), masks[:, :1].repeat(1, 2, 1, 1)
    fill = known_field(2, 2)
    out = fill(images, hidden, SampleRng(1, (4, 9)), 2)[..., ~hidden[0, 0]].flatten(0, 2)
    assert len(out[:, 0, 0].unique()) == 8
    again, other = (fill(images, hidden, SampleRng(s, (4, 9)), 2)[..., ~hidden[0, 0]].flatten(0, 2) for s in (1, 2))
    assert torch.equal(again, out)
    assert not bool((other == out).any())


def test_a_filling_depends_neither_on_the_batch_nor_on_the_chunk(masks):
    images, rng, g = field(2, 8, 8), SampleRng(1, (4, 9)), known_field(2, 2)
    whole = g(images, masks, rng, 2)
    alone = [known_field(2, 2)(images[[i]], masks[[i]], rng.take([i]), 2) for i in (0, 1)]
    assert torch.allclose(torch.cat(alone), whole, rtol=0, atol=1e-12)
    refilled = []
    for chunk in (6, 4, 1):
        refill = Refill(g, images, rng)
        refilled.append(torch.cat([refill(masks[c.image, c.variant], c, draws=2) for c in chunks(2, 3, chunk)]))
    assert torch.allclose(refilled[0], refilled[1], rtol=0, atol=1e-12)
    assert torch.allclose(refilled[0], refilled[2], rtol=0, atol=1e-12)


def test_a_pattern_of_known_pixels_is_solved_once(monkeypatch):
    solved, patterns = ConditionalGaussian.solved, []
    monkeypatch.setattr(ConditionalGaussian, "solved", lambda *a: patterns.append(1) or solved(*a))
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 81, 2)).double()
    patch = SlidingPatch(2, 1, known_field(2, 2), draws=2, contrast=PMI(), projection="mean", scale=False)
    patch(model, field(3, 9, 9), torch.zeros(3, dtype=torch.long))
    assert len(patterns) == 25  # 0, 1, 2, .. or 2, 1, 0 pixels to the edge, along both sides


def every_window(height: int, width: int) -> Tensor:
    """Top and left pixel of all 2 x 2 windows, in some order."""
    places = torch.cartesian_prod(torch.arange(height - 1), torch.arange(width - 1))
    return places[torch.randperm(len(places), generator=seeded(1))]


@pytest.mark.parametrize(("height", "width", "margin"), [(9, 8, 2), (5, 9, 2), (4, 3, 3), (4, 4, 0)])
def test_a_window_whose_place_is_known_is_filled_as_a_hole_that_is_looked_at(height, width, margin):
    fill, corners = known_field(2, margin), every_window(height, width).repeat(2, 1)
    images, rng = field(len(corners), height, width), SampleRng(3, tuple(range(len(corners))))
    keep = torch.cat([square(height, width, *place, side=2) for place in corners.tolist()])
    for draws in (1, 3):
        expected = fill(images, keep, rng, draws)
        assert torch.equal(fill.in_windows(images, keep, (corners, corners), rng, draws), expected)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"max_batch": 5}], ids=str)
def test_maps_by_the_places_of_windows_are_those_by_looks_at_masks(options, monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 3))
    patch = SlidingPatch(2, 1, known_field(2, 2), **{"draws": 2, "contrast": PMI(), "scale": False, **options})
    given = model, field(3, 7, 7).float(), torch.zeros(3, dtype=torch.long)
    by_place = patch(*given)
    monkeypatch.setattr(ConditionalGaussian, "in_windows", Filler.in_windows)
    assert torch.equal(patch(*given), by_place)


def bytes_of_windows(channels: int, patch: int, margin: int) -> int:
    """Of the conditionals of all windows, wherever they lie in an image: eight a number."""
    sides = [patch + margin + n for n in range(margin)] * 2 + [patch + 2 * margin]
    known = sum(channels * (h * w - patch**2) for h in sides for w in sides)
    tile, patterns = channels * patch**2, len(sides) ** 2
    return 8 * (known * (tile + 2) + patterns * (tile**2 + 2 * tile + 2 * patch**2))


def test_the_conditionals_of_all_windows_of_8_pixels_in_colour_are_kept():
    fill, corners = known_field(2, 2), every_window(6, 7)
    fill.window_bits(field(1, 6, 7).expand(len(corners), -1, -1, -1), *corners.T)
    assert fill.opened.kept.size == bytes_of_windows(2, 2, 2)
    assert bytes_of_windows(3, 8, 8) < fill.opened.kept.limit


def test_conditionals_that_are_kept_are_bounded(masks, monkeypatch):
    g = known_field(2, 2)
    expected = g(field(2, 8, 8), masks, SampleRng.default(2))
    kept = g.opened.kept
    assert len(kept.known) > 1
    monkeypatch.setattr(kept, "limit", kept.size // 2)
    assert bool(g(field(2, 8, 8), ~masks & masks.flip(1), SampleRng.default(2)).isfinite().all())
    assert kept.size <= kept.limit
    assert torch.equal(g(field(2, 8, 8), masks, SampleRng.default(2)), expected)


def test_gradients_reach_the_kept_pixels_alone(masks):
    images = field(2, 8, 8).requires_grad_()
    known_field(2, 2)(images, masks, SampleRng.default(2)).sum().backward()
    assert torch.equal(images.grad, masks.sum(1)[:, None].expand(-1, 2, -1, -1).double())


@pytest.mark.parametrize(
    ("shape", "draws", "message"),
    [
        ((1, 3, 8, 8), 1, "fitted on images of 2 channels, found 3"),
        ((1, 2, 8, 1), 1, "patch=2 of this Gaussian does not fit images of 8 x 1"),
        ((1, 2, 8, 8), 0, "draws must be at least 1"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(shape, draws, message):
    with pytest.raises(UsageError, match=message):
        known_field(2, 2)(
            torch.rand(shape), torch.ones(1, 1, *shape[2:], dtype=torch.bool), SampleRng.default(1), draws
        )


# ------------------------------------------------------------------------------------------------------------------ bits


def test_bits_of_independent_pixels_are_their_entropy():
    mean, sd, n = 0.5, 0.02, 2000
    g = of_moments(torch.full((1, 4, 4), mean).double(), sd**2 * torch.eye(16).double(), 2, 1)
    edges = (np.arange(257) - 0.5) / 255
    mass = np.diff(norm.cdf((edges - mean) / sd))
    mass = mass[mass > 1e-12]
    entropy, square_sum = -(mass * np.log2(mass)).sum(), (mass * np.log2(mass) ** 2).sum()
    x = mean + sd * torch.randn(n, 1, 4, 4, generator=seeded(1)).double()
    bits = g.bits_per_dimension((x * 255).round() / 255)
    assert bits.shape == (n,)
    assert abs(float(bits.mean()) - entropy) < 4 * math.sqrt((square_sum - entropy**2) / (4 * n))


def test_bits_equal_a_loop_over_pixels():
    g, held_out = known_field(2, 1), (field(3, 4, 4, seed=9) * 255).round() / 255
    hidden = (~square(4, 4, 1, 1, 2)[0, 0]).flatten().repeat(2)
    expected = []
    for window in held_out:
        mean, covariance = conditional(field_covariance(4, 4), window.flatten() - CENTRE, ~hidden, hidden)
        total = 0.0
        for value, m, v in zip(window.flatten()[hidden], mean, covariance.diagonal(), strict=True):
            edges = [(float(value) + e / 255 - CENTRE - float(m)) / math.sqrt(v) for e in (-0.5, 0.5)]
            total -= math.log2(norm.cdf(edges[1]) - norm.cdf(edges[0]))
        expected.append(total / 8)
    assert torch.allclose(
        g.bits_per_dimension(held_out), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_bits_of_windows_do_not_depend_on_those_that_are_asked_for_beside_them():
    g, places = known_field(2, 2), every_window(5, 8)
    images = field(len(places), 5, 8)
    alone = [g.window_bits(images[[i]], *places[[i]].T) for i in range(len(places))]
    assert torch.allclose(g.window_bits(images, *places.T), torch.cat(alone), rtol=0, atol=1e-12)
    one, known = torch.tensor([1, 2]), torch.ones(6, 6, dtype=torch.bool)
    known[0], known[2:4, 2:4] = False, False  # what lies above the image is unknown
    window = torch.nn.functional.pad(images[:1], (2,) * 4)[..., 1:7, 2:8]
    assert torch.equal(g.window_bits(images[:1], *one[:, None]), g.bits_per_dimension(window, known))


def test_surroundings_save_bits():
    held_out = field(300, 6, 6, seed=9)
    with_margin = known_field(2, 2).bits_per_dimension(held_out)
    without = known_field(2, 0).bits_per_dimension(held_out[..., 2:4, 2:4])
    assert float(with_margin.mean()) < float(without.mean()) - 0.3


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0, 1.2])
def test_the_256_levels_have_mass_1_and_far_ones_finite_bits(mean):
    g = of_moments(torch.full((1, 1, 1), mean).double(), torch.full((1, 1), 0.01**2).double(), 1, 0)
    bits = g.bits_per_dimension((torch.arange(256) / 255).view(256, 1, 1, 1))
    assert bool(bits.isfinite().all())
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-9)

"""The limit of LIME: printed constants, least squares over all masks, closed forms, and finite runs beside it."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.explainers import AveragedGradient, IntegratedGradients, Lime, lime_gap
from lit_xai.explainers.lime import Coalitions, CosineKernel, PixelCosineKernel, SegmentDistance, Toggle
from lit_xai.explainers.lime_limit import (
    Limit,
    ShapeDetector,
    bits,
    exact_limit,
    large_bandwidth_limit,
    linear_limit,
    psi,
    required_samples,
    responses,
)
from lit_xai.explainers.surrogate import Surrogate
from lit_xai.fillers import SegmentMean, UniformNoise
from lit_xai.fillers.base import BackgroundFiller
from lit_xai.fillers.constant import Colour
from lit_xai.metrics.agreement import expected_jaccard, jaccard_top, top_positive
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid, segment_sums, to_pixels
from torch import Tensor

from conftest import seeded, two_logits

NEAR = functools.partial(torch.allclose, rtol=0, atol=1e-8)


def least_squares(f: Tensor, d: int, bandwidth: float) -> np.ndarray:
    """(beta_0, beta): weighted least squares over all 2^d masks, by numpy."""
    z = np.array([[m >> j & 1 for j in range(d)] for m in range(2**d)], dtype=float)
    cosine = np.sqrt(z.mean(1))
    root = np.exp(-((1 - cosine) ** 2) / (4 * bandwidth**2))
    x = np.hstack([np.ones((2**d, 1)), z])
    return np.linalg.lstsq(root[:, None] * x, root * f.numpy(), rcond=None)[0]


def conjunction(d: int, on: list[int], off: list[int]) -> Tensor:
    """1 where all of `on` are visible and none of `off`, at all 2^d masks."""
    z = bits(torch.arange(2**d), d)
    return (z[:, on].all(1) & ~z[:, off].any(1)).double()


def table_model(f: Tensor, d: int):
    """An image of d pixels, each a superpixel, and a model whose logit is f of the pixels that are visible."""
    place = 2 ** torch.arange(d)

    def model(x: Tensor) -> Tensor:
        return two_logits(f[((x.flatten(1) > 0.5).long() * place).sum(1)].to(x.dtype))

    return model, torch.ones(1, 1, d, dtype=torch.float64), torch.arange(d).view(1, d)


# ------------------------------------------------------------------------------------------------------------ constants


@pytest.mark.parametrize(
    ("d", "constants"),
    [
        (5, (0.5019138322, 0.3155939467, 0.1900457083, 0.04194955014)),
        (10, (0.5023286071, 0.287368778, 0.1617585681, 0.04984901775)),
        (50, (0.5030767101, 0.2596247285, 0.133852425, 0.0599250143)),
    ],
)
def test_expectations_of_the_kernel_and_the_normalisation(d, constants):
    limit = Limit(d)
    assert (*limit.alphas, limit.normalisation) == pytest.approx(constants, abs=1e-9)


@pytest.mark.parametrize(
    ("d", "p", "on", "other"),
    [
        (5, 2, 0.6501551618, 0.0064620684),
        (10, 2, 0.5754587338, 0.0012896874),
        (50, 2, 0.5161087086, 1.5256e-5),
        (5, 3, 0.4061248196, 0.0126747327),
        (10, 3, 0.3262390144, 0.0021423218),
        (50, 3, 0.2661104459, 2.3283e-5),
    ],
)
def test_coefficients_of_a_conjunction(d, p, on, other):
    assert Limit(d).detector(p)[1] == pytest.approx(on, abs=1e-8)
    assert Limit(d).detector(p)[3] == pytest.approx(other, abs=1e-8)


def test_coefficients_of_a_conjunction_with_superpixels_that_must_be_off():
    expected = (0.0325101651, 0.0617129436, -0.0872533970, -0.0008530762)
    assert Limit(8).detector(3, 2) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("d", [2, 7, 100, 1000])
@pytest.mark.parametrize("bandwidth", [0.1, 0.25, 5.0])
def test_one_superpixel_alone_has_coefficient_1_and_the_others_0(d, bandwidth):
    intercept, on, off, other = Limit(d, bandwidth).detector(1)
    assert (intercept, on, other) == pytest.approx((0, 1, 0), abs=1e-8)
    assert math.isnan(off)  # there is none


def test_a_thousand_superpixels_give_finite_numbers():
    limit = Limit(1000)
    assert all(0 < a < 1 for a in limit.alphas)
    assert limit.normalisation > 0
    for p, q in [(2, 1), (3, 5), (500, 400)]:
        assert all(math.isfinite(v) for v in limit.detector(p, q))


def test_the_weight_of_a_mask_is_limes_kernel():
    assert psi(0, 0.25) == 1
    assert psi(1, 0.5) == pytest.approx(math.exp(-2))
    assert float(Limit(4, 0.3).weights(torch.tensor([[1.0, 0, 0, 0]]))) == pytest.approx(math.exp(-0.25 / 0.18))


def test_alpha_is_an_expectation_over_masks():
    d, z = 6, bits(torch.arange(64), 6)
    weights = Limit(d, 0.4).weights(z.double())
    for p, q in [(0, 0), (1, 0), (3, 0), (2, 2), (0, 6)]:
        here = conjunction(d, [*range(p)], [*range(5, 5 - q, -1)])
        assert Limit(d, 0.4).alpha(p, q) == pytest.approx(float((weights * here).mean()))
    assert Limit(d).alpha(4, 3) == 0


# ---------------------------------------------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("bandwidth", [0.1, 0.25, 2.0])
@pytest.mark.parametrize("d", [2, 3, 6, 9])
def test_the_limit_of_any_function_is_least_squares_over_all_masks(d, bandwidth):
    f = torch.randn(2**d, generator=seeded(d), dtype=torch.float64)
    limit = Limit(d, bandwidth)
    intercept, beta = limit.coefficients(*limit.expected(f))
    expected = torch.from_numpy(least_squares(f, d, bandwidth))
    assert NEAR(torch.tensor([intercept, *beta.tolist()], dtype=torch.float64), expected)


@pytest.mark.parametrize(("p", "q"), [(1, 0), (2, 0), (3, 0), (7, 0), (0, 1), (3, 2), (1, 6), (0, 7)])
def test_the_closed_form_of_a_conjunction_is_least_squares_over_all_masks(p, q):
    d = 7
    expected = least_squares(conjunction(d, [*range(p)], [*range(p, p + q)]), d, 0.25)
    intercept, on, off, other = Limit(d).detector(p, q)
    assert np.allclose(expected, [intercept, *[on] * p, *[off] * q, *[other] * (d - p - q)], rtol=0, atol=1e-8)


def test_masks_in_chunks_are_the_masks_at_once(monkeypatch):
    f = torch.randn(2**8, generator=seeded(1), dtype=torch.float64)
    mean, each = Limit(8).expected(f)
    covariance = Limit(8).sampling_covariance(f)
    monkeypatch.setattr("lit_xai.explainers.lime_limit.CHUNK", 100)
    again = Limit(8).expected(f)
    assert again[0] == pytest.approx(mean)
    assert torch.allclose(again[1], each)
    assert torch.allclose(Limit(8).sampling_covariance(f), covariance)


def test_a_wide_kernel_gives_twice_the_difference_of_conditional_means():
    f = torch.randn(2**6, generator=seeded(2), dtype=torch.float64)
    z = bits(torch.arange(64), 6)
    wide = Limit(6, 1e4)
    given_on = torch.stack([f[z[:, j]].mean() for j in range(6)])
    expected = large_bandwidth_limit(float(f.mean()), given_on)
    assert torch.allclose(wide.coefficients(*wide.expected(f))[1], expected, atol=1e-6)


def test_responses_are_the_models_outputs_at_every_mask(convnet, rgb):
    model, image = convnet.double(), rgb[0].double()
    segments = Grid(2)(image[None])
    f = responses(model, image, segments, SegmentMean(), target=3, max_batch=5)
    background = SegmentMean().background(image[None], segments)[0]
    for number, value in enumerate(f):
        visible = [j for j in range(4) if number >> j & 1]
        keep = torch.isin(segments[0], torch.tensor(visible, dtype=torch.long))
        with torch.no_grad():
            assert torch.isclose(value, model(torch.where(keep, image, background)[None]).softmax(1)[0, 3])


# --------------------------------------------------------------------------------------------------------- closed forms


def test_lime_on_a_linear_model_is_its_limit_at_any_bandwidth(linear, rgb, targets):
    model, images = linear.double(), rgb.double()
    segments = Grid(4)(images)
    filled = SegmentMean().background(images, segments)
    for width in (0.1, 0.25, 3.0):
        lime = Lime(Grid(4), kernel=CosineKernel(width), samples=100, ridge=0.0, output="logit")
        run = lime.explain(model, images, targets)
        for i in range(5):
            weights = model.weight.detach()[targets[i]]
            expected = linear_limit(weights, images[i], filled[i], segments[[i]])
            assert torch.allclose(run.coefficients[i], expected, rtol=0, atol=1e-6)


def test_the_limit_of_a_linear_model_by_enumeration_is_the_closed_form(linear, rgb):
    model, image, segments = linear.double(), rgb[0].double(), Grid(3)(rgb[:1])
    filled = Colour(0.2).background(image[None])[0]
    expected = linear_limit(model.weight.detach()[1], image, filled, segments[0])
    assert NEAR(exact_limit(model, image, segments, Colour(0.2), 1, "logit")[1], expected)


class Fixed(BackgroundFiller):
    """Fills with one given image."""

    def __init__(self, image: Tensor) -> None:
        self.image = image

    def background(self, images: Tensor, segments: Tensor | None = None) -> Tensor:
        return self.image[None].expand_as(images)


def random_case(seed: int, dark: float) -> tuple[ShapeDetector, Tensor, Tensor, Tensor]:
    """A shape of a few pixels, an image, its filling, and eight superpixels."""
    g = seeded(seed)
    shape = torch.rand(4, 6, generator=g) < 0.2
    image = (torch.rand(3, 4, 6, generator=g) > dark).double()
    filled = (torch.rand(1, 4, 6, generator=g) > 0.3).double().expand(3, -1, -1)
    rows, columns = torch.arange(4)[:, None] // 2, torch.arange(6)[None].clamp_max(3)
    return ShapeDetector(shape), image, filled, (rows * 4 + columns)[None]


@pytest.mark.parametrize("dark", [0.0, 0.02, 0.08])
def test_the_closed_form_of_a_shape_detector_is_its_enumeration(dark):
    impossible = 0
    for seed in range(20):
        detector, image, filled, segments = random_case(seed, dark)
        intercept, beta = detector.limit(image, filled, segments, 0.3)
        expected = exact_limit(detector, image, segments, Fixed(filled), 0, "logit", 0.3)
        assert intercept == pytest.approx(expected[0], abs=1e-8)
        assert NEAR(beta, expected[1])
        impossible += not bool(beta.any())
    assert impossible < 15  # otherwise little would be compared


def test_a_shape_that_can_never_be_complete_has_coefficients_of_0():
    shape = torch.zeros(2, 2, dtype=torch.bool)
    shape[0] = True
    image, filled = torch.tensor([[[0.9, 0.1], [0.9, 0.9]]]), torch.tensor([[[0.1, 0.9], [0.1, 0.1]]])
    segments = torch.tensor([[[0, 0], [1, 1]]])  # pixel 0 needs superpixel 0 on, pixel 1 needs it off
    intercept, beta = ShapeDetector(shape).limit(image, filled, segments)
    assert intercept == 0
    assert beta.tolist() == [0, 0]


def test_a_shape_detector_needs_every_channel_above_the_threshold():
    detector = ShapeDetector(torch.tensor([[True, False]]), 0.5)
    x = torch.tensor([[[[0.6, 0.0]], [[0.6, 0.0]]], [[[0.6, 0.9]], [[0.5, 0.9]]]])
    assert detector(x).tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_the_shape_of_the_paper_is_a_conjunction():
    shape = torch.zeros(6, 6, dtype=torch.bool)
    shape[1, 1:5] = True  # meets three of nine superpixels: 0, 1 and 2
    image, filled = torch.ones(1, 6, 6), torch.zeros(1, 6, 6)
    intercept, beta = ShapeDetector(shape).limit(image, filled, Grid(3)(image[None])[0])
    expected = Limit(9).detector(3)
    assert intercept == pytest.approx(expected[0])
    assert beta.tolist() == pytest.approx([expected[1]] * 3 + [expected[3]] * 6)


# ----------------------------------------------------------------------------------------------------------- finite runs

D, REPEATS, SAMPLES = 6, 500, 400
PLAIN = {"segments": Grid(2), "perturbation": Toggle(Colour(0.0)), "ridge": 0.0, "output": "logit"}


@functools.cache
def repeated() -> tuple[Surrogate, Tensor]:
    """500 runs with noise of their own on one image of six superpixels, and the function's values."""
    f = torch.randn(2**D, generator=seeded(9), dtype=torch.float64)
    model, image, segments = table_model(f, D)
    images, labels = image.expand(REPEATS, -1, -1, -1), segments.expand(REPEATS, -1, -1)
    lime = Lime(**PLAIN, samples=SAMPLES, max_batch=50_000)
    return lime.explain(model, images, torch.zeros(REPEATS, dtype=torch.long), segments=labels), f


def limit_of(f: Tensor) -> Tensor:
    limit = Limit(D)
    return limit.coefficients(*limit.expected(f))[1]


def test_intervals_cover_the_limit_in_95_percent_of_runs():
    run, f = repeated()
    low, high = run.intervals()
    covered = ((low <= limit_of(f)) & (limit_of(f) <= high)).double().mean(0)
    assert 0.92 <= float(covered.mean()) <= 0.98
    assert float(covered.min()) > 0.90


def test_the_mean_of_many_runs_is_the_limit():
    run, f = repeated()
    error = run.coefficients.std(0) / math.sqrt(REPEATS)
    assert bool(((run.coefficients.mean(0) - limit_of(f)).abs() < 5 * error).all())


def test_runs_vary_as_the_sampling_covariance_says():
    run, f = repeated()
    expected = Limit(D).sampling_covariance(f) / SAMPLES
    found = torch.cov(torch.cat([run.intercept[:, None], run.coefficients], 1).T)
    scale = expected.diagonal().sqrt()[:, None] * expected.diagonal().sqrt()
    assert float(((found - expected) / scale).abs().max()) < 5 * math.sqrt(2 / REPEATS)
    assert float(((run.covariance.mean(0) - expected) / scale).abs().max()) < 0.1


def test_a_long_run_on_a_conjunction_reaches_the_limit():
    model, image, segments = table_model(conjunction(9, [1, 4, 8], []), 9)
    run = Lime(**PLAIN, samples=200_000, max_batch=256).explain(
        model, image[None], torch.tensor([0]), segments=segments[None]
    )
    _, on, _, other = Limit(9).detector(3)
    expected = torch.tensor([on if j in (1, 4, 8) else other for j in range(9)], dtype=torch.float64)
    assert float(run.standard_errors.max()) < 0.003
    assert bool(((run.coefficients[0] - expected).abs() < 5 * run.standard_errors[0]).all())


def gap(samples: int = 500, accuracy: float = 0.01, **options):
    model, image, segments = table_model(conjunction(6, [0, 3], [5]), 6)
    lime = Lime(**{**PLAIN, "samples": samples, **options})
    return lime_gap(model, image, 0, lime, accuracy, segments=segments)


def test_the_gap_is_the_distance_of_a_run_to_its_limit():
    found = gap()
    _, on, off, other = Limit(6).detector(2, 1)
    limit = torch.tensor([on, other, other, on, other, off], dtype=torch.float64)
    assert NEAR(found.limit, limit)
    difference = found.run.coefficients[0] - limit
    assert found.distance == pytest.approx(float(difference.abs().max()))
    assert torch.allclose(found.deviations, difference / found.run.standard_errors[0])
    assert 0 < float(found.deviations.abs().max()) < 5


def test_a_longer_run_is_nearer_to_its_limit():
    assert gap(20_000).distance < 0.5 * gap(100).distance


def test_needed_samples_give_the_accuracy_asked_for():
    short = gap(2000, accuracy=0.02)
    assert short.needed == int(required_samples(short.run, 0.02)[0])
    long = gap(short.needed, accuracy=0.02)
    assert 1.96 * float(long.run.standard_errors.max()) == pytest.approx(0.02, rel=0.15)
    assert long.needed == pytest.approx(short.needed, rel=0.3)
    assert gap(2000, accuracy=0.01).needed == pytest.approx(4 * short.needed, abs=4)


def test_a_run_without_standard_errors_does_not_say_how_many_samples_are_needed():
    run = gap().run
    with pytest.raises(UsageError, match="as many samples as parameters"):
        required_samples(replace(run, covariance=run.covariance * math.nan), 0.01)


def test_the_gap_of_a_run_with_ridge_holds_its_bias():
    heavy = gap(2000, ridge=1e4)
    assert heavy.distance > 0.5 * float(heavy.limit.abs().max())


def test_the_gap_takes_a_limit_known_in_closed_form(linear, rgb):
    model, image = linear.double(), rgb[0].double()
    lime = Lime(Grid(6), samples=200, ridge=0.0, output="logit")  # 36 superpixels: too many to enumerate
    segments = lime.segments(image[None])
    filled = SegmentMean().background(image[None], segments)[0]
    found = lime_gap(model, image, 2, lime, limit=linear_limit(model.weight.detach()[2], image, filled, segments))
    assert found.distance < 1e-6


def test_the_gap_of_a_network_by_enumeration(convnet, rgb):
    lime = Lime(Grid(3), samples=1000, ridge=0.0, max_batch=1000)
    found = lime_gap(convnet.double(), rgb[0].double(), 1, lime)
    assert float(found.deviations.abs().max()) < 5
    assert found.distance > 0


# ------------------------------------------------------------------------------------------------------------- refusals


def test_more_than_20_superpixels_are_not_enumerated(linear, rgb):
    with pytest.raises(UsageError, match="25 superpixels have 2"):
        lime_gap(linear, rgb[0], 0, Lime(Grid(5), samples=60))
    with pytest.raises(UsageError, match="d <= 20"):
        Limit(21).expected(torch.zeros(4))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": PixelCosineKernel()},
        {"representation": SegmentDistance()},
        {"perturbation": Toggle(keep=0.3)},
        {"perturbation": Coalitions()},
    ],
    ids=["kernel", "representation", "keep", "coalitions"],
)
def test_settings_without_a_known_limit_are_refused(linear, rgb, options):
    with pytest.raises(UsageError, match="the limit is known for"):
        lime_gap(linear, rgb[0], 0, Lime(Grid(2), samples=60, **options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Limit(1), "at least 2 superpixels"),
        (lambda: Limit(5, 0.0), "bandwidth must be positive"),
        (lambda: Limit(5).detector(4, 2), "do not fit 5"),
        (lambda: Limit(5).detector(-1), "do not fit 5"),
        (lambda: Limit(5).coefficients(0.0, torch.zeros(4)), "for 5 superpixels"),
        (lambda: gap(accuracy=0.0), "accuracy must be positive"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(call, message):
    with pytest.raises(UsageError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- averaged gradient


@pytest.mark.parametrize("filler", [SegmentMean(), Colour(0.3)], ids=["mean", "colour"])
def test_the_averaged_gradient_of_a_linear_model_is_the_limit(linear, rgb, targets, filler):
    model, images = linear.double(), rgb.double()
    explainer = AveragedGradient(Grid(4), filler, output="logit")
    segments = Grid(4)(images)
    beta = explainer.coefficients(model, images, targets, segments)
    filled = filler.background(images, segments)
    for i in range(5):
        expected = linear_limit(model.weight.detach()[targets[i]], images[i], filled[i], segments[[i]])
        assert NEAR(beta[i], expected)
        assert NEAR(explainer(model, images, targets)[i], to_pixels(expected[None], segments[[i]])[0])


def test_from_black_it_sums_integrated_gradients_over_superpixels(convnet, rgb, targets):
    model, images = convnet.double(), rgb.double()
    segments = Grid(3)(images)
    result = AveragedGradient(Grid(3), Colour(0.0)).coefficients(model, images, targets, segments)
    each = IntegratedGradients(steps=21, output="probability", channels="sum")(model, images, targets)
    assert torch.allclose(result, segment_sums(each, segments), rtol=0, atol=1e-10)


@pytest.mark.peers
def test_the_averaged_gradient_sums_captums_integrated_gradients(convnet, rgb, targets):
    captum = pytest.importorskip("captum.attr")
    model, images = convnet.double(), rgb.double()
    segments = Grid(3)(images)
    start = SegmentMean().background(images, segments)
    peer = captum.IntegratedGradients(lambda x: model(x).softmax(1)).attribute(
        images, start, target=targets, n_steps=21, method="riemann_trapezoid"
    )
    expected = segment_sums(peer.sum(1) * 21 / 20, segments)  # captum's weights sum to 20 / 21
    result = AveragedGradient(Grid(3)).coefficients(model, images, targets, segments)
    assert float(expected.abs().max()) > 1e-3
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


def test_the_averaged_gradient_does_not_depend_on_max_batch_nor_on_other_images(convnet, rgb, targets):
    model, images = convnet.double(), rgb.double()
    segments = torch.cat([Grid(2)(images[:2]), Grid(4)(images[2:])])
    whole = AveragedGradient(max_batch=1000).coefficients(model, images, targets, segments)
    small = AveragedGradient(max_batch=4).coefficients(model, images, targets, segments)
    assert torch.allclose(small, whole, rtol=0, atol=1e-12)
    assert bool((whole[:2, 4:] == 0).all())
    alone = AveragedGradient().coefficients(model, images[:1], targets[:1], segments[:1])
    assert torch.allclose(alone[0], whole[0, :4], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("explainer", "message"),
    [(AveragedGradient(points=1), "points >= 2"), (AveragedGradient(max_batch=0), "max_batch")],
)
def test_an_averaged_gradient_without_meaning_is_refused(convnet, rgb, targets, explainer, message):
    with pytest.raises(UsageError, match=message):
        explainer.coefficients(convnet, rgb, targets, Grid(3)(rgb))


def test_an_averaged_gradient_from_a_filler_that_depends_on_the_mask_is_refused(unchecked, convnet, rgb, targets):
    with pytest.raises(UsageError, match="UniformNoise depends on the mask"):
        AveragedGradient(Grid(3), UniformNoise())(convnet, rgb, targets, SampleRng.default(5))


# ------------------------------------------------------------------------------------------------------------- agreement


def test_the_top_takes_positive_values_only_and_ties_go_to_lower_numbers():
    values = torch.tensor([[3.0, -5, 1, 1, 2], [-1, 0, -2, 0, -3], [1, 1, 1, 1, 1]])
    assert top_positive(values, 3).tolist() == [
        [True, False, True, False, True],
        [False] * 5,
        [True, True, True, False, False],
    ]


def test_the_jaccard_index_of_the_top_by_hand():
    a = torch.tensor([[4.0, 3, 2, 1], [4, 3, -2, -1], [-1, -1, -1, -1], [-1, -1, -1, -1], [1, 0, 0, 0]])
    b = torch.tensor([[4.0, 1, 2, 3], [1, 2, 3, 4], [-1, 0, -1, -1], [1, 0, 0, 0], [0, 0, 0, 1]])
    # {0,1} & {0,3}; {0,1} & {3,2}; both empty; one empty; disjoint
    assert jaccard_top(a, b, 2).tolist() == pytest.approx([1 / 3, 0, 1, 0, 0])
    assert jaccard_top(a, a, 2).tolist() == [1, 1, 1, 1, 1]


def test_the_jaccard_index_that_chance_gives():
    assert float(expected_jaccard(60, 5)) == pytest.approx(0.048, abs=5e-4)
    assert float(expected_jaccard(60, 10)) == pytest.approx(0.095, abs=5e-4)
    assert expected_jaccard(torch.tensor([5, 6]), 5).tolist() == pytest.approx([1, 5 / 6 * 4 / 6 + 1 / 6])


def test_chance_equals_a_simulation():
    random = torch.rand(2, 20_000, 12, generator=seeded(1))
    found = jaccard_top(random[0], random[1], 4)
    assert abs(float(found.mean() - expected_jaccard(12, 4))) < 5 * float(found.std()) / math.sqrt(20_000)


def test_chance_of_fewer_superpixels_than_the_top_is_1():
    assert expected_jaccard(torch.tensor([3, 9]), 4)[0] == pytest.approx(1)


def test_agreement_without_meaning_is_refused(unchecked):
    with pytest.raises(UsageError, match="k=0"):
        jaccard_top(torch.ones(1, 4), torch.ones(1, 4), 0)
    with pytest.raises(UsageError, match="share no superpixels"):
        jaccard_top(torch.ones(1, 4), torch.ones(1, 5), 2)

"""LIME against the `lime` package, scikit-learn, exact Shapley values and loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from lit_xai.core import Passes
from lit_xai.errors import UsageError
from lit_xai.explainers import Lime
from lit_xai.explainers import lime as module
from lit_xai.explainers.lime import (
    Coalitions,
    CosineKernel,
    OnOff,
    PixelCosineKernel,
    Rows,
    SegmentDistance,
    ShapleyKernel,
    Toggle,
)
from lit_xai.explainers.surrogate import Block, fit, is_settled
from lit_xai.fillers import SegmentMean, UniformNoise
from lit_xai.fillers.constant import Colour
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid, Quickshift, to_pixels
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from conftest import Linear, seeded, two_logits

LEAST_SQUARES = {"segments": Grid(3), "ridge": 0.0, "output": "logit"}
GRID = Lime(segments=Grid(3), samples=200)


@pytest.fixture
def images(rgb) -> Tensor:
    return rgb.double()


@pytest.fixture
def model(convnet) -> nn.Module:
    """The convolutional network in float64, with outputs far from uniform."""
    net = convnet.double()
    with torch.no_grad():
        net[-1].weight *= 20
    return net


def mask_of(seed: int, n: int, d: int, batch: int = 1) -> Tensor:
    """Masks of which the first hides nothing."""
    z = torch.rand(batch, n, d, generator=seeded(seed)) < 0.5
    z[:, 0] = True
    return z


def filled_by(image: Tensor, segments: Tensor, visible: Tensor, background: Tensor) -> Tensor:
    """`[n, c, h, w]`: the image seen through every mask, by a loop."""
    out = background[None].repeat(len(visible), 1, 1, 1)
    for n, z in enumerate(visible):
        for j in range(len(z)):
            if z[j]:
                out[n][:, segments == j] = image[:, segments == j]
    return out


def fitted_by_sklearn(visible: Tensor, response: Tensor, width: float, ridge: float) -> tuple[Ridge, np.ndarray]:
    z = visible.double().numpy()
    weights = np.exp(-((1 - np.sqrt(z.mean(1))) ** 2) / (2 * width**2))
    return Ridge(alpha=ridge, solver="cholesky").fit(z, response.numpy(), sample_weight=weights), weights


# ------------------------------------------------------------------------------------------------------ outside numbers


@pytest.mark.peers
@pytest.mark.parametrize("hide_color", [None, 0.0, 0.4])
@pytest.mark.parametrize("width", [0.25, 0.6])
def test_coefficients_equal_the_lime_packages_on_its_masks_and_superpixels(model, images, hide_color, width):
    lime_image = pytest.importorskip("lime.lime_image")
    image = images[:1]
    segments = Quickshift(kernel_size=1, max_dist=5, scale=False)(image)
    peer = lime_image.LimeImageExplainer(kernel_width=width, random_state=1, feature_selection="none")
    seen, data_labels = [], peer.data_labels

    def remembering(*args, **kwargs):
        seen.append(data_labels(*args, **kwargs))
        return seen[-1]

    peer.data_labels = remembering

    def classify(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(batch).permute(0, 3, 1, 2)).softmax(1).numpy()

    explanation = peer.explain_instance(
        image[0].permute(1, 2, 0).numpy(),
        classify,
        labels=[0],
        top_labels=None,
        hide_color=hide_color,
        num_samples=200,
        segmentation_fn=lambda _: segments[0].numpy(),
    )
    filler = SegmentMean() if hide_color is None else Colour(hide_color)
    lime = Lime(perturbation=Toggle(filler), kernel=CosineKernel(width))
    masks = torch.from_numpy(seen[0][0]).bool()[None]
    run = lime.explain(model, image, torch.tensor([0]), segments=segments, masks=masks)
    expected = torch.tensor([v for _, v in sorted(explanation.local_exp[0])])
    assert len(expected) == int(run.counts[0]) > 10
    assert float(expected.abs().max()) > 1e-3
    assert torch.allclose(run.coefficients[0], expected, rtol=0, atol=1e-5)
    assert float(run.intercept[0]) == pytest.approx(explanation.intercept[0], abs=1e-5)
    assert float(run.r2[0]) == pytest.approx(explanation.score, abs=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 1.0, 30.0])
def test_the_fit_and_its_r2_are_scikit_learns(model, images, targets, ridge):
    masks = mask_of(1, 300, 9, batch=5)  # more than one block
    run = Lime(segments=Grid(3), ridge=ridge).explain(model, images, targets, masks=masks)
    background = SegmentMean().background(images, run.segments)
    for row in range(5):
        x = filled_by(images[row], run.segments[row], masks[row], background[row])
        with torch.no_grad():
            response = model(x).softmax(1)[:, targets[row]]
        expected, weights = fitted_by_sklearn(masks[row], response, 0.25, ridge)
        assert np.allclose(run.coefficients[row].numpy(), expected.coef_, rtol=0, atol=1e-8)
        assert float(run.intercept[row]) == pytest.approx(expected.intercept_, abs=1e-8)
        r2 = expected.score(masks[row].double().numpy(), response.numpy(), sample_weight=weights)
        assert float(run.r2[row]) == pytest.approx(r2, abs=1e-8)


def test_standard_errors_are_the_hc1_sandwich_by_hand(model, images, targets):
    masks = mask_of(2, 60, 9)
    run = Lime(**LEAST_SQUARES).explain(model, images[:1], targets[:1], masks=masks)
    x = torch.cat([torch.ones(60, 1), masks[0].double()], 1).double()
    background = SegmentMean().background(images[:1], run.segments)[0]
    with torch.no_grad():
        y = model(filled_by(images[0], run.segments[0], masks[0], background))[:, targets[0]]
    w = torch.exp(-((1 - masks[0].double().mean(1).sqrt()) ** 2) / (2 * 0.25**2))
    bread = torch.linalg.inv(x.T @ (w[:, None] * x))
    residual = y - x @ (bread @ (x.T @ (w * y)))
    covariance = 60 / (60 - 10) * bread @ (x.T @ ((w * residual) ** 2)[:, None].mul(x)) @ bread
    assert torch.allclose(run.covariance[0], covariance, rtol=1e-6, atol=1e-12)
    low, high = run.intervals()
    assert torch.allclose((high - low)[0], 2 * 1.959964 * covariance.diagonal()[1:].sqrt(), rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- properties


def test_the_fit_is_linear_in_the_model_at_the_same_masks(images, targets, linear, convnet):
    one, other = linear.double(), convnet.double()
    runs = [
        Lime(segments=Grid(3), samples=100, output="logit").explain(f, images, targets).coefficients
        for f in (one, other, lambda x: one(x) + 2 * other(x))
    ]
    assert torch.allclose(runs[2], runs[0] + 2 * runs[1], rtol=0, atol=1e-6)


def test_maps_hold_the_coefficient_of_every_superpixel(model, images, targets):
    run = GRID.explain(model, images, targets)
    maps, details = GRID.with_details(model, images, targets)
    assert torch.allclose(maps, to_pixels(run.coefficients, run.segments))
    assert torch.equal(GRID(model, images, targets), maps)
    assert details["superpixels"].tolist() == [9] * 5
    assert details["samples"].tolist() == [200] * 5
    assert torch.allclose(details["standard_error"], run.standard_errors.mean(1))
    assert bool((details["r2"] <= 1).all())


def test_images_with_different_numbers_of_superpixels_equal_their_fits_alone(model, images, targets):
    segments = torch.cat([Grid(2)(images[:1]), Grid(4)(images[1:2]), Grid(3)(images[2:])])
    rng = SampleRng(3, (5, 8, 1, 9, 0))
    whole = GRID.explain(model, images, targets, rng, segments)
    assert whole.counts.tolist() == [4, 16, 9, 9, 9]
    for i, count in enumerate(whole.counts.tolist()):
        alone = GRID.explain(model, images[[i]], targets[[i]], rng.take([i]), segments[[i]])
        assert torch.allclose(whole.coefficients[i, :count], alone.coefficients[0], rtol=0, atol=1e-9)
        assert torch.allclose(whole.standard_errors[i, :count], alone.standard_errors[0], rtol=1e-6)
        assert bool((whole.coefficients[i, count:] == 0).all())
        assert bool((whole.standard_errors[i, count:] == 0).all())


@pytest.mark.parametrize("filler", [SegmentMean(), UniformNoise()], ids=["mean", "noise"])
def test_maps_do_not_depend_on_max_batch(model, images, targets, filler):
    def run(max_batch: int) -> Tensor:
        return Lime(Grid(3), Toggle(filler), samples=300, max_batch=max_batch)(model, images, targets)

    assert torch.allclose(run(7), run(4000), rtol=0, atol=1e-9)


def test_noise_of_a_filler_is_another_one_in_every_block_and_mask():
    def total(x: Tensor) -> Tensor:
        seen.extend(x.sum((1, 2, 3)).tolist())
        return two_logits(x.mean((1, 2, 3)))

    seen: list[float] = []
    lime = Lime(Grid(2), Toggle(UniformNoise(), keep=0.0, whole_first=False), samples=600, output="logit")
    with pytest.raises(UsageError, match="singular"):  # every mask hides everything
        Lime(**{**vars(lime), "ridge": 0.0}).explain(total, torch.rand(1, 1, 4, 4), torch.tensor([0]))
    assert len(set(seen)) == 600


def test_a_constant_model_has_coefficients_of_0_and_no_r2(images, targets):
    run = GRID.explain(lambda x: torch.ones(len(x), 4, dtype=x.dtype), images, targets)
    assert torch.allclose(run.coefficients, torch.zeros(5, 9).double(), atol=1e-12)
    assert bool(run.r2.isnan().all())


def test_a_linear_model_has_r2_of_1_and_standard_errors_of_0(linear, images, targets):
    run = Lime(**LEAST_SQUARES, samples=100).explain(linear.double(), images, targets)
    assert torch.allclose(run.r2, torch.ones(5).double(), atol=1e-12)
    assert float(run.standard_errors.max()) < 1e-9


def test_the_top_names_the_largest_positive_superpixels_largest_first(model, images, targets):
    run = GRID.explain(model, images, targets)
    for names, values in zip(run.top(3), run.coefficients.tolist(), strict=True):
        order = sorted(range(9), key=lambda j: -values[j])
        assert names == [j for j in order[:3] if values[j] > 0]


def test_bf16_is_near_float32(convnet, rgb, targets):
    maps = [Lime(Grid(3), samples=100, precision=p)(convnet, rgb, targets) for p in ("float32", "bf16")]
    assert not torch.equal(*maps)
    assert torch.allclose(*maps, atol=0.01)


def test_passes_are_samples_or_the_cap():
    assert Lime(samples=300).passes(8, 8) == Passes(300)
    assert Lime(samples="auto", cap=700).passes(8, 8) == Passes(700)


# ---------------------------------------------------------------------------------------------------------------- masks


def drawn(masks: Toggle, numbers: range, superpixels: int) -> Tensor:
    """The masks of these numbers of sample 0."""
    own = torch.ones(1, superpixels, dtype=torch.bool)
    return masks.visible(SampleRng.default(1).noise("lime"), numbers, own)[0]


def test_masks_show_superpixels_with_probability_keep_independently():
    z = drawn(Toggle(keep=0.3), range(1, 5000), 6).double()
    assert float((z.mean(0) - 0.3).abs().max()) < 5 * math.sqrt(0.21 / len(z))
    correlation = torch.corrcoef(z.T) - torch.eye(6)
    assert float(correlation.abs().max()) < 5 / math.sqrt(len(z))


def test_only_the_very_first_mask_hides_nothing():
    assert bool(drawn(Toggle(keep=0.0), range(9), 5)[0].all())
    assert not bool(drawn(Toggle(keep=0.0), range(9), 5)[1:].any())
    assert not bool(drawn(Toggle(keep=0.0), range(1, 9), 5).any())
    assert not bool(drawn(Toggle(keep=0.0, whole_first=False), range(9), 5).any())
    assert bool(drawn(Toggle(keep=1.0), range(1, 9), 5).all())


@pytest.mark.parametrize("masks", [Toggle(), Coalitions()])
def test_a_mask_depends_on_sample_number_and_superpixel_alone(masks):
    noise = SampleRng(4, (8, 3, 5)).noise("lime")
    own = torch.arange(30) < torch.tensor([12, 7, 30])[:, None]
    whole = masks.visible(noise, range(2, 300), own)
    alone = masks.visible(noise[[1]], range(40, 50), own[[1], :7])
    assert torch.equal(whole[1, 38:48, :7], alone[0])
    assert not bool(whole[1, :, 7:].any())
    assert 0.2 < float(whole[1, :, :7].float().mean()) < 0.8


def test_coalitions_have_the_sizes_of_kernel_shap_and_uniform_members():
    z = drawn(Coalitions(), range(10_000), 6)
    assert bool(z[0].all())
    assert not bool(z[1].any())
    z = z[2:].double()
    weight = np.array([1 / (s * (6 - s)) for s in range(1, 6)])
    for s, share in zip(range(1, 6), weight / weight.sum(), strict=True):
        found = float((z.sum(1) == s).double().mean())
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / len(z))
        one = z[z.sum(1) == s].mean(0)
        assert float((one - s / 6).abs().max()) < 5 * math.sqrt(0.25 / (found * len(z)))


# --------------------------------------------------------------------------------------- representations, kernels, blocks


@pytest.fixture
def rows(images) -> Rows:
    """Six perturbed images of two, with noise where they hide."""
    two = images[:2]
    segments = torch.cat([Grid(2)(two[:1]), Grid(3)(two[1:])])
    visible = torch.rand(6, 9, generator=seeded(1)) < 0.5
    visible[:3, 4:] = False
    image_of = torch.tensor([0, 0, 0, 1, 1, 1])
    keep = visible.gather(1, segments[image_of].flatten(1)).view(6, 12, 12)
    noise = torch.rand(6, 3, 12, 12, generator=seeded(2)).double()
    perturbed = torch.where(keep[:, None], two[image_of], noise)
    return Rows(two, segments, image_of, visible, perturbed, torch.tensor([4, 4, 4, 9, 9, 9]))


def test_segment_distance_equals_loops(rows):
    result = SegmentDistance()(rows)
    assert result.shape == (6, 9)
    for r, i in enumerate(rows.image_of):
        for j in range(int(rows.counts[r])):
            here = rows.segments[i] == j
            x, y = rows.images[i][:, here], rows.perturbed[r][:, here]
            most = sum(max(u, 1 - u) for u in x.flatten().tolist())
            assert float(result[r, j]) == pytest.approx(1 - float((x - y).abs().sum()) / most, abs=1e-6)
        assert bool((result[r, int(rows.counts[r]) :] == 0).all())


def test_segment_distance_is_1_for_the_image_and_0_for_the_farthest_one(rows):
    def of(perturbed: Tensor) -> Tensor:
        return SegmentDistance()(
            Rows(rows.images, rows.segments, torch.tensor([1]), rows.visible[:1], perturbed, rows.counts[3:4])
        )

    x = rows.images[1:]
    assert torch.equal(of(x), torch.ones(1, 9))
    assert torch.allclose(of((x < 0.5).double()), torch.zeros(1, 9), atol=1e-6)


def test_the_pixel_cosine_kernel_by_hand(rows):
    for r, weight in enumerate(PixelCosineKernel(0.1)(rows).tolist()):
        x, y = rows.images[rows.image_of[r]].flatten().numpy(), rows.perturbed[r].flatten().numpy()
        cosine = x @ y / math.sqrt((x @ x) * (y @ y))
        assert weight == pytest.approx(math.exp(-((1 - cosine) ** 2) / (2 * 0.01)), abs=1e-9)


def test_a_black_image_lies_at_distance_1_in_pixels(rows):
    black = Rows(
        rows.images,
        rows.segments,
        torch.tensor([1]),
        rows.visible[:1],
        torch.zeros(1, 3, 12, 12).double(),
        rows.counts[:1],
    )
    assert float(PixelCosineKernel(0.5)(black)) == pytest.approx(math.exp(-2))


def test_the_cosine_kernel_by_hand(rows):
    for r, weight in enumerate(CosineKernel(0.3)(rows).tolist()):
        z = rows.visible[r, : int(rows.counts[r])].double().numpy()
        cosine = z.sum() / (np.linalg.norm(z) * math.sqrt(len(z))) if z.any() else 0
        assert weight == pytest.approx(math.exp(-((1 - cosine) ** 2) / (2 * 0.09)), abs=1e-9)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 60])
def test_a_block_gives_back_the_on_off_features_it_packed(width):
    z = torch.rand(2, 5, width, generator=seeded(1)) < 0.5
    block = Block.of(z, torch.zeros(2, 5), torch.zeros(2, 5))
    assert block.features.nbytes == 10 * -(-width // 8)
    assert torch.equal(block.design(), torch.cat([torch.ones(2, 5, 1), z], -1).double())


def test_a_block_keeps_real_features_as_they_are():
    z = torch.rand(2, 5, 7, generator=seeded(1))
    design = Block.of(z, torch.zeros(2, 5), torch.zeros(2, 5)).design()
    assert torch.equal(design[..., 1:], z.double())


def test_full_input_samples_with_real_features_give_finite_coefficients(convnet, rgb, targets):
    pomelo = Lime(
        Grid(3),
        Toggle(UniformNoise(), keep=0.0, whole_first=False),
        SegmentDistance(),
        PixelCosineKernel(),
        samples=100,
    )
    run = pomelo.explain(convnet, rgb, targets)
    assert bool(run.coefficients.isfinite().all())
    assert bool((run.coefficients != 0).all())
    assert bool((run.standard_errors > 0).all())


def test_real_features_of_a_model_that_is_linear_in_them_are_found():
    images = torch.zeros(1, 1, 6, 6)  # black: r = 1 - mean of the noise in a superpixel
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0])
    segments = Grid(2)(images)
    of_class = to_pixels(weight[None], segments) / 9
    model = Linear(torch.stack([of_class, -of_class]), torch.zeros(2))
    lime = Lime(
        Grid(2),
        Toggle(UniformNoise(), keep=0.0, whole_first=False),
        SegmentDistance(),
        CosineKernel(),
        100,
        ridge=0.0,
        output="logit",
    )
    run = lime.explain(model, images, torch.tensor([0]))
    assert torch.allclose(run.coefficients[0], -weight.double(), atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ KernelSHAP


def shapley_values(value, d: int) -> np.ndarray:
    """Exact, by enumeration of the coalitions."""
    out = np.zeros(d)
    for j in range(d):
        others = [k for k in range(d) if k != j]
        for size in range(d):
            share = math.factorial(size) * math.factorial(d - size - 1) / math.factorial(d)
            for members in itertools.combinations(others, size):
                out[j] += share * (value((*members, j)) - value(members))
    return out


@pytest.fixture
def game(model, images):
    """An image of six superpixels, its value function, and KernelSHAP on it."""
    image = images[:1]
    segments = Grid(6)(image) // 6  # six stripes
    filled = SegmentMean().background(image, segments)

    def value(members) -> float:
        keep = torch.isin(segments, torch.tensor(members, dtype=torch.long))[:, None]
        with torch.no_grad():
            return float(model(torch.where(keep, image, filled))[0, 1])

    shap = Lime(perturbation=Coalitions(), kernel=ShapleyKernel(), samples=2000, ridge=0.0, output="logit")
    return value, shap.explain(model, image, torch.tensor([1]), segments=segments)


def test_kernel_shap_sums_to_the_difference_of_the_outputs(game):
    value, run = game
    assert float(run.coefficients.sum()) == pytest.approx(value(range(6)) - value(()), abs=1e-4)
    assert float(run.intercept) == pytest.approx(value(()), abs=1e-4)


def test_kernel_shap_tends_to_the_shapley_values(game):
    value, run = game
    exact = torch.from_numpy(shapley_values(value, 6))
    assert float(exact.abs().max()) > 0.05
    assert bool(((run.coefficients[0] - exact).abs() < 5 * run.standard_errors[0]).all())
    assert float(run.standard_errors.max()) < 0.2 * float(exact.abs().max())


@pytest.mark.peers
def test_shapley_values_by_enumeration_are_captums(game, model, images):
    captum = pytest.importorskip("captum.attr")
    image, segments = images[:1], Grid(6)(images[:1]) // 6
    peer = captum.ShapleyValues(model).attribute(
        image,
        baselines=SegmentMean().background(image, segments),
        target=1,
        feature_mask=segments[:, None],
    )
    by_captum = torch.stack([peer[0, 0][segments[0] == j][0] for j in range(6)]).double()
    assert np.allclose(by_captum.numpy(), shapley_values(game[0], 6), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- auto


class Steps(nn.Module):
    """Six superpixels of nine are evidence, each by another amount, with a little interaction."""

    def forward(self, x: Tensor) -> Tensor:
        cells = nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 3).flatten(1)
        amounts = torch.tensor([9.0, 7, 5, 3, 2, 1, 0, 0, 0], dtype=x.dtype)
        logit = (cells * amounts).sum(1) + 0.3 * cells[:, 0] * cells[:, 1]
        return torch.stack([logit, torch.zeros_like(logit)], 1)


@pytest.fixture
def bright() -> Tensor:
    return torch.ones(2, 1, 12, 12, dtype=torch.float64)


def auto(**options) -> Lime:
    return Lime(**{**LEAST_SQUARES, "perturbation": Toggle(Colour(0.0)), "samples": "auto", **options})


def test_an_easy_model_is_settled_at_the_first_look(bright):
    run = auto().explain(Steps(), bright, torch.tensor([0, 0]))
    assert run.samples.tolist() == [256, 256]
    assert bool(run.settled.all())


def test_details_say_how_many_samples_it_took_and_whether_it_settled(bright):
    _, details = auto().with_details(Steps(), bright, torch.tensor([0, 0]))
    assert details["samples"].tolist() == [256.0, 256.0]
    assert details["settled"].tolist() == [1.0, 1.0]
    assert "settled" not in auto(samples=100).with_details(Steps(), bright, torch.tensor([0, 0]))[1]


def test_a_constant_model_reaches_the_cap(bright):
    for logit in (0.0, 0.3):
        run = auto(cap=700, output="probability").explain(
            lambda x, c=logit: torch.full((len(x), 3), c, dtype=x.dtype) * torch.arange(3), bright, torch.tensor([1, 1])
        )
        assert run.samples.tolist() == [700, 700]
        assert not bool(run.settled.any())


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_a_model_whose_superpixels_are_tied_reaches_the_cap(bright, ridge):
    def product(x: Tensor) -> Tensor:
        return two_logits(nn.functional.adaptive_avg_pool2d(x, 3).flatten(1).square().sum(1).square())

    run = auto(cap=700, ridge=ridge).explain(product, bright, torch.tensor([0, 0]))
    assert run.samples.tolist() == [700, 700]
    assert not bool(run.settled.any())


def test_auto_is_the_run_of_as_many_samples_and_does_not_depend_on_the_batch(model, images, targets):
    lime = Lime(Grid(3), samples="auto", cap=1500)
    rng = SampleRng(3, (5, 8, 1, 9, 0))
    segments = torch.cat([Grid(4)(images[:1]), Grid(3)(images[1:])])
    whole = lime.explain(model, images, targets, rng, segments)
    assert len(set(whole.samples.tolist())) > 1
    for i, (n, d) in enumerate(zip(whole.samples.tolist(), whole.counts.tolist(), strict=True)):
        args = model, images[[i]], targets[[i]], rng.take([i]), segments[[i]]
        for alone in (lime.explain(*args), Lime(Grid(3), samples=n).explain(*args)):
            assert int(alone.samples[0]) == n
            assert torch.allclose(whole.coefficients[i, :d], alone.coefficients[0], rtol=0, atol=1e-9)
            assert torch.allclose(whole.covariance[i, : d + 1, : d + 1], alone.covariance[0], rtol=1e-6, atol=1e-12)
            assert torch.allclose(whole.r2[i], alone.r2[0])


@pytest.mark.parametrize(("cap", "looks"), [(2000, [256, 512, 1024, 2000]), (1024, [256, 512, 1024]), (200, [200])])
def test_samples_double_from_look_to_look_and_share_the_level(bright, monkeypatch, cap, looks):
    seen, levels = [], []
    monkeypatch.setattr(
        module, "fit", lambda blocks, *a: seen.append(sum(b.weight.shape[1] for b in blocks)) or fit(blocks, *a)
    )
    monkeypatch.setattr(module, "is_settled", lambda t, v, d, level: bool(levels.append(level)))
    auto(cap=cap).explain(Steps(), bright[:1], torch.tensor([0]))
    assert seen == looks
    assert levels == pytest.approx([1 - 0.05 / len(looks)] * len(looks))


def test_the_cap_need_not_be_a_multiple_of_a_block(bright):
    run = auto(cap=300).explain(lambda x: torch.zeros(len(x), 2, dtype=x.dtype), bright, torch.tensor([0, 0]))
    assert run.samples.tolist() == [300, 300]
    run = auto(cap=100).explain(Steps(), bright, torch.tensor([0, 0]))
    assert run.samples.tolist() == [100, 100]


@pytest.mark.parametrize("side", [16, 17])
def test_as_many_samples_as_parameters_settle_nothing(side):
    images = torch.rand(1, 1, 15, side, generator=seeded(3), dtype=torch.float64)
    pixels = torch.arange(15 * side).view(1, 15, side)  # 256 parameters meet 256 samples at the first look for side 17

    def rugged(x: Tensor) -> Tensor:
        return two_logits(torch.sin(1000 * x.sum((1, 2, 3))))

    run = auto(cap=500).explain(rugged, images, torch.tensor([0]), segments=pixels)
    assert int(run.samples[0]) == 500
    assert not bool(run.settled[0])
    exact = Lime(**LEAST_SQUARES, samples=15 * side + 1).explain(rugged, images, torch.tensor([0]), segments=pixels)
    assert bool(exact.standard_errors.isnan().all())
    assert not bool(exact.settled[0])


def test_settled_means_that_every_top_coefficient_exceeds_every_other_one():
    theta = torch.tensor([0.0, 6, 5, 4, 3, 2, 1.0, 0.5], dtype=torch.float64)
    covariance = torch.eye(8, dtype=torch.float64) * 0.18  # the closest gap is 1, its standard error .6
    assert is_settled(theta, covariance, 7, 0.95)  # 1 > 1.645 * .6
    assert not is_settled(theta, covariance, 7, 0.96)
    assert not is_settled(theta, 2 * covariance, 7, 0.95)
    assert is_settled(theta, 100 * covariance, 5, 0.95)  # five superpixels have no other
    together = 2 * covariance + 10  # errors that all share do not change the order
    assert not is_settled(theta, together, 7, 0.95)
    assert is_settled(theta, covariance + 10, 7, 0.95)


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(message: str, call, *args, **kwargs) -> None:
    with pytest.raises(UsageError, match=message) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_one_superpixel_is_refused_by_the_samples_number(model, images, targets):
    rng = SampleRng(0, (5, 8, 1, 9, 0))
    segments = torch.cat([Grid(3)(images[:2]), Grid(1)(images[2:])])
    refused("sample 1 has one superpixel", GRID.explain, model, images, targets, rng, segments)


@pytest.mark.parametrize("samples", [9, "auto"])
def test_fewer_samples_than_superpixels_are_refused(model, images, targets, samples):
    lime = Lime(Grid(3), samples=samples, cap=9)
    refused("9 samples cannot fit 9 superpixels of sample 0", lime, model, images, targets)


@pytest.mark.parametrize("kernel", [CosineKernel(0.0), CosineKernel(-1.0), PixelCosineKernel(0.0)], ids=str)
def test_a_kernel_without_width_is_refused(model, images, targets, kernel):
    refused("bandwidth. must be positive", Lime(Grid(3), kernel=kernel, samples=20), model, images, targets)


def test_superpixels_that_always_vary_together_are_refused_without_ridge(model, images, targets):
    masks = mask_of(1, 60, 9, batch=5)
    masks[3, :, 7] = masks[3, :, 2]
    refused("image 3 .* singular", Lime(**LEAST_SQUARES).explain, model, images, targets, masks=masks)
    run = Lime(Grid(3), ridge=1.0).explain(model, images, targets, masks=masks)
    assert torch.isclose(run.coefficients[3, 7], run.coefficients[3, 2])


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_a_kernel_so_narrow_that_weights_vanish_is_refused_without_ridge(model, images, targets, ridge):
    lime = Lime(Grid(3), kernel=CosineKernel(1e-4), samples=50, ridge=ridge)
    if ridge:
        assert bool(lime(model, images, targets).isfinite().all())
    else:
        refused("singular", lime, model, images, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"samples": 0}, "positive number or auto"),
        ({"samples": "many"}, "positive number or auto"),
        ({"perturbation": Toggle(keep=1.5)}, "must lie in"),
        ({"output": "odds"}, "logit or probability"),
        ({"precision": "half"}, "float32 or bf16"),
        ({"max_batch": 0}, "max_batch"),
    ],
    ids=str,
)
def test_parameters_that_mean_nothing_are_refused(model, images, targets, options, message):
    refused(message, Lime(**{"segments": Grid(3), "samples": 30, **options}), model, images, targets)


def test_superpixels_of_another_shape_are_refused(unchecked, model, images, targets):
    wrong = torch.zeros(5, 12, 11, dtype=torch.long)
    refused("do not belong", GRID.explain, model, images, targets, segments=wrong)
    refused("do not belong", GRID.explain, model, images, targets, segments=Grid(3)(images[:1]))


def test_masks_of_too_few_superpixels_are_refused(model, images, targets):
    refused("masks of 8 superpixels", GRID.explain, model, images, targets, masks=mask_of(1, 30, 8, batch=5))


def test_the_on_off_representation_is_the_mask(rows):
    assert torch.equal(OnOff()(rows), rows.visible)

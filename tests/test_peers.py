"""The same numbers from other people's implementations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from lit_xai.explainers import (
    AbsoluteIntegratedGradients,
    Captum,
    GradCAM,
    GradCAMPlusPlus,
    GradientInput,
    GradientShap,
    IntegratedGradients,
    Saliency,
)
from lit_xai.explainers.gradient import draws
from lit_xai.fillers.constant import Colour
from lit_xai.metrics import Deletion, MuFidelity, map_distance
from lit_xai.metrics.distance import average_ranks, scaled_to_one
from lit_xai.rng import SampleRng
from scipy import spatial, stats
from torch import Tensor, nn

from conftest import Linear, seeded

pytestmark = pytest.mark.peers


@pytest.fixture
def grey_maps() -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(4, 9, 9, generator=seeded(s), dtype=torch.float64) for s in (1, 2))


# --------------------------------------------------------------------------------------------------------------- captum


@pytest.fixture
def captum():
    return pytest.importorskip("captum.attr")


def attributed(peer, images: Tensor, targets: Tensor, **options) -> Tensor:
    return peer.attribute(images.clone().requires_grad_(), target=targets, **options).detach()


def test_saliency_equals_captums(captum, convnet, rgb, targets):
    expected = attributed(captum.Saliency(convnet), rgb, targets).amax(1)
    assert torch.allclose(Saliency()(convnet, rgb, targets), expected, atol=1e-7)


def test_signed_gradient_input_equals_captums(captum, convnet, rgb, targets):
    expected = attributed(captum.InputXGradient(convnet), rgb, targets).mean(1)
    assert torch.allclose(GradientInput(signed=True)(convnet, rgb, targets), expected, atol=1e-7)


def test_integrated_gradients_equal_captums_up_to_its_sum_of_weights(captum, convnet, rgb, targets):
    model, images = convnet.double(), rgb.double()
    expected = attributed(
        captum.IntegratedGradients(model), images, targets, n_steps=60, method="riemann_trapezoid"
    ).mean(1)
    result = IntegratedGradients(steps=60)(model, images, targets)
    assert torch.allclose(result, expected * 60 / 59, rtol=0, atol=1e-9)  # captum's weights sum to 59 / 60


def test_absolute_integrated_gradients_equal_the_mean_over_channels_of_captums_absolute_values(
    captum, convnet, rgb, targets
):
    model, images = convnet.double(), rgb.double()
    peer = captum.IntegratedGradients(model)
    signed = attributed(peer, images, targets, n_steps=60, method="riemann_trapezoid") * 60 / 59
    result = AbsoluteIntegratedGradients(steps=60)(model, images, targets)
    assert torch.allclose(result, signed.abs().mean(1), rtol=0, atol=1e-9)
    assert not torch.allclose(result, signed.mean(1).abs(), rtol=0, atol=1e-3)  # channels do not cancel each other


def test_gradient_shap_equals_captums_of_the_same_draws(monkeypatch, captum, convnet, rgb, targets):
    model, images, rng, samples = convnet.double(), rgb.double(), SampleRng(3, (5, 6, 7, 8, 9)), 6
    keys = rng.noise("gradient_shap")[:, None].part(torch.arange(samples)).reshape(-1)
    z, alpha, which = draws(keys, images, 3)
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * z)
    monkeypatch.setattr(np.random, "uniform", lambda *_: alpha.numpy())
    monkeypatch.setattr(np.random, "choice", lambda *_: which.numpy())
    baselines = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 3, 12, 12)
    expected = attributed(
        captum.GradientShap(model), images, targets, n_samples=samples, stdevs=0.1, baselines=baselines
    )
    ours = GradientShap(samples=samples, baselines=(0.0, 0.3, 1.0), max_batch=4)
    assert torch.allclose(ours(model, images, targets, rng), expected.mean(1), rtol=0, atol=1e-9)


def test_what_captum_draws_through_the_adapter_belongs_to_the_sample(convnet, rgb, targets):
    theirs, rng = Captum("GradientShap", options={"n_samples": 3, "stdevs": 0.1}), SampleRng(3, (5, 6, 7, 8, 9))
    whole = theirs(convnet, rgb, targets, rng)
    assert torch.allclose(whole[1:2], theirs(convnet, rgb[1:2], targets[1:2], rng.take([1])), atol=1e-6)
    assert not torch.allclose(whole, theirs(convnet, rgb, targets, SampleRng(4, rng.samples)), atol=1e-4)


def test_deep_lift_through_the_adapter_equals_captums(captum, convnet, rgb, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = attributed(captum.DeepLift(convnet), rgb, targets).mean(1)
        result = Captum("DeepLift")(convnet, rgb, targets)
    assert torch.allclose(result, expected, atol=1e-6)


def test_a_layer_method_through_the_adapter_is_enlarged_to_the_image(captum, convnet, rgb, targets):
    small = captum.LayerGradCam(convnet, convnet[4]).attribute(rgb, targets).detach()
    expected = nn.functional.interpolate(small, size=(12, 12), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(Captum("LayerGradCam", layer="4")(convnet, rgb, targets), expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- grad-cam


@pytest.mark.parametrize(("kind", "peer"), [(GradCAM, "GradCAM"), (GradCAMPlusPlus, "GradCAMPlusPlus")])
def test_class_activation_maps_equal_pytorch_grad_cams(convnet, rgb, targets, kind, peer):
    cam = pytest.importorskip("pytorch_grad_cam")
    outputs = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    with torch.no_grad():
        convnet[-1].weight *= 1000  # so that its epsilon of 1e-6 does not matter
    with getattr(cam, peer)(model=convnet, target_layers=[convnet[4]]) as method:
        expected = method(input_tensor=rgb, targets=[outputs.ClassifierOutputTarget(int(t)) for t in targets])
    maps = kind()(convnet, rgb, targets)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    interesting = (high > 0).flatten()
    assert int(interesting.sum()) >= 2
    # it scales before it enlarges (with cv2), and we do not scale: compare where both have an order
    for ours, theirs in zip(((maps - low) / high.clamp_min(1e-9))[interesting], expected[interesting], strict=True):
        assert np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] > 0.999


# -------------------------------------------------------------------------------------------------------------- quantus


@pytest.mark.parametrize("grid", [None, 7])
def test_mufidelity_equals_scipys_correlation_over_the_same_subsets(convnet, rgb, targets, grid):
    model, images, rng = convnet.double(), rgb.double(), SampleRng(3, (5, 6, 7, 8, 9))
    maps = torch.randn(5, 12, 12, generator=seeded(4), dtype=torch.float64)
    score = MuFidelity(subsets=25, grid=grid)
    for how, peer in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        result = MuFidelity(subsets=25, grid=grid, correlation=how)(model, images, maps, targets, rng)
        for row in range(5):
            sums, drops = [], []
            for removed in score.removed(score.noise(rng)[row].parts(25), 12, 12):
                with torch.no_grad():
                    pair = model(torch.stack([images[row], images[row] * ~removed]))[:, targets[row]]
                sums.append(float(maps[row][removed].sum()))
                drops.append(float(pair[0] - pair[1]))
            assert float(result[row]) == pytest.approx(peer(sums, drops).statistic, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.8])
def test_deletion_curve_equals_quantus_pixel_flipping(linear, rgb, targets, value):
    quantus = pytest.importorskip("quantus")
    model, images = (
        Linear(linear.weight.detach()[:, :1], linear.bias.detach()).eval(),
        rgb[:, :1],
    )  # it flips channels one by one
    maps = torch.randn(5, 12, 12, generator=seeded(4))
    metric = quantus.PixelFlipping(
        features_in_step=12,
        perturb_baseline=value,  # its "black" is the smallest value it finds
        normalise=False,
        abs=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    curves = metric(
        model=model,
        x_batch=images.numpy(),
        y_batch=targets.numpy(),
        a_batch=maps[:, None].numpy(),
        device="cpu",
        softmax=True,
    )
    score = Deletion(filler=Colour(value))
    assert np.allclose(score.curve(model, images, maps, targets)[:, 1:], np.array(curves), atol=1e-5)
    with torch.no_grad():  # its curve starts after the first step
        start = model(images).softmax(1).gather(1, targets[:, None]).numpy()
    area = np.trapezoid(np.hstack([start, curves]), dx=1 / 12, axis=1)
    assert np.allclose(score(model, images, maps, targets), area, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- scipy, skimage


@pytest.mark.parametrize("levels", [None, 5, 2])
def test_spearman_equals_scipys(grey_maps, levels):
    a, b = grey_maps if levels is None else ((m * levels / 4).round() for m in grey_maps)
    expected = [
        1 - abs(stats.spearmanr(x.flatten(), y.flatten()).statistic) for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert map_distance(a, b).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("levels", [1, 3, 100])
def test_average_ranks_equal_scipys(levels):
    values = (torch.rand(6, 200, generator=seeded(5)) * levels).floor()
    assert np.array_equal(average_ranks(values.numpy()), stats.rankdata(values, axis=1) - 1)


def test_ssim_equals_scikit_images(grey_maps):
    skimage = pytest.importorskip("skimage.metrics")
    a, b = (scaled_to_one(m) for m in grey_maps)
    expected = [
        1 - skimage.structural_similarity(x, y, win_size=5, data_range=2)
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    # the same window inside the borders
    assert map_distance(*grey_maps, "ssim").tolist() == pytest.approx(expected, abs=1e-9)


def test_wasserstein_equals_scipys():
    a, b = (torch.randn(2, 6, 6, generator=seeded(s)) for s in (1, 2))
    where = np.stack(np.meshgrid(range(6), range(6), indexing="ij"), -1).reshape(-1, 2)
    expected = [
        stats.wasserstein_distance_nd(where, where, x.abs().flatten().numpy(), y.abs().flatten().numpy())
        for x, y in zip(a, b, strict=True)
    ]
    assert map_distance(a, b, "wasserstein").tolist() == pytest.approx(expected, abs=1e-6)


def test_dice_equals_scipys(grey_maps):
    inside = [scaled_to_one(m).abs().flatten(1).numpy() > 0.5 for m in grey_maps]
    expected = [spatial.distance.dice(x, y) for x, y in zip(*inside, strict=True)]
    assert map_distance(*grey_maps, "dice").tolist() == pytest.approx(expected, abs=1e-12)

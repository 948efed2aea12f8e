"""Standard scores as captum, quantus and scipy compute them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from lit_xai.calls import Gate
from lit_xai.core import Explainer
from lit_xai.explainers import RISE, GradientInput, Saliency, SmoothGrad
from lit_xai.fillers import Blur, Colour, NoisyLinear
from lit_xai.metrics import ClassSensitivity, Complexity, Infidelity, MaxSensitivity, Sparseness
from lit_xai.metrics.distance import scaled_to_one
from lit_xai.rng import SampleRng
from scipy import stats
from torch import Tensor, nn

from conftest import seeded

pytestmark = pytest.mark.peers

RNG = SampleRng(3, (5, 6, 7, 8, 9))
QUIET = {"disable_warnings": True, "display_progressbar": False}


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus")


@pytest.fixture
def captum():
    return pytest.importorskip("captum.metrics")


@pytest.fixture
def maps() -> Tensor:
    return torch.randn(5, 12, 12, generator=seeded(4), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- sparseness, complexity


@pytest.mark.parametrize(("kind", "within"), [("Sparseness", 1e-5), ("Complexity", 1e-9)])
def test_sparseness_and_complexity_equal_quantus(quantus, rgb, targets, maps, kind, within):
    ours = {"Sparseness": Sparseness(), "Complexity": Complexity()}[kind]
    metric = getattr(quantus, kind)(abs=True, normalise=False, **QUIET)
    theirs = metric(model=None, x_batch=rgb.numpy(), y_batch=targets.numpy(), a_batch=maps[:, None].numpy())
    assert np.abs(ours.of(maps).numpy() - theirs).max() < within


def test_sparseness_is_the_area_between_the_lorenz_curve_and_the_diagonal(maps):
    shares = np.sort(maps.abs().flatten(1).numpy(), axis=1)
    lorenz = np.hstack([np.zeros((5, 1)), shares.cumsum(1) / shares.sum(1, keepdims=True)])
    expected = 1 - 2 * np.trapezoid(lorenz, dx=1 / 144, axis=1)
    assert np.abs(Sparseness().of(maps).numpy() - expected).max() < 1e-12


def test_complexity_equals_scipys_entropy(maps):
    expected = stats.entropy(maps.abs().flatten(1).numpy(), axis=1)
    assert np.abs(Complexity().of(maps).numpy() - expected).max() < 1e-12


def test_quantus_offset_makes_a_faint_map_dense_and_ours_does_not(quantus, rgb, targets, maps):
    faint = maps * 1e-8
    metric = quantus.Sparseness(abs=True, normalise=False, **QUIET)
    theirs = metric(model=None, x_batch=rgb.numpy(), y_batch=targets.numpy(), a_batch=faint[:, None].numpy())
    assert max(theirs) < 0.1 < float(Sparseness().of(faint).min())
    assert torch.allclose(Sparseness().of(faint), Sparseness().of(maps), rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- max-sensitivity


@pytest.mark.parametrize(
    "explainer", [Saliency(), GradientInput(signed=True), SmoothGrad(samples=3), RISE(masks=9)], ids=repr
)
def test_max_sensitivity_equals_captums_of_the_same_perturbations(captum, convnet, rgb, targets, explainer: Explainer):
    model, images, score = convnet.double(), rgb.double(), MaxSensitivity(draws=4, radius=0.1)
    moved = score.questions(Gate.of(model), images, targets, RNG)[0].transpose(0, 1).flatten(0, 1)

    def explain(x: Tensor | tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        x = x[0] if isinstance(x, tuple) else x
        rows = [row for row in range(5) for _ in range(len(x) // 5)]
        return (explainer(model, x, target, RNG.take(rows))[:, None],)  # a sample's own noise

    theirs = captum.sensitivity_max(explain, images, lambda x: moved, n_perturb_samples=4, target=targets)
    maps = explainer(model, images, targets, RNG)
    ours = score(model, images, maps, targets, RNG, score.again(explainer, model, images, targets, RNG))
    assert float(ours.min()) > 1e-3
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ class sensitivity


@pytest.fixture
def two_classes(convnet) -> nn.Module:
    """A network of which the other class is certain."""
    net = copy.deepcopy(convnet)
    net[-1] = nn.Linear(24, 2)
    with torch.no_grad():
        net[-1].weight.copy_(torch.randn(2, 24, generator=seeded(5)))
    return net.eval()


def test_class_sensitivity_equals_quantus_random_logit(quantus, two_classes, rgb):
    from quantus.functions.similarity_func import correlation_spearman

    targets = torch.tensor([0, 1, 1, 0, 1])
    explainer, score = GradientInput(signed=True), ClassSensitivity()

    def explain(model, inputs, targets, **_):
        return explainer(model, torch.as_tensor(inputs), torch.as_tensor(targets))[:, None].numpy()

    maps = explainer(two_classes, rgb, targets, RNG)
    metric = quantus.RandomLogit(
        similarity_func=correlation_spearman, num_classes=2, abs=False, normalise=False, **QUIET
    )
    theirs = metric(
        model=two_classes,
        x_batch=rgb.numpy(),
        y_batch=targets.numpy(),
        a_batch=maps[:, None].numpy(),
        explain_func=explain,
        device="cpu",
    )
    observed = score.again(explainer, two_classes, rgb, targets, RNG)
    ours = score(two_classes, rgb, maps, targets, RNG, observed)
    assert np.abs(ours.numpy() - theirs).max() < 1e-9
    expected = [stats.spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps, observed[:, 0], strict=True)]
    assert np.abs(ours.numpy() - expected).max() < 1e-9


def test_class_sensitivity_by_ssim_equals_scikit_images(convnet, rgb, targets, maps):
    skimage = pytest.importorskip("skimage.metrics")
    other = maps + 0.5 * torch.randn(5, 12, 12, generator=seeded(6), dtype=torch.float64)
    ours = ClassSensitivity("ssim")(convnet, rgb, maps, targets, RNG, other[:, None])
    a, b = (scaled_to_one(m).numpy() for m in (maps, other))
    expected = [skimage.structural_similarity(x, y, win_size=5, data_range=2) for x, y in zip(a, b, strict=True)]
    assert np.abs(ours.numpy() - expected).max() < 1e-9


# ------------------------------------------------------------------------------------------------------------- infidelity


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("filler", [Colour(0.0), Blur(kernel=61, sigma=40.0)], ids=repr)
def test_infidelity_equals_captums_of_the_same_windows(captum, convnet, rgb, targets, maps, scaled, filler):
    model, images = convnet.double(), rgb.double()
    score = Infidelity(subsets=20, scaled=scaled, filler=filler)
    removed = score.removed(score.noise(RNG).parts(score.subsets), *images.shape[-2:])

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        gone = filler(images, ~removed, RNG)[:, :, 0].flatten(0, 1)
        return removed.flatten(0, 1)[:, None].expand_as(x).double(), gone

    evidence = torch.zeros_like(images)  # a map's values, split over the channels
    evidence += maps[:, None] / 3
    theirs = captum.infidelity(
        model, perturb, images, evidence, target=targets, n_perturb_samples=20, normalize=scaled
    ).detach()
    ours = score(model, images, maps, targets, RNG)
    assert float(ours.min()) > 1e-6
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------------- road


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_noisy_linear_imputation_equals_quantus_without_noise(quantus, share):
    from quantus.functions.perturb_func import noisy_linear_imputation

    image = torch.rand(3, 14, 17, generator=seeded(1), dtype=torch.float64)
    hidden = torch.rand(14, 17, generator=seeded(2)) < share
    hidden[:6, 3:9] = True  # a hole at the border, beside single pixels
    theirs = noisy_linear_imputation(image.numpy(), np.flatnonzero(hidden.numpy()), noise=0.0)
    ours = NoisyLinear(noise=0.0)(image[None], ~hidden[None, None], SampleRng(0, (0,)))[0, 0, 0]
    assert np.abs(ours.numpy() - theirs).max() < 1e-5

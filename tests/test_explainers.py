"""Explainers against closed forms on a linear model, hand computation, and each other's limits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_xai.cli.compose import compose
from lit_xai.cli.schema import top_level
from lit_xai.errors import UsageError
from lit_xai.explainers import (
    RISE,
    AbsoluteIntegratedGradients,
    Captum,
    GradCAM,
    GradCAMPlusPlus,
    GradientInput,
    GradientShap,
    IntegratedGradients,
    Random,
    Saliency,
    SmoothGrad,
)
from lit_xai.explainers.gradient import draws, input_gradient
from lit_xai.explainers.rise import enlargement
from lit_xai.fitting import describe
from lit_xai.rng import SampleRng
from torch import nn

from conftest import Linear, seeded, two_logits

EVERY = {
    "saliency": Saliency(),
    "gradient_input": GradientInput(),
    "integrated_gradients": IntegratedGradients(steps=5, max_batch=4),
    "smoothgrad": SmoothGrad(samples=4, max_batch=3),
    "gradient_shap": GradientShap(samples=4, max_batch=3),
    "gradcam": GradCAM(),
    "gradcam_plus_plus": GradCAMPlusPlus(),
    "rise": RISE(masks=9, grid=3, max_batch=4),
    "random": Random(),
    "captum": Captum("InputXGradient"),
}
every_explainer = pytest.mark.parametrize("explainer", EVERY.values(), ids=EVERY)


def weights_of(model: Linear, targets: torch.Tensor) -> torch.Tensor:
    return model.weight.detach()[targets]


# ---------------------------------------------------------------------------------------------- closed forms: gradients


def test_saliency_of_a_linear_model_is_the_largest_absolute_weight_over_channels(linear, rgb, targets):
    assert torch.equal(Saliency()(linear, rgb, targets), weights_of(linear, targets).abs().amax(1))


def test_gradient_input_of_a_linear_model_is_the_mean_of_x_times_absolute_weight(linear, rgb, targets):
    expected = (rgb * weights_of(linear, targets).abs()).mean(1)
    assert torch.allclose(GradientInput()(linear, rgb, targets), expected, atol=1e-7)


def test_signed_gradient_input_of_a_linear_model_is_the_mean_of_x_times_weight(linear, rgb, targets):
    expected = (rgb * weights_of(linear, targets)).mean(1)
    assert torch.allclose(GradientInput(signed=True)(linear, rgb, targets), expected, atol=1e-7)


@pytest.mark.parametrize("how", ["mean", "max", "sum"])
def test_channel_reductions_are_what_their_names_say(linear, rgb, targets, how):
    expected = {"mean": torch.mean, "max": torch.amax, "sum": torch.sum}[how](weights_of(linear, targets).abs(), dim=1)
    assert torch.allclose(Saliency(channels=how)(linear, rgb, targets), expected, atol=1e-6)


def test_probability_output_has_the_gradient_of_the_softmax(linear, rgb, targets):
    small = Linear(linear.weight.detach() / 20, linear.bias.detach())
    p = small(rgb).softmax(1).detach()
    gradient = weights_of(small, targets) - torch.einsum("bk,kchw->bchw", p, small.weight.detach())
    expected = p.gather(1, targets[:, None])[:, :, None, None] * gradient
    result = input_gradient(small, rgb, targets, "probability")
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_integrated_gradients_of_a_linear_model_are_weight_times_difference(linear, rgb, targets, baseline):
    result = IntegratedGradients(steps=7, baseline=baseline)(linear, rgb, targets)
    expected = ((rgb - baseline) * weights_of(linear, targets)).mean(1)
    assert torch.allclose(result, expected, atol=1e-5)


def test_integrated_gradients_of_a_linear_model_sum_to_the_difference_of_the_outputs(linear, rgb, targets):
    maps = IntegratedGradients(steps=3, channels="sum")(linear.double(), rgb.double(), targets)
    outputs = linear(rgb.double()) - linear(torch.zeros_like(rgb).double())
    assert torch.allclose(maps.sum((1, 2)), outputs.gather(1, targets[:, None])[:, 0], atol=1e-10)


def test_absolute_integrated_gradients_leave_what_signed_ones_are_described_as_alone():
    signed, absolute = describe(IntegratedGradients()), describe(AbsoluteIntegratedGradients())
    assert signed == {
        "name": "IntegratedGradients",
        "steps": 60,
        "baseline": 0.0,
        "output": "logit",
        "channels": "mean",
    }
    assert absolute == {**signed, "name": "AbsoluteIntegratedGradients"}


@pytest.mark.parametrize("experiment", ["fashion_mnist", "degradation"])
def test_the_protocols_of_fel_et_al_take_absolute_integrated_gradients(experiment):
    assert "absolute_integrated_gradients" in compose("train", [f"experiment={experiment}"]).explainer


def test_without_a_protocol_integrated_gradients_are_signed():
    assert {"integrated_gradients"} == {name for name in top_level("explainer") if "integrated" in name}


def test_integrated_gradients_weigh_both_ends_by_half(rgb):
    def cubic(x):
        return two_logits((x**3).sum((1, 2, 3)))

    # gradient 3 t^2 x^2 at t = 0, 1/2, 1 with weights 1/4, 1/2, 1/4: x * 3 x^2 (1/8 + 1/4)
    result = IntegratedGradients(steps=3, channels="sum")(cubic, rgb, torch.zeros(5, dtype=torch.long))
    assert torch.allclose(result, (1.125 * rgb**3).sum(1), atol=1e-6)


def test_integrated_gradients_of_a_network_approach_completeness(convnet, rgb, targets):
    model, images = convnet.double(), rgb.double()
    maps = IntegratedGradients(steps=400, channels="sum", max_batch=500)(model, images, targets)
    with torch.no_grad():
        outputs = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(maps.sum((1, 2)), outputs, rtol=0.01, atol=1e-3)


def test_smoothgrad_of_a_linear_model_is_its_weight(linear, rgb, targets):
    expected = weights_of(linear, targets).mean(1)
    assert torch.allclose(SmoothGrad(samples=3)(linear, rgb, targets), expected, atol=1e-6)


def test_smoothgrad_without_noise_is_the_gradient(convnet, rgb, targets):
    expected = input_gradient(convnet.double(), rgb.double(), targets).mean(1)
    result = SmoothGrad(samples=5, sigma=0.0)(convnet, rgb.double(), targets)
    assert torch.allclose(result, expected, atol=1e-12)


def test_smoothgrad_averages_the_gradient_over_noise_of_its_sigma():
    def quadratic(x):
        return two_logits((x**2).sum((1, 2, 3)))

    images = torch.full((1, 1, 8, 8), 0.5)
    result = SmoothGrad(samples=1, sigma=0.3)(quadratic, images, torch.tensor([0]))
    noise = (result / 2 - 0.5) / 0.3  # gradient = 2 (x + sigma * noise)
    assert abs(float(noise.mean())) < 0.4
    assert 0.8 < float(noise.std()) < 1.2


def test_gradient_shap_of_a_linear_model_is_its_weight_times_the_way_from_the_baselines_drawn(linear, rgb, targets):
    z, _, which = draws(SampleRng.default(5).noise("gradient_shap")[:, None].parts(7).reshape(-1), rgb, 2)
    start = torch.tensor([0.2, 0.7])[which].view(-1, 1, 1, 1)
    way = (rgb.repeat_interleave(7, 0) + 0.3 * z - start).unflatten(0, (5, 7)).mean(1)
    maps = GradientShap(samples=7, sigma=0.3, baselines=[0.2, 0.7], channels="sum")(linear, rgb, targets)
    assert torch.allclose(maps, (weights_of(linear, targets) * way).sum(1), atol=1e-5)


def test_gradient_shap_without_noise_tends_to_integrated_gradients_as_its_points_do_to_a_uniform_sample():
    def quadratic(x):
        return two_logits((x**2).sum((1, 2, 3)) / 2)

    images, black = torch.rand(3, 1, 4, 4, generator=seeded(1), dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    n, exact = 3000, IntegratedGradients(steps=2)(quadratic, images, black)  # x^2 / 2: the trapezoid is exact
    share = GradientShap(samples=n, sigma=0.0)(quadratic, images, black) / exact  # 2 mean(alpha) at every pixel
    assert torch.allclose(share, share[:, :1, :1], rtol=1e-9)
    assert float((share - 1).abs().max()) < 3.5 * 2 / (12 * n) ** 0.5
    assert len(share[:, 0, 0].unique()) == 3  # every image has its own points


def test_the_sum_of_gradient_shap_is_in_expectation_the_difference_of_outputs(convnet, rgb):
    model, images = convnet.double(), rgb[:1].double()
    copies, target = images.expand(600, -1, -1, -1), torch.ones(600, dtype=torch.long)
    sums = GradientShap(samples=1, sigma=0.0, channels="sum")(model, copies, target).sum((1, 2))
    with torch.no_grad():
        expected = (model(images) - model(torch.zeros_like(images)))[0, 1]
    assert float((sums.mean() - expected).abs()) < 3.5 * float(sums.std()) / 600**0.5
    assert float(sums.std()) > 0


def test_gradient_shap_draws_points_and_baselines_uniformly_and_independently(rgb):
    z, alpha, which = draws(SampleRng(2, (1,)).noise("gradient_shap").parts(4000).reshape(-1), rgb[:, :1, :2, :2], 3)
    assert float(alpha.min()) >= 0
    assert float(alpha.max()) < 1
    assert abs(float(alpha.mean()) - 0.5) < 3.5 / (12 * 4000) ** 0.5
    assert (which.bincount() / 4000 - 1 / 3).abs().max() < 3.5 * (2 / 9 / 4000) ** 0.5
    together = torch.stack([alpha, which.float(), *z.flatten(1).T])
    assert float((together.corrcoef() - torch.eye(6)).abs().max()) < 4 / 4000**0.5


# ----------------------------------------------------------------------------------------------------------------- RISE


def test_rise_has_the_expected_mask_p_at_every_pixel():
    def constant(x):
        return torch.ones(len(x), 2)

    images = torch.rand(1, 1, 16, 16, generator=seeded(5))
    mean_mask = RISE(masks=6000, keep=0.3, max_batch=1000)(constant, images, torch.tensor([0]))
    # the mean of m / p: standard error at most sqrt((1 - p) / p / 6000) = .02
    assert torch.allclose(mean_mask, torch.ones(1, 16, 16), atol=0.08)


@pytest.mark.parametrize(("grid", "side"), [(7, 32), (7, 28), (3, 10), (5, 5)])
def test_rise_enlargement_keeps_a_constant_pattern_and_covers_every_shift(grid, side):
    matrix = enlargement(grid, side)
    assert torch.allclose(matrix.sum(1), torch.ones(len(matrix)))
    assert len(matrix) >= side + -(-side // grid) - 1


@pytest.mark.parametrize("size", [(12, 12), (10, 14)])
def test_rise_equals_a_loop_over_its_own_masks(convnet, targets, size):
    images = torch.rand(2, 3, *size, generator=seeded(6)).double()
    rise, rng, model = RISE(masks=11, grid=4, keep=0.4), SampleRng(3, (8, 9)), convnet.double()
    expected = torch.zeros(2, *size).double()
    cell = [-(-side // 4) for side in size]
    for row in range(2):
        pattern, top, left = rise.patterns(rng.noise("rise")[row].parts(11), *size)
        for cells, t, s in zip(pattern, top.tolist(), left.tolist(), strict=True):
            big = F.interpolate(cells[None, None].double(), size=(5 * cell[0], 5 * cell[1]), mode="bilinear")[0, 0]
            mask = big[t : t + size[0], s : s + size[1]]
            with torch.no_grad():
                expected[row] += model(images[row : row + 1] * mask)[0, targets[row]] * mask / (0.4 * 11)
    assert torch.allclose(rise(model, images, targets[:2], rng), expected, atol=1e-6)


def test_rise_finds_the_weights_of_an_additive_model():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    blob = torch.exp(-((y - 4) ** 2 + (x - 10) ** 2) / 18)
    model = Linear(torch.stack([blob, -blob])[:, None], torch.zeros(2))
    result = RISE(masks=4000, max_batch=1000)(model, torch.ones(1, 1, 16, 16), torch.tensor([0]))
    assert np.corrcoef(result.flatten(), blob.flatten())[0, 1] > 0.93


@pytest.mark.parametrize("wrong", [{"masks": 0}, {"keep": 0.0}, {"keep": 1.0}, {"grid": 0}, {"precision": "half"}])
def test_rise_refuses_parameters_that_mean_nothing(linear, rgb, targets, wrong):
    with pytest.raises(UsageError):
        RISE(**{"masks": 2, **wrong})(linear, rgb, targets)


# ------------------------------------------------------------------------------------------------------------- Grad-CAM


class Pooled(nn.Module):
    """logits = W mean(conv(x)): the gradient of logit c at feature map k is W_ck / (height * width)."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=seeded(7)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))


class Activated(Pooled):
    """The same with a ReLU between convolution and mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.conv(x)).mean((2, 3)))


class DefinedBackwards(nn.Module):
    """The convolution that is defined first runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early, self.head = nn.Conv2d(4, 3, 3), nn.Conv2d(1, 4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.late(self.early(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def grey():
    return torch.rand(3, 1, 6, 6, generator=seeded(8))


def test_gradcam_by_hand(grey):
    model, targets = Pooled(), torch.tensor([0, 1, 0])
    weights = model.head.weight.detach()[targets] / 36
    expected = torch.einsum("bk,bkhw->bhw", weights, model.conv(grey).detach()).relu()
    assert expected.count_nonzero() > 0
    assert torch.allclose(GradCAM()(model, grey, targets), expected, atol=1e-7)


def test_gradcam_plus_plus_by_hand(grey):
    model, targets = Pooled(), torch.tensor([0, 1, 0])
    activation, gradient = model.conv(grey).detach(), model.head.weight.detach()[targets] / 36
    alpha = 1 / (2 + activation.sum((2, 3)) * gradient)
    weights = 36 * alpha * gradient.relu()
    expected = torch.einsum("bk,bkhw->bhw", weights, activation).relu()
    assert expected.count_nonzero() > 0
    assert torch.allclose(GradCAMPlusPlus()(model, grey, targets), expected, atol=1e-6)


def test_gradcam_enlarges_bilinearly_to_the_image(convnet, rgb, targets):
    features, head = convnet[:5], convnet[5:]
    activation = features(rgb).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(head(activation).gather(1, targets[:, None]).sum(), activation)
    small = torch.einsum("bk,bkhw->bhw", gradient.mean((2, 3)), activation.detach()).relu()
    expected = F.interpolate(small[:, None], size=(12, 12), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(GradCAM()(convnet, rgb, targets), expected, atol=1e-6)


@pytest.mark.parametrize("kind", [GradCAM, GradCAMPlusPlus])
def test_gradcam_reads_the_last_convolution_executed_not_the_last_defined(grey, kind):
    model, targets = DefinedBackwards(), torch.zeros(3, dtype=torch.long)
    assert kind().resolve(model, grey) == {"layer": "late"}
    assert torch.equal(kind()(model, grey, targets), kind(layer="late")(model, grey, targets))


def test_gradcam_reads_a_named_layer(convnet, rgb, targets):
    assert GradCAM(layer="0").resolve(convnet, rgb) == {"layer": "0"}
    assert not torch.allclose(GradCAM(layer="0")(convnet, rgb, targets), GradCAM()(convnet, rgb, targets))


@pytest.mark.parametrize("kind", [GradCAM, GradCAMPlusPlus])
def test_gradcam_reads_the_convolution_before_an_inplace_relu_overwrites_it(grey, kind):
    targets = torch.tensor([0, 1, 1])
    plain, overwriting = Activated(inplace=False), Activated(inplace=True)
    assert bool((plain.conv(grey) < 0).any())  # otherwise the ReLU would change nothing
    expected = kind()(plain, grey, targets)
    assert expected.count_nonzero() > 0
    assert torch.equal(kind()(overwriting, grey, targets), expected)


def test_gradcam_of_a_model_without_convolution_is_refused(linear, rgb, targets):
    with pytest.raises(UsageError, match="no convolution"):
        GradCAM()(linear, rgb, targets)


def test_gradcam_of_a_plain_function_is_refused(linear, rgb, targets):
    with pytest.raises(UsageError, match="plain function"):
        GradCAM()(lambda x: linear(x), rgb, targets)


def test_gradcam_of_an_unknown_layer_names_the_convolutions(convnet, rgb, targets):
    with pytest.raises(UsageError, match="its convolutions are: 0, 4"):
        GradCAM(layer="nowhere")(convnet, rgb, targets)


def test_gradcam_of_a_layer_that_does_not_run_is_refused(grey):
    model = Pooled()  # its act is never called
    with pytest.raises(UsageError, match="ran in the forward pass"):
        GradCAM(layer="act")(model, grey, torch.zeros(3, dtype=torch.long))


def test_gradcam_of_a_layer_without_feature_maps_is_refused(grey):
    with pytest.raises(UsageError, match="Grad-CAM needs"):
        GradCAM(layer="head")(Pooled(), grey, torch.zeros(3, dtype=torch.long))


# ---------------------------------------------------------------------------------------------------------- the control


def test_random_maps_repeat_for_the_same_model(convnet, rgb, targets):
    assert torch.equal(Random()(convnet, rgb, targets), Random()(copy.deepcopy(convnet), rgb, targets))


def test_random_maps_of_two_models_are_unrelated(convnet, rgb, targets):
    other = copy.deepcopy(convnet)
    with torch.no_grad():
        other[-1].bias.add_(1e-3)
    a, b = (Random()(m, rgb, targets).flatten() for m in (convnet, other))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.15  # 720 pixels: standard error .037


def test_random_maps_of_two_samples_are_unrelated(convnet, rgb, targets):
    maps = Random()(convnet, rgb, targets).flatten(1)
    off_diagonal = torch.corrcoef(maps) - torch.eye(5)
    assert float(off_diagonal.abs().max()) < 0.35  # 144 pixels: standard error .083


# ------------------------------------------------------------------------------------------------------ every explainer


@every_explainer
def test_maps_of_a_batch_equal_the_maps_one_by_one(explainer, convnet, rgb, targets):
    model, images = convnet.double(), rgb.double()
    rng = SampleRng(11, (40, 2, 17, 5, 99))
    whole = explainer(model, images, targets, rng)
    alone = [explainer(model, images[[i]], targets[[i]], rng.take([i])) for i in range(5)]
    assert torch.allclose(whole, torch.cat(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "gradient_shap", "rise"])
def test_maps_do_not_depend_on_max_batch(name, convnet, rgb, targets):
    model, images = convnet.double(), rgb.double()
    kind, options = type(EVERY[name]), {k: v for k, v in vars(EVERY[name]).items() if k != "max_batch"}
    small, large = (kind(**options, max_batch=n)(model, images, targets) for n in (1, 1000))
    assert torch.allclose(small, large, rtol=0, atol=1e-9)


@every_explainer
def test_float32_maps_hardly_depend_on_the_batch(explainer, convnet, rgb, targets):
    rng = SampleRng(0, tuple(range(5)))
    whole = explainer(convnet, rgb, targets, rng)
    alone = torch.cat([explainer(convnet, rgb[[i]], targets[[i]], rng.take([i])) for i in range(5)])
    near = (whole - alone).abs() <= 1e-4 * whole.abs().amax((1, 2), keepdim=True)
    assert float(near.float().mean()) >= 0.99


@pytest.mark.parametrize("name", ["smoothgrad", "gradient_shap", "rise", "random"])
def test_noise_changes_with_the_seed_and_with_the_sample(name, convnet, rgb, targets):
    explainer, image = EVERY[name], rgb[:1]
    maps = [explainer(convnet, image, targets[:1], SampleRng(*key)) for key in [(0, (0,)), (1, (0,)), (0, (1,))]]
    assert not torch.allclose(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2])


@every_explainer
def test_explaining_leaves_the_model_as_it_was(explainer, convnet, rgb, targets):
    convnet.train()
    convnet[1].eval()  # one module differs from the others
    convnet[0].weight.requires_grad_(False)
    before = copy.deepcopy(convnet.state_dict())
    modes = [m.training for m in convnet.modules()]
    wants = [p.requires_grad for p in convnet.parameters()]
    explainer(convnet, rgb, targets)
    assert [m.training for m in convnet.modules()] == modes
    assert [p.requires_grad for p in convnet.parameters()] == wants
    assert all(p.grad is None for p in convnet.parameters())
    assert all(torch.equal(v, before[k]) for k, v in convnet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in convnet.modules())


def test_a_model_in_training_mode_is_explained_in_evaluation_mode(convnet, rgb, targets):
    expected = Saliency()(convnet, rgb, targets)
    assert torch.equal(Saliency()(convnet.train(), rgb, targets), expected)


def test_hooks_are_removed_when_the_forward_pass_fails(convnet, targets):
    with pytest.raises(UsageError, match="the model fails"):
        GradCAM()(convnet, torch.rand(5, 2, 12, 12), targets)  # two channels for a network of three
    assert not any(m._forward_hooks for m in convnet.modules())


@every_explainer
def test_maps_inside_inference_mode_equal_those_outside(explainer, convnet, rgb, targets):
    expected = explainer(convnet, rgb, targets)
    with torch.inference_mode():
        inside = explainer(convnet, rgb.clone(), targets.clone())
    assert torch.allclose(inside, expected, atol=1e-6)


@every_explainer
def test_maps_are_detached_and_the_images_untouched(explainer, convnet, rgb, targets):
    before = rgb.clone()
    maps = explainer(convnet, rgb, targets)
    assert not maps.requires_grad
    assert torch.equal(rgb, before)
    assert not rgb.requires_grad


def test_a_plain_function_is_explained_like_the_module_it_wraps(convnet, rgb, targets):
    assert torch.equal(Saliency()(lambda x: convnet(x), rgb, targets), Saliency()(convnet, rgb, targets))


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_target_missing_is_refused(unchecked, convnet, rgb):
    with pytest.raises(UsageError, match="4 targets for 5 images"):
        Saliency()(convnet, rgb, torch.zeros(4, dtype=torch.long))


def test_an_image_without_its_batch_is_refused(unchecked, convnet, rgb):
    with pytest.raises(UsageError, match="must be"):
        Saliency()(convnet, rgb[0], torch.zeros(3, dtype=torch.long))


def test_an_rng_of_another_batch_is_refused(convnet, rgb, targets):
    with pytest.raises(UsageError, match="names 2 samples for 5 images"):
        SmoothGrad(samples=1)(convnet, rgb, targets, SampleRng(0, (1, 2)))


def test_a_model_without_a_gradient_is_refused(rgb, targets):
    with pytest.raises(UsageError, match="gradient"):
        Saliency()(lambda x: torch.ones(len(x), 4), rgb, targets)


@pytest.mark.parametrize(
    "explainer",
    [
        Saliency(output="odds"),
        Saliency(channels="median"),
        IntegratedGradients(steps=1),
        SmoothGrad(samples=0),
        SmoothGrad(max_batch=0),
        GradientShap(samples=0),
        GradientShap(baselines=[]),
        GradientShap(sigma=-0.1),
        GradientShap(sigma=float("nan")),
        SmoothGrad(sigma=float("nan")),
        Captum("NoSuchMethod"),
        Captum("LayerGradCam"),
        Captum("Saliency", channels="median"),
    ],
    ids=str,
)
def test_parameters_that_mean_nothing_are_refused(explainer, convnet, rgb, targets):
    with pytest.raises(UsageError):
        explainer(convnet, rgb, targets)


@pytest.mark.parametrize("baselines", ["black", ["0", 1.0], [[0.1, 0.2, 0.3]], None, [0.0, float("nan")], float("inf")])
def test_baselines_that_are_no_numbers_are_refused(unchecked, linear, rgb, targets, baselines):
    with pytest.raises(UsageError, match="baselines must be a number or several"):
        GradientShap(baselines=baselines)(linear, rgb, targets)


def test_lrp_is_refused_on_residual_networks():
    from lit_xai.models import resnet18

    model = resnet18(1, 3, 16, width=2)
    with pytest.raises(UsageError, match="residual"):
        Captum("LRP")(model, torch.rand(1, 1, 16, 16), torch.tensor([0]))

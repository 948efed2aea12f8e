"""Sanity checks: layers of hand-made models, what is re-initialised and what never is, comparisons by other means."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_xai.errors import UsageError
from lit_xai.explainers import GradCAM, GradientInput, IntegratedGradients, Random, Saliency, SlidingPatch, SmoothGrad
from lit_xai.explainers.sweep import KL, PMI
from lit_xai.metrics.sanity import (
    MEASURES,
    compare,
    compare_models,
    curves,
    plan,
    ratio_of_means,
    sanity,
    sanity_table,
)
from lit_xai.metrics.statistics import FEW, difference, mean_estimate
from lit_xai.models.pretrained import Normalise
from lit_xai.models.randomise import Layer, find_layers, randomised
from lit_xai.models.resnet import resnet18
from lit_xai.report import draw, tables
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from conftest import Linear, seeded

# ------------------------------------------------------------------------------------------------------ models and maps


def trained(network: nn.Module, seed: int = 5) -> nn.Module:
    """`network` with every parameter and running statistic moved away from where it starts."""
    noise = seeded(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.rand(p.shape, generator=noise) + 0.1)
        for name, b in network.named_buffers():
            if b.is_floating_point() and "running" in name:
                b.add_(torch.rand(b.shape, generator=noise) + 0.1)
    return network.eval()


@pytest.fixture
def ten(rgb, targets) -> tuple[Tensor, Tensor]:
    """Ten images and their classes: the fewest whose numbers have intervals."""
    return torch.cat([rgb, rgb.flip(-1)]), targets.repeat(2)


@pytest.fixture
def network() -> nn.Module:
    """Input normalisation, three layers (one with batch norm, one with PReLU), dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        layers = OrderedDict(
            scale=Normalise((0.5,) * 3, (0.25,) * 3),
            conv=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            mix=nn.Conv2d(4, 4, 1),
            slope=nn.PReLU(),
            flat=nn.Flatten(),
            drop=nn.Dropout(0.5),
            head=nn.Linear(4 * 144, 4),
        )
    return trained(nn.Sequential(layers))


def state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a network knows."""
    return {k: v.clone() for k, v in network.state_dict().items()}


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    """The names of the floating-point parameters and buffers that differ."""
    b = after.state_dict()
    return {k for k, v in before.state_dict().items() if v.is_floating_point() and not torch.equal(v, b[k])}


def grey(model, images, targets, rng=None) -> Tensor:
    """An explainer that explains the image, whatever the model."""
    return images.mean(1)


def of_logits(model, images, targets, rng=None) -> Tensor:
    """The image times the target's logit: its scale belongs to the model, and its order too, by a sign."""
    with torch.no_grad():
        return images.mean(1) * model(images).gather(1, targets[:, None])[:, :, None]


def random_maps(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def names(layers) -> list[str]:
    return [layer.name for layer in layers]


# --------------------------------------------------------------------------------------------------------------- layers


def test_layers_are_in_order_of_execution_and_take_small_modules_along(network, rgb):
    layers = [tuple(layer) for layer in find_layers(network, rgb)]
    assert layers == [("conv", ("conv", "norm")), ("mix", ("mix", "slope")), ("head", ("head",))]


def test_the_order_is_that_of_the_calls_not_of_the_definitions(rgb):
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.again, self.first = nn.Linear(48, 2), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, stride=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.first(self.again(x))).flatten(1))

    assert names(find_layers(Backwards(), rgb)) == ["again", "first", "last"]


def test_small_modules_before_the_first_layer_belong_to_it(rgb):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(432, 2))
    assert [tuple(layer) for layer in find_layers(model, rgb)] == [("2", ("0", "2"))]


def test_statistics_without_parameters_are_forgotten_after_a_layer_and_belong_to_the_input_before_one(rgb):
    norm = [nn.BatchNorm2d(3, affine=False) for _ in range(2)]
    model = trained(nn.Sequential(norm[0], nn.Conv2d(3, 3, 1), norm[1], nn.Flatten(), nn.Linear(432, 2)))
    layers = find_layers(model, rgb)
    assert layers[0].modules == ("1", "2")
    assert changed(model, randomised(model, layers, 0)) == {
        *("1.weight", "1.bias", "2.running_mean", "2.running_var", "4.weight", "4.bias")
    }


class Odd(nn.Module):
    """A token and a scale of its own, weights that are used without a call, attention, and a head nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.gain = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.tensor(2.0))
        self.register_buffer("mean", torch.full((3, 1, 1), 0.4))
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.by_weight = nn.Linear(8, 8)
        self.auxiliary = nn.Sequential(nn.Linear(8, 2), nn.BatchNorm1d(2, affine=False))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x - self.mean).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) * self.gain
        x = self.attention(x, x, x)[0]
        return self.head(F.linear(x, self.by_weight.weight, self.by_weight.bias).mean(1))


def test_what_no_layer_of_its_own_holds_belongs_to_the_first_layer_inside(rgb):
    layers = {layer.name: set(layer.modules) for layer in find_layers(trained(Odd()), rgb)}
    assert layers == {
        "patches": {"", "patches", "by_weight", "auxiliary.0", "auxiliary.1"},
        "attention": {"attention", "attention.out_proj"},
        "head": {"head"},
    }


def test_nothing_stays_trained_but_constants(rgb):
    model = trained(Odd())
    everything = {k for k, v in model.state_dict().items() if v.is_floating_point()}
    assert changed(model, randomised(model, find_layers(model, rgb), 0)) == everything - {"mean"}


def test_a_model_of_one_module_is_one_layer_with_its_class_name(linear, rgb):
    assert [tuple(layer) for layer in find_layers(linear, rgb)] == [("Linear", ("",))]


def test_a_resnet_has_21_layers_and_each_batch_norm_follows_its_convolution(rgb):
    layers = find_layers(resnet18(3, 4, 12, width=2), rgb)
    assert len(layers) == 21
    assert layers[0] == ("stem.0", ("stem.0", "stem.1"))
    assert layers[5] == ("stages.1.0.shortcut.0", ("stages.1.0.shortcut.0", "stages.1.0.shortcut.1"))
    assert [len(layer.modules) for layer in layers] == [2] * 20 + [1]


# ---------------------------------------------------------------------------------------------------- re-initialisation


def test_full_randomisation_changes_every_parameter_and_statistic_and_leaves_the_input_alone(network, rgb):
    found = changed(network, randomised(network, find_layers(network, rgb), 0))
    kept = {"scale.mean", "scale.std"}
    assert found == {k for k, v in network.state_dict().items() if v.is_floating_point()} - kept


def test_a_single_layer_changes_alone(network, rgb):
    layer = find_layers(network, rgb)[0]
    expected = {f"conv.{p}" for p in ("weight", "bias")}
    expected |= {f"norm.{p}" for p in ("weight", "bias", "running_mean", "running_var")}
    assert changed(network, randomised(network, [layer], 0)) == expected


def test_a_batch_norm_starts_anew(network, rgb):
    norm = randomised(network, find_layers(network, rgb)[:1], 0).get_submodule("norm")
    found = [norm.weight, norm.bias, norm.running_mean, norm.running_var]  # type: ignore[union-attr]
    assert [v.tolist() for v in found] == [[1.0] * 4, [0.0] * 4, [0.0] * 4, [1.0] * 4]


def test_frozen_statistics_without_a_reset_start_anew_too(rgb):
    frozen = FrozenBatchNorm2d(3)
    for value, buffer in enumerate(frozen.buffers(), start=2):
        buffer.fill_(value)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), frozen, nn.Flatten(), nn.Linear(432, 2))
    norm = randomised(model, find_layers(model, rgb), 0).get_submodule("1")
    assert {name: b.tolist() for name, b in norm.named_buffers()} == {
        "weight": [1.0] * 3,
        "bias": [0.0] * 3,
        "running_mean": [0.0] * 3,
        "running_var": [1.0] * 3,
    }


def test_a_layer_gets_the_same_weights_alone_and_among_others_and_others_by_another_seed(network, rgb):
    layers = find_layers(network, rgb)
    alone, among = randomised(network, layers[1:2], 3), randomised(network, layers, 3)
    other = randomised(network, layers[1:2], 4)
    for name in ("mix.weight", "mix.bias"):
        assert torch.equal(alone.get_parameter(name), among.get_parameter(name))
        assert not torch.equal(alone.get_parameter(name), other.get_parameter(name))


def test_two_layers_of_one_shape_get_different_weights(rgb):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(432, 2))
    fresh = randomised(model, find_layers(model, rgb), 0)
    assert not torch.equal(fresh.get_parameter("0.weight"), fresh.get_parameter("1.weight"))


def test_the_fallback_is_uniform_in_one_over_the_root_of_the_inputs(linear, rgb):
    with torch.no_grad():
        linear.weight.fill_(7.0)
    fresh = randomised(linear, find_layers(linear, rgb), 0)
    weight, bound = fresh.get_parameter("weight").detach(), (3 * 12 * 12) ** -0.5
    assert 0.98 * bound < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert fresh.get_parameter("bias").tolist() == [0.0] * 4


def test_weights_that_a_reset_forgets_get_the_fallback(rgb):
    class Forgetful(nn.Linear):
        def reset_parameters(self) -> None:
            with torch.no_grad():
                self.bias.fill_(0.5)

    model = trained(nn.Sequential(nn.Flatten(), Forgetful(432, 2)))
    fresh = randomised(model, find_layers(model, rgb), 0)
    assert fresh.get_parameter("1.bias").tolist() == [0.5, 0.5]
    assert 0 < float(fresh.get_parameter("1.weight").detach().abs().max()) <= 432**-0.5


def test_a_reset_that_reaches_into_other_layers_does_not_change_them(rgb):
    class Root(Odd):
        def reset_parameters(self) -> None:
            self.head.reset_parameters()

    model = trained(Root())
    fresh = randomised(model, find_layers(model, rgb)[:1], 0)
    assert not {name for name in changed(model, fresh) if name.startswith(("head", "attention"))}


def test_the_model_handed_in_is_left_as_it_is(network, rgb, targets):
    network.train()
    network.get_submodule("norm").eval()
    network.register_forward_hook(lambda *_: None)
    network.get_submodule("conv").weight.requires_grad_(False)  # type: ignore[union-attr]
    twin, modes = state(network), [m.training for m in network.modules()]
    explainers = {"saliency": Saliency(), "cam": GradCAM(), "grey": grey}
    sanity(network, rgb, targets, explainers)
    sanity(network, rgb, targets, explainers, how="independent")
    assert all(torch.equal(v, twin[k]) for k, v in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in network.modules()] == [1] + [0] * 9
    assert all(p.grad is None for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [False] + [True] * 8


def test_the_global_generator_is_left_as_it_is(network, rgb, targets):
    with torch.random.fork_rng():
        torch.manual_seed(123)
        before = torch.get_rng_state()
        sanity(network, rgb, targets, {"smooth": SmoothGrad(samples=2)})
        assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_does_not_matter(network, rgb):
    layers = find_layers(network, rgb)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = randomised(network, layers, 0)
        torch.manual_seed(2)
        assert not changed(one, randomised(network, layers, 0))


# ----------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ("stages", "cascading"),
    [
        (None, [1, 2, 3, 4, 5, 6, 7]),
        (9, [1, 2, 3, 4, 5, 6, 7]),
        (4, [1, 3, 5, 7]),
        (3, [1, 4, 7]),
        (2, [1, 7]),
        (1, [7]),
    ],
)
def test_stages_are_thinned_evenly_with_both_ends(stages, cascading):
    layers = tuple(Layer(str(n), (str(n),)) for n in range(1, 8))
    assert [len(step) for step in plan(layers, "cascading", stages)] == cascading
    assert all(names(step) == [str(7 - t) for t in range(len(step))] for step in plan(layers, "cascading", stages))
    assert [names(step) for step in plan(layers, "independent", stages)] == [[str(8 - n)] for n in cascading]


@pytest.mark.parametrize("number", range(1, 30))
def test_any_number_of_stages_of_any_model_has_no_stage_twice(number):
    layers = tuple(Layer(str(n), (str(n),)) for n in range(29))
    found = [len(step) for step in plan(layers, "cascading", number)]
    assert len(set(found)) == number
    assert found[-1] == 29


def test_a_thinned_check_is_those_stages_of_the_whole_one(network, rgb, targets):
    whole = sanity(network, rgb, targets, {"saliency": Saliency()})
    thinned = sanity(network, rgb, targets, {"saliency": Saliency()}, stages=2)
    assert [tuple(s) for s in whole.stages] == [("head", 1), ("mix", 2), ("conv", 3)]
    assert [tuple(s) for s in thinned.stages] == [("head", 1), ("conv", 3)]
    assert torch.equal(whole.maps["saliency"][[0, 1, 3]], thinned.maps["saliency"])


def test_the_last_layer_alone_is_the_first_stage_both_ways(network, rgb, targets):
    ways = [sanity(network, rgb, targets, {"saliency": Saliency()}, how=how) for how in ("cascading", "independent")]
    assert torch.equal(ways[0].maps["saliency"][1], ways[1].maps["saliency"][1])
    assert not torch.equal(ways[0].maps["saliency"][2], ways[1].maps["saliency"][2])
    assert [tuple(s) for s in ways[1].stages] == [("head", 1), ("mix", 1), ("conv", 1)]


# ---------------------------------------------------------------------------------------------------------- comparisons


def test_similarities_equal_scipy_and_scikit_image():
    a, b = random_maps(3, 12, 15), random_maps(3, 12, 15, seed=2)
    a[1], b[2] = a[1].round(), b[2].abs()  # ties; an unsigned map
    found = compare(a, b)
    for row in range(3):
        x, y = a[row].double(), b[row].double()
        assert float(found.spearman[row]) == pytest.approx(spearmanr(x.flatten(), y.flatten()).statistic)
        ranks = spearmanr(x.abs().flatten(), y.abs().flatten()).statistic
        assert float(found.spearman_abs[row]) == pytest.approx(ranks)
        unit = [(m / m.abs().max()).numpy() for m in (x, y)]
        assert float(found.ssim[row]) == pytest.approx(structural_similarity(*unit, win_size=5, data_range=2))
        means = [float(s[row]) for s in (found.before, found.after)]
        assert means == pytest.approx([float(x.abs().mean()), float(y.abs().mean())])


def test_a_map_and_its_negative_differ_in_sign_alone():
    maps = random_maps(2, 12, 12)
    found = compare(maps, -3 * maps)
    assert found.spearman.tolist() == pytest.approx([-1, -1])
    assert found.spearman_abs.tolist() == pytest.approx([1, 1])
    assert (found.after / found.before).tolist() == pytest.approx([3, 3])


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_constant_map_is_undefined_and_counted_and_has_a_size(value):
    a, b = random_maps(3, 12, 12), random_maps(3, 12, 12, seed=2)
    b[1] = value
    found = compare(a, b)
    for scores in (found.spearman, found.spearman_abs, found.ssim):
        assert torch.isnan(scores).tolist() == [False, True, False]
    assert found.undefined == 1
    assert float(found.after[1]) == pytest.approx(abs(value))
    assert bool(torch.isfinite(found.before).all())


def test_a_map_of_one_magnitude_has_no_rank_order_without_its_signs():
    a, b = random_maps(2, 12, 12), random_maps(2, 12, 12, seed=2)
    b[0] = b[0].sign()
    found = compare(a, b)
    assert torch.isnan(found.spearman).tolist() == [False, False]
    assert torch.isnan(found.spearman_abs).tolist() == [True, False]
    assert found.undefined == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_map_that_is_not_finite_is_undefined_in_every_way(bad):
    a, b = random_maps(2, 12, 12), random_maps(2, 12, 12, seed=2)
    b[0, 3, 3] = bad
    found = compare(a, b)
    for scores in (found.spearman, found.spearman_abs, found.ssim, found.after):
        assert torch.isnan(scores).tolist() == [True, False]


# ---------------------------------------------------------------------------------------------------------------- ratio


def test_the_ratio_of_means_equals_plain_numpy():
    above, below = (torch.rand(40, generator=seeded(s)).double() for s in (1, 2))
    below[3] = 1e-12  # its own ratio would rule the mean of ratios
    found = ratio_of_means(above, below)
    assert found.value == pytest.approx(np.mean(above.numpy()) / np.mean(below.numpy()))
    drawn = np.random.default_rng(0).integers(40, size=(4000, 40))
    ratios = above.numpy()[drawn].mean(1) / below.numpy()[drawn].mean(1)
    assert (found.low, found.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=0.05)
    assert found.low < found.value < found.high


def test_samples_with_an_undefined_mean_leave_both_means():
    above, below = torch.tensor([1.0, torch.nan, 3.0, 4.0]), torch.tensor([2.0, 100.0, torch.nan, 3.0])
    found = ratio_of_means(above, below)
    assert found.value == pytest.approx(5 / 5)
    assert (found.samples, found.dropped, found.reason) == (2, 2, f"undefined for 2 of 4 samples; {FEW}")


@pytest.mark.parametrize(("below", "reason"), [(0.0, "denominator"), (torch.nan, "every sample")])
def test_a_ratio_to_nothing_is_undefined(below, reason):
    found = ratio_of_means(torch.ones(3), torch.full((3,), below))
    assert np.isnan(found.value)
    assert reason in found.reason


# ------------------------------------------------------------------------------------------------------------ the check


def test_an_explainer_that_ignores_the_model_is_found_out(network, rgb, targets):
    result = sanity(network, rgb, targets, {"grey": grey})
    for stage in result.similarity["grey"]:
        for scores in (stage.spearman, stage.spearman_abs, stage.ssim):
            assert scores.tolist() == pytest.approx([1.0] * 5, abs=1e-12)
        assert torch.equal(stage.before, stage.after)


def test_the_random_control_has_no_rank_correlation_left(network, rgb, targets):
    result = sanity(network, rgb, targets, {"random": Random()})
    for stage in result.similarity["random"]:
        assert float(stage.spearman.abs().max()) < 0.3  # 144 pixels: sd 1/12
        assert float(stage.spearman.abs().min()) > 0


def test_noise_belongs_to_the_sample_and_is_the_same_for_every_model(rgb, targets):
    noises = []

    def noisy(model, images, targets, rng):
        noises.append([rng.normal("n", [row], [0], (1,)).item() for row in range(len(images))])
        return images.mean(1)

    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    sanity(model, rgb, targets, {"noisy": noisy})
    sanity(model, rgb, targets, {"noisy": noisy}, batch_size=3)
    assert noises[0] == noises[1] == noises[2] + noises[3] == noises[4] + noises[5]
    assert len(set(noises[0])) == 5


@pytest.mark.parametrize("contrast", [KL(), PMI()], ids=["IG", "PMI"])
def test_information_vanishes_where_the_logits_are_near_uniform(rgb, targets, contrast):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
    with torch.no_grad():
        model[1].weight.mul_(20)  # type: ignore[operator]
    walk = SlidingPatch(patch=4, stride=4, projection="mean", scale=False, contrast=contrast)
    table = sanity_table(sanity(model, rgb, targets, {"information": walk}))
    assert len(table) == 1
    assert table[0].estimates["magnitude"].value < 0.1
    assert table[0].estimates["probability"].value == pytest.approx(0.25, abs=0.1)


def test_maps_and_numbers_are_those_of_the_models_asked_directly(network, rgb, targets):
    result = sanity(network, rgb, targets, {"ig": IntegratedGradients(steps=3)}, shown=5)
    layers = find_layers(network, rgb)
    explain = IntegratedGradients(steps=3)
    maps = [explain(network, rgb, targets)]
    for number in (1, 2, 3):
        other = randomised(network, layers[-number:], 0)
        maps.append(explain(other, rgb, targets))
        p = other(rgb).softmax(1).gather(1, targets[:, None])[:, 0]
        assert torch.allclose(result.probability[number - 1].float(), p, atol=1e-6)
        expected = compare(maps[0], maps[-1])
        for name, scores in vars(result.similarity["ig"][number - 1]).items():
            assert torch.allclose(scores, getattr(expected, name), rtol=1e-4, atol=1e-3), name
    assert torch.allclose(result.maps["ig"], torch.stack(maps), rtol=1e-4, atol=1e-6)
    assert torch.allclose(result.trained.float(), network(rgb).softmax(1).gather(1, targets[:, None])[:, 0], atol=1e-6)


def test_the_maps_of_the_first_images_are_kept(network, rgb, targets):
    result = sanity(network, rgb, targets, {"grey": grey, "logits": of_logits}, shown=2)
    assert {name: tuple(maps.shape) for name, maps in result.maps.items()} == {
        "grey": (4, 2, 12, 12),
        "logits": (4, 2, 12, 12),
    }
    assert torch.equal(result.maps["grey"][0], rgb[:2].mean(1))


def test_the_batch_size_does_not_matter(network, rgb, targets):
    explainers = {"logits": of_logits, "smooth": SmoothGrad(samples=3)}
    whole, parts = (sanity(network, rgb, targets, explainers, batch_size=size) for size in (5, 2))
    assert torch.allclose(whole.probability, parts.probability, atol=1e-6)
    for name in explainers:
        for a, b in zip(whole.similarity[name], parts.similarity[name], strict=True):
            for field, scores in vars(a).items():
                assert torch.allclose(scores, getattr(b, field), rtol=1e-4, atol=1e-3), field


def test_gradients_are_as_the_caller_has_them(network, rgb, targets):
    def by_autograd(model, images, targets, rng=None):
        x = images.clone().requires_grad_()
        model(x).gather(1, targets[:, None]).sum().backward(inputs=[x])
        return x.grad.sum(1)

    result = sanity(network, rgb, targets, {"plain": by_autograd, "ours": GradientInput(signed=True)})
    assert all(stage.undefined == 0 for stage in result.similarity["plain"])


def test_maps_of_two_trained_models_are_compared_in_the_same_way(network, rgb, targets):
    other = trained(copy.deepcopy(network), seed=8)
    result = compare_models(network, other, rgb, targets, {"saliency": Saliency(), "grey": grey})
    expected = compare(Saliency()(network, rgb, targets), Saliency()(other, rgb, targets))
    found = result.similarity["saliency"][0]
    assert torch.equal(found.spearman, expected.spearman)
    assert torch.equal(found.after, expected.after)
    assert result.similarity["grey"][0].spearman.tolist() == pytest.approx([1.0] * 5)
    assert result.how == "models"
    assert [row[:5] for row in tables.sanity(sanity_table(result)).file()[1]] == [
        ["models", "saliency", 1, "", 0],
        ["models", "grey", 1, "", 0],
    ]


def test_a_model_compared_with_itself_is_itself(network, ten):
    table = sanity_table(compare_models(network, network, *ten, {"saliency": Saliency()}))
    found = [table[0].estimates[m] for m in MEASURES[:4]]
    assert [x for e in found for x in (e.value, e.low, e.high)] == pytest.approx([1.0] * 12)


# ---------------------------------------------------------------------------------------------------------------- table


def test_the_rows_are_the_columns_of_a_csv_file_and_hold_the_means_with_intervals(network, ten):
    result = sanity(network, *ten, {"logits": of_logits, "saliency": Saliency()})
    table = sanity_table(result)
    columns, rows = tables.sanity(table).file()
    found = [{c: str(v) for c, v in zip(columns, row, strict=True)} for row in rows]
    assert [(r["explainer"], r["stage"], r["layer"], r["layers"]) for r in found] == [
        (name, str(n), layer, str(n))
        for name in ("logits", "saliency")
        for n, layer in ((1, "head"), (2, "mix"), (3, "conv"))
    ]
    similarity = result.similarity["saliency"][1]
    row = found[4]
    for measure in ("spearman", "spearman_abs", "ssim"):
        expected = mean_estimate(getattr(similarity, measure))
        numbers = [float(row[f"{measure}{bound}"]) for bound in ("", "_low", "_high")]
        assert numbers == pytest.approx([expected.value, expected.low, expected.high])
    assert float(row["magnitude"]) == pytest.approx(float(similarity.after.mean() / similarity.before.mean()))
    assert float(row["probability"]) == pytest.approx(float(result.probability[1].mean()))
    for r in found:
        for measure in MEASURES:
            assert float(r[f"{measure}_low"]) <= float(r[measure]) <= float(r[f"{measure}_high"]), measure
        assert (r["how"], r["undefined"]) == ("cascading", "0")


def test_constant_maps_are_counted_and_the_rest_is_averaged(network, rgb, targets):
    def blank_once(model, images, targets, rng=None):
        maps = images.mean(1).clone()
        maps[targets == 3] = 0.25
        return maps

    entry = sanity_table(sanity(network, rgb, targets, {"blank": blank_once}, stages=1))[0]
    assert (entry.undefined, entry.estimates["spearman"].dropped, entry.estimates["spearman"].samples) == (2, 2, 3)
    assert entry.estimates["spearman"].value == pytest.approx(1)
    assert entry.estimates["magnitude"].value == pytest.approx(1)


def test_maps_that_are_all_empty_are_no_numbers_and_no_exception(network, rgb, targets):
    result = sanity(network, rgb, targets, {"empty": lambda m, images, t, rng=None: 0 * images[:, 0]})
    for entry in sanity_table(result):
        assert entry.undefined == 5
        assert all(np.isnan(entry.estimates[m].value) for m in MEASURES[:4])
        assert "denominator" in entry.estimates["magnitude"].reason


def test_estimates_may_be_subtracted_because_they_share_their_resamples(network, ten):
    table = sanity_table(sanity(network, *ten, {"a": Saliency(), "b": Saliency()}, stages=1))
    for measure in MEASURES:
        d = difference(table[0].estimates[measure], table[1].estimates[measure])
        assert (d.value, d.low, d.high) == (0, 0, 0)


# -------------------------------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize("shown", [1, 2])
def test_the_picture_shows_every_explainer_even_where_nothing_is_defined(network, rgb, targets, tmp_path, shown):
    explainers = {
        "saliency": Saliency(),
        "empty": lambda m, images, t, rng=None: 0 * images[:, 0],
        "broken": lambda m, images, t, rng=None: torch.nan * images[:, 0],
    }
    result = sanity(network, rgb, targets, explainers, shown=shown)
    table = sanity_table(result)
    labels = [stage.layer for stage in result.stages]
    lines = (curves(table, measure) for measure in ("spearman", "magnitude"))
    path = draw.sanity(rgb[:shown], labels, result.maps, *lines, tmp_path / "sanity.png", "title")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_curves_are_the_estimates_in_order(network, ten):
    table = sanity_table(sanity(network, *ten, {"grey": grey, "saliency": Saliency()}))
    found = curves(table, "magnitude")
    assert list(found) == ["grey", "saliency"]
    expected = [e.estimates["magnitude"] for e in table if e.explainer == "saliency"]
    assert found["saliency"].tolist() == [[e.value, e.low, e.high] for e in expected]


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"how": "sideways"}, "one of cascading, independent, found 'sideways'"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"explainers": {}}, "needs explainers, found none"),
        ({"targets": torch.tensor([0])}, "1 targets for 5 images"),
        ({"targets": torch.tensor([0, 1, 2, 3, 4])}, "target 4 does not exist"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"model": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432))}, "no layer with weights"),
        ({"model": lambda x: x.mean((2, 3))}, "torch.nn.Module, found function"),
        ({"explainers": {"flat": lambda m, x, t, r: x.flatten(1)}}, "explainer flat must return maps"),
        ({"images": torch.rand(0, 3, 12, 12), "targets": torch.zeros(0).long()}, "needs images, found none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_checked_is_refused_in_one_line(network, rgb, targets, wrong, message, unchecked):
    arguments = {"model": network, "images": rgb, "targets": targets, "explainers": {"grey": grey}} | wrong
    with pytest.raises(UsageError, match=message) as error:
        sanity(**arguments)
    assert "\n" not in str(error.value)


def test_parametrised_weights_are_refused(rgb):
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(432, 2)))
    with pytest.raises(UsageError, match="weights of 1 are parametrised"):
        find_layers(model, rgb)


def test_maps_of_different_shapes_are_refused(unchecked):
    with pytest.raises(UsageError, match="must agree"):
        compare(random_maps(1, 12, 12), random_maps(1, 12, 10))


def test_a_linear_model_without_reset_is_checked_too(rgb, targets):
    model = Linear(random_maps(4, 3, 12, 12), random_maps(4))
    result = sanity(model, rgb, targets, {"saliency": Saliency()})
    assert [tuple(s) for s in result.stages] == [("Linear", 1)]
    assert float(result.similarity["saliency"][0].spearman.mean()) < 0.3

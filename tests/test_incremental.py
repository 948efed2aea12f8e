"""Windows answered from patches of feature maps: equal to the model's own logits, and refused where they would not be."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.core import Filler, Keep
from lit_xai.errors import UsageError
from lit_xai.explainers import SlidingPatch, information_maps
from lit_xai.explainers.sweep import KL, PMI, LogOddsDifference, Outputs, ProbabilityDifference, sweep
from lit_xai.explainers.windows import Windows
from lit_xai.fillers import UniformNoise
from lit_xai.fillers.constant import Blur, Colour
from lit_xai.fillers.simple import PatchMean
from lit_xai.incremental import COSTS, Costs, Incremental, WindowLogits, network_of
from lit_xai.incremental.patches import full_precision
from lit_xai.models.lipschitz import lipschitz, plain
from lit_xai.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, Normalise
from lit_xai.models.resnet import ResNet18
from lit_xai.rng import SampleRng
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import seeded

SWEEPS = sys.modules["lit_xai.explainers.sweep"]


@pytest.fixture(autouse=True)
def tiny_sweeps(monkeypatch):
    """Networks are traced for sweeps however small."""
    monkeypatch.setattr(SWEEPS, "FEW", 0)


TOLERANCE = 1e-4  # relative to the largest |logit| of the batch
LATE = Costs(conv=1, pointwise=1, grouped=1, memory=1e9, gather=1e15, call=1e3, patch=0)  # whole maps cost a fortune
EARLY = Costs(conv=1e18, pointwise=1e18, grouped=1e18, memory=1e18, gather=1e18, call=0, patch=1e3)  # patches do
CLASSES = 7

# -------------------------------------------------------------------------------------------------------------- helpers


def bare(model: Any, image: Tensor, pixels: Tensor, top: Any, left: Any) -> Tensor:
    """The model on images in which the windows are replaced one by one."""
    rows = image.repeat(len(pixels), 1, 1, 1)
    for row, window, t, s in zip(rows, pixels, top, left, strict=True):
        row[:, t : t + window.shape[1], s : s + window.shape[2]] = window
    with torch.no_grad():
        return torch.cat([model(part) for part in rows.split(4)])


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest |logit|."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def lively(model: nn.Module, side: int, seed: int = 0) -> nn.Module:
    """Batch norms with the statistics of random images, roughly, and affine parameters away from 1 and 0."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = None
        m.train()
    with torch.no_grad():
        if norms:
            model(torch.randn(4, 3, side, side, generator=seeded(seed)))
        for m in norms:
            m.running_mean += 0.3 * m.running_var.sqrt() * torch.randn(m.num_features, generator=seeded(seed))
            m.running_var *= 0.6 + torch.rand(m.num_features, generator=seeded(seed + 1))
            m.weight.uniform_(0.5, 1.5, generator=seeded(seed + 2))
            m.bias.normal_(0, 0.3, generator=seeded(seed + 3))
    return model.eval()


def named(name: str, side: int) -> nn.Module:
    """One of the networks of this project, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("small"):
            return ResNet18(3, CLASSES, width=8, dropout=0.5, stem=name.split("-")[1])
        if name == "normalised":
            return nn.Sequential(Normalise(IMAGENET_MEAN, IMAGENET_STD), ResNet18(3, CLASSES, width=8))
        if name == "lipschitz":
            return nn.Sequential(Normalise(IMAGENET_MEAN, [1.0] * 3), plain(lipschitz(3, CLASSES, side, width=8)))
        options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "vgg19") else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
        if name in ("vgg19", "squeezenet1_1"):  # signals would fade
            for m in model.modules():
                if isinstance(m, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
        return model


@functools.lru_cache(maxsize=1)
def network(name: str, side: int) -> nn.Module:
    return lively(named(name, side).eval(), side)


def places(height: int, width: int, patch: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Every corner, every edge, inside, and three draws of one window."""
    down, right = height - patch[0], width - patch[1]
    some = [(0, 0), (0, right), (down, 0), (down, right), (0, right // 2), (down // 2, 0), (down, right // 3)]
    some += [(down // 3, right), (down // 2, right // 2), (down // 3, right // 4), *[(down // 4, right // 3)] * 3]
    return [t for t, _ in some], [s for _, s in some]


def drawn(rows: int, patch: tuple[int, int], channels: int = 3, side: int = 32, seed: int = 5) -> Tensor:
    """Pixels that a network cannot overlook: the fewer, the larger."""
    scale = 2 + 30 * max(1, side / 32) / min(patch)
    return scale * torch.randn(rows, channels, *patch, generator=seeded(seed))


def slides(logits: WindowLogits) -> tuple[int, int]:
    """How many convolutions and poolings see patches, and how many whole maps."""
    assert logits.incremental is not None
    plan = logits.incremental.plan
    carried = [i < plan.cut and s.name in plan.sides for i, s in enumerate(plan.steps) if s.sliding is not None]
    return sum(carried), len(carried) - sum(carried)


def check_network(name: str, side: int, k: int, costs: tuple[Costs, ...]) -> None:
    model, image = network(name, side), torch.rand(1, 3, side, side, generator=seeded(3))
    top, left = places(side, side, (k, k))
    pixels = drawn(len(top), (k, k), side=side)
    expected = bare(model, image, pixels, top, left)
    with torch.no_grad():
        assert float((expected - model(image)).abs().amax(1).median()) > 30 * TOLERANCE * float(expected.abs().max())
    for cost in costs:
        logits = WindowLogits(model, image, (k, k), 5, "always", cost)
        assert off(logits(pixels, top, left), expected) < TOLERANCE
        assert cost is not LATE or slides(logits)[1] == 0, "all convolutions and poolings see patches"
        assert cost is not EARLY or slides(logits)[0] == 0


# ------------------------------------------------------------------------------------------------------- real networks

untyped = pytest.mark.usefixtures("unchecked")  # traced values are no tensors to a type checker
SMALL = ["small-small", "small-large", "normalised", "lipschitz"]
LARGE = ["squeezenet1_1", "mobilenet_v2", "resnet18", "googlenet", "densenet121", "resnet50", "vgg19"]


@untyped
@pytest.mark.parametrize("name", [*SMALL, "squeezenet1_1", "mobilenet_v2", "googlenet"])
def test_logits_equal_the_models(name):
    check_network(name, 32, 8, (LATE, EARLY, COSTS["cpu"]))


@untyped
@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 5, 8, 29])
@pytest.mark.parametrize(("name", "side"), [(n, s) for n in (*SMALL, *LARGE) for s in (32, 64)])
def test_logits_equal_the_models_whatever_the_window(name, side, k):
    check_network(name, side, k, (LATE, EARLY, COSTS["cpu"]))


@untyped
@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 5, 8, 29])
@pytest.mark.parametrize(("name", "side"), [(n, s) for n in (*SMALL, *LARGE) for s in (224, 225)])
def test_logits_equal_the_models_on_large_images(name, side, k):
    check_network(name, side, k, (LATE, COSTS["cpu"]))


@untyped
@pytest.mark.parametrize(
    "name", [n if i == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(SMALL)]
)
def test_every_cut_gives_the_same_logits(name):
    model, image, patch = network(name, 32), torch.rand(1, 3, 32, 32, generator=seeded(3)), (6, 9)
    top, left = (np.array(p) for p in places(32, 32, patch))
    pixels = drawn(len(top), patch)
    expected, plan = (
        bare(model, image, pixels, top, left),
        network_of(model).plan((1, 3, 32, 32), patch, 16, LATE, "cpu"),
    )
    with torch.no_grad():
        for cut in range(plan.cut + 1):
            here = Incremental(network_of(model), replace(plan, cut=cut, read=set(plan.sides)), image)
            assert off(here(pixels, top, left), expected) < TOLERANCE, plan.steps[cut].name


@untyped
def test_an_image_of_another_size_in_between_changes_nothing():
    model = network("small-small", 32)
    images = {side: torch.rand(1, 3, side, side, generator=seeded(3)) for side in (32, 48)}
    for side in (32, 48, 32):
        top, left = places(side, side, (8, 8))
        pixels = drawn(len(top), (8, 8))
        found = WindowLogits(model, images[side], (8, 8), 16, "always", LATE)(pixels, top, left)
        assert off(found, bare(model, images[side], pixels, top, left)) < TOLERANCE


# ----------------------------------------------------------------------------------------------------- random networks


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


class Joined(nn.Module):
    """Two branches of one value."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x: Tensor) -> Tensor:
        second = self.second(x)
        return self.join(self.first(x), second)


def added(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def random_norm(channels: int, seed: int) -> nn.Module:
    m, g = nn.BatchNorm2d(channels), seeded(seed)
    with torch.no_grad():
        m.running_mean.normal_(generator=g)
        m.running_var.uniform_(0.3, 3, generator=g)
        m.weight.uniform_(-2, 2, generator=g)
        m.bias.normal_(generator=g)
    return m


def activation(channels: int, which: int) -> nn.Module:
    choices: list[Callable[[], nn.Module]] = [
        lambda: nn.ReLU(inplace=True),
        lambda: nn.LeakyReLU(0.3, inplace=True),
        nn.Tanh,
        lambda: nn.PReLU(channels, 0.4),
        nn.SiLU,
        lambda: Function(lambda x: F.relu(x, inplace=True)),
        lambda: Function(F.elu),
        lambda: Function(lambda x: x.abs() - 0.1 * x),
        lambda: Function(lambda x: torch.clamp(x, -1, 2)),
        lambda: Function(lambda x: F.softplus(x) * 2 - 1),
        lambda: nn.Dropout(0.5),
        lambda: Function(lambda x: F.dropout(x, 0.5, False)),
    ]
    return choices[which % len(choices)]()


pairs = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
numbers = st.integers(0, 11)


@st.composite
def convolution(draw, channels: int, keeps: bool = False) -> nn.Module:
    """Any convolution; with `keeps`, one that keeps the shape."""
    groups = draw(st.sampled_from([1, channels]))
    out = channels if keeps else groups * draw(st.integers(1, 2))
    size, dilation = draw(pairs(1, 5)), draw(pairs(1, 2))
    if keeps or draw(numbers) == 0:
        return nn.Conv2d(channels, out, size, 1, "same", dilation, groups, bias=draw(st.booleans()))
    stride, padding = draw(pairs(1, 3)), draw(pairs(0, 3))
    return nn.Conv2d(channels, out, size, stride, padding, dilation, groups, bias=draw(st.booleans()))


@st.composite
def pooling(draw) -> nn.Module:
    size, ceil = draw(pairs(1, 4)), draw(st.booleans())
    stride = draw(st.one_of(st.none(), pairs(1, 3)))
    padding = tuple(min(p, s // 2) for p, s in zip(draw(pairs(0, 2)), size, strict=True))
    if draw(st.booleans()):
        dilation = draw(pairs(1, 2))
        if draw(st.booleans()):
            return nn.MaxPool2d(size, stride, padding, dilation, ceil_mode=ceil)
        return Function(lambda x: F.max_pool2d(x, size, stride, padding, dilation, ceil_mode=ceil))
    count = draw(st.booleans())
    if draw(st.booleans()):
        return nn.AvgPool2d(size, stride, padding, ceil, count)
    return Function(lambda x: F.avg_pool2d(x, size, stride, padding, ceil, count_include_pad=count))


@st.composite
def branch(draw, channels: int) -> nn.Module:
    """Layers that keep the shape, and grow a patch by different amounts."""
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 2))):
        layers.append(draw(convolution(channels, keeps=True)))
        layers.append(activation(channels, draw(numbers)) if draw(st.booleans()) else random_norm(channels, 1))
    if not layers and draw(st.booleans()):
        layers.append(draw(st.sampled_from([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d((1, 3), 1, (0, 1)), nn.Identity()])))
    return nn.Sequential(*layers)


@st.composite
def joined(draw, channels: int) -> nn.Module:
    join = draw(
        st.sampled_from(
            [operator.add, torch.sub, operator.mul, torch.maximum, added, lambda x, y: torch.cat([x, y, x], dim=1)]
        )
    )
    return Joined(draw(branch(channels)), draw(branch(channels)), join)


HEADS: list[Callable[[], list[nn.Module]]] = [
    lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    lambda: [nn.AdaptiveAvgPool2d((2, 1)), Function(lambda x: torch.flatten(x, 1)), nn.Dropout(0.5)],
    lambda: [Function(lambda x: x.mean((2, 3)))],
    lambda: [nn.Flatten()],
    lambda: [Function(lambda x: F.adaptive_max_pool2d(x, 2).view(x.size(0), -1))],
]


@dataclass
class Case:
    """A network, an image, windows and what they show."""

    model: nn.Module
    image: Tensor
    patch: tuple[int, int]
    top: list[int]
    left: list[int]
    rows: int
    costs: Costs

    def __repr__(self) -> str:
        return f"{self.model} on {tuple(self.image.shape)}, {self.patch} at {self.top}, {self.left}, rows={self.rows}"


@st.composite
def cases(draw) -> Case:
    torch.manual_seed(draw(st.integers(0, 9)))
    channels, (height, width) = draw(st.integers(1, 3)), draw(pairs(4, 20))
    x = image = torch.randn(1, channels, height, width)
    layers: list[nn.Module] = []
    for i in range(draw(st.integers(1, 6))):
        c = x.shape[1]
        kind = draw(st.sampled_from("ccnapjj")) if layers else "c"
        layer = {
            "c": lambda c=c: draw(convolution(c)),
            "n": lambda c=c, i=i: random_norm(c, i),
            "a": lambda c=c: activation(c, draw(numbers)),
            "p": lambda: draw(pooling()),
            "j": lambda c=c: draw(joined(c)),
        }[kind]().eval()
        try:
            with torch.no_grad():
                y = layer(x)
        except RuntimeError:  # the map is too small for it
            continue
        if 0 < y.numel() < 50_000 and y.shape[1] <= 24 and y.isfinite().all():  # a dilated pool may see -inf alone
            layers.append(layer)
            x = y
    layers += draw(st.sampled_from(HEADS))()
    with torch.no_grad():
        features = nn.Sequential(*layers).eval()(image).shape[1]
    patch = draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    corner = st.tuples(st.integers(0, height - patch[0]), st.integers(0, width - patch[1]))
    where = draw(st.lists(corner, min_size=1, max_size=5))
    model = nn.Sequential(*layers, nn.Linear(features, 3, bias=False)).eval()
    costs = draw(st.sampled_from([LATE, LATE, EARLY, COSTS["cpu"]]))
    rows = draw(st.integers(1, 5))
    return Case(model, image, patch, [t for t, _ in where], [s for _, s in where], rows, costs)


@pytest.mark.parametrize("examples", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_logits_of_random_networks_equal_the_models(examples):
    effects, carried = [], []

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(cases())
    def equal(case: Case) -> None:
        pixels = drawn(len(case.top), case.patch, case.image.shape[1])
        given_image, given_pixels = case.image.clone(), pixels.clone()
        expected = bare(case.model, case.image, pixels, case.top, case.left)
        logits = WindowLogits(case.model, case.image, case.patch, case.rows, "always", case.costs)
        assert off(logits(pixels, case.top, case.left), expected) < TOLERANCE
        assert torch.equal(case.image, given_image)
        assert torch.equal(pixels, given_pixels)
        with torch.no_grad():
            effects.append(off(case.model(case.image).expand_as(expected), expected))
        if case.costs is LATE:
            carried.append(slides(logits)[0])

    equal()
    assert np.mean(np.array(effects) > 100 * TOLERANCE) > 0.75
    assert np.mean(np.array(carried) >= 2) > 0.5


# --------------------------------------------------------------------------------------------- refusals and fall-backs


class Net(nn.Module):
    """Two convolutions, batch norms, and what a test puts between them."""

    def __init__(self, between: Callable[[Tensor], Any] = torch.relu) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), random_norm(8, 1)
        self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def net(between: Callable[[Tensor], Any] = torch.relu) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net(between).eval()


IMAGE = torch.rand(1, 3, 16, 16, generator=seeded(8))
TOP, LEFT = [0, 12, 5, 5], [0, 12, 7, 7]
PIXELS = drawn(4, (4, 4))


def answered(model: Any, mode: str = "always", costs: Costs | None = LATE) -> WindowLogits:
    return WindowLogits(model, IMAGE, (4, 4), 3, mode, costs)


def is_exact(model: Any, mode: str = "always") -> None:
    assert off(answered(model, mode)(PIXELS, TOP, LEFT), bare(model, IMAGE, PIXELS, TOP, LEFT)) < TOLERANCE


def refused(model: Any, why: str) -> None:
    """`auto` calls the model and says why in a line, `always` refuses."""
    logits = answered(model, "auto")
    assert why in logits.why
    assert "\n" not in logits.why
    assert (logits.kept, logits.share) == (0, 1.0)
    with pytest.raises(UsageError, match="incremental=always is not possible: "):
        answered(model)


def falls_back(model: Any, why: str) -> None:
    """Refused, with the model's own logits."""
    refused(model, why)
    is_exact(model, "auto")


def test_modules_in_training_mode_are_refused():
    refused(net().train(), "training mode: call eval()")


def test_a_batch_norm_in_training_mode_is_refused():
    model = net()
    model.norm.train()
    refused(model, "norm (BatchNorm2d) is in training mode")


def test_a_batch_norm_without_running_statistics_is_refused():
    model = net()
    model.norm = nn.BatchNorm2d(8, track_running_stats=False).eval()
    refused(model, "norm (BatchNorm2d) normalises by the batch")


def test_a_functional_batch_norm_in_training_mode_is_refused():
    refused(net(lambda x: F.batch_norm(x, None, None, training=True)), "is in training mode, also in evaluation mode")


HOOKS: dict[str, Callable[[Net], Any]] = {
    "forward": lambda m: m.first.register_forward_hook(lambda *_: None),
    "pre": lambda m: m.first.register_forward_pre_hook(lambda *_: None),
    "root": lambda m: m.register_forward_hook(lambda *_: None),
    "backward": lambda m: m.second.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_model_with_hooks_is_refused_until_they_are_removed(hook):
    model = net()
    handle = hook(model)
    falls_back(model, "has hooks: remove them")
    handle.remove()
    assert not answered(model).why


def test_global_hooks_are_refused():
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        falls_back(net(), "global hooks")
    finally:
        handle.remove()


def test_a_forward_pass_of_an_instance_is_refused():
    model = net()
    model.first.forward = lambda x: 2 * nn.Conv2d.forward(model.first, x)
    falls_back(model, "first (Conv2d) has a forward pass that is not its class's")


def test_control_flow_that_depends_on_values_is_refused():
    falls_back(net(lambda x: x if x.mean() > 0 else -x), "torch.fx cannot trace it")


def shared_then_changed(x: Tensor) -> Tensor:
    y = x * 2
    z = y + 1
    y.relu_()
    return y + z


def view_then_changed(x: Tensor) -> Tensor:
    parts = x[:, :4], x[:, 4:]
    x.relu_()
    return torch.cat([parts[0], parts[1]], 1)


def another_name_then_changed(x: Tensor) -> Tensor:
    y = x
    x += 10 * torch.relu(x - 1e3)  # 0 on the image
    return x + y


def part_changed(x: Tensor) -> Tensor:
    F.relu(x[:, :3], inplace=True)
    return x


CHANGES = {f.__name__: f for f in (shared_then_changed, view_then_changed, another_name_then_changed, part_changed)}


@pytest.mark.parametrize("between", CHANGES.values(), ids=CHANGES)
def test_a_value_changed_in_place_that_is_used_elsewhere_is_refused(between):
    falls_back(net(between), "in place, which is used elsewhere")


def test_an_identity_that_shares_memory_counts_as_used_elsewhere():
    model = Joined(nn.Identity(), nn.ReLU(inplace=True), torch.add)
    falls_back(
        nn.Sequential(net().first, model, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "which is used elsewhere"
    )


def test_a_model_that_changes_its_input_is_refused():
    class Changing(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(1.0))

    refused(Changing().eval(), "in place, which is used elsewhere")


def test_changes_in_place_of_values_of_their_own_are_exact():
    def between(x: Tensor) -> Tensor:
        x = torch.relu_(x)
        x += 1
        x *= x.size(1) / 8
        return F.leaky_relu(x.sub_(0.5), 0.1, inplace=True)

    is_exact(net(between))


def test_dropout_that_is_always_on_is_refused():
    for between in (lambda x: F.dropout(x, 0.5), lambda x: torch.dropout(x, 0.5, True)):
        refused(net(between), "is in training mode, also in evaluation mode")


def test_noise_is_refused():
    refused(net(lambda x: x + torch.randn_like(x)), "its traced form differs from it")


def test_a_forward_pass_that_keeps_values_is_refused_and_left_as_it_was():
    class Keeping(Net):
        seen: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return super().forward(x)

    model = Keeping().eval()
    falls_back(model, "keeps values for later")
    assert model.seen is None or isinstance(model.seen, Tensor)


def test_several_inputs_are_refused():
    class Two(Net):
        def forward(self, x: Tensor, scale: Any) -> Tensor:
            return scale * super().forward(x)

    refused(Two().eval(), "more than one input")


@pytest.mark.parametrize("outputs", [lambda y: (y, y), lambda y: {"logits": y}], ids=["tuple", "dictionary"])
def test_several_outputs_are_refused(outputs):
    class Several(Net):
        def forward(self, x: Tensor) -> Any:
            return outputs(super().forward(x))

    refused(Several().eval(), "more than one tensor")


@untyped
def test_maps_as_outputs_are_refused():
    falls_back(nn.Conv2d(3, 2, 3).eval(), "not one row of logits an image")


def test_half_precision_is_refused():
    refused(net().to(torch.bfloat16), "bfloat16: only float32")


def test_images_in_double_precision_are_refused():
    logits = WindowLogits(net().double(), IMAGE.double(), (4, 4))
    assert logits.why == "the image is torch.float64: only float32"


def test_autocast_is_refused_when_it_is_prepared_and_when_it_is_called():
    model = net()
    early = answered(model, "auto")
    with torch.autocast("cpu", torch.bfloat16):
        refused(model, "autocast is on")
        assert torch.equal(early(PIXELS, TOP, LEFT), answered(model, "never")(PIXELS, TOP, LEFT))


def test_a_function_is_refused():
    falls_back(lambda x: x.mean((2, 3)), "function is no torch module")


def test_an_image_too_small_for_the_network_is_an_error_of_the_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 20), nn.Flatten()).eval()
    refused(model, "its traced form does not run")
    with pytest.raises(RuntimeError, match="Kernel size"):
        answered(model, "auto")(PIXELS, TOP, LEFT)


@pytest.mark.parametrize("mode", ["always", "never"])
@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (13, 0), (0, 13)])
def test_windows_outside_of_the_image_are_refused(mode, top, left):
    with pytest.raises(UsageError, match="lies outside of the image of 16 x 16"):
        answered(net(), mode)(PIXELS[:1], [top], [left])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mode", ["always", "never"])
@pytest.mark.parametrize("shape", [(4, 1, 4, 4), (4, 3, 4, 5), (3, 3, 4, 4), (4, 3, 4)])
def test_pixels_of_a_wrong_shape_are_refused(mode, shape):
    with pytest.raises(UsageError, match="do not show 4 windows of 3 x 4 x 4"):
        answered(net(), mode)(torch.zeros(shape), TOP, LEFT)


def test_windows_larger_than_the_image_and_unknown_modes_are_refused():
    with pytest.raises(UsageError, match="do not fit an image"):
        WindowLogits(net(), IMAGE, (17, 4))
    with pytest.raises(UsageError, match="must be one of auto, always, never"):
        answered(net(), "sometimes")


MIDDLE: dict[str, Callable[[Tensor], Tensor]] = {
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "softmax over space": lambda x: x.flatten(2).softmax(2).view(x.shape),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "excitation": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "roll": lambda x: torch.roll(x, 3, 2),
    "shape": lambda x: x.view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).transpose(1, 2).reshape(x.shape),
    "side branch": lambda x: torch.relu(x) + F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0),
    "mask": lambda x: x * torch.eye(16),
}


@pytest.mark.parametrize("between", MIDDLE.values(), ids=MIDDLE)
def test_unknown_operations_are_exact_by_whole_maps(between):
    model = net(between)
    is_exact(model)
    network, shape = network_of(model), tuple(IMAGE.shape)
    plan, pixels, top, left = network.plan(shape, (4, 4), 4, LATE, IMAGE.device), PIXELS, np.array(TOP), np.array(LEFT)
    with torch.no_grad():
        for cut in range(len(plan.steps) + 1):
            here = Incremental(network, replace(plan, cut=cut, read=set(plan.sides)), IMAGE)
            assert off(here(pixels, top, left), bare(model, IMAGE, PIXELS, TOP, LEFT)) < TOLERANCE


def test_attention_is_exact_by_whole_maps():
    model = torchvision.models.VisionTransformer(16, 4, 1, 2, 8, 16, num_classes=5).eval()
    nn.init.normal_(model.heads[0].weight)
    is_exact(model)


def test_an_activation_that_merely_has_a_known_name_is_traced():
    class MaxMin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flip(3)

    is_exact(net(MaxMin()))


def test_no_windows_give_no_rows():
    assert answered(net())(PIXELS[:0], [], []).shape == (0, 4)


def test_pixels_in_double_precision_are_taken_as_the_images():
    found = [answered(net(), mode)(PIXELS.double(), TOP, LEFT) for mode in ("always", "never")]
    assert found[0].dtype == found[1].dtype == torch.float32
    assert off(*found) < TOLERANCE


# ------------------------------------------------------------------------------------------------------- changed models


def optimised(model: Net) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(IMAGE.repeat(2, 1, 1, 1)).square().sum().backward()
    optimizer.step()
    model.eval()


def other_layer(model: Net) -> None:
    model.second = nn.Conv2d(8, 8, 3, padding=1).eval()


def through_data(model: Net) -> None:
    """Weights as no version counter sees them."""
    for p in model.parameters():
        p.data.mul_(1.5)


def other_statistics(model: Net) -> None:
    """Of what may be folded into a convolution."""
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.data.add_(2.0)


@pytest.mark.parametrize("edit", [optimised, other_layer, through_data, other_statistics], ids=lambda f: f.__name__)
def test_maps_are_those_of_the_weights_of_now(edit):
    model = net()
    windows = SlidingPatch(4, 2, scale=False, incremental="always")
    before = windows(model, BATCH, CHOSEN)
    edit(model)
    after, expected = windows(model, BATCH, CHOSEN), replace(windows, incremental="never")(model, BATCH, CHOSEN)
    spread = float(expected.max() - expected.min())
    assert (before - expected).abs().max() > 0.01 * spread
    assert (after - expected).abs().max() < TOLERANCE * spread


def test_a_traced_model_in_training_mode_is_refused():
    model = net()
    answered(model)
    refused(model.train(), "training mode")
    is_exact(model.eval())


def test_tracing_leaves_the_model_as_it_was():
    model, twin = net(lambda x: x * torch.tensor([0.5])), net(lambda x: x * torch.tensor([0.5]))
    names = [list(vars(m)) for m in model.modules()]
    answered(model)(PIXELS, TOP, LEFT)
    assert [list(vars(m)) for m in model.modules()] == names
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert torch.equal(model(IMAGE), twin(IMAGE))
    for m in (model, twin):
        optimised(m)
    assert torch.equal(model(IMAGE), twin(IMAGE))
    assert torch.equal(copy.deepcopy(model)(IMAGE), twin(IMAGE))


@pytest.mark.parametrize("mode", ["always", "never"])
def test_the_image_and_the_pixels_are_not_changed(mode):
    image, pixels = IMAGE.clone(), PIXELS.clone()
    WindowLogits(net(), image, (4, 4), 3, mode, LATE)(pixels, TOP, LEFT)
    assert torch.equal(image, IMAGE)
    assert torch.equal(pixels, PIXELS)


def test_what_is_traced_in_inference_mode_serves_outside_of_it():
    model = nn.Sequential(
        random_norm(3, 1), nn.ReLU(), *named("small-small", 16).stem, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with torch.inference_mode():
        answered(model.eval())
    is_exact(model)


def test_a_sweep_traces_its_model_once(monkeypatch):
    traced = []
    monkeypatch.setattr(
        "lit_xai.explainers.sweep.WindowLogits", lambda *a, **k: traced.append(k["network"]) or WindowLogits(*a, **k)
    )
    model = net()
    SlidingPatch(4, 2, scale=False, incremental="always")(model, BATCH, CHOSEN)
    assert traced[0] is None
    assert len({id(network) for network in traced[1:]}) == 1
    assert None not in traced[1:]


# ----------------------------------------------------------------------------------------------------------- decisions


@pytest.fixture(scope="module")
def vgg19_on_paper():
    """Its steps, without numbers: what they cost is a function of shapes and of the kind of device."""
    with torch.device("meta"):
        return network_of(torchvision.models.vgg19().eval())


@pytest.mark.parametrize(("rows", "least", "most"), [(16, 0.9, 1.0), (64, 0.4, 0.6), (1024, 0.0, 0.3)])
def test_on_a_gpu_vgg19_pays_by_the_windows_that_a_call_has(vgg19_on_paper, rows, least, most):
    plan = vgg19_on_paper.plan((1, 3, 224, 224), (8, 8), rows, COSTS["cuda"], torch.device("meta"))
    assert least <= plan.share <= most


def test_what_was_measured_on_a_gpu_is_predicted(vgg19_on_paper):
    """1.52 of the model's time: patches up to the last but one pooling, and a pass of the model on one window."""
    shape, meta, costs = (1, 3, 224, 224), torch.device("meta"), COSTS["cuda"]
    steps = vgg19_on_paper.plan(shape, (8, 8), 16, costs, meta)
    cut = 30
    names = [s.name for s in steps.steps]
    seconds = sum(steps.by_step[n][0 if i < cut else 1] for i, n in enumerate(names))
    one = vgg19_on_paper.plan(shape, (8, 8), 1, costs, meta).naive
    assert (seconds + one) / steps.naive == pytest.approx(1.52, abs=0.1)


def test_few_windows_a_call_are_left_to_a_model_whose_own_calls_are_large():
    model, image = net(), IMAGE
    costs = replace(COSTS["cpu"], call=1e-3, patch=1e-3)
    alone, beside = (WindowLogits(model, image, (4, 4), rows, "auto", costs, windows=4) for rows in (4, 400))
    assert alone.share <= 1.0
    assert "of the model's own time at 4 windows a call" in beside.why


def test_calls_by_patches_are_as_large_as_the_memory_of_the_models_own():
    model, image = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), *net_of_64()).eval(), IMAGE
    logits = WindowLogits(model, image, (4, 4), 2, "always", LATE, windows=500)
    assert logits.incremental is not None
    plan = logits.incremental.plan
    assert 2 < logits.windows == plan.rows < 500
    assert plan.held * logits.windows <= 2 * plan.held_by_model < plan.held * 2 * (logits.windows + 1)
    seen: list[int] = []
    of_rows = logits.of_rows
    logits.of_rows = lambda pixels, *places: seen.append(len(pixels)) or of_rows(pixels, *places)  # type: ignore[method-assign]
    pixels, top, left = PIXELS.repeat(9, 1, 1, 1), TOP * 9, LEFT * 9
    assert off(logits(pixels, top, left), bare(model, image, pixels, top, left)) < TOLERANCE
    assert max(seen) == min(logits.windows, len(pixels))


def net_of_64() -> list[nn.Module]:
    return [nn.Conv2d(64, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


@pytest.mark.parametrize(
    ("device", "draws", "rows"), [("cpu", 1, 64), ("cpu", 8, 64), ("meta", 1, 25), ("meta", 8, 200), ("meta", 16, 256)]
)
def test_a_sweep_on_a_device_decides_by_the_windows_that_its_calls_have(device, draws, rows):
    batch, windows = torch.rand(3, 3, 16, 16).to(device), Windows(16, 16, 4, 3)
    assert Outputs(mapped(), batch, windows, draws, 64, "float32", "never", trusted=True).rows == rows


# ------------------------------------------------------------------------------------------------------------ precision

SETTINGS: dict[str, Callable[[], Any]] = {
    "as shipped": lambda: None,
    "legacy": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "named": lambda: torch.set_float32_matmul_precision("medium"),
    "convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
}


def float32_settings() -> list[Any]:
    """What torch says of TF32, by all of its names."""
    found: list[Any] = [torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]
    for read in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:  # new names and old ones were mixed
            found.append("mixed")
    return found


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_float32_are_put_back_whoever_made_them(setting):
    kinds = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before, named = [kind.fp32_precision for kind in kinds], torch.get_float32_matmul_precision()
    try:
        setting()
        made = float32_settings()
        with contextlib.suppress(ValueError), full_precision():
            assert float32_settings()[:2] == ["ieee", "ieee"]
            raise ValueError
        assert float32_settings() == made
    finally:
        torch.set_float32_matmul_precision(named)
        for kind, was in zip(kinds, before, strict=True):
            kind.fp32_precision = was


@pytest.fixture
def tf32(monkeypatch):
    """Convolutions round their factors to 10 bits, as a GPU's do unless it is told otherwise."""
    convolve = F.conv2d

    def rounded(x: Tensor) -> Tensor:
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def conv2d(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.backends.cudnn.conv.fp32_precision == "tf32":
            x, weight = rounded(x), rounded(weight)
        return convolve(x, weight, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", conv2d)
    monkeypatch.setattr("lit_xai.incremental.patches.rounds", lambda _: True)


@untyped
def test_where_convolutions_are_rounded_the_traced_network_is_compared_without(tf32):
    model, image = network("small-small", 32), torch.rand(1, 3, 32, 32, generator=seeded(3))
    top, left = places(32, 32, (8, 8))
    pixels, mode = drawn(len(top), (8, 8)), torch.backends.cudnn.conv.fp32_precision
    found = WindowLogits(model, image, (8, 8), 5, "always", LATE)
    rounding = found.incremental.shift.abs().max() / found.incremental.logits.abs().max()
    assert 1e-4 < rounding < 1e-2  # of the folded weights: the traced network would be refused
    assert torch.backends.cudnn.conv.fp32_precision == mode == "tf32"
    rounded = bare(model, image, pixels, top, left)
    with full_precision():
        exact = bare(model, image, pixels, top, left)
    assert off(found(pixels, top, left), exact) < 2 * off(rounded, exact)


@untyped
def test_where_convolutions_are_rounded_a_window_of_no_effect_has_none(tf32):
    model, image = network("small-small", 32), torch.rand(1, 3, 32, 32, generator=seeded(3))
    found = WindowLogits(model, image, (8, 8), 5, "always", LATE)(image[:, :, 4:12, 9:17], [4], [9])
    with torch.no_grad():
        assert off(found, model(image)) < 1e-5


# ----------------------------------------------------------------------------------------------------------- resources


def test_kept_is_the_bytes_of_the_tables():
    logits = answered(net())
    assert logits.incremental is not None
    rows = [t.rows for t in logits.incremental.tables.values()]
    assert logits.kept == sum(4 * r.numel() for r in rows) > 0


def test_too_little_memory_leaves_it_to_the_model(monkeypatch):
    model, image = net(), torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    allowed = WindowLogits(model, image, (3, 3), mode="auto", costs=LATE)
    assert not allowed.why
    monkeypatch.setattr("lit_xai.incremental.MEMORY", 1000)
    refused = WindowLogits(model, image, (3, 3), mode="auto", costs=LATE)
    assert "0 MB of feature maps are more than 0 MB" in refused.why
    assert refused.kept == 0
    pixels = torch.zeros(1, 3, 3, 3)
    assert torch.allclose(refused(pixels, [4], [9]), allowed(pixels, [4], [9]), atol=1e-5)


@pytest.mark.slow
def test_vgg19_keeps_less_than_300_mb_an_image():
    for costs in (LATE, EARLY, COSTS["cpu"]):
        logits = WindowLogits(network("vgg19", 224), torch.rand(1, 3, 224, 224), (8, 8), 16, "always", costs)
        assert logits.kept < 300e6


PLAN = """
import torch
from lit_xai.incremental import COSTS, network_of
from lit_xai.models.resnet import ResNet18
for seed in (0, 1):
    torch.manual_seed(seed)
    model = ResNet18(3, 7, width=8).eval()
    plan = network_of(model).plan((1, 3, 64, 64), (8, 8), 16, COSTS["cpu"], torch.device("cpu"))
    print(plan.cut, plan.seconds, plan.naive, sorted(plan.sides.items()), sorted(plan.read))
"""


@pytest.mark.slow
def test_the_plan_is_the_same_in_every_process():
    runs = [subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=True) for _ in range(2)]
    lines = [line for run in runs for line in run.stdout.splitlines()]
    assert len(lines) == 4
    assert len(set(lines)) == 1


# ---------------------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class Careless(Filler):
    """A filler that changes visible pixels, too."""

    deterministic = True

    def __call__(self, images: Tensor, keep: Keep, rng: SampleRng, draws: int = 1, segments: Any = None) -> Tensor:
        out = torch.where(keep[:, :, None], images[:, None], 0.0) * 0.9
        return out[:, :, None].expand(-1, -1, draws, -1, -1, -1)


CONTRASTS = [ProbabilityDifference(), LogOddsDifference(), PMI(), KL()]
FILLERS = {"colour": Colour((0.5, 0.4, 0.3)), "blur": Blur(), "mean": PatchMean(), "noise": UniformNoise()}
BATCH = torch.rand(3, 3, 16, 16, generator=seeded(9))
CHOSEN = torch.tensor([0, 2, 1])


def mapped() -> nn.Module:
    """A network whose probabilities every window changes visibly."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 8, 3, padding=1), random_norm(8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        layers[0].weight.data *= 3
        return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 4)).eval()


def contrasts_of(filler: Any, incremental: str, which: slice = slice(None), max_batch: int = 7) -> Tensor:
    rng = SampleRng.default(len(BATCH), None).take(list(range(3))[which], [0, 0, 0][which])
    windows = Windows(16, 16, 4, 5, cover=True)
    return sweep(
        *(mapped(), BATCH[which], CHOSEN[which], windows, filler, CONTRASTS, rng),
        draws=5,
        max_batch=max_batch,
        incremental=incremental,
    )


def agree(found: Tensor, expected: Tensor) -> None:
    """To 1e-4 of the range of every map."""
    spread = expected.amax(-1, keepdim=True) - expected.amin(-1, keepdim=True)
    assert (spread > 0).all()
    assert ((found - expected).abs() <= 1e-4 * spread).all()


@pytest.mark.parametrize("max_batch", [2, 7, 64])
@pytest.mark.parametrize("filler", FILLERS.values(), ids=FILLERS)
def test_a_sweep_by_patches_equals_one_by_the_model(filler, max_batch):
    agree(contrasts_of(filler, "always", max_batch=max_batch), contrasts_of(filler, "never", max_batch=max_batch))


@pytest.mark.parametrize("filler", FILLERS.values(), ids=FILLERS)
def test_images_together_or_one_by_one_give_the_same_maps(filler):
    together = contrasts_of(filler, "always")
    alone = torch.cat([contrasts_of(filler, "always", slice(i, i + 1)) for i in range(3)], dim=1)
    assert (together - alone).abs().max() < 1e-6


def test_a_filler_that_changes_visible_pixels_gets_the_models_own_values():
    assert torch.equal(contrasts_of(Careless(), "always"), contrasts_of(Careless(), "never"))


@dataclass(frozen=True)
class SeldomCareless(Careless):
    """One that changes visible pixels where it fills the window of the bottom right corner."""

    def __call__(self, images: Tensor, keep: Keep, rng: SampleRng, draws: int = 1, segments: Any = None) -> Tensor:
        out = torch.where(keep[:, :, None], images[:, None], 0.0)
        out = torch.where(keep[:, :, None, -1:, -1:], out, 0.9 * out)
        return out[:, :, None].expand(-1, -1, draws, -1, -1, -1)


def test_one_window_in_which_visible_pixels_change_is_found():
    found, other = (contrasts_of(SeldomCareless(), mode, max_batch=4) for mode in ("always", "never"))
    assert torch.equal(found, other)
    maps = [
        information_maps(mapped(), BATCH, "top2", SeldomCareless(), 4, 3, max_batch=4, incremental=mode)
        for mode in ("always", "never")
    ]
    assert torch.equal(maps[0].pmi, maps[1].pmi)
    assert torch.equal(maps[0].ig, maps[1].ig)


class Waits(TorchDispatchMode):
    """Counts what makes a program wait for its device: a number that is read, a tensor whose size depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal")
        self.count += func.overloadpacket.__name__ in reads
        return func(*args, **(kwargs or {}))


def test_no_call_by_patches_waits_for_the_device():
    def waits(max_batch: int) -> int:
        images, windows, which = BATCH[:1], Windows(16, 16, 4, 2, cover=True), torch.tensor([0])
        rng = SampleRng.default(1, None)
        with Waits() as seen:
            sweep(
                *(mapped(), images, which, windows, UniformNoise(), [KL()], rng),
                draws=2,
                max_batch=max_batch,
                incremental="always",
            )
        return seen.count

    assert waits(4) == waits(64) > 0


@pytest.mark.parametrize("filler", FILLERS.values(), ids=FILLERS)
def test_sliding_patches_do_not_depend_on_how_they_are_computed(filler):
    maps = [
        SlidingPatch(4, 2, filler, draws=3, scale=False, incremental=mode)(mapped(), BATCH, CHOSEN).flatten(1)
        for mode in ("always", "never")
    ]
    agree(*maps)


def test_information_maps_do_not_depend_on_how_they_are_computed():
    found, expected = (
        information_maps(mapped(), BATCH, "top2", UniformNoise(), 4, 3, draws=4, incremental=mode)
        for mode in ("always", "never")
    )
    agree(found.pmi.flatten(2), expected.pmi.flatten(2))
    agree(found.ig.flatten(1), expected.ig.flatten(1))


def test_maps_of_a_model_that_is_refused_are_the_models_own():
    hooked = mapped()
    hooked[0].register_forward_hook(lambda *_: None)
    found, expected = (
        SlidingPatch(4, 2, scale=False, incremental=mode)(hooked, BATCH, CHOSEN) for mode in ("auto", "never")
    )
    assert torch.equal(found, expected)
    with pytest.raises(UsageError, match="has hooks"):
        SlidingPatch(4, 2, scale=False, incremental="always")(hooked, BATCH, CHOSEN)


class Turned(nn.Module):
    """A network times a number that tracing takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.times = mapped(), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.times


def test_a_model_that_is_no_longer_what_was_traced_answers_itself_for_all_images(monkeypatch):
    model, filler = Turned().eval(), Colour(0.5)

    class Turning(Careless):
        """Turns the model's number when it is first asked."""

        def __call__(self, images: Tensor, keep: Keep, rng: SampleRng, draws: int = 1, segments: Any = None) -> Tensor:
            model.times = 2.0
            return filler(images, keep, rng, draws)

    def maps(mode: str, filler: Filler) -> Tensor:
        model.times = 2.0 if mode == "never" else 1.0
        return SlidingPatch(4, 2, filler, scale=False, incremental=mode, max_batch=7)(model, BATCH, CHOSEN)

    monkeypatch.setattr(SWEEPS, "FEW", 0)
    monkeypatch.setitem(COSTS, "cpu", LATE)
    assert torch.equal(maps("auto", Turning()), maps("never", filler))
    with pytest.raises(UsageError, match="traced form differs"):
        maps("always", Turning())


def test_threads_that_trace_and_threads_that_compute_leave_each_other_alone() -> None:
    def network() -> nn.Module:
        layers = [layer for _ in range(20) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

    image, model, done, errors = torch.rand(1, 3, 16, 16), network(), threading.Event(), []

    def compute() -> None:
        with torch.no_grad():
            expected = model(image)
            while not done.is_set():
                try:
                    assert torch.equal(model(image), expected)
                except Exception as e:
                    errors.append(e)

    def trace() -> None:
        for _ in range(5):
            try:
                WindowLogits(network(), image, (3, 3), mode="always")
            except Exception as e:
                errors.append(e)

    others = [threading.Thread(target=trace) for _ in range(3)]
    one = threading.Thread(target=compute)
    for thread in (one, *others):
        thread.start()
    for thread in others:
        thread.join()
    done.set()
    one.join()
    assert not errors
    assert isinstance(network()(image), Tensor)


def test_always_is_refused_in_bf16() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    explain = SlidingPatch(3, 3, scale=False, precision="bf16", incremental="always")
    with pytest.raises(UsageError, match="incremental=always is not possible: precision=bf16"):
        explain(model, torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.long))


def test_what_is_set_item_by_item_is_refused() -> None:
    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            h.__setitem__((slice(None), 0), 0.0)
            return self.second(h).mean((2, 3))

    with pytest.raises(UsageError, match="in place"):
        WindowLogits(Sets().eval(), torch.rand(1, 3, 16, 16), (3, 3), mode="always")


@pytest.mark.parametrize(("few", "traced"), [(1 << 18, 0), (49 * 64 * 64, 1)])
def test_a_sweep_that_tracing_would_slow_down_is_not_traced(monkeypatch, few, traced):
    asked = []
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    make = SWEEPS.WindowLogits
    monkeypatch.setattr(SWEEPS, "WindowLogits", lambda *a, **k: asked.append(1) or make(*a, **k))
    monkeypatch.setattr(SWEEPS, "FEW", few)
    method = SlidingPatch(4, 10, Colour(0.0), scale=False)  # 49 windows
    method(network, torch.rand(1, 1, 64, 64, generator=seeded(0)), torch.tensor([0]))
    assert len(asked) == traced

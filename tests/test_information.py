"""Information maps on a toy of independent two-valued patches, where every expectation can be enumerated."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lit_xai.calls import Gate
from lit_xai.core import Filler, Passes
from lit_xai.errors import UsageError
from lit_xai.explainers import Information, SlidingPatch, information_maps
from lit_xai.explainers.half import float32_head
from lit_xai.explainers.sweep import EPSILON, KL, PMI
from lit_xai.fillers import UniformNoise
from lit_xai.fillers.constant import Colour
from lit_xai.fillers.patch import PatchModule, PatchNetwork, PatchSampler
from lit_xai.fillers.simple import Independent
from lit_xai.rng import Noise, SampleRng
from scipy.special import gammaln
from scipy.stats import binom
from torch import Tensor, nn

from conftest import seeded

HIGH = 0.3  # probability that a patch is white
CLASSES = 3


@dataclass(frozen=True)
class Patches(Independent):
    """The toy's own distribution: 2 x 2 pixel patches, all white with probability `HIGH`, else all black."""

    def paint(self, images: Tensor, noise: Noise) -> Tensor:
        channels, height, width = images.shape[1:]
        white = noise.uniform((channels, height // 2, width // 2)) < HIGH
        return white.to(images.dtype).repeat_interleave(2, -1).repeat_interleave(2, -2)


class Toy(nn.Module):
    """Logits linear in the means of the four patches of 4 x 4 pixels; the last patch is ignored."""

    def __init__(self) -> None:
        super().__init__()
        weight = 3 * torch.randn(4, CLASSES, generator=seeded(1), dtype=torch.float64)
        weight[3] = 0
        self.weight, self.sizes = nn.Parameter(weight), []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return nn.functional.avg_pool2d(x[:, :1], 2).flatten(1).double() @ self.weight


IMAGE = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]).repeat_interleave(2, 2).repeat_interleave(2, 3)


def with_and_without() -> tuple[Tensor, Tensor]:
    """p(y|x) [classes], and p(y|x) with every patch black or white, [patches, 2, classes]."""
    states = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    weight = Toy().weight.detach()
    changed = states.repeat(4, 2, 1)
    for i in range(4):
        changed[i, :, i] = torch.tensor([0.0, 1.0])
    return (states @ weight).softmax(0), (changed @ weight).softmax(2)


def toy(images: int = 1, draws: int = 4096, classes: Tensor | str = "all", **options) -> Information:
    rng = SampleRng(2, tuple(range(images)))
    batch = IMAGE.double().repeat(images, 1, 1, 1)
    return information_maps(
        Toy(), batch, classes, Patches(), patch=2, stride=2, draws=draws, rng=rng, max_batch=1024, **options
    )


def patches_of(maps: Tensor) -> Tensor:
    """The values [..., 4] of maps [..., 4, 4] that are constant on the patches."""
    corners = maps[..., ::2, ::2]
    assert torch.equal(corners.repeat_interleave(2, -1).repeat_interleave(2, -2), maps)
    return corners.flatten(-2)


# ---------------------------------------------------------------------------------------------------------- closed form


def test_with_many_draws_pmi_and_ig_are_the_closed_form():
    n, (p, changed) = 4096, with_and_without()
    without = (1 - HIGH) * changed[:, 0] + HIGH * changed[:, 1]
    error = math.sqrt(HIGH * (1 - HIGH) / n) * (changed[:, 1] - changed[:, 0])  # of the mean softmax
    found = toy(draws=n)
    pmi = patches_of(found.pmi[0]).T
    margin = 4 * (error / without).abs() / math.log(2) + 1e-9
    assert bool(((pmi - torch.log2(p / without)).abs() < margin).all())
    assert float(pmi.abs().max()) > 0.5
    ig = (p * torch.log2(p / without)).sum(1)
    margin = 4 * (p * error / without).sum(1).abs() / math.log(2) + 1e-3 * ig + 1e-9  # second order: 1/n
    assert bool(((patches_of(found.ig[0]) - ig).abs() < margin).all())
    assert float(ig[:3].min()) > 0.01


def test_with_few_draws_the_mean_over_repeats_is_the_enumerated_expectation():
    n, repeats, (p, changed) = 8, 1500, with_and_without()
    white = torch.arange(n + 1, dtype=torch.float64)
    weight = torch.from_numpy(binom.pmf(range(n + 1), n, HIGH))
    hidden = (1 - white / n)[:, None, None] * changed[:, 0] + (white / n)[:, None, None] * changed[:, 1]
    each = torch.log2((EPSILON + p) / (EPSILON + hidden))  # [white, patches, classes]
    found = toy(repeats, n)
    for value, maps in ((each, patches_of(found.pmi).permute(0, 2, 1)), ((p * each).sum(2), patches_of(found.ig))):
        w = weight.view(-1, *[1] * (value.ndim - 1))
        mean = (w * value).sum(0)
        error = ((w * (value - mean) ** 2).sum(0) / repeats).sqrt()
        assert bool(((maps.mean(0) - mean).abs() < 4 * error + 1e-9).all())
    # the bias of the log of a mean shows, so the oracle is not the closed form
    limit = torch.log2(p / ((1 - HIGH) * changed[:, 0] + HIGH * changed[:, 1]))
    assert float(((weight[:, None, None] * each).sum(0) - limit).abs().max()) > 0.01


def test_an_ignored_patch_scores_0():
    found = toy(draws=8)
    assert float(patches_of(found.pmi)[..., 3].abs().max()) < 1e-5
    assert float(patches_of(found.ig)[..., 3].abs().max()) < 1e-5


def test_pixels_whose_windows_all_lie_in_an_ignored_region_score_0():
    weight = torch.randn(4, 1, 12, 12, generator=seeded(1))
    weight[..., :7] = 0

    def model(x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, weight)

    images = torch.rand(2, 1, 12, 12, generator=seeded(2))
    found = information_maps(model, images, "all", UniformNoise(), patch=3, draws=4)
    for maps in (found.pmi, found.ig):
        assert float(maps[..., :5].abs().max()) < 1e-5  # windows of the fifth column end in the seventh
        assert float(maps[..., 5].abs().min()) > 1e-5


# ------------------------------------------------------------------------- overlapping windows and nonlinear classifiers

WHITE = torch.tensor([[0.2, 0.5], [0.7, 0.35]], dtype=torch.float64)  # probability of each pixel of a 2 x 2 window
SQUARES = torch.tensor([*itertools.product([0.0, 1.0], repeat=4)]).view(16, 2, 2)
PIXELS = torch.where(SQUARES > 0, WHITE, 1 - WHITE).flatten(1).prod(1)
FEW, CHANCES = SQUARES[[0, 6, 9, 13]], torch.tensor([0.4, 0.3, 0.1, 0.2], dtype=torch.float64)
SMALL = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # of the windows of a 3 x 3 image, stride 1


@dataclass(frozen=True)
class OneOf(Filler):
    """Hidden 2 x 2 squares show one of a few patterns."""

    patterns: Tensor
    chances: Tensor

    def __call__(self, images, keep, rng, draws=1, segments=None):
        out = images[:, None, None].repeat(1, keep.shape[1], draws, 1, 1, 1)
        edges = self.chances.cumsum(0)[:-1]
        for row, n in np.ndindex(keep.shape[:2]):
            u = torch.rand(draws, dtype=torch.float64, generator=rng.generator("filler", row, n))
            top, left = torch.nonzero(~keep[row, n])[0].tolist()
            drawn = self.patterns[torch.searchsorted(edges, u, right=True)]
            out[row, n, :, 0, top : top + 2, left : left + 2] = drawn.to(images)
        return out


class Known(PatchNetwork):
    """The distribution of independent pixels `WHITE`, as a PatchSampler's network would give it."""

    def forward(self, window: Tensor) -> Tensor:
        logits = torch.full((1, 1, 256, 2, 2), -1e4, dtype=window.dtype)
        logits[..., 0, :, :], logits[..., 255, :, :] = (1 - WHITE).log(), WHITE.log()
        return logits.expand(len(window), -1, -1, -1, -1)


def smooth(x: Tensor) -> Tensor:
    """Three classes of 3 x 3 images, by a network with a hidden layer."""
    first, second = (torch.randn(shape, generator=seeded(6), dtype=torch.float64) for shape in ((9, 7), (7, 3)))
    return torch.tanh(1.5 * x.flatten(1) @ first) @ second


def parity(x: Tensor) -> Tensor:
    """Whether the number of white pixels is even, without any doubt: probabilities are 0 and 1."""
    sign = torch.cos(math.pi * x.flatten(1).sum(1)).round()
    return 1e4 * torch.stack([sign, -sign], 1)


def known_sampler() -> PatchSampler:
    """A PatchSampler of that network."""
    module = PatchModule(1, 3, colour=([0.0], [1.0]), patch=2, width=1, depth=1, linear=False)
    module.network = Known(1, 2, 1, 1, False)
    return PatchSampler(given=module.eval())


FILLERS = {
    "few patterns": (OneOf(FEW, CHANCES), FEW, CHANCES),
    "independent pixels": (OneOf(SQUARES, PIXELS), SQUARES, PIXELS),
    "PatchSampler": (
        known_sampler(),
        SQUARES,
        PIXELS,
    ),
}
known_distribution = pytest.mark.parametrize("filler", FILLERS)
classifier = pytest.mark.parametrize("model", [smooth, parity], ids=["smooth", "certain"])


def refilled(model, patterns: Tensor) -> tuple[Tensor, Tensor]:
    """p(y|x) [classes], and p(y|x) with every pattern in every window, [windows, patterns, classes]."""
    changed = SMALL.double().repeat(4, len(patterns), 1, 1, 1)
    for w, (top, left) in enumerate(CORNERS):
        changed[w, :, 0, top : top + 2, left : left + 2] = patterns
    whole = model(SMALL.double()[None, None]).softmax(1)[0]
    return whole, model(changed.flatten(0, 1)).softmax(1).unflatten(0, (4, -1))


def spread(values: Tensor, power: int = 1) -> Tensor:
    """The windows' values [..., 4] on the pixels [..., 3, 3]: mean over the windows; with power 2, of their variances."""
    total, number = torch.zeros(*values.shape[:-1], 3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for w, (top, left) in enumerate(CORNERS):
        total[..., top : top + 2, left : left + 2] += values[..., w, None, None]
        number[top : top + 2, left : left + 2] += 1
    return total / number**power


@functools.cache
def outcomes(patterns: int, draws: int) -> Tensor:
    """All multisets of `draws` patterns [outcomes, draws]."""
    return torch.tensor(list(itertools.combinations_with_replacement(range(patterns), draws)))


def multinomial(outcome: Tensor, chances: Tensor) -> Tensor:
    """The probability of each multiset."""
    counts = torch.stack([(outcome == i).sum(1) for i in range(len(chances))], 1).double()
    ways = gammaln(outcome.shape[1] + 1) - torch.from_numpy(gammaln(counts.numpy() + 1)).sum(1)
    return (ways + counts @ chances.log()).exp()


def small(model, filler, images: int, draws: int) -> Information:
    """Information about copies of `SMALL`, each with noise of its own."""
    batch, rng = SMALL.double().expand(images, 1, 3, 3), SampleRng(3, tuple(range(images)))
    return information_maps(model, batch, "all", filler, patch=2, draws=draws, rng=rng, max_batch=4096)


@classifier
@known_distribution
def test_eight_draws_have_the_expectation_of_all_their_outcomes(model, filler):
    fill, patterns, chances = FILLERS[filler]
    draws, repeats, (p, changed) = 8, 800, refilled(model, patterns)
    outcome = outcomes(len(patterns), draws)
    weight = multinomial(outcome, chances)
    assert float(weight.sum()) == pytest.approx(1, abs=1e-9)
    hidden = sum(changed[:, outcome[:, d]] for d in range(draws)) / draws  # [windows, outcomes, classes]
    each = torch.log2((EPSILON + p) / (EPSILON + hidden))
    found = small(model, fill, repeats, draws)
    for value, maps in ((each.permute(1, 2, 0), found.pmi), ((p * each).sum(2).T, found.ig)):
        mean = torch.tensordot(weight, value, 1)
        variance = torch.tensordot(weight, (value - mean) ** 2, 1)
        error = (spread(variance, power=2) / repeats).sqrt()
        assert bool(((maps.mean(0) - spread(mean)).abs() < 4 * error + 1e-9).all())
    without = torch.tensordot(chances, changed.transpose(0, 1), 1)
    limit = torch.log2((EPSILON + p) / (EPSILON + without))  # which is something else
    assert float((torch.tensordot(weight, each.transpose(0, 1), 1) - limit).abs().max()) > 0.01


@classifier
@known_distribution
def test_many_draws_give_the_closed_form_of_a_nonlinear_classifier(model, filler):
    fill, patterns, chances = FILLERS[filler]
    n, (p, changed) = 8192, refilled(model, patterns)
    without = torch.tensordot(chances, changed.transpose(0, 1), 1)
    slope = (changed - without[:, None]) / (EPSILON + without)[:, None] / math.log(2)  # of -PMI
    pmi = torch.log2((EPSILON + p) / (EPSILON + without))
    found = small(model, fill, 1, n)
    for value, change, maps in (
        (pmi.T, slope.permute(1, 2, 0), found.pmi[0]),
        ((p * pmi).sum(1), (p * slope).sum(2).T, found.ig[0]),
    ):
        variance = torch.tensordot(chances, change**2, 1) / n
        margin = 4 * spread(variance, power=2).sqrt() + spread(variance) + 1e-9  # the second order beside the first
        assert bool(((maps - spread(value)).abs() < margin).all())
        assert float(maps.abs().max()) > 0.1


@known_distribution
def test_certain_classifiers_have_finite_maps_that_keep_the_identities(filler):
    found = small(parity, FILLERS[filler][0], 20, 8)
    assert set(found.probabilities.flatten().tolist()) == {0.0, 1.0}
    assert bool(found.pmi.isfinite().all())
    assert float(found.pmi.abs().max()) <= -math.log2(EPSILON) + 1e-9
    mean = (found.probabilities[..., None, None] * found.pmi).sum(1)
    assert torch.allclose(found.ig, mean, rtol=0, atol=1e-6)
    assert float(found.ig.min()) > -1e-9


# ----------------------------------------------------------------------------------------------------- what holds always


@pytest.fixture
def overlapping(convnet, rgb):
    """Information of every class from overlapping windows, in float64."""
    return information_maps(
        convnet.double(),
        rgb.double(),
        "all",
        UniformNoise(),
        patch=4,
        stride=3,
        draws=3,
        rng=SampleRng(1, (*range(5),)),
    )


def test_the_information_gain_is_the_mean_pmi_under_the_images_probabilities(overlapping, convnet, rgb):
    p = convnet(rgb.double()).softmax(1)
    assert torch.allclose(overlapping.probabilities, p, rtol=0, atol=1e-12)
    mean = (p[..., None, None] * overlapping.pmi).sum(1)
    assert torch.allclose(overlapping.ig, mean, rtol=0, atol=1e-6)
    assert float(overlapping.ig.max()) > 1e-6


def test_the_information_gain_is_not_negative(overlapping):
    assert float(overlapping.ig.min()) >= -1e-10
    assert float(toy(50, 8).ig.min()) >= -1e-10


def test_maps_are_those_of_the_explainers_of_one_class(overlapping, convnet, rgb):
    options = {"filler": UniformNoise(), "draws": 3, "projection": "mean", "scale": False}
    rng = SampleRng(1, (*range(5),))
    for y in range(4):
        one = SlidingPatch(4, 3, contrast=PMI(), **options)(convnet, rgb.double(), torch.full((5,), y), rng)
        assert torch.allclose(overlapping.pmi[:, y], one, rtol=0, atol=1e-12)
    gain = SlidingPatch(4, 3, contrast=KL(), **options)(convnet, rgb.double(), torch.zeros(5, dtype=torch.long), rng)
    assert torch.allclose(overlapping.ig, gain, rtol=0, atol=1e-12)


def test_classes_by_number_are_a_part_of_all(overlapping, convnet, rgb):
    classes = torch.tensor([[0, 1, 3], [3, 2, 1], [2, 2, 2], [1, 0, 2], [0, 3, 1]])
    found = information_maps(
        convnet.double(), rgb.double(), classes, UniformNoise(), 4, 3, 3, rng=SampleRng(1, (*range(5),))
    )
    assert found.pmi.shape == (5, 3, 12, 12)
    assert torch.equal(found.classes, classes)
    expected = overlapping.pmi.gather(1, classes[..., None, None].expand(-1, -1, 12, 12))
    assert torch.allclose(found.pmi, expected, rtol=0, atol=1e-12)
    assert torch.allclose(found.probabilities, overlapping.probabilities.gather(1, classes), rtol=0, atol=1e-12)
    assert torch.equal(found.ig, overlapping.ig)


def test_top2_are_the_two_likeliest_classes(overlapping, convnet, rgb):
    found = information_maps(
        convnet.double(), rgb.double(), "top2", UniformNoise(), 4, 3, 3, rng=SampleRng(1, (*range(5),))
    )
    expected = convnet(rgb.double()).argsort(1, descending=True)[:, :2]
    assert torch.equal(found.classes, expected)
    assert bool((found.probabilities[:, 0] > found.probabilities[:, 1]).all())
    assert torch.allclose(
        found.pmi, overlapping.pmi.gather(1, expected[..., None, None].expand(-1, -1, 12, 12)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("max_batch", [1, 10, 1000])
def test_maps_depend_neither_on_the_chunk_nor_on_the_batch(overlapping, convnet, rgb, max_batch):
    for rows in ([0, 1, 2, 3, 4], [3]):
        rng = SampleRng(1, tuple(rows))
        found = information_maps(
            convnet.double(), rgb[rows].double(), "all", UniformNoise(), 4, 3, 3, rng=rng, max_batch=max_batch
        )
        assert torch.allclose(found.pmi, overlapping.pmi[rows], rtol=0, atol=1e-12)
        assert torch.allclose(found.ig, overlapping.ig[rows], rtol=0, atol=1e-12)


def test_all_maps_cost_the_model_calls_of_one():
    image = IMAGE.double().repeat(3, 1, 1, 1)
    one, many = Toy(), Toy()
    SlidingPatch(2, 1, Patches(), 8, PMI(), "mean", scale=False)(one, image, torch.zeros(3, dtype=torch.long))
    found = information_maps(many, image, "all", Patches(), patch=2)
    assert many.sizes == one.sizes
    assert sum(many.sizes) == 3 * found.passes.forward == 3 * (9 * 8 + 1)
    assert found.passes == Passes(73)
    assert information_maps(Toy(), image, "top2", Colour(0.5), patch=2).passes == Passes(10)


def test_bits_are_nats_over_log_2():
    bits, nats = (toy(2, 8, unit=u) for u in ("bits", "nats"))
    assert torch.allclose(bits.pmi * math.log(2), nats.pmi, rtol=0, atol=1e-12)
    assert torch.allclose(bits.ig * math.log(2), nats.ig, rtol=0, atol=1e-12)


def test_certainty_gives_finite_numbers():
    def sure(x: Tensor) -> Tensor:
        logit = 1e4 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([logit, -logit], 1)

    found = information_maps(sure, torch.tensor([0.51, 0.4]).view(2, 1, 1, 1).expand(2, 1, 6, 6), "all", Colour(0.2), 4)
    most = -math.log2(EPSILON)
    for maps in (found.pmi, found.ig):
        assert bool(maps.isfinite().all())
        assert float(maps.abs().max()) <= most + 0.01
    assert float(found.ig[0].max()) == pytest.approx(most, abs=0.01)


def test_a_window_that_does_not_fit_the_stride_is_flush_with_the_edge():
    found = toy(draws=8)
    rng, image = SampleRng(2, (0,)), IMAGE.double()
    wide = information_maps(Toy(), image, "all", Patches(), patch=2, stride=3, draws=8, rng=rng)
    assert wide.passes == Passes(4 * 8 + 1)  # windows at 0 and 2 along both sides
    assert torch.equal(wide.pmi, found.pmi)


def test_maps_are_plain_tensors_of_the_images_type_and_the_model_is_left_as_found(convnet, rgb):
    convnet.train()
    found = information_maps(convnet, rgb, "top2", UniformNoise(), patch=4, stride=4, draws=2)
    assert convnet.training
    assert found.pmi.dtype == found.ig.dtype == found.probabilities.dtype == torch.float32
    assert not any(t.requires_grad or t.is_inference() for t in (found.pmi, found.ig, found.probabilities))
    half = information_maps(convnet, rgb, "top2", UniformNoise(), 4, 4, 2, precision="bf16")
    assert torch.allclose(half.ig, found.ig, atol=0.02)


@functools.lru_cache(maxsize=1)
def trained() -> tuple[nn.Module, Tensor]:
    """A network that reads most handwritten digits, and some that it has not seen."""
    from lit_xai.data.sources import digits

    source = digits(16)
    order = torch.randperm(1797, generator=seeded(0))
    images, labels = source.train.images(order.tolist()), torch.as_tensor(source.labels)[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for part in torch.arange(1600).repeat(3).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
    with torch.no_grad():
        right = model(images[1600:]).argmax(1) == labels[1600:]
    assert float(right.float().mean()) > 0.85
    return model.eval(), images[1600:1602]


def shifted(by: float, scale: float = 1.0) -> nn.Module:
    """The trained network, its logits scaled and shifted by a number: softmax does not see the shift, bf16 does."""
    model = copy.deepcopy(trained()[0])
    with torch.no_grad():
        model[-1].weight.mul_(scale)
        model[-1].bias.mul_(scale).add_(by)
    return model


def in_both(model: nn.Module, images: Tensor) -> list[Information]:
    options = {"patch": 5, "stride": 2, "draws": 2}
    return [
        information_maps(model, images, "top2", UniformNoise(), **options, precision=p) for p in ("float32", "bf16")
    ]


def correlations(a: Tensor, b: Tensor) -> Tensor:
    a, b = (v.flatten(-2).double() for v in (a, b))
    a, b = (v - v.mean(-1, keepdim=True) for v in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.parametrize("by", [0.0, 60.0])
def test_maps_of_a_trained_network_are_the_same_in_bf16(by):
    full, half = in_both(shifted(by), trained()[1])
    assert torch.equal(full.classes, half.classes)
    assert float(correlations(full.pmi, half.pmi).min()) > 0.999
    assert float(correlations(full.ig, half.ig).min()) > 0.999
    assert not torch.equal(full.pmi, half.pmi)


def test_what_bf16_would_hide_is_explained_in_float32():
    model = shifted(0, 1e-3)
    with torch.no_grad():
        model[0].bias.add_(50)  # what windows change is rounded away in every feature
    full, half = in_both(model, trained()[1])
    assert torch.equal(full.pmi, half.pmi)
    assert torch.equal(full.ig, half.ig)


def test_images_in_bf16_do_not_depend_on_those_beside_them():
    model, images = shifted(0), trained()[1]
    both = torch.cat([images, torch.full_like(images[:1], 0.5)])  # of an even image nothing but rounding may be left
    together = in_both(model, both)[1]
    for i in range(len(both)):
        rng = SampleRng.default(len(both), None).take([i])
        alone = information_maps(*(model, both[i : i + 1], "top2", UniformNoise(), 5, 2, 2), rng=rng, precision="bf16")
        assert torch.allclose(together.pmi[i], alone.pmi[0], atol=1e-6)


@pytest.mark.parametrize("raises", [False, True])
def test_a_sweep_in_bf16_leaves_no_hooks(raises):
    model, images = shifted(0), trained()[1]
    with contextlib.suppress(ValueError), float32_head(Gate.of(model), images):
        assert sum(len(m._forward_hooks) for m in model.modules()) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert model(images).dtype == torch.float32
        if raises:
            raise ValueError
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 13}, "patch=13 does not fit images of 12 x 12"),
        ({"patch": 0}, "at least 1 pixel"),
        ({"stride": 0}, "at least 1 pixel"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"max_batch": 0}, "max_batch"),
        ({"unit": "dits"}, "bits or nats"),
        ({"precision": "half"}, "float32 or bf16"),
        ({"targets": "top3"}, "top2, all, or a tensor"),
        ({"targets": torch.tensor([[4]] * 5)}, r"targets must lie in 0..3, found 4..4"),
        ({"targets": torch.tensor([[-1, 0]] * 5)}, "found -1..0"),
        ({"targets": torch.zeros(4, 2, dtype=torch.long)}, r"targets must be \[5 images, classes\]"),
        ({"targets": torch.zeros(5, 0, dtype=torch.long)}, r"found shape \(5, 0\)"),
    ],
    ids=str,
)
def test_parameters_that_mean_nothing_are_refused(convnet, rgb, unchecked, options, message):
    with pytest.raises(UsageError, match=message) as error:
        information_maps(convnet, rgb, **{"targets": "all", "filler": UniformNoise(), "patch": 4, **options})
    assert "\n" not in str(error.value)


def test_one_class_an_image_may_be_given_as_a_vector(convnet, rgb):
    several, one = (
        information_maps(convnet, rgb, t, UniformNoise(), 4, 4)
        for t in (torch.tensor([[1]] * 5), torch.tensor([1] * 5))
    )
    assert torch.equal(several.pmi, one.pmi)
    assert one.classes.shape == (5, 1)

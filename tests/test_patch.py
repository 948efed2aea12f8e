"""PatchSampler against loops over windows, distributions written down by hand, and files that are wrong in every way."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_xai.data import FoldData, Source
from lit_xai.data.images import InMemory
from lit_xai.errors import UsageError
from lit_xai.explainers import SlidingPatch, information_maps
from lit_xai.fillers import PatchSampler, UniformNoise
from lit_xai.fillers.patch import NOISE, PatchModule, drawn
from lit_xai.fillers.patch_network import FREEDOM, RIDGES, PatchNetwork, Smooth
from lit_xai.fillers.tiles import plan
from lit_xai.rng import SampleRng
from scipy import stats
from torch import Tensor

from conftest import seeded
from generators import made

MEAN, STD = torch.tensor([0.4, 0.6, 0.5]), torch.tensor([0.25, 0.3, 0.2])
RNG = SampleRng(5, (3, 8))
SURE = 1e4  # a logit that leaves no doubt


def shaken(module: torch.nn.Module, seed: int = 0, std: float = 0.2) -> torch.nn.Module:
    """The module with random parameters and a random least-squares prediction."""
    for p in module.parameters():
        p.data.normal_(0, std, generator=seeded(seed))
    for m in module.modules():
        if isinstance(m, Smooth):
            m.gain.normal_(0, 0.1, generator=seeded(seed + 1))
            m.log_scale.fill_(-2.5)
    return module.eval()


def given(network: PatchNetwork, mean: Tensor, std: Tensor, **options) -> PatchSampler:
    """The filler of a network."""
    module = PatchModule(len(mean), 8, colour=(mean.tolist(), std.tolist()), patch=network.patch, width=1, depth=1)
    module.network = network.requires_grad_(False)
    return PatchSampler(given=module.eval(), **options)


def sampler(patch: int = 2, channels: int = 2, linear: bool = True, **options) -> PatchSampler:
    """A sampler with an opinion on everything."""
    return given(shaken(PatchNetwork(channels, patch, 3, 1, linear)), MEAN[:channels], STD[:channels], **options)


class ByRule(PatchNetwork):
    """A network whose logits [m, 1, 256, k, k] are a function of the window [m, 2, s, s]."""

    def __init__(self, patch: int, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__(1, patch, 1, 1, linear=False)
        self.rule = rule

    def forward(self, window: Tensor) -> Tensor:
        return self.rule(window)


def by_rule(patch: int, rule: Callable[[Tensor], Tensor]) -> PatchSampler:
    """A sampler of grey images with such a network; windows are not normalised."""
    return given(ByRule(patch, rule), torch.zeros(1), torch.ones(1))


def window_by_hand(
    s: PatchSampler, image: Tensor, known: np.ndarray, top: int, left: int, drawn: np.ndarray | None = None
) -> Tensor:
    """The network's input [1, c + 1, 3k, 3k], pixel by pixel."""
    k, (c, height, width) = s.patch, image.shape
    mean, std = s.module.mean.to(image), s.module.std.to(image)
    out = torch.zeros(c + 1, 3 * k, 3 * k, dtype=image.dtype)
    seen = []
    for i in range(3 * k):
        for j in range(3 * k):
            y, x = top - k + i, left - k + j
            if not (0 <= y < height and 0 <= x < width):
                out[:c, i, j], out[c, i, j] = (0 - mean) / std, -1
            elif known[y, x]:
                out[:c, i, j] = (image[:, y, x] - mean) / std
                out[c, i, j] = 0.5 if drawn is not None and drawn[y, x] else 1
                seen.append(out[:c, i, j])
    blank = torch.stack(seen).mean(0) if seen else torch.zeros(c).to(image)
    for i in range(3 * k):
        for j in range(3 * k):
            y, x, inner = top - k + i, left - k + j, k <= i < 2 * k and k <= j < 2 * k
            if 0 <= y < height and 0 <= x < width and not known[y, x] and not inner:
                out[:c, i, j] = blank
    return out[None]


def square(height: int, width: int, top: int, left: int, side: int) -> Tensor:
    """A mask [1, 1, h, w] that hides a square."""
    keep = torch.ones(1, 1, height, width, dtype=torch.bool)
    keep[..., top : top + side, left : left + side] = False
    return keep


def inputs_of(s: PatchSampler) -> list[Tensor]:
    """A list that fills with the network's inputs."""
    seen = []
    s.module.network.register_forward_hook(lambda module, args, out: seen.append(args[0].clone()))
    return seen


def chi_squared(levels: Tensor, p: Tensor) -> tuple[float, int]:
    """Chi-squared of levels [n] against probabilities [256], levels pooled to about 20 expected; degrees of freedom."""
    expected = p.double() * len(levels)
    group = ((expected.cumsum(0) - expected) // 20).long()
    group = group.unique(return_inverse=True)[1]
    observed = levels.bincount(minlength=256).double()
    o, e = (
        torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, v) for v in (observed, expected)
    )
    keep = e > 5
    return float(((o - e)[keep] ** 2 / e[keep]).sum()), int(keep.sum()) - 1


@pytest.fixture
def images() -> Tensor:
    """Two images of two channels."""
    return torch.rand(2, 2, 8, 9, generator=seeded(1)).double()


@pytest.fixture
def masks() -> Tensor:
    """For each of two images: a square at the corner, another, a large hole and any hole."""
    some = [square(8, 9, 0, 3, 2), square(8, 9, 4, 4, 2), square(8, 9, 1, 2, 5)]
    keep = torch.cat(some, 1).repeat(2, 1, 1, 1)
    return torch.cat([keep, torch.rand(2, 1, 8, 9, generator=seeded(2)) < 0.6], 1)


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2, 3, 4, 8])
def test_a_window_gives_256_logits_for_every_pixel_of_its_patch(patch, channels, linear):
    network = PatchNetwork(channels, patch, 2, 1, linear)
    assert network(torch.rand(3, channels + 1, 3 * patch, 3 * patch)).shape == (3, channels, 256, patch, patch)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("patch", [1, 2, 3, 4, 8])
def test_the_network_is_the_papers_layer_by_layer(patch):
    network = shaken(PatchNetwork(1, patch, 3, 2, linear=False)).double()
    x = window = torch.randn(2, 2, 3 * patch, 3 * patch, generator=seeded(1)).double()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for number, layer in enumerate(convolutions):
        if number == 1:  # the second layer pads before where the first pads after
            x = F.conv2d(x.flip(2, 3), layer.weight.flip(2, 3), layer.bias, padding="same").flip(2, 3)
        else:
            x = F.conv2d(x, layer.weight, layer.bias, padding="same")
        if layer is not network.head:
            x = F.leaky_relu(x, 0.2)
        if number == 1 and patch > 1:
            x = F.avg_pool2d(x, 2)
        if number == 1:
            edge = {1: 1, 2: 0, 3: 0, 4: 1, 8: 2}[patch]
            x = x[..., edge : edge + patch, edge : edge + patch]
    assert torch.allclose(network(window)[:, 0], x, rtol=0, atol=1e-9)
    assert len(convolutions) == 2 + 2 + 1


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 8])
def test_every_pixel_of_the_patch_sees_the_whole_window(patch):
    network = shaken(PatchNetwork(1, patch, 2, 5, linear=False), std=0.5).double()
    window = torch.randn(1, 2, 3 * patch, 3 * patch, generator=seeded(1)).double().requires_grad_()
    out = network(window)[0, 0, 7]
    for i, j in {(0, 0), (0, patch - 1), (patch - 1, 0), (patch - 1, patch - 1)}:
        (gradient,) = torch.autograd.grad(out[i, j], window, retain_graph=True)
        assert bool((gradient != 0).all())


def test_the_papers_network_has_38_9_million_parameters():
    with torch.device("meta"):
        network = PatchNetwork(3, patch=8, width=256, depth=5, linear=False)

    def layer(side: int, a: int, b: int) -> int:
        return side**2 * a * b + b

    paper = layer(9, 3, 256) + layer(9, 256, 256) + 5 * layer(8, 256, 256) + layer(8, 256, 3 * 256)
    assert round(paper / 1e6, 1) == 38.9
    mask_channel = 9**2 * 256
    assert sum(p.numel() for p in network.parameters()) == paper + mask_channel


def test_the_smooth_part_is_students_t_around_the_least_squares_prediction():
    network = PatchNetwork(2, 2, 3, 1).double()  # not trained: nothing is added
    smooth = network.smooth
    smooth.gain.normal_(0, 0.1, generator=seeded(1))
    smooth.offset.normal_(0, 0.1, generator=seeded(2))
    smooth.log_scale.normal_(-2, 0.3, generator=seeded(3))
    window = torch.rand(4, 3, 6, 6, generator=seeded(4)).double()
    window[:, 2] = 1  # seen
    window[:, 2, 2:4, 2:4] = 0
    window[1, 2, 0, 0], window[2, 2, 5, 1], window[3, 2, 0] = 0, 0.5, -1  # hidden; drawn; outside of the image
    which = torch.tensor([0, 1, 1, 0])
    place = torch.einsum("mi,moi->mo", window[:, :2].reshape(4, -1), smooth.gain[which]) + smooth.offset[which]
    place, scale = place.view(4, 2, 2, 2), smooth.log_scale.exp()[which].view(4, 2, 1, 2, 2)
    z = (torch.linspace(-1, 1, 256, dtype=torch.float64).view(-1, 1, 1) - place[:, :, None]) / scale
    expected = torch.from_numpy(stats.t.logpdf(z.numpy(), FREEDOM)).log_softmax(2)
    assert torch.allclose(network(window).log_softmax(2), expected, rtol=0, atol=1e-7)


# --------------------------------------------------------------------------------------------------------------- drawn


def test_inversion_is_exact():
    n, logits = 5000, 3 * torch.randn(2, 3, 256, 2, 2, generator=seeded(1))
    u = ((torch.arange(n) + 0.5) / n).view(1, n, 1, 1, 1).expand(2, n, 3, 2, 2)
    levels = (drawn(logits, u) * 255).round().long()
    counts = F.one_hot(levels, 256).sum(1).movedim(-1, 2)
    expected = n * logits.double().softmax(2)
    assert float((counts - expected).abs().max()) < 1.05  # an interval of length p holds n p of n equidistant numbers
    assert bool((levels.diff(dim=1) >= 0).all())


def test_frequencies_of_random_draws_are_the_probabilities():
    logits = 2 * torch.randn(1, 1, 256, 2, 1, generator=seeded(1))
    logits = logits[..., :1].expand(1, 1, 256, 2, 2) + torch.tensor([[0.0, 1.0], [2.0, 3.0]])  # of columns alike
    u = torch.rand(1, 20_000, 1, 2, 2, generator=seeded(2))
    levels = (drawn(logits, u) * 255).round().long()
    for i, j in np.ndindex(2, 2):
        value, dof = chi_squared(levels[0, :, 0, i, j], logits[0, 0, :, i, j].softmax(0))
        assert dof > 20
        assert value < dof + 4 * math.sqrt(2 * dof)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_certainty_is_always_drawn(level):
    logits = torch.zeros(1, 1, 256, 1, 1)
    logits[:, :, level] = SURE
    u = torch.tensor([0.0, 1e-7, 0.5, 1 - 2**-24]).view(1, 4, 1, 1, 1)
    assert torch.equal(drawn(logits, u), torch.full((1, 4, 1, 1, 1), level / 255))


def test_levels_without_probability_are_never_drawn():
    logits = torch.randn(1, 1, 256, 1, 1, generator=seeded(1))
    logits[:, :, :10] = logits[:, :, 100:110] = logits[:, :, 200:] = -SURE
    edges = logits.flatten().softmax(0).cumsum(0)  # where one level ends and the next begins
    u = torch.cat(
        [torch.tensor([0.0, 2**-24, 1 - 2**-24]), torch.rand(50_000, generator=seeded(2)), edges.clamp(0, 0.999)]
    )
    levels = (drawn(logits, u.view(1, -1, 1, 1, 1)) * 255).round().flatten()
    assert (levels[0], levels[2]) == (10, 199)
    assert set(levels.tolist()) == {*range(10, 100), *range(110, 200)}


# ---------------------------------------------------------------------------------------------------- one hidden square

PLACES = {"inside": (3, 4), "corner": (0, 0), "edge": (4, 7), "last corner": (6, 7), "near the edge": (1, 3)}


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_network_sees_the_window_padded_with_black_without_the_patch_and_what_is_known(images, place, patch):
    s = sampler(patch)
    s = given(s.module.network.double(), s.module.mean, s.module.std)
    top, left = min(place[0], 8 - patch), min(place[1], 9 - patch)
    keep, seen = square(8, 9, top, left, patch), inputs_of(s)
    s(images[:1], keep, SampleRng(5, (3,)))
    assert len(seen) == 1
    assert torch.allclose(seen[0], window_by_hand(s, images[0], keep[0, 0].numpy(), top, left), rtol=0, atol=1e-12)


@pytest.mark.parametrize("place", [(3, 4), (6, 7)], ids=str)
def test_draws_of_a_square_have_the_networks_distribution(images, place):
    s, keep = sampler(), square(8, 9, *place, side=2)
    p = s.module.network.double()(window_by_hand(s, images[0], keep[0, 0].numpy(), *place))[0].softmax(1)
    out = s(images[:1], keep, SampleRng(5, (3,)), 8000)[0, 0]
    levels = (out[..., place[0] : place[0] + 2, place[1] : place[1] + 2] * 255).round().long()
    assert torch.allclose(levels / 255, out[..., place[0] : place[0] + 2, place[1] : place[1] + 2].float(), atol=1e-6)
    for c, i, j in np.ndindex(2, 2, 2):
        value, dof = chi_squared(levels[:, c, i, j], p[c, :, i, j])
        assert dof > 10
        assert value < dof + 4 * math.sqrt(2 * dof)


def test_pixels_of_a_patch_are_drawn_independently(images):
    keep = square(8, 9, 3, 4, 2)
    out = sampler()(images[:1], keep, SampleRng(5, (3,)), 4000)[0, 0]
    correlation = torch.corrcoef(out[..., 3:5, 4:6].flatten(1).T)
    assert float((correlation - torch.eye(8)).abs().max()) < 4.5 / math.sqrt(4000)  # of 28 numbers


@pytest.mark.parametrize("draws", [1, 7, 100])
def test_a_hidden_square_costs_one_row_of_the_network_whatever_the_number_of_draws(images, masks, draws):
    s = sampler()
    seen = inputs_of(s)
    s(images.float(), masks[:, :2], RNG, draws)
    assert [len(x) for x in seen] == [4]  # two images, two squares


def test_kept_pixels_are_identical_and_hidden_ones_are_levels(images, masks):
    images = images.float()
    out = sampler()(images, masks, RNG, 3)
    assert out.shape == (2, 4, 3, 2, 8, 9)
    assert out.dtype == torch.float32
    kept, original = masks[:, :, None, None].expand_as(out), images[:, None, None].expand_as(out)
    assert torch.equal(out[kept], original[kept])
    hidden = out[~kept] * 255
    assert float((hidden - hidden.round()).abs().max()) < 1e-4
    assert len(hidden.round().unique()) > 20


def test_what_is_hidden_does_not_leak(images, masks):
    other = torch.where(masks[:, 3][:, None], images, 1 - images)
    a, b = (sampler()(x, masks[:, 3:], RNG, 2) for x in (images, other))
    assert torch.equal(a, b)


def test_draws_masks_images_and_seeds_have_noise_of_their_own(images, masks):
    same, hidden = images[:1].repeat(2, 1, 1, 1), masks[:, :1].repeat(1, 2, 1, 1)
    out, again, other = (
        sampler()(same, hidden, SampleRng(s, (4, 9)), 2)[..., 0:2, 3:5].flatten(0, 2) for s in (1, 1, 2)
    )
    assert len(out.flatten(1).unique(dim=0)) == 8
    assert torch.equal(again, out)
    assert not torch.equal(other, out)


def test_a_draw_depends_neither_on_the_others_nor_on_the_batch_nor_on_the_chunk(images, masks):
    whole = sampler()(images, masks, RNG, 5)
    assert torch.equal(sampler()(images, masks, RNG, 2), whole[:, :, :2])
    assert torch.equal(sampler()(images, masks[:, :3], RNG, 5), whole[:, :3])
    assert torch.equal(sampler()(images[1:], masks[1:], RNG.take([1]), 5), whole[1:])
    for chunk in (1, 3):
        assert torch.equal(sampler(max_batch=chunk)(images, masks, RNG, 5), whole)


def test_nothing_hidden_changes_nothing_and_costs_nothing(images):
    s = sampler()
    seen = inputs_of(s)
    out = s(images, torch.ones(2, 1, 8, 9, dtype=torch.bool), RNG, 2)
    assert torch.equal(out[:, 0, 1], images)
    assert seen == []


def test_bf16_is_close(images):
    keep = square(8, 9, 3, 4, 2).expand(2, -1, -1, -1)
    mean = [sampler(precision=p)(images.float(), keep, RNG, 500).mean(2) for p in ("float32", "bf16")]
    assert torch.allclose(*mean, atol=0.02)
    assert not torch.equal(*mean)


# ---------------------------------------------------------------------------------------------------------- any hole


def test_every_hidden_pixel_of_any_hole_is_filled(masks):
    def rule(window: Tensor) -> Tensor:
        logits = torch.zeros(len(window), 1, 256, 2, 2)
        logits[:, :, 77] = SURE
        return logits

    grey = torch.rand(2, 1, 8, 9, generator=seeded(3))
    keep = torch.cat([masks, torch.zeros(2, 1, 8, 9, dtype=torch.bool)], 1)
    out = by_rule(2, rule)(grey, keep, RNG, 2)
    expected = torch.where(keep[:, :, None, None], grey[:, None, None], torch.tensor(77) / 255)
    assert torch.equal(out, expected.expand_as(out))


def test_tiles_are_filled_in_the_plans_order(images, masks):
    s, keep = sampler(), masks[:1, 3:]
    seen = inputs_of(s)
    s(images[:1].float(), keep, SampleRng(5, (3,)))
    steps = plan(keep[0, 0].numpy(), 2, 2)
    assert len(steps) > 5
    for window, step in zip(seen, steps, strict=True):
        assert np.array_equal((window[0, -1] > 0).numpy(), step.known)


def test_filling_is_a_loop_over_tiles(images, masks):
    s = sampler()

    class Likeliest(PatchNetwork):
        def forward(self, window: Tensor) -> Tensor:
            return F.one_hot(super().forward(window).argmax(2), 256).movedim(-1, 2) * SURE

    network = Likeliest(2, 2, 3, 1).double()
    network.load_state_dict(s.module.network.state_dict())
    out = given(network, s.module.mean, s.module.std)(images, masks, RNG, 2)
    for b, n in np.ndindex(2, 4):
        image, known = images[b].clone(), masks[b, n].numpy().copy()
        for step in plan(known, 2, 2):
            before = known & ~masks[b, n].numpy()
            logits = s.module.network.double()(window_by_hand(s, image, known, step.top, step.left, before))[0]
            for i, j in np.ndindex(2, 2):
                y, x = step.top + i, step.left + j
                if not known[y, x]:
                    image[:, y, x] = logits[:, :, i, j].argmax(1) / 255
                    known[y, x] = True
        for d in range(2):
            assert torch.allclose(out[b, n, d], image, rtol=0, atol=1e-7)


@pytest.mark.parametrize("patch", [1, 2])
def test_later_tiles_see_the_drawn_ones_of_their_own_draw(patch):
    def relay(window: Tensor) -> Tensor:
        """White where white is known, else black where black is, else either."""
        seen, known = window[:, 0], window[:, 1] > 0
        white, black = ((known & (seen == v)).flatten(1).any(1) for v in (1.0, 0.0))
        logits = torch.full((len(window), 1, 256, patch, patch), -SURE)
        logits[~white, :, 0] = 0
        logits[white | ~black, :, 255] = 0
        return logits

    draws, rows = 400, 3
    grey = torch.full((rows, 1, 3 * patch, 7 * patch), 0.5)
    keep = torch.ones(rows, 1, 3 * patch, 7 * patch, dtype=torch.bool)
    keep[..., patch : 2 * patch, patch : 6 * patch] = False  # five tiles in a row, filled from the left
    out = by_rule(patch, relay)(grey, keep, SampleRng(1, (0, 1, 2)), draws)[:, 0, :, 0, patch : 2 * patch]
    first, rest = out[..., patch : 2 * patch], out[..., 2 * patch : 6 * patch]
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(rest, first.amax((2, 3), keepdim=True).expand_as(rest))
    share, n = float(first.mean()), first.numel()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / n)


# ------------------------------------------------------------------------------------------------------------ training


def module(patch: int = 2, side: int = 8, channels: int = 2, **options) -> PatchModule:
    """A small module; seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        colour = (MEAN[:channels].tolist(), STD[:channels].tolist())
        return PatchModule(channels, side, colour=colour, patch=patch, **{"width": 3, "depth": 1, **options})


@pytest.mark.parametrize("holes", [0.0, 1.0])
def test_the_loss_is_the_cross_entropy_of_the_hidden_pixels_of_the_patch(holes):
    m = module(windows=3, holes=holes)
    shaken(m.network)
    images = torch.rand(4, 2, 8, 8, generator=seeded(1))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        loss = m.batch_loss((images, torch.zeros(4, dtype=torch.long)))
        torch.manual_seed(7)
        hidden, redrawn = m.patterns(12, holes)
        top, left = (torch.randint(0, 7, (12,)).tolist() for _ in range(2))
        noise = torch.randn(12, 2, 6, 6)
    terms = []
    for row in range(12):
        image, known, drawn_ = images[row // 3], np.ones((8, 8), bool), np.zeros((8, 8), bool)
        seen = image.clone()
        for i, j in torch.nonzero(hidden[row] | redrawn[row]).tolist():
            y, x = top[row] - 2 + i, left[row] - 2 + j
            if 0 <= y < 8 and 0 <= x < 8 and hidden[row, i, j]:
                known[y, x] = False
            elif 0 <= y < 8 and 0 <= x < 8:  # drawn before: known, with noise
                drawn_[y, x] = True
                seen[:, y, x] = (image[:, y, x] + NOISE * noise[row, :, i, j]).clamp(0, 1)
        log_p = m.network(window_by_hand(m.sampler(), seen, known, top[row], left[row], drawn_))[0].log_softmax(1)
        for c, i, j in np.ndindex(2, 2, 2):
            if hidden[row, 2 + i, 2 + j]:
                level = round(float(image[c, top[row] + i, left[row] + j]) * 255)
                terms.append(-log_p[c, level, i, j])
    assert len(terms) == 96 if holes == 0 else len(terms) < 96
    assert torch.allclose(loss, torch.stack(terms).mean(), rtol=1e-5, atol=0)


def test_without_holes_the_patch_alone_is_hidden():
    hidden, _ = module(patch=3, side=9).patterns(20, 0.0)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[3:6, 3:6] = True
    assert torch.equal(hidden, expected.expand(20, -1, -1))


def test_of_training_windows_with_holes_some_hide_more_and_some_a_part_and_all_something_of_the_patch():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        (hidden, _), (some, _) = (
            module(patch=3, side=9).patterns(2000, 1.0),
            module(patch=3, side=9).patterns(4000, 0.25),
        )
    patch = hidden[:, 3:6, 3:6].flatten(1)
    assert bool(patch.any(1).all())
    assert bool(patch.any(0).all())
    assert 0.1 < float((~patch.all(1)).float().mean()) < 0.5
    around = hidden.clone()
    around[:, 3:6, 3:6] = False
    assert bool(around.any(0)[[0, 0, 8, 8], [0, 8, 0, 8]].all())  # holes reach every corner
    assert float(around.flatten(1).any(1).float().mean()) > 0.7
    assert not bool(hidden.flatten(1).all(1).any())
    plain, _ = module(patch=3, side=9).patterns(1, 0.0)
    assert 0.2 < float((some != plain).flatten(1).any(1).float().mean()) < 0.25 + 4 * math.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize("linear", [True, False])
def test_a_short_training_learns_what_surroundings_determine(linear):
    columns = torch.tensor([40, 200]).repeat(5)
    stripes = (
        torch.stack([columns[:8], columns[1:9]])[:, None, None].expand(2, 1, 8, 8) / 255
    )  # which phase, neighbours say
    m = module(channels=1, width=8, holes=0.1, linear=linear, schedule="constant", lr=1e-2)
    batch = (stripes.repeat(16, 1, 1, 1), torch.zeros(32, dtype=torch.long))
    optimizer = m.configure_optimizers()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(120):
            optimizer.zero_grad()
            m.batch_loss(batch).backward()
            optimizer.step()
    corners = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    bits = torch.cat([m.sampler().window_bits(stripes[i : i + 1].expand(49, 1, 8, 8), *corners.T) for i in (0, 1)])
    assert float(bits.mean()) < 0.5  # a coin for every column would cost 1


def test_the_least_squares_prediction_is_the_ridge_solution():
    window = torch.rand(300, 3, 6, 6, generator=seeded(1))
    truth = (window[:, :2, 1:3, 1:3] + window[:, :2, 3:5, 3:5]) / 2 + 0.05 * torch.randn(
        300, 2, 2, 2, generator=seeded(2)
    )
    smooth = Smooth(2, 2, 3)
    smooth.solve(iter([(window[:120], truth[:120]), (window[120:], truth[120:])]))
    x = np.c_[window[:, :2].flatten(1).double().numpy(), np.ones(300)]
    y = truth.flatten(1).double().numpy() * 2 - 1
    for n, ridge in enumerate(RIDGES):
        below = math.sqrt(ridge * 300) * np.eye(73)
        solution = np.linalg.lstsq(np.r_[x, below], np.r_[y, np.zeros((73, 8))], rcond=None)[0]
        assert np.allclose(smooth.gain[n].numpy(), solution[:-1].T, rtol=0, atol=1e-5)
        assert np.allclose(smooth.offset[n].numpy(), solution[-1], rtol=0, atol=1e-5)
        deviation = np.sqrt(((y - x @ solution) ** 2).mean(0) + ridge * (solution**2).sum(0))
        assert np.allclose(smooth.log_scale[n].exp().numpy(), deviation, rtol=1e-4)


def test_a_perfect_prediction_is_not_surer_than_a_level():
    window = torch.rand(50, 2, 3, 3, generator=seeded(1))
    smooth = Smooth(1, 1, 3)
    smooth.solve(iter([(window, torch.full((50, 1, 1, 1), 0.5))]))
    assert float(smooth.log_scale[0].exp()) == pytest.approx(1 / 256)


@pytest.fixture
def toy_data():
    """Smooth grey images in three folds of which the second is held out, and a list of the samples that were asked for."""
    asked = []

    class Recorder(InMemory):
        def images(self, indices):
            asked.extend(indices)
            return super().images(indices)

    level, slope = (torch.rand(90, 1, 1, 1, generator=seeded(s)) for s in (1, 2))
    pixels = 60 + 100 * level + 8 * slope * torch.arange(8.0) + 2 * torch.rand(90, 1, 8, 8, generator=seeded(3))
    source = Source("toy", Recorder(pixels.to(torch.uint8)), torch.arange(90) % 3, ("a", "b", "c"), "abc")
    return FoldData(lambda: source, fold=1, folds=3), asked


def test_the_least_squares_prediction_never_sees_the_held_out_samples(toy_data):
    data, asked = toy_data
    before, m = torch.random.get_rng_state(), module(channels=1)
    m.prepare(data)
    assert set(asked) == set(data.split.training(1).tolist())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_preparation_alone_saves_bits_and_is_the_same_every_time(toy_data):
    data, _ = toy_data
    held_out = data.source.train.images(data.held_out.tolist())
    corners = [torch.randint(0, 7, (30,), generator=seeded(s)) for s in (1, 2)]
    one, two = module(channels=1), module(channels=1)
    for m in (one, two):
        m.prepare(data)
    assert torch.equal(one.network.smooth.gain, two.network.smooth.gain)
    assert float(one.sampler().window_bits(held_out, *corners).mean()) < 6


def test_the_papers_network_has_nothing_to_prepare(toy_data):
    data, asked = toy_data
    module(channels=1, linear=False).prepare(data)
    assert asked == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 9}, "model.patch=9 does not fit images of 8 x 8 pixels: choose 1..8"),
        ({"patch": 0}, "model.patch=0"),
        ({"width": 0}, "model.width must be at least 1, found 0"),
        ({"depth": 0}, "model.depth"),
        ({"windows": 0}, "model.windows"),
        ({"holes": 1.5}, r"model.holes must lie in \[0, 1\], found 1.5"),
    ],
    ids=str,
)
def test_trainings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        module(**options)


# ---------------------------------------------------------------------------------------------------------------- bits


def test_bits_are_those_of_the_probabilities(images):
    images = (images.float() * 255).round().double() / 255
    s, corners = sampler(max_batch=2), [(0, 0), (3, 4), (6, 7), (2, 7), (6, 0)]
    top, left = torch.tensor(corners).T
    bits = s.window_bits(images[:1].expand(5, -1, -1, -1), top, left)
    for (t, w), found in zip(corners, bits, strict=True):
        known = square(8, 9, t, w, 2)[0, 0].numpy()
        p = s.module.network.double()(window_by_hand(s, images[0], known, t, w))[0].softmax(1)
        total = sum(
            -math.log2(p[c, round(float(images[0, c, t + i, w + j]) * 255), i, j]) for c, i, j in np.ndindex(2, 2, 2)
        )
        assert float(found) == pytest.approx(total / 8, abs=1e-9)


def test_an_untrained_network_is_a_uniform_guess(images):
    top, left = torch.tensor([0, 5]), torch.tensor([3, 6])
    bits = module(linear=False).sampler().window_bits(images.float(), top, left)
    assert torch.allclose(bits, torch.full((2,), 8.0), rtol=0, atol=1e-5)


def test_held_out_bits_are_of_the_same_windows_every_time(images):
    class Data:
        seed = 3

    class Trainer:
        datamodule, global_rank = Data(), 0

    m = module()
    shaken(m.network)
    m._trainer = Trainer()
    square_images = images[..., :8].float()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        a = m.held_out(square_images, 0)
        torch.manual_seed(2)
        assert torch.equal(m.held_out(square_images, 0), a)
    assert not torch.equal(m.held_out(square_images, 1), a)


# ------------------------------------------------------------------------------------------------------- who uses K


@pytest.fixture
def filler() -> PatchSampler:
    """A sampler of K = 2."""
    return sampler(channels=1)


def brightness(x: Tensor) -> Tensor:
    """Logits of two classes."""
    return torch.stack([x.mean((1, 2, 3)), x[..., :4].mean((1, 2, 3))], 1)


def test_an_explainer_takes_the_samplers_k(filler):
    grey = torch.rand(2, 1, 8, 9, generator=seeded(1))
    free = SlidingPatch(None, None, filler, draws=2, projection="mean")
    assert free.resolve(brightness, grey) == {"patch": 2, "stride": 2, "windows": 20}  # one column more, at the edge
    set_by_hand = SlidingPatch(2, 2, filler, draws=2, projection="mean", scale=False)
    targets = torch.zeros(2, dtype=torch.long)
    assert torch.equal(free(brightness, grey, targets), set_by_hand(brightness, grey, targets))
    assert SlidingPatch(None, 1, filler, scale=False).resolve(brightness, grey)["windows"] == 7 * 8
    assert SlidingPatch(2, None, filler, scale=False).resolve(brightness, grey)["stride"] == 2


def test_information_maps_take_the_samplers_k(filler):
    grey = torch.rand(2, 1, 8, 9, generator=seeded(1))
    free = information_maps(brightness, grey, "all", filler, draws=2)
    assert free.passes.forward == 7 * 8 * 2 + 1
    assert torch.equal(free.pmi, information_maps(brightness, grey, "all", filler, patch=2, draws=2).pmi)
    assert information_maps(brightness, grey, "all", filler, stride=None, draws=2).passes.forward == 4 * 5 * 2 + 1
    wide = torch.rand(1, 1, 16, 16, generator=seeded(1))
    assert information_maps(brightness, wide, "all", UniformNoise(), stride=None, draws=1).passes.forward == 4 + 1


@pytest.mark.parametrize("patch", [1, 3])
def test_another_patch_than_the_samplers_is_refused(filler, patch):
    message = (
        f"patch={patch} is not the K=2 .* PatchSampler .* set patch=2 or null .* train one with model.patch={patch}"
    )
    grey = torch.rand(1, 1, 8, 9)
    with pytest.raises(UsageError, match=message) as error:
        SlidingPatch(patch, 1, filler, scale=False)(brightness, grey, torch.tensor([0]))
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=message):
        information_maps(brightness, grey, "all", filler, patch=patch)


@pytest.mark.parametrize("options", [(None, 3), (3, None), (None, None)], ids=str)
def test_a_filler_that_knows_no_k_needs_a_patch_and_a_stride(options):
    with pytest.raises(UsageError, match="UniformNoise knows no K: set patch= and stride= in pixels") as error:
        SlidingPatch(*options, UniformNoise())(brightness, torch.rand(1, 1, 8, 9), torch.tensor([0]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("draws", [1, 3])
def test_a_window_whose_place_is_known_is_filled_as_a_hole_that_is_looked_at(draws):
    side, k = 8, 2
    fill = made(PatchModule, 1, side, patch=k, width=3, depth=1).sampler()
    top, left = (t.flatten() for t in torch.meshgrid(*[torch.arange(side - k + 1)] * 2, indexing="ij"))
    images = torch.rand(len(top), 1, side, side, generator=seeded(3))
    row, column = torch.arange(side), torch.arange(side)
    down = (row >= top[:, None]) & (row < top[:, None] + k)
    across = (column >= left[:, None]) & (column < left[:, None] + k)
    keep = ~(down[:, :, None] & across[:, None])[:, None]
    rng = SampleRng(3, tuple(range(len(top))))
    corners = torch.stack([top, left], 1)
    assert torch.equal(fill.in_windows(images, keep, (corners, corners), rng, draws), fill(images, keep, rng, draws))

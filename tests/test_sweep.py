"""One moving window: windows and projections against loops, contrasts by hand, additive models, captum's Occlusion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lit_xai.core import Passes
from lit_xai.errors import UsageError
from lit_xai.explainers import SlidingPatch
from lit_xai.explainers.sweep import AHEAD, GROUP, KL, PMI, LogOddsDifference, ProbabilityDifference, sweep
from lit_xai.explainers.windows import Windows
from lit_xai.fillers import UniformNoise
from lit_xai.fillers.constant import Blur, Colour
from lit_xai.rng import SampleRng
from torch import Tensor, nn

from conftest import Linear, seeded

SHAPES = [
    (8, 8, 3, 1),
    (8, 8, 3, 3),
    (9, 9, 3, 3),
    (7, 11, 3, 2),
    (11, 7, 4, 5),
    (5, 5, 5, 2),
    (6, 9, 1, 4),
    (10, 6, 2, 3),
]
CONTRASTS = [ProbabilityDifference(), LogOddsDifference(), PMI(), KL()]
every_contrast = pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda c: type(c).__name__)


def starts_by_hand(side: int, patch: int, stride: int, cover: bool) -> list[int]:
    found, at = [], 0
    while at + patch <= side:
        found.append(at)
        at += stride
    if cover and found[-1] + patch != side:
        found.append(side - patch)
    return found


def probabilities(seed: int, rows: int = 50, classes: int = 4) -> Tensor:
    return (2 * torch.randn(rows, classes, generator=seeded(seed), dtype=torch.float64)).softmax(1)


def odds_model(side: int, seed: int = 1) -> tuple[nn.Module, Tensor]:
    """Two classes on grey images whose log-odds of class 0 are linear in the pixels: the model and its weights."""
    weight = torch.randn(1, 1, side, side, generator=seeded(seed), dtype=torch.float64) / side
    return Linear(torch.cat([weight, torch.zeros_like(weight)]), torch.tensor([0.3, 0.0]).double()), weight[0, 0]


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize(("height", "width", "patch", "stride"), SHAPES)
def test_windows_equal_a_loop(height, width, patch, stride, cover):
    windows = Windows(height, width, patch, stride, cover)
    expected = [
        (t, s)
        for t in starts_by_hand(height, patch, stride, cover)
        for s in starts_by_hand(width, patch, stride, cover)
    ]
    top, left = windows.corners()
    assert list(zip(top.tolist(), left.tolist(), strict=True)) == expected
    assert len(windows) == len(expected) == math.prod(windows.grid)


@pytest.mark.parametrize(("height", "width", "patch", "stride"), SHAPES)
def test_without_cover_there_are_side_minus_patch_over_stride_plus_1(height, width, patch, stride):
    expected = ((height - patch) // stride + 1, (width - patch) // stride + 1)
    assert Windows(height, width, patch, stride).grid == expected


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize(("height", "width", "patch", "stride"), SHAPES)
def test_the_mean_over_covering_windows_equals_a_loop(height, width, patch, stride, cover):
    windows = Windows(height, width, patch, stride, cover)
    values = torch.randn(2, len(windows), generator=seeded(1), dtype=torch.float64)
    expected = torch.zeros(2, height, width, dtype=torch.float64)
    corners = list(zip(*(c.tolist() for c in windows.corners()), strict=True))
    for y in range(height):
        for x in range(width):
            over = [i for i, (t, s) in enumerate(corners) if t <= y < t + patch and s <= x < s + patch]
            if over:
                expected[:, y, x] = values[:, over].mean(1)
    assert torch.allclose(windows.covering_mean(values), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width", "patch", "stride"), [s for s in SHAPES if s[3] <= s[2]])
def test_with_cover_every_pixel_lies_in_a_window(height, width, patch, stride):
    windows = Windows(height, width, patch, stride, cover=True)
    values = torch.ones(1, len(windows), dtype=torch.float64)
    assert torch.allclose(windows.covering_mean(values), torch.ones(1, height, width).double())


# ------------------------------------------------------------------------------------------------------------ contrasts


@pytest.mark.parametrize(
    ("contrast", "expected"),
    [
        (ProbabilityDifference(), 0.3),
        (LogOddsDifference("bits"), math.log2((0.8 / 0.2) / (0.5 / 0.5))),
        (LogOddsDifference("nats", samples=8), math.log((7.4 / 2.6) / (5 / 5))),
        (PMI("bits"), math.log2(0.8 / 0.5)),
        (PMI("nats"), math.log(0.8 / 0.5)),
        (KL("bits"), 0.8 * math.log2(0.8 / 0.5) + 0.2 * math.log2(0.2 / 0.5)),
    ],
    ids=str,
)
def test_contrasts_by_hand(contrast, expected):
    whole, hidden = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64).split(1)
    assert float(contrast(whole, hidden, torch.tensor([0]))) == pytest.approx(expected, abs=1e-7)


def test_kl_is_the_mean_pointwise_mutual_information_under_the_whole_images_probabilities():
    whole, hidden = probabilities(1), probabilities(2)
    each = [PMI()(whole, hidden, torch.full((50,), y)) for y in range(4)]
    assert torch.allclose(KL()(whole, hidden, torch.zeros(50, dtype=torch.long)), (whole * torch.stack(each, 1)).sum(1))


def test_kl_is_not_negative():
    whole = probabilities(3, rows=2000)
    near = (whole.log() + 1e-4 * torch.randn(2000, 4, generator=seeded(4))).softmax(1)
    targets = torch.zeros(2000, dtype=torch.long)
    for hidden in (probabilities(5, rows=2000), near, whole):
        assert float(KL()(whole, hidden, targets).min()) >= -1e-12


@every_contrast
def test_nothing_hidden_contrasts_to_0(contrast):
    p = probabilities(1)
    assert bool((contrast(p, p, torch.ones(50, dtype=torch.long)) == 0).all())


@every_contrast
def test_certainty_gives_finite_numbers(contrast):
    sure, wrong = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    for target in (0, 1):
        assert bool(contrast(sure, wrong, torch.tensor([target])).isfinite().all())


@pytest.mark.parametrize("kind", [LogOddsDifference, PMI, KL])
def test_bits_are_nats_over_log_2(kind):
    args = probabilities(1), probabilities(2), torch.ones(50, dtype=torch.long)
    assert torch.allclose(kind("bits")(*args) * math.log(2), kind("nats")(*args))
    with pytest.raises(UsageError, match="bits or nats"):
        kind("dits")(*args)


# -------------------------------------------------------------------------------------------------------------- one walk


def swept(contrasts, draws=1, max_batch=64, filler=None, model=None, batch=2, rng=None) -> Tensor:
    images = torch.rand(2, 1, 6, 6, generator=seeded(7), dtype=torch.float64)[:batch]
    model = odds_model(6)[0] if model is None else model
    windows, targets = Windows(6, 6, 2, 2), torch.zeros(batch, dtype=torch.long)
    rng = rng or SampleRng(3, (4, 9)[:batch])
    filler = UniformNoise() if filler is None else filler
    return sweep(model, images, targets, windows, filler, contrasts, rng, draws, max_batch=max_batch)


def test_contrasts_of_one_walk_equal_a_loop_over_windows():
    model, images, targets = (
        odds_model(6)[0],
        torch.rand(2, 1, 6, 6, generator=seeded(7)).double(),
        torch.tensor([0, 1]),
    )
    out = sweep(model, images, targets, Windows(6, 6, 3, 2), Colour(0.4), CONTRASTS, SampleRng.default(2))
    for row in range(2):
        whole = model(images[[row]]).softmax(1)
        for w, (t, s) in enumerate((t, s) for t in (0, 2) for s in (0, 2)):
            x = images[[row]].clone()
            x[..., t : t + 3, s : s + 3] = 0.4
            for c, contrast in enumerate(CONTRASTS):
                expected = contrast(whole, model(x).softmax(1), targets[[row]])[0]
                assert torch.isclose(out[c, row, w], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("draws", [1, 3, 64, 70])
def test_the_softmax_is_averaged_over_all_draws(draws):
    class Recorder(nn.Module):
        """Remembers the probabilities it gave."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = odds_model(6)[0], []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(self.inner(x).softmax(1)[:, 0])
            return self.inner(x)

    model = Recorder()
    out = swept([ProbabilityDifference()], draws, model=model, batch=1, max_batch=1)
    whole, *rest = torch.cat(model.seen).split([1, *[draws] * 9])
    expected = torch.stack([whole[0] - r.mean() for r in rest])
    assert torch.allclose(out[0, 0], expected, rtol=0, atol=1e-12)
    assert all(len(r.unique()) == draws for r in rest)  # every draw is another one


@pytest.mark.parametrize("draws", [1, 5, 70])
def test_values_do_not_depend_on_max_batch_nor_on_the_batch(draws):
    whole = swept([ProbabilityDifference()], draws, max_batch=1000)
    for max_batch in (1, 7, 64):
        assert torch.allclose(swept([ProbabilityDifference()], draws, max_batch), whole, rtol=0, atol=1e-12)
    assert torch.allclose(swept([ProbabilityDifference()], draws, batch=1)[:, 0], whole[:, 0], rtol=0, atol=1e-12)


def test_windows_get_noise_of_their_own():
    def total(x: Tensor) -> Tensor:
        logit = x.sum((1, 2, 3))
        return torch.stack([logit, torch.zeros_like(logit)], 1)

    images, target, windows = torch.zeros(1, 1, 6, 6), torch.tensor([0]), Windows(6, 6, 2, 2)
    values = sweep(total, images, target, windows, UniformNoise(), [PMI()], SampleRng.default(1))
    assert len(values.unique()) == 9  # black everywhere: only the noise differs


def test_a_filler_without_randomness_is_asked_once_whatever_the_draws():
    calls = []
    model = odds_model(6)[0]
    swept([PMI()], draws=50, filler=Colour(0.5), model=lambda x: calls.append(len(x)) or model(x))
    assert sum(calls) == 2 + 2 * 9
    assert SlidingPatch(patch=3, stride=3, draws=50, scale=False).passes(9, 9) == Passes(10)
    assert SlidingPatch(3, 3, UniformNoise(), draws=50, scale=False).passes(9, 9) == Passes(451)


@pytest.mark.parametrize("max_batch", [1, 7, 100, 1000])
def test_max_batch_bounds_what_is_made_and_what_the_model_sees(max_batch):
    class Counting(UniformNoise):
        def __call__(self, images, keep, rng, draws=1, segments=None):
            made.append(len(images) * draws)
            return super().__call__(images, keep, rng, draws, segments)

    made, seen, model = [], [], odds_model(6)[0]
    swept([PMI()], 70, max_batch, Counting(), lambda x: seen.append(len(x)) or model(x))
    assert sum(made) == 2 * 9 * 70
    assert max(made) <= max(GROUP, AHEAD * max_batch)
    assert max(seen) <= max_batch


def test_draws_below_1_are_refused():
    with pytest.raises(UsageError, match="draws must be at least 1"):
        swept([PMI()], draws=0)


# --------------------------------------------------------------------------------------------------------- sliding patch


def bilinear(small: int, large: int) -> np.ndarray:
    """[large, small] weights of bilinear enlargement, half-pixel centres, edges repeated."""
    out = np.zeros((large, small))
    for i in range(large):
        at = min(max((i + 0.5) * small / large - 0.5, 0), small - 1)
        low = int(at)
        out[i, low] += 1 - (at - low)
        out[i, min(low + 1, small - 1)] += at - low
    return out


def test_a_model_that_reads_one_pixel_by_hand():
    def reads(x: Tensor) -> Tensor:
        return torch.stack([3 * x[:, 0, 4, 2], torch.zeros(len(x))], 1)

    images = torch.rand(1, 1, 8, 7, generator=seeded(1))
    images[0, 0, 4, 2] = 0.9
    change = 1 / (1 + math.exp(-2.7)) - 1 / (1 + math.exp(-3 * 0.2))
    grid = np.zeros((3, 3))  # tops 0, 2, 4 of 8 rows, lefts 0, 2, 4 of 7 columns
    for i, top in enumerate((0, 2, 4)):
        for j, left in enumerate((0, 2, 4)):
            grid[i, j] = change * (top <= 4 < top + 3 and left <= 2 < left + 3)
    expected = bilinear(3, 8) @ grid @ bilinear(3, 7).T
    assert grid.sum() == pytest.approx(4 * change)
    patch = SlidingPatch(patch=3, stride=2, filler=Colour(0.2), scale=False)
    assert np.allclose(patch(reads, images, torch.tensor([0]))[0].numpy(), expected, atol=1e-6)


def test_patches_that_tile_an_additive_model_sum_to_the_difference_of_the_outputs():
    model, weight = odds_model(9)
    images = torch.rand(3, 1, 9, 9, generator=seeded(2), dtype=torch.float64)
    patch = SlidingPatch(3, 3, Blur(kernel=101), contrast=LogOddsDifference("nats"), projection="mean", scale=False)
    maps = patch(model, images, torch.zeros(3, dtype=torch.long))
    total = (weight * (images - Blur(kernel=101).background(images))[:, 0]).sum((1, 2))
    assert torch.allclose(maps.sum((1, 2)) / 9, total, atol=1e-8)


def test_the_log_odds_of_one_pixel_patches_are_weight_times_difference():
    model, weight = odds_model(5)
    images = torch.rand(2, 1, 5, 5, generator=seeded(2), dtype=torch.float64)
    patch = SlidingPatch(1, 1, Colour(0.1), contrast=LogOddsDifference("nats"), projection="mean", scale=False)
    expected = weight * (images[:, 0] - 0.1)
    assert torch.allclose(patch(model, images, torch.zeros(2, dtype=torch.long)), expected, atol=1e-8)
    assert torch.allclose(patch(model, images, torch.ones(2, dtype=torch.long)), -expected, atol=1e-8)


@pytest.mark.peers
@pytest.mark.parametrize("side", [12, 6])
def test_patches_that_tile_equal_captums_occlusion(convnet, rgb, targets, side):
    captum = pytest.importorskip("captum.attr")
    model, images = convnet.double(), rgb.double()
    expected = captum.Occlusion(lambda x: model(x).softmax(1)).attribute(
        images, (3, side // 2, side // 2), strides=(3, side // 2, side // 2), target=targets, baselines=0.25
    )[:, 0]
    patch = SlidingPatch(side // 2, side // 2, Colour(0.25), projection="mean", scale=False)
    assert torch.allclose(patch(model, images, targets), expected.double(), rtol=0, atol=1e-6)


@pytest.mark.peers
def test_overlapping_patches_equal_captums_occlusion(convnet, rgb, targets):
    captum = pytest.importorskip("captum.attr")
    model, images = convnet.double(), rgb.double()
    expected = captum.Occlusion(lambda x: model(x).softmax(1)).attribute(
        images, (3, 4, 4), strides=(3, 2, 2), target=targets, baselines=0.0
    )[:, 0]
    patch = SlidingPatch(4, 2, Colour(0.0), projection="mean", scale=False)
    assert torch.allclose(patch(model, images, targets), expected.double(), rtol=0, atol=1e-6)


def square_seen(image: Tensor) -> Tensor:
    """Logits of a model that looks at rows 60..67 and columns 150..157 alone."""
    seen = 10 * image[:, 0, 60:68, 150:158].mean((1, 2)) - 5
    return torch.stack([seen, -seen], 1)


def displacement(projection: str) -> tuple[float, float]:
    """How far the centre of mass of the map lies from that of the square, in pixels down and right, at 224 px with stride 7."""
    patch = SlidingPatch(stride=7, projection=projection, filler=Colour(0.0), max_batch=256)
    of_map = patch(square_seen, torch.full((1, 1, 224, 224), 0.9), torch.tensor([0]))[0].double()
    at = torch.arange(224.0, dtype=torch.float64)
    down, right = (float((of_map.sum(axis) * at).sum() / of_map.sum()) for axis in (1, 0))
    return down - 63.5, right - 153.5


def test_the_mean_over_covering_patches_lies_where_the_model_looks():
    assert max(map(abs, displacement("mean"))) < 1


def test_enlarged_values_are_displaced_towards_the_edges_as_far_as_the_grid_is_short_of_the_image():
    # window i of 28 has its centre at 7 i + 14 and is shown at 8 i + 3.5
    down, right = displacement("bilinear")
    assert down == pytest.approx((63.5 - 14) / 7 - 10.5, abs=1)
    assert right == pytest.approx((153.5 - 14) / 7 - 10.5, abs=1)


@pytest.mark.parametrize("projection", ["mean", "bilinear"])
@pytest.mark.parametrize("filler", [Colour(0.3), UniformNoise()], ids=["colour", "noise"])
def test_maps_do_not_depend_on_the_batch(convnet, rgb, targets, projection, filler):
    patch = SlidingPatch(4, 3, filler, draws=2, projection=projection, scale=False)
    rng, model = SampleRng(1, (7, 3, 5, 0, 2)), convnet.double()
    whole = patch(model, rgb.double(), targets, rng)
    alone = [patch(model, rgb[[i]].double(), targets[[i]], rng.take([i])) for i in range(5)]
    assert torch.allclose(torch.cat(alone), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((224, 224), (29, 3)), ((112, 150), (15, 2)), ((32, 32), (5, 1)), ((8, 8), (3, 1)), ((448, 448), (59, 6))],
)
def test_patch_and_stride_scale_with_the_side(size, expected):
    windows = SlidingPatch().windows(*size)
    assert (windows.patch, windows.stride) == expected
    resolved = SlidingPatch().resolve(lambda x: x, torch.zeros(1, 1, *size))
    assert resolved == {"patch": expected[0], "stride": expected[1], "windows": len(windows)}


def test_without_scale_patch_and_stride_are_taken_as_they_are():
    windows = SlidingPatch(patch=4, stride=2, scale=False).windows(16, 20)
    assert (windows.patch, windows.stride) == (4, 2)


def test_bf16_is_near_float32(convnet, rgb, targets):
    patches = [SlidingPatch(3, 3, scale=False, precision=p)(convnet, rgb, targets) for p in ("float32", "bf16")]
    assert not torch.equal(*patches)
    assert torch.allclose(*patches, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 13}, "patch=13 does not fit images of 12 x 12"),
        ({"patch": 0}, "at least 1 pixel"),
        ({"stride": 0}, "at least 1 pixel"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"projection": "cubic"}, "bilinear or mean"),
        ({"precision": "half"}, "float32 or bf16"),
        ({"max_batch": 0}, "max_batch"),
        ({"contrast": PMI("dits")}, "bits or nats"),
    ],
    ids=str,
)
def test_parameters_that_mean_nothing_are_refused(convnet, rgb, targets, options, message):
    with pytest.raises(UsageError, match=message) as error:
        SlidingPatch(**{"patch": 3, "stride": 3, "scale": False, **options})(convnet, rgb, targets)
    assert "\n" not in str(error.value)


def test_a_patch_larger_than_the_image_is_refused_where_it_scales_too(convnet, rgb, targets):
    with pytest.raises(UsageError, match="does not fit"):
        SlidingPatch(patch=300)(convnet, rgb, targets)

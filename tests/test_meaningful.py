"""Meaningful perturbation against a slow loop of its own definition, by hand, and on a model that reads one region."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lit_xai.core import Filler, Passes
from lit_xai.errors import UsageError
from lit_xai.explainers import MeaningfulPerturbation
from lit_xai.explainers.meaningful import moved_by, tv3
from lit_xai.fillers import Biharmonic, UniformNoise
from lit_xai.fillers.constant import Blur, Colour
from lit_xai.fillers.refill import Refill
from lit_xai.rng import SampleRng
from torch import Tensor, nn

from conftest import seeded

QUICK = {"steps": 5, "mask": 75, "filler": Colour(0.3)}  # 75 at 224 px are 4 at 12 px
STILL = {**QUICK, "jitter": 0}


@pytest.fixture
def images(rgb) -> Tensor:
    return rgb.double()


@pytest.fixture
def model(convnet) -> nn.Module:
    net = convnet.double()
    with torch.no_grad():
        net[-1].weight *= 20
    return net


class Corner(nn.Module):
    """p(class 0) grows with the brightness of the top left quarter."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1] // 2
        logit = 12 * x[:, :, :side, :side].mean((1, 2, 3)) - 6
        return torch.stack([logit, torch.zeros_like(logit)], 1)


# ------------------------------------------------------------------------------------------------------- the definition


def total_variation(m: Tensor) -> Tensor:
    """Sum of |differences|^3 of neighbours, by loops."""
    total = torch.zeros((), dtype=m.dtype)
    for i in range(len(m)):
        for j in range(len(m)):
            if i + 1 < len(m):
                total = total + (m[i + 1, j] - m[i, j]).abs() ** 3
            if j + 1 < len(m):
                total = total + (m[i, j + 1] - m[i, j]).abs() ** 3
    return total


def slow(model, image, target, start, background, steps, upsampling, output, area=0.02, smoothness=0.3, rate=0.1):
    """One image, with Adam and the loss written out; returns the small mask."""
    m, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        m.requires_grad_()
        if upsampling == "nearest":
            keep = m.repeat_interleave(3, 0).repeat_interleave(3, 1)
        else:
            keep = F.interpolate(m[None, None], size=(12, 12), mode="bilinear", align_corners=False)[0, 0]
        logits = model((keep * image + (1 - keep) * background)[None])[0]
        out = logits[target] if output == "logit" else logits.softmax(0)[target]
        loss = area * (1 - m).abs().sum() + smoothness * total_variation(m) + out
        (gradient,) = torch.autograd.grad(loss, m)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        change = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        m = (m.detach() - rate * change).clamp(0, 1)
    return m


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("output", ["probability", "logit"])
def test_maps_equal_a_slow_loop_over_images(model, images, targets, upsampling, output):
    rng = SampleRng(3, (5, 8, 1, 9, 0))
    explainer = MeaningfulPerturbation(
        **{**STILL, "steps": 12}, area=0.02, smoothness=0.3, upsampling=upsampling, output=output
    )
    maps = explainer(model, images, targets, rng)
    background = Colour(0.3).background(images)
    for i in range(5):
        start = rng.uniform("mask", i, (1, 4, 4))[0].double()
        args = model, images[i], targets[i], start, background[i]
        m = slow(*args, steps=12, upsampling=upsampling, output=output)
        assert not torch.allclose(m, start)
        mode = {"mode": "nearest"} if upsampling == "nearest" else {"mode": "bilinear", "align_corners": False}
        expected = 1 - F.interpolate(m[None, None], size=(12, 12), **mode)[0, 0]
        assert torch.allclose(maps[i], expected, rtol=0, atol=1e-6)


def test_tv3_by_hand():
    m = torch.tensor([[[[0.0, 0.5], [1.0, 0.5]]]])
    assert float(tv3(m)) == pytest.approx(1**3 + 0 + 0.5**3 + 0.5**3)
    both = torch.rand(2, 1, 5, 5, generator=seeded(1)).double()
    assert torch.allclose(tv3(both), total_variation(both[0, 0]) + total_variation(both[1, 0]))


def test_the_mask_starts_uniform_and_belongs_to_the_sample(images, targets):
    def flat(x: Tensor) -> Tensor:
        return x.sum((1, 2, 3))[:, None] * torch.zeros(4, dtype=x.dtype)

    explainer = MeaningfulPerturbation(**{**STILL, "steps": 1, "rate": 1e-9, "upsampling": "nearest"})
    rng = SampleRng(3, (5, 8, 1, 9, 0))
    maps = explainer(flat, images, targets, rng)
    for i in range(5):
        start = rng.uniform("mask", i, (1, 4, 4))[0].double()
        assert torch.allclose(1 - maps[i, ::3, ::3], start, atol=1e-6)


def test_nearest_upsampling_gives_blocks_and_bilinear_slopes(model, images, targets):
    blocks, slopes = (
        MeaningfulPerturbation(**STILL, upsampling=how)(model, images, targets)[0] for how in ("nearest", "bilinear")
    )
    assert torch.equal(blocks, blocks[::3, ::3].repeat_interleave(3, 0).repeat_interleave(3, 1))
    assert len(slopes.unique()) > 16


def test_maps_lie_in_the_unit_interval(model, images, targets):
    maps = MeaningfulPerturbation(**{**QUICK, "steps": 20, "rate": 0.5})(model, images, targets)
    assert float(maps.min()) >= 0
    assert float(maps.max()) <= 1


@pytest.mark.parametrize("filler", [Colour(0.3), Blur(61, 10.0), UniformNoise()], ids=["colour", "blur", "noise"])
def test_maps_do_not_depend_on_the_batch(model, images, targets, filler):
    options = {**QUICK, "filler": filler, "jitter": 40}  # at most 2 pixels at 12 px
    rng = SampleRng(3, (5, 8, 1, 9, 0))
    whole, details = MeaningfulPerturbation(**options).with_details(model, images, targets, rng)
    parts = MeaningfulPerturbation(**options, max_batch=2)(model, images, targets, rng)
    alone = [MeaningfulPerturbation(**options)(model, images[[i]], targets[[i]], rng.take([i])) for i in range(5)]
    assert torch.allclose(parts, whole, rtol=0, atol=1e-9)
    assert torch.allclose(torch.cat(alone), whole, rtol=0, atol=1e-9)
    assert all(v.shape == (5,) for v in details.values())


def test_maps_inside_inference_mode_equal_those_outside(model, images, targets):
    expected = MeaningfulPerturbation(**QUICK)(model, images, targets)
    with torch.inference_mode():
        inside = MeaningfulPerturbation(**QUICK)(model, images.clone(), targets.clone())
    assert torch.allclose(inside, expected, rtol=0, atol=1e-9)
    assert not inside.requires_grad


def test_explaining_leaves_the_model_and_the_images_as_they_were(model, images, targets):
    before, weights = images.clone(), [p.clone() for p in model.parameters()]
    model.train()
    MeaningfulPerturbation(**QUICK)(model, images, targets)
    assert model.training
    assert torch.equal(images, before)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), weights, strict=True))


# --------------------------------------------------------------------------------------------------------------- jitter


def test_images_move_up_and_left_by_their_own_shift_and_the_border_repeats():
    image = torch.arange(9.0).view(1, 1, 3, 3).repeat(3, 2, 1, 1)
    image[:, 1] += 100
    moved = moved_by(image, torch.tensor([[0, 0], [1, 0], [2, 1]]))
    assert torch.equal(moved[0], image[0])
    assert moved[1, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    assert moved[2, 0].tolist() == [[7, 8, 8], [7, 8, 8], [7, 8, 8]]
    assert torch.equal(moved[:, 1], moved[:, 0] + 100)


def test_shifts_are_uniform_from_0_to_the_largest():
    shifts = MeaningfulPerturbation(steps=3000).shifts(SampleRng.default(1).noise("jitter"), 3).flatten()
    shares = shifts.bincount(minlength=4) / len(shifts)
    assert len(shares) == 4
    assert float((shares - 0.25).abs().max()) < 5 * math.sqrt(0.1875 / 6000)


@pytest.mark.parametrize(("side", "mask", "jitter"), [(224, 28, 3), (112, 14, 2), (32, 4, 1), (12, 3, 1), (448, 56, 6)])
def test_mask_and_jitter_scale_with_the_side(side, mask, jitter):
    resolved = MeaningfulPerturbation().resolve(lambda x: x, torch.zeros(1, 1, side, side + 5))
    assert resolved == {"mask": mask, "jitter": jitter}
    assert MeaningfulPerturbation(jitter=0).resolve(lambda x: x, torch.zeros(1, 1, side, side))["jitter"] == 0


def test_the_model_sees_the_jittered_image_at_every_step_but_the_last(images, targets):
    seen = []

    def remembering(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.mean((2, 3)) @ torch.ones(3, 4, dtype=x.dtype)

    explainer = MeaningfulPerturbation(**{**QUICK, "jitter": 60, "rate": 1e-9})
    explainer(remembering, images, targets)
    shifts = explainer.shifts(SampleRng.default(5).noise("jitter"), 3)
    assert len(seen) == 6
    for step in range(5):
        assert torch.allclose(seen[step], moved_by(seen[5], shifts[:, step]), atol=1e-6)
    assert bool((shifts > 0).any())


# ------------------------------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_the_map_is_high_where_the_model_reads_and_low_elsewhere(upsampling):
    images = torch.full((2, 1, 16, 16), 0.9)
    explainer = MeaningfulPerturbation(
        mask=112, steps=150, area=0.02, upsampling=upsampling, jitter=0, filler=Colour(0.0)
    )
    maps, details = explainer.with_details(Corner(), images, torch.tensor([0, 0]))
    assert float(maps[:, :6, :6].mean()) > 0.5
    assert float(maps[:, 10:, 10:].mean()) < 0.05
    assert float(details["output_left"].max()) < 0.1
    assert 0.1 < float(details["pixels_changed"].mean()) < 0.6


def test_a_filler_that_depends_on_the_mask_passes_the_gradient_straight_through():
    images = torch.full((12, 1, 16, 16), 0.9)
    explainer = MeaningfulPerturbation(mask=112, steps=150, area=0.01, jitter=0, filler=UniformNoise())
    maps, details = explainer.with_details(Corner(), images, torch.zeros(12, dtype=torch.long))
    found = details["pixels_changed"] > 0  # from some starts the mask grows over the whole image
    assert int(found.sum()) >= 2
    assert float((maps[found, :6, :6].mean((1, 2)) - maps[found, 10:, 10:].mean((1, 2))).min()) > 0.3
    assert float(details["output_left"][found].max()) < 0.75  # p of the whole image is .99, of noise .5


def test_the_straight_through_gradient_of_hidden_pixels_is_that_of_the_blend():
    images = torch.rand(2, 3, 12, 12, generator=seeded(1)).double()
    keep = torch.rand(2, 1, 12, 12, generator=seeded(2)).double().requires_grad_()
    explainer, rng = MeaningfulPerturbation(filler=UniformNoise()), SampleRng(3, (4, 9))
    shown = explainer.perturbed(Refill(UniformNoise(), images, rng), keep, step=7)
    filled = UniformNoise()(images, torch.zeros(2, 1, 12, 12, dtype=torch.bool), rng.take([0, 1], [7, 7]))[:, 0, 0]
    assert torch.allclose(shown, torch.where(keep > 0.5, images, filled), atol=1e-12)
    weight = torch.randn(2, 3, 12, 12, generator=seeded(3)).double()
    (gradient,) = torch.autograd.grad((shown * weight).sum(), keep)
    expected = (weight * (images - filled)).sum(1, keepdim=True)
    assert torch.allclose(gradient[keep <= 0.5], expected[keep <= 0.5], atol=1e-12)


def test_a_slow_filler_without_a_background_runs(convnet, rgb, targets):
    explainer = MeaningfulPerturbation(steps=2, filler=Biharmonic())
    assert bool(explainer(convnet, rgb[:2], targets[:2]).isfinite().all())


# --------------------------------------------------------------------------------------------------------------- details


class Half(MeaningfulPerturbation):
    """With a mask that hides the upper half and is not learned."""

    def enlarged(self, m: Tensor, images: Tensor) -> Tensor:
        half = torch.ones_like(images[:, :1])
        half[:, :, : images.shape[-2] // 2] = 0
        return half + 0 * m.sum()


def test_the_share_of_pixels_changed_and_the_output_left_by_hand(model, images, targets):
    images = images.clone()
    images[0, :, :6] = 0.3  # the filler's colour: nothing changes there
    images[1, :, :6] = 0.3 + 0.5 / 255  # too little to count
    images[2, :, :3] = 0.3
    images[3, 1:, :6] = 0.3
    images[3, 0, :6] = 0.3 + 2 / 255  # one channel is enough
    maps, details = Half(**STILL).with_details(model, images, targets)
    assert details["pixels_changed"].tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.5], abs=0.02)
    shown = images.clone()
    shown[:, :, :6] = 0.3
    with torch.no_grad():
        expected = model(shown).softmax(1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(details["output_left"], expected, atol=1e-9)
    assert bool((maps[:, :6] == 1).all())
    assert bool((maps[:, 6:] == 0).all())


def test_passes_are_one_forward_and_one_backward_a_step():
    assert MeaningfulPerturbation(steps=7).passes(8, 8) == Passes(7, 7)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "needs steps"),
        ({"mask": 0}, "needs steps, mask"),
        ({"rate": 0.0}, "needs steps, mask, rate"),
        ({"jitter": -1}, "jitter >= 0"),
        ({"max_batch": 0}, "max_batch must be at least 1, or auto"),
        ({"upsampling": "cubic"}, "bilinear or nearest"),
        ({"output": "odds"}, "logit or probability"),
        ({"area": -1.0}, "area"),
        ({"smoothness": -1.0}, "smoothness"),
    ],
    ids=str,
)
def test_parameters_that_mean_nothing_are_refused(model, images, targets, options, message):
    with pytest.raises(UsageError, match=message) as error:
        MeaningfulPerturbation(**{**QUICK, **options})(model, images, targets)
    assert "\n" not in str(error.value)


def test_a_model_without_a_gradient_is_refused(images, targets):
    with pytest.raises(UsageError, match="gradient"):
        MeaningfulPerturbation(**QUICK)(lambda x: torch.ones(len(x), 4, dtype=x.dtype), images, targets)


def test_a_filler_of_another_shape_is_refused(model, images, targets):
    class Forgetful(Filler):
        def __call__(self, images, keep, rng, draws=1, segments=None):
            return images[:, None]

    with pytest.raises(UsageError, match="Forgetful returned shape"):
        MeaningfulPerturbation(**{**QUICK, "filler": Forgetful()})(model, images, targets)

"""Diffusion: the steps against diffusers, everything else against data whose score is known."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from lit_xai.calls import Chunk
from lit_xai.errors import UsageError
from lit_xai.fillers import DDIM, DDIMInpainting
from lit_xai.fillers import generative as shared
from lit_xai.fillers.denoiser import Denoiser, Steps, UNet, signal, step_back, step_forth
from lit_xai.fillers.diffusion import (
    DDIMModule,
    moving,
    softened,
)
from lit_xai.fillers.refill import Refill
from lit_xai.rng import SampleRng
from lit_xai.store.files import save_weights
from torch import Tensor, nn

from conftest import seeded

MEAN, SIGMA = 0.2, 0.3  # of every pixel of the Gaussian images, in [-1, 1]
TINY = {"width": [8, 8], "layers": 1, "attention": 0}
RNG = SampleRng(3, (4, 1, 5))


class Score(nn.Module):
    """The exact noise estimate for independent Gaussian pixels; counts the images it is asked about."""

    def __init__(self, schedule: Tensor) -> None:
        super().__init__()
        self.schedule, self.asked = schedule, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked += len(x)
        a = self.schedule[t].to(x).view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * SIGMA**2 + 1 - a)


class Nothing(nn.Module):
    """Finds no noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x


class Says(nn.Module):
    """Another way to put the same estimate: v, or the clean image."""

    def __init__(self, score: Score, predicts: str) -> None:
        super().__init__()
        self.score, self.predicts = score, predicts

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        e = self.score(x, t)
        a = self.score.schedule[t].to(x).view(-1, 1, 1, 1)
        clean = (x - (1 - a).sqrt() * e) / a.sqrt()
        return clean if self.predicts == "sample" else a.sqrt() * e - (1 - a).sqrt() * clean


def gaussian(kind: type = DDIM, side: int = 6, noise: str = "cosine", **options):
    """A filler of the exact network."""
    schedule = signal(noise)
    return kind(given=Denoiser(Score(schedule), 1, side, schedule), **options)


def pictures(number: int, side: int = 6) -> Tensor:
    """Images of that distribution, float64 in [0, 1] coordinates."""
    x = MEAN + SIGMA * torch.randn(number, 1, side, side, generator=seeded(1), dtype=torch.float64)
    return ((x + 1) / 2).clamp(0, 1)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Empty caches for every test."""
    for name in ("ENCODED", "DRAWN"):
        monkeypatch.setattr(shared, name, shared.Cache(1 << 24))


# ------------------------------------------------------------------------------------------------------------- schedule


def test_the_linear_schedule_is_that_of_diffusers():
    from diffusers import DDPMScheduler

    expected = DDPMScheduler(beta_schedule="linear").alphas_cumprod.double()
    assert torch.allclose(signal("linear"), expected, rtol=2e-5, atol=1e-7)


def test_the_cosine_schedule_falls_evenly_in_angle_and_ends_early():
    a = signal("cosine", 100)
    first = 0.008 / 1.008 * math.pi / 2
    angle = torch.acos((a * math.cos(first) ** 2).sqrt())
    assert torch.allclose(angle.diff(), angle.diff()[:1].expand(99), rtol=1e-9)
    assert float(angle[0] - angle.diff()[0]) == pytest.approx(first)
    assert float(a[-1]) == pytest.approx(1e-3)


def test_no_step_enlarges_errors_much():
    """The first factor of a deterministic step back, sqrt(b / a): 600 at the end of an uncut cosine."""
    a = Steps.of(signal("cosine"), 50).signal
    assert max(math.sqrt(b / c) for b, c in pairwise(a)) < 3


@pytest.mark.parametrize("noise", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_the_signal_falls_to_almost_nothing(noise, steps):
    a = signal(noise, steps)
    assert bool((a[1:] < a[:-1]).all())
    assert float(a[0]) < 1
    assert 0 < float(a[-1]) < 1e-2


def test_steps_are_evenly_spread_and_end_with_the_last():
    steps = Steps.of(signal(), 4)
    assert steps.at == [249, 499, 749, 999]
    assert steps.signal[0] == 1
    assert len(steps.signal) == 5


def test_all_steps_of_the_schedule_can_be_taken():
    assert Steps.of(signal(steps=20), 20).at == list(range(20))


# ---------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("number", [10, 50, 1000])
def test_a_step_back_is_that_of_diffusers_ddim(eta, number):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    theirs.set_timesteps(number)
    x, e, z = torch.randn(3, 2, 1, 4, 4, generator=seeded(0)).unbind(0)
    steps = Steps.of(theirs.alphas_cumprod.double(), number)
    for p in (number, number // 2, 2, 1):
        expected = theirs.step(e, steps.time(p), x, eta=eta, variance_noise=z).prev_sample
        mine = step_back(x, e, steps.signal[p], steps.signal[p - 1], eta, z)
        assert torch.allclose(mine, expected, atol=1e-5), p


@pytest.mark.parametrize("t", [999, 500, 20, 1])
def test_eta_one_is_the_ddpm_step(t):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(clip_sample=False)
    a = theirs.alphas_cumprod.double()
    x, e = torch.randn(2, 2, 1, 4, 4, generator=seeded(0), dtype=torch.float64).unbind(0)
    expected = theirs.step(e, t, x, generator=seeded(5)).prev_sample
    z = torch.randn(x.shape, generator=seeded(5), dtype=torch.float64)
    assert torch.allclose(step_back(x, e, float(a[t]), float(a[t - 1]), 1.0, z), expected, rtol=1e-4, atol=1e-5)


def test_forth_undoes_back():
    x, e = torch.randn(2, 3, 1, 4, 4, generator=seeded(0), dtype=torch.float64).unbind(0)
    assert torch.allclose(step_forth(step_back(x, e, 0.3, 0.7, 0.0), e, 0.3, 0.7), x, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ known distribution


def error(number: int, refine: int) -> float:
    sampler = gaussian(steps=number, refine=refine)
    return float(sampler.quality(pictures(20))["reconstruction_rmse"].mean())


def test_without_refinement_the_reconstruction_error_falls_as_one_over_n():
    errors = [error(n, 0) for n in (25, 50, 100, 200, 400)]
    ratios = [a / b for a, b in pairwise(errors)]
    assert errors[0] > 1e-4
    assert min(ratios) > 1.8


def test_refinement_undoes_the_decoding():
    plain, once, thrice = (error(50, r) for r in (0, 1, 3))
    assert once < plain / 3
    assert thrice < once / 3
    assert error(50, 100) < 1e-7


def test_the_code_is_the_images_place_in_its_distribution():
    x = pictures(30)
    sampler = gaussian(steps=1000, refine=0)
    expected = (2 * x - 1 - MEAN) / SIGMA
    assert float((sampler.encode(x) - expected).abs().mean()) < 0.02


@pytest.mark.parametrize("noise", ["linear", "cosine"])
def test_eta_zero_gives_the_image_back(noise):
    sampler = gaussian(noise=noise, steps=50, eta=0.0, refine=12)
    x = pictures(3)
    drawn = sampler(x, torch.zeros(3, 1, 6, 6, dtype=torch.bool), RNG)[:, 0, 0]
    assert torch.allclose(drawn, x, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_decoded_noise_has_the_images_distribution(eta):
    sampler = gaussian(steps=500, side=20)
    code = torch.randn(200, 1, 20, 20, generator=seeded(2), dtype=torch.float64)
    x = 2 * sampler.decode(code, eta, SampleRng.default(200).noise("filler")) - 1
    assert abs(float(x.mean()) - MEAN) < 5 * SIGMA / math.sqrt(x.numel())
    assert abs(float(x.std()) / SIGMA - 1) < 0.02


def test_more_noise_on_the_way_back_goes_further_from_the_image():
    x = pictures(3)
    nothing = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    distance = [
        float((gaussian(steps=20, eta=e)(x, nothing, RNG, 20) - x[:, None, None]).norm()) for e in (0.1, 0.4, 1)
    ]
    assert distance[0] < distance[1] < distance[2]


def test_starting_nearer_stays_nearer():
    x = pictures(3)
    nothing = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    distance = [
        float((gaussian(steps=20, eta=0.8, start=s)(x, nothing, RNG, 20) - x[:, None, None]).norm())
        for s in (0, 10, 17)
    ]
    assert distance[0] > distance[1] > distance[2] > 0


@pytest.mark.parametrize("predicts", ["v_prediction", "sample"])
def test_networks_that_predict_something_else_draw_the_same(predicts):
    mine = gaussian(steps=10)
    exact = mine.module
    other = replace(mine, given=Denoiser(Says(exact.network, predicts), 1, 6, exact.signal, predicts))
    x = pictures(2)
    assert torch.allclose(mine.encode(x), other.encode(x), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- in-painting


def half(side: int = 12) -> Tensor:
    keep = torch.ones(3, 1, side, side, dtype=torch.bool)
    keep[..., side // 2 :] = False
    return keep


def test_painting_keeps_what_is_visible():
    x, keep = pictures(3, 12), half()
    drawn = gaussian(DDIMInpainting, 12, steps=10, eta=0.8)(x, keep, RNG, 2)
    visible = keep[:, :, None, None].expand_as(drawn)
    assert torch.equal(drawn[visible], x[:, None, None].expand_as(drawn)[visible])


def test_before_they_are_put_back_visible_pixels_are_untouched_outside_the_seam():
    x, keep = pictures(3, 12), half()
    sampler = gaussian(DDIMInpainting, 12, steps=10, blur=1.0)
    raw = sampler.draw(x, sampler.encode(x), torch.arange(3), keep[:, 0], RNG.noise("filler"))
    assert torch.allclose(raw[..., :3], x[..., :3], atol=1e-6)
    assert float((raw[..., 5] - x[..., 5]).abs().max()) > 1e-3


def test_hidden_pixels_are_drawn_anew_from_the_known_distribution():
    x, keep = pictures(3, 12), half()
    drawn = gaussian(DDIMInpainting, 12, steps=100, eta=0.8, blur=0.0)(x, keep, RNG, 200)[:, 0]
    hidden = (2 * drawn - 1)[..., 6:]
    assert abs(float(hidden.mean()) - MEAN) < 0.02
    assert abs(float(hidden.std()) / SIGMA - 1) < 0.06
    old = (x[..., 6:] - x[..., 6:].mean()).flatten()
    new = (drawn.mean(1)[..., 6:] - drawn[..., 6:].mean()).flatten()
    assert abs(float(torch.corrcoef(torch.stack([old, new]))[0, 1])) < 0.25  # 108 pixels: two standard errors are .19


def test_a_blurred_mask_is_scipys():
    from scipy.ndimage import gaussian_filter

    keep = (torch.rand(1, 1, 20, 20, generator=seeded(0)) < 0.5).double()
    expected = gaussian_filter(keep[0, 0].numpy(), 1.5, mode="nearest", truncate=5 / 1.5)
    assert torch.allclose(softened(keep, 1.5)[0, 0], torch.from_numpy(expected), atol=1e-12)


def test_a_mask_without_blur_stays():
    keep = half().double()
    assert softened(keep, 0.0) is keep


# ------------------------------------------------------------------------------------------------------------- one code


def test_an_image_is_encoded_once_for_all_draws(trained):
    filler = DDIM(str(trained), steps=4, refine=1, max_batch=5)
    x = torch.rand(3, 1, 8, 8, generator=seeded(0))
    count = counted(filler)
    refill = Refill(filler, x, RNG)
    keep = torch.zeros(6, 8, 8, dtype=torch.bool)
    for start in (0, 6, 12):
        chunk = Chunk(0, 6, 2, x.device)
        refill(keep, chunk, start + chunk.variant, 2)
    assert count.asked == 3 * 4 * 2 + 3 * 12 * 4


def test_samples_are_reused_by_whoever_asks_for_them_again(trained):
    x, rng = torch.rand(3, 1, 8, 8, generator=seeded(0)), RNG
    keep = torch.zeros(3, 8, 8, dtype=torch.bool)
    first = DDIM(str(trained), steps=3)
    rows = Refill(first, x, rng)(keep, Chunk(0, 3, 1, x.device), 7, 2)
    again = DDIM(str(trained), steps=3)
    count = counted(again)
    same = Refill(again, x, rng)(keep, Chunk(0, 3, 1, x.device), 7, 2)
    assert count.asked == 0
    assert torch.equal(rows, same)
    some = keep.clone()
    some[:, :4] = True
    mixed = Refill(again, x, rng)(some, Chunk(0, 3, 1, x.device), 7, 2)
    assert torch.equal(mixed[:, :, 4:], rows[:, :, 4:])
    other = Refill(replace(first, eta=0.9), x, rng)(keep, Chunk(0, 3, 1, x.device), 7, 2)
    assert not torch.equal(other, rows)
    count.asked = 0
    Refill(again, x, rng.repeated(1))(keep, Chunk(0, 3, 1, x.device), 7, 2)
    assert count.asked == 18  # 3 steps of 3 images x 2 draws: other noise; the code is the same
    Refill(again, x.flip(0), rng)(keep, Chunk(0, 3, 1, x.device), 7, 2)
    assert count.asked > 36  # other images: their code, too


def test_kept_samples_are_not_shared_memory(trained):
    x, filler = torch.rand(1, 1, 8, 8, generator=seeded(0)), DDIM(str(trained), steps=2)
    nothing = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    rng = SampleRng(0, (0,))
    first = filler(x, nothing, rng).clone()
    filler(x, nothing, rng).zero_()
    assert torch.equal(filler(x, nothing, rng), first)


class Counting:
    """How many images a network was asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, network: nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
        self.asked += len(arguments[0])


def counted(filler: DDIM) -> Counting:
    """Count the images that a filler's network is asked about."""
    counter = Counting()
    filler.module.network.register_forward_pre_hook(counter)
    return counter


# ------------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def module() -> DDIMModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DDIMModule(channels=1, side=8, **TINY)


@pytest.fixture(scope="module")
def trained(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("ddim") / "model.ckpt"
    node = {"_target_": "lit_xai.fillers.diffusion.DDIMModule", **TINY}
    save_weights(module, path, {"model": node, "shape": {"channels": 1, "side": 8}, "about": "these"})
    return path


def test_the_average_follows_the_network():
    update = moving(0.9)
    average, current = [torch.zeros(2)], [torch.ones(2)]
    update(average, current, torch.tensor(1))
    assert torch.allclose(average[0], torch.full((2,), 1 - 2 / 11))
    average = [torch.zeros(2)]
    update(average, current, torch.tensor(1000))
    assert torch.allclose(average[0], torch.full((2,), 0.1))


def test_the_loss_of_the_exact_score_is_the_least(module):
    x = pictures(64, 8).float()
    score = Score(module.get_buffer("signal"))
    loss, of_nothing = (float(module.loss(n, x, seeded(3))) for n in (score, Nothing()))
    assert loss < 0.7 * of_nothing
    assert of_nothing == pytest.approx(1, abs=0.1)


def test_training_lowers_the_loss(module):
    import copy

    module = copy.deepcopy(module)
    x = pictures(64, 8).float()
    before = module.loss(module.network, x, seeded(3)).item()
    optimizer = torch.optim.AdamW(module.network.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(30):
        optimizer.zero_grad()
        module.batch_loss((x, torch.zeros(64))).backward()
        optimizer.step()
    assert module.loss(module.network, x, seeded(3)).item() < 0.7 * before


# ------------------------------------------------------------------------------------------------------------ diffusers


@pytest.fixture(scope="module")
def pipeline(module, tmp_path_factory):
    """A folder as diffusers saves it."""
    from diffusers import DDIMPipeline, DDIMScheduler

    folder = tmp_path_factory.mktemp("pipeline")
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    DDIMPipeline(module.network.unet, scheduler).save_pretrained(folder)
    return folder


def test_a_diffusers_folder_draws_as_diffusers_does(pipeline):
    from diffusers import DDIMPipeline

    theirs = DDIMPipeline.from_pretrained(pipeline, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(batch_size=2, generator=seeded(4), num_inference_steps=10, output_type="np").images
    sampler = DDIM(str(pipeline), steps=10)
    code = torch.randn(2, 1, 8, 8, generator=seeded(4))
    with torch.no_grad():
        mine = sampler.decode(code).clamp(0, 1)
    assert torch.allclose(mine, torch.from_numpy(expected).movedim(-1, 1), atol=1e-5)


def test_a_network_without_a_schedule_is_refused(pipeline, tmp_path):
    folder = tmp_path / "network"
    shutil.copytree(pipeline / "unet", folder)
    with pytest.raises(UsageError, match=r"scheduler_config.json is missing"):
        _ = DDIM(str(folder)).module


def test_pickled_weights_are_not_read(pipeline, module, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(pipeline, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(module.network.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match="safe_serialization"):
        _ = DDIM(str(folder)).module


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.2}, r"eta must lie in \[0, 1\]"),
        ({"eta": -0.1}, r"eta must lie in \[0, 1\]"),
        ({"steps": 1001}, r"steps must lie in 1..1000"),
        ({"steps": 0}, "0 <= start < steps"),
        ({"start": 50}, "0 <= start < steps"),
        ({"refine": -1}, "refine >= 0"),
    ],
)
def test_numbers_out_of_range_are_refused(trained, options, message):
    with pytest.raises(UsageError, match=message):
        _ = DDIM(str(trained), **options).module


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 8, 8), "trained on images of 1 x 8 x 8"),
        (torch.rand(1, 1, 16, 16), "found 1 x 16 x 16"),
        (torch.randn(1, 1, 8, 8) * 3, r"takes values in \[0, 1\]"),
    ],
)
@pytest.mark.parametrize("kind", [DDIM, DDIMInpainting])
def test_images_unlike_the_training_images_are_refused(trained, kind, images, message):
    keep = torch.zeros(1, 1, *images.shape[-2:], dtype=torch.bool)
    with pytest.raises(UsageError, match=message):
        kind(str(trained), steps=2)(images, keep, SampleRng(0, (0,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": [12]}, "multiples of 8"),
        ({"width": [8, 8, 8, 8, 8]}, "cannot be halved"),
        ({"attention": 3}, "model.attention"),
        ({"noise": "square"}, "model.noise must be one of"),
        ({"noise_steps": 0}, "noise_steps"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        DDIMModule(channels=1, side=8, **{**TINY, **options})


def test_attention_is_on_the_deepest_levels():
    unet = UNet.of(1, 8, [8, 8], 1, 1, 0.0).unet
    assert [type(b).__name__ for b in unet.down_blocks] == ["DownBlock2D", "AttnDownBlock2D"]


# ------------------------------------------------------------------------------------------------- what diffusers saved


def altered(pipeline, folder, network=None, schedule=None, kind=None) -> str:
    """A copy of a pipeline with other values in its configurations."""
    shutil.copytree(pipeline, folder)
    for file, changes in (("unet/config.json", network), ("scheduler/scheduler_config.json", schedule)):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **(changes or {})}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"num_class_embeds": 10}}, "was trained with class labels"),
        ({"network": {"time_embedding_type": "fourier"}}, "takes noise levels for steps"),
        ({"network": {"_class_name": "UNet1DModel"}}, "is a UNet1DModel"),
        ({"network": {"sample_size": None}}, "sample_size=None"),
        ({"network": {"out_channels": 3}}, "has 1 channels in and 3 out"),
        ({"schedule": {"_class_name": "ScoreSdeVeScheduler"}}, "whose steps are not DDIM's"),
        ({"schedule": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "whose steps are not DDIM's"),
        ({"schedule": {"rescale_betas_zero_snr": True}}, "ends at a signal of 0"),
    ],
)
def test_folders_that_cannot_draw_images_here_are_refused(pipeline, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        _ = DDIM(altered(pipeline, tmp_path / "folder", **changes)).module


def test_a_ddpm_pipeline_with_its_own_betas_is_read(pipeline, tmp_path):
    from diffusers import DDPMScheduler

    changes = {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "variance_type": "fixed_large"}
    folder = altered(pipeline, tmp_path / "folder", schedule=changes, network={"sample_size": [8, 8]})
    sampler = DDIM(folder).module
    assert sampler.side == 8
    assert torch.equal(sampler.signal, DDPMScheduler(beta_schedule="sigmoid").alphas_cumprod.double())


def test_of_a_network_with_variances_the_means_are_used(tmp_path):
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    x, t = torch.randn(2, 1, 8, 8, generator=seeded(0)), torch.tensor([5, 5])
    network = DDIM(str(tmp_path)).module.network
    assert torch.allclose(network(x, t), unet.eval()(x, t).sample[:, :1], atol=1e-6)


def test_another_schedule_is_another_sampler(pipeline, tmp_path):
    """The same weights in another folder, or with a rewritten schedule, share no kept samples."""
    folder = tmp_path / "folder"
    first, second = (
        DDIM(str(pipeline), steps=3),
        DDIM(altered(pipeline, folder, schedule={"prediction_type": "sample"}), steps=3),
    )
    x, nothing, rng = (
        torch.rand(1, 1, 8, 8, generator=seeded(0)),
        torch.zeros(1, 1, 8, 8, dtype=torch.bool),
        SampleRng(0, (0,)),
    )
    assert first.content() != second.content()
    assert not torch.equal(first(x, nothing, rng), second(x, nothing, rng))
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"sample"', '"epsilon"'))
    again = DDIM(str(folder), steps=3)
    assert again.module.predicts == "epsilon"
    assert torch.equal(again(x, nothing, rng), first(x, nothing, rng))


def test_what_is_kept_does_not_change_with_the_callers_images(trained):
    filler, rng = DDIM(str(trained), steps=2), SampleRng(0, (0,))
    x = torch.rand(1, 1, 8, 8, generator=seeded(0))
    keep = half(8)[:1]
    expected = filler(x.clone(), keep, rng).clone()
    mine = x.clone()
    shared.forget()
    filler(mine, keep, rng)
    mine.zero_()
    assert torch.equal(filler(x, keep, rng), expected)


def test_a_smaller_max_batch_is_kept_to(trained):
    x, nothing, rng = (
        torch.rand(1, 1, 8, 8, generator=seeded(0)),
        torch.zeros(1, 1, 8, 8, dtype=torch.bool),
        SampleRng(0, (0,)),
    )
    DDIM(str(trained), steps=2, max_batch=64)(x, nothing, rng)
    small = DDIM(str(trained), steps=2, max_batch=4)
    assert small.prepared(x).filler.max_batch == 4


def test_a_short_schedule_has_no_more_steps_than_it_has():
    module = DDIMModule(channels=1, side=8, noise_steps=6, **TINY)
    assert module.sampler().steps == 6
    assert set(module.sampler().quality(torch.rand(1, 1, 8, 8))) == {
        "reconstruction_rmse",
        "reconstruction_rmse_10_steps",
    }

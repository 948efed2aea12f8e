"""Denoising diffusion implicit models: encode an image, decode it with some noise, or paint what is hidden.

Song, Meng & Ermon, "Denoising Diffusion Implicit Models"; used as samplers of perturbed images by Ademi, Noppel &
Wressnegger (POMELO, section 2.4 and appendix A). With a_t the share of signal variance left at step t and e the network's
estimate of the noise, one step back from t to s < t is

    x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) e + sigma z,      x0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t),
    sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s).

eta = 0 is deterministic and is inverted step by step to encode; eta = 1 is ancestral sampling (DDPM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lit_xai.calls import autocast, per_call
from lit_xai.core import Images
from lit_xai.errors import UsageError
from lit_xai.fillers import diffusers_folder
from lit_xai.fillers.fitted import FittedFiller, Placed, Sampler, Saved, below, rebuilt
from lit_xai.fillers.generative import GenerativeFiller, ImageSampler, check_precision, normal
from lit_xai.models.trainable import TrainableSampler, check_choice
from lit_xai.rng import stable_hash

NOISES = ("cosine", "linear")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = 50  # of the way to noise and back
FEW = 10  # steps, for those in a hurry
FAINTEST = 1e-3  # signal variance at the end of the cosine schedule
GROUPS = 8  # of the network's group normalisation

Noise = Callable[[Tensor, Tensor], Tensor]  # x_t [m c h w] and t [m] -> the network's output


# ------------------------------------------------------------------------------------------------------------ schedule


def signal(noise: str = "cosine", steps: int = 1000) -> Float[Tensor, "t"]:
    """a_t, the share of signal variance after step t = 0 .. steps - 1, falling (float64).

    `linear`: betas from .0001 to .02 for 1,000 steps, scaled for other numbers (Ho et al., 2020). `cosine`: a_t falls as
    cos^2 (Nichol & Dhariwal, 2021), from the same angle .008 / 1.008 pi/2 on, to `FAINTEST` instead of to 0: the first
    deterministic steps back from a signal of 1e-9 would enlarge every error of the network a thousandfold.
    """
    check_choice(noise, NOISES, "noise")
    if steps < 1:
        raise UsageError(f"model.noise_steps must be at least 1, found {steps}")
    if noise == "linear":
        scale = 1000 / steps
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp_max(0.999)
    else:
        first = 0.008 / 1.008 * math.pi / 2
        last = math.acos(math.sqrt(FAINTEST) * math.cos(first))
        level = torch.cos(torch.linspace(first, last, steps + 1, dtype=torch.float64)) ** 2
        betas = 1 - level[1:] / level[:-1]
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class Steps:
    """The n of the schedule's steps that are taken: position 0 is the image, position n all but noise.

    Attributes:
        at: `[n]` the schedule's step at position 1 .. n; the last is the schedule's last.
        signal: `[n + 1]` a at every position; 1 at position 0.
    """

    at: list[int]
    signal: list[float]

    @staticmethod
    def of(signal: Float[Tensor, "t"], number: int) -> Steps:
        """`number` evenly spread steps.

        Raises:
            UsageError: fewer than one, or more than the schedule has.
        """
        if not 1 <= number <= len(signal):
            raise UsageError(f"steps must lie in 1..{len(signal)}, the length of the noise schedule, found {number}")
        at = [round(i * len(signal) / number) - 1 for i in range(1, number + 1)]
        return Steps(at, [1.0, *signal[at].tolist()])

    def __len__(self) -> int:
        return len(self.at)

    def time(self, position: int) -> int:
        """The schedule's step at a position; the image itself counts as the first."""
        return self.at[position - 1] if position else 0


def step_back(
    x: Float[Tensor, "m c h w"], e: Float[Tensor, "m c h w"], a: float, b: float, eta: float, z: Tensor | None = None
) -> Float[Tensor, "m c h w"]:
    """One step from signal share a to b > a (see the head of this file); `z` is standard normal, not needed for eta = 0."""
    clean = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
    out = math.sqrt(b) * clean + math.sqrt(max(0.0, 1 - b - sigma**2)) * e
    return out if z is None or sigma == 0 else out + sigma * z


def step_forth(x: Tensor, e: Tensor, a: float, b: float) -> Tensor:
    """The inverse of the deterministic step: from signal share b back to a < b, given the noise e at a."""
    return math.sqrt(a / b) * (x - math.sqrt(1 - b) * e) + math.sqrt(1 - a) * e


# ------------------------------------------------------------------------------------------------------------- sampler


@dataclass(frozen=True)
class Diffusion(ImageSampler):
    """A trained network and how to draw from it: whole new images near the given one.

    Attributes:
        network: x_t in [-1, 1] coordinates and t to its prediction.
        signal: `[t]` the schedule (see `signal`).
        predicts: `epsilon` (the noise), `v_prediction` or `sample`.
        steps: n, of the way to noise and back.
        eta: in [0, 1]; 0 gives the image back, 1 is ancestral sampling.
        start: how many of the noisiest steps are left out: the way back begins n - start steps from the image.
        refine: fixed-point iterations a step of the encoding, each one network pass: the noise estimate of the step's
            end instead of its beginning, so that decoding with eta = 0 undoes it.
        precision: `float32`, or `bf16` for autocast.
    """

    network: nn.Module
    signal: Float[Tensor, "t"]
    predicts: str = "epsilon"
    steps: int = STEPS
    eta: float = 0.4
    start: int = 0
    refine: int = 3
    precision: str = "float32"
    placed: Placed = field(default_factory=Placed, repr=False)

    def __post_init__(self) -> None:
        check_choice(self.predicts, PREDICTIONS, "predicts")
        check_precision(self.precision)
        if not isinstance(self.eta, int | float) or not 0 <= self.eta <= 1:
            raise UsageError(f"eta must lie in [0, 1] (0 = deterministic, 1 = DDPM), found {self.eta}")
        for name in ("steps", "start", "refine", "max_batch"):
            if not isinstance(getattr(self, name), int):
                raise UsageError(f"{name} must be a whole number, found {getattr(self, name)!r}")
        if not 0 <= self.start < self.steps or self.refine < 0 or self.max_batch < 1:
            raise UsageError(
                f"a diffusion sampler needs 0 <= start < steps, refine >= 0 and max_batch >= 1, found start={self.start}, "
                f"steps={self.steps}, refine={self.refine}, max_batch={self.max_batch}"
            )
        _ = self.taken

    @property
    def taken(self) -> Steps:
        """The schedule's steps that are used."""
        return Steps.of(self.signal, self.steps)

    def noise_of(self, x: Float[Tensor, "m c h w"], position: int) -> Float[Tensor, "m c h w"]:
        """The estimated noise in x at a position; the network is called for `max_batch` images at a time."""
        network, taken = self.placed.like(self.network, x), self.taken
        t = taken.time(position)
        parts = []
        for part in x.split(per_call(x, self.max_batch)):
            with torch.inference_mode(), autocast(part, self.precision):
                parts.append(network(part, torch.full((len(part),), t, device=x.device)))
        out = torch.cat(parts).to(x.dtype)
        if self.predicts == "epsilon":
            return out
        a = max(float(self.signal[t]), 1e-12)
        if self.predicts == "sample":
            return (x - math.sqrt(a) * out) / math.sqrt(1 - a)
        return math.sqrt(a) * out + math.sqrt(1 - a) * x

    def trajectory(self, images: Images) -> Float[Tensor, "p b c h w"]:
        """Every image on its deterministic way to noise: `[n - start + 1, b, c, h, w]`, position 0 the image in [-1, 1].

        (1 + refine) (n - start) network passes an image.
        """
        taken, x = self.taken, images * 2 - 1
        way = [x]
        for p in range(self.steps - self.start):
            b, a = taken.signal[p], taken.signal[p + 1]
            further = step_forth(x, self.noise_of(x, p), a, b)
            for _ in range(self.refine):
                further = step_forth(x, self.noise_of(further, p + 1), a, b)
            x = further
            way.append(x)
        return torch.stack(way)

    def encode(self, images: Images) -> Float[Tensor, "b c h w"]:
        """The noisiest position of the way to noise."""
        return self.trajectory(images)[-1]

    def decode(
        self, code: Float[Tensor, "m c h w"], eta: float = 0.0, noise: list[torch.Generator] | None = None
    ) -> Float[Tensor, "m c h w"]:
        """The way back, to values in [0, 1] (not cut off there); (n - start) network passes a row.

        Args:
            code: from `encode`, or standard normal numbers for samples of the model itself.
            eta: see the class.
            noise: a generator for every row; not needed for eta = 0.
        """
        taken, x = self.taken, code
        for p in range(self.steps - self.start, 0, -1):
            z = normal(noise, x) if eta and noise is not None and p > 1 else None
            x = step_back(x, self.noise_of(x, p), taken.signal[p], taken.signal[p - 1], eta, z)
        return (x + 1) / 2

    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Any,
        rows: list[int],
        keep: Bool[Tensor, "m h w"],
        noise: list[torch.Generator],
    ) -> Float[Tensor, "m c h w"]:
        """A whole new image a row; what is visible does not matter to it."""
        return self.decode(code[rows], self.eta, noise)

    def quality(self, images: Images) -> dict[str, Float[Tensor, "b"]]:
        """Root mean squared error of every image that is encoded and decoded with eta = 0, at the sampler's steps and at few."""
        out = {}
        for name, sampler in (("", self), (f"_{FEW}_steps", replace(self, steps=min(FEW, len(self.signal)), start=0))):
            with torch.no_grad():
                back = sampler.decode(sampler.encode(images))
            out[f"reconstruction_rmse{name}"] = (back - images).square().mean((1, 2, 3)).sqrt()
        return out


@dataclass(frozen=True)
class Painting(Diffusion):
    """The same network, painting hidden pixels given the visible ones (as RePaint, without its resampling).

    At every position the visible part is put back as it was on the image's own way to noise:
    x_t = k x_t^image + (1 - k) x_t^drawn, k = the mask blurred by a Gaussian. The hidden part begins as pure noise.

    Attributes:
        blur: sigma of that Gaussian, pixels; 0 = a hard edge. Within it, hidden pixels keep traces of the image, and visible
            ones are only put back in the end.
    """

    blur: float = 1.0

    paints = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.blur, int | float) or not 0 <= self.blur < math.inf or self.start:
            raise UsageError(f"in-painting needs blur >= 0 and start=0, found blur={self.blur}, start={self.start}")

    def encode(self, images: Images) -> Float[Tensor, "p b c h w"]:
        """The whole way to noise: every position of it is put back."""
        return self.trajectory(images)

    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Any,
        rows: list[int],
        keep: Bool[Tensor, "m h w"],
        noise: list[torch.Generator],
    ) -> Float[Tensor, "m c h w"]:
        """One painting a row."""
        seen, taken = softened(keep[:, None].to(images), self.blur), self.taken
        x = normal(noise, images)
        for p in range(self.steps, 0, -1):
            x = seen * code[p][rows] + (1 - seen) * x
            z = normal(noise, x) if self.eta and p > 1 else None
            x = step_back(x, self.noise_of(x, p), taken.signal[p], taken.signal[p - 1], self.eta, z)
        return (seen * code[0][rows] + (1 - seen) * x + 1) / 2


def softened(keep: Float[Tensor, "m 1 h w"], sigma: float) -> Float[Tensor, "m 1 h w"]:
    """A mask blurred by a Gaussian of this sigma (pixels; cut off at 3 sigma), as far as the edge repeats."""
    if sigma == 0:
        return keep
    reach = max(1, math.ceil(3 * sigma))
    along = torch.arange(-reach, reach + 1, dtype=keep.dtype, device=keep.device)
    weight = torch.exp(-(along**2) / (2 * sigma**2))
    weight = weight / weight.sum()
    keep = F.pad(keep, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(keep, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))


# ------------------------------------------------------------------------------------------------------------- network


class UNet(nn.Module):
    """diffusers' UNet2DModel, called with images and steps alone."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    @staticmethod
    def of(channels: int, side: int, width: Sequence[int], layers: int, attention: int, dropout: float) -> UNet:
        """A fresh one (see `DDIMModule`)."""
        from diffusers import UNet2DModel

        levels = len(width)
        kind = ["Attn" if i >= levels - attention else "" for i in range(levels)]
        unet = UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=layers,
            block_out_channels=tuple(width),
            down_block_types=tuple(f"{k}DownBlock2D" for k in kind),
            up_block_types=tuple(f"{k}UpBlock2D" for k in reversed(kind)),
            norm_num_groups=GROUPS,
            attention_head_dim=GROUPS,
            dropout=dropout,
        )
        return UNet(unet)

    def forward(self, x: Float[Tensor, "m c h w"], t: Tensor) -> Float[Tensor, "m k h w"]:
        return self.unet(x, t).sample


class MeanOnly(UNet):
    """One that also predicts variances, of which DDIM has no use."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The first half of the channels."""
        return super().forward(x, t)[:, : x.shape[1]]


# ------------------------------------------------------------------------------------------------------------ training


class DDIMModule(TrainableSampler):
    """Trains the network to find the noise in noisy images of the training folds; its moving average is what draws.

    Args:
        channels, side, classes, colour: given by the data.
        width: channels of every level, each half the size of the one before; multiples of 8.
        layers: residual blocks a level.
        attention: how many of the deepest levels have self-attention.
        dropout: in the residual blocks.
        ema: decay of the weights' moving average (shorter at first).
        noise: `cosine` or `linear` schedule.
        noise_steps: its length.
        lr, weight_decay, schedule, optimizer: see `Trainable`.

    Raises:
        UsageError: a width that is no multiple of 8; a side that cannot be halved so often; a number out of range.
    """

    measure = "loss"

    def __init__(
        self,
        channels: int,
        side: int,
        classes: int = 0,
        colour: Any = None,
        width: Sequence[int] = (32, 64, 64),
        layers: int = 1,
        attention: int = 1,
        dropout: float = 0.0,
        ema: float = 0.995,
        noise: str = "cosine",
        noise_steps: int = 1000,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        schedule: str = "onecycle",
        optimizer: str = "adamw",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer)
        if isinstance(width, int):
            raise UsageError(f"model.width must be a list, one number a level, found {width}: write [{width}]")
        if not width or any(w < GROUPS or w % GROUPS for w in width):
            raise UsageError(f"model.width must be multiples of {GROUPS}, one a level, found {list(width)}")
        if side % 2 ** (len(width) - 1):
            raise UsageError(f"images of {side} px cannot be halved {len(width) - 1} times: give fewer model.width=")
        if not 0 <= attention <= len(width) or layers < 1 or not 0 <= dropout < 1 or not 0 <= ema < 1:
            raise UsageError(
                f"model.attention must lie in 0..{len(width)}, layers be at least 1, dropout and ema lie in [0, 1), found "
                f"{attention}, {layers}, {dropout}, {ema}"
            )
        self.channels, self.side = channels, side
        self.register_buffer("signal", signal(noise, noise_steps))
        self.network = UNet.of(channels, side, width, layers, attention, dropout)
        self.average = AveragedModel(self.network, multi_avg_fn=moving(ema)).requires_grad_(False)

    def sampler(self, about: str = "") -> Diffusion:
        """The averaged network as a sampler."""
        network = self.average.module.eval()
        schedule = self.get_buffer("signal").cpu()
        return Diffusion(self.channels, self.side, about, 64, network, schedule, steps=min(STEPS, len(schedule)))

    def loss(self, network: nn.Module, images: Images, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the estimated noise, at a random step of every image."""
        total = self.get_buffer("signal")
        t = torch.randint(len(total), (len(images),), generator=generator).to(images.device)
        z = torch.randn(images.shape, generator=generator).to(images)
        a = total[t].to(images).view(-1, 1, 1, 1)
        return F.mse_loss(network(a.sqrt() * (2 * images - 1) + (1 - a).sqrt() * z, t), z)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The training loss of a batch."""
        return self.loss(self.network, batch[0])

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Move the average after every step of the optimizer (gradients may be accumulated over batches)."""
        if self.global_step > int(self.average.n_averaged):
            self.average.update_parameters(self.network)

    def held_out(self, images: Images, index: int) -> Tensor:
        """The averaged network's loss; noise and steps are the same in every epoch."""
        g = torch.Generator().manual_seed(stable_hash(self.seed, "ddim", index, self.global_rank))
        return self.loss(self.average.module, images, g)


def moving(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose decay is (1 + n) / (10 + n) while that is smaller."""

    @torch.no_grad()
    def update(average: Any, current: Any, number: Any) -> None:
        n = float(number)
        torch._foreach_lerp_(list(average), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return update


# ------------------------------------------------------------------------------------------------------------- fillers


@dataclass(frozen=True)
class Denoising(GenerativeFiller):
    """What the fillers of a diffusion model share.

    Args:
        checkpoint, trained_on: see `FittedFiller`; the folder of a model that diffusers saved will do, too.
        steps, refine, precision: see `Diffusion`.
        max_batch: most images per network call.
    """

    steps: int = STEPS
    refine: int = 3
    precision: str = "float32"
    max_batch: int = 64

    model = "ddim"

    @property
    def files(self) -> list[Path]:
        """The checkpoint; or weights, network and schedule of a diffusers folder."""
        found = diffusers_folder.files_of(Path(self.checkpoint)) if self.checkpoint else None
        return found if found is not None else super().files

    @staticmethod
    def read(file: Path) -> Diffusion:
        """The sampler of a `model.ckpt` of `python -m lit_xai.train model=ddim`, or of diffusers' weights."""
        if file.suffix == ".safetensors":
            saved = diffusers_folder.read(file)
            unet = (
                UNet(saved.network) if saved.network.config.out_channels == saved.channels else MeanOnly(saved.network)
            )
            return Diffusion(saved.channels, saved.side, "", 64, unet.eval(), saved.signal, saved.predicts)

        def build(found: Saved) -> Diffusion:
            node, channels, side = found.model, found.shape["channels"], found.shape["side"]
            network = UNet.of(channels, side, node["width"], node["layers"], node["attention"], 0.0)
            network.load_state_dict(below(found.state, "average.module."))
            network.eval().requires_grad_(False)
            schedule = found.state["signal"]
            return Diffusion(channels, side, found.about, 64, network, schedule, steps=min(STEPS, len(schedule)))

        return rebuilt(file, DDIMModule.__name__, Denoising.model, build)

    def options(self) -> dict[str, Any]:
        """Of the sampler, by name."""
        own = {f.name for f in fields(FittedFiller)}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}


@dataclass(frozen=True)
class DDIM(Denoising):
    """Whole new images near the given one, drawn by a diffusion model (see `Diffusion`).

    Args:
        checkpoint, trained_on, max_batch: see `Denoising`.
        steps, eta, start, refine, precision: see `Diffusion`.
    """

    eta: float = 0.4
    start: int = 0

    def adapted(self, sampler: Sampler) -> Diffusion:
        """The sampler with this filler's options."""
        assert isinstance(sampler, Diffusion)
        return replace(sampler, **self.options())


@dataclass(frozen=True)
class DDIMInpainting(Denoising):
    """Hidden pixels painted by a diffusion model given the visible ones (see `Painting`).

    Args:
        checkpoint, trained_on, max_batch: see `Denoising`.
        steps, eta, refine, blur, precision: see `Painting`.
    """

    eta: float = 0.8
    blur: float = 1.0

    turn_off_rate = 0.75

    def adapted(self, sampler: Sampler) -> Painting:
        """The network, painting."""
        assert isinstance(sampler, Diffusion)
        s = sampler
        return Painting(
            s.channels,
            s.side,
            s.about,
            network=s.network,
            signal=s.signal,
            predicts=s.predicts,
            placed=s.placed,
            **self.options(),
        )

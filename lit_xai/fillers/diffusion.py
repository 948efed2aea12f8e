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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lit_xai.calls import autocast
from lit_xai.core import Images
from lit_xai.errors import UsageError
from lit_xai.fillers import diffusers_folder
from lit_xai.fillers.denoiser import GROUPS, Denoiser, Steps, UNet, signal, step_back, step_forth
from lit_xai.fillers.generative import GenerativeFiller, check_precision
from lit_xai.fillers.static import Call
from lit_xai.models.trainable import TrainableSampler
from lit_xai.rng import Noise, stable_hash

STEPS = 50  # of the way to noise and back
FEW = 10  # steps, for those in a hurry


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

    def denoiser(self) -> Denoiser:
        """The averaged network and its schedule."""
        network, schedule = self.average.module.eval(), self.get_buffer("signal").cpu()
        return Denoiser(network, self.channels, self.side, schedule, about=self.about)

    def sampler(self) -> Denoising:
        """What draws with the averaged network."""
        return DDIM(given=self.denoiser(), steps=min(STEPS, len(self.get_buffer("signal"))))

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
        super().on_train_batch_end(outputs, batch, index)
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


@dataclass(frozen=True)
class Denoising(GenerativeFiller):
    """What the fillers of a diffusion model share.

    Args:
        checkpoint, trained_on, given, max_batch, compile: see `GenerativeFiller`; the folder of a model that diffusers saved will do, too,
            and a `Denoiser` may be given.
        steps: n, of the way to noise and back.
        refine: fixed-point iterations a step of the encoding, each one network pass: the noise estimate of the step's
            end instead of its beginning, so that decoding with eta = 0 undoes it.
        precision: `float32`, or `bf16` for autocast.
    """

    steps: int = STEPS
    refine: int = 3
    precision: str = "float32"

    model = "ddim"
    kind = DDIMModule
    fused = True
    eta = 0.0
    start = 0  # how many of the noisiest steps are left out

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.precision)
        if not isinstance(self.eta, int | float) or not 0 <= self.eta <= 1:
            raise UsageError(f"eta must lie in [0, 1] (0 = deterministic, 1 = DDPM), found {self.eta}")
        for name, value in (("steps", self.steps), ("start", self.start), ("refine", self.refine)):
            if not isinstance(value, int):
                raise UsageError(f"{name} must be a whole number, found {value!r}")
        if not 0 <= self.start < self.steps or self.refine < 0:
            raise UsageError(
                f"a diffusion sampler needs 0 <= start < steps and refine >= 0, found start={self.start}, "
                f"steps={self.steps}, refine={self.refine}"
            )

    @property
    def files(self) -> list[Path]:
        """The checkpoint; or weights, network and schedule of a diffusers folder."""
        found = diffusers_folder.files_of(Path(self.checkpoint)) if self.checkpoint else None
        return found if found is not None else super().files

    @classmethod
    def read(cls, file: Path) -> Denoiser:
        """That of a `model.ckpt` of `python -m lit_xai.train model=ddim`, or of diffusers' weights."""
        if file.suffix == ".safetensors":
            return diffusers_folder.read(file)
        module = super().read(file)
        assert isinstance(module, DDIMModule)
        return module.denoiser()

    def check_module(self, module: Any) -> None:
        """Refuse more steps than the schedule has."""
        Steps.of(module.signal, self.steps)

    @cached_property
    def taken(self) -> Steps:
        """The schedule's steps that are used."""
        return Steps.of(self.module.signal, self.steps)

    def noise_of(self, x: Float[Tensor, "m c h w"], position: int) -> Float[Tensor, "m c h w"]:
        """The estimated noise in x at a position of the way."""

        def make(denoiser: Denoiser) -> Call:
            def passed(x: Tensor, t: Tensor) -> Tensor:
                with autocast(x, self.precision):
                    return denoiser.network(x, t)

            return passed

        denoiser: Any = self.opened.like(x)
        network = self.quick(x, make, self.precision)
        with torch.inference_mode():
            return denoiser.noise(x, self.taken.time(position), network)

    def trajectory(self, images: Images) -> Float[Tensor, "b p c h w"]:
        """Every image on its deterministic way to noise: `[b, n - start + 1, c, h, w]`, position 0 the image in [-1, 1].

        (1 + refine) (n - start) network passes, of all these images together.
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
        return torch.stack(way, dim=1)

    def encode(self, images: Images) -> Float[Tensor, "b ..."]:
        """The noisiest position of the way to noise."""
        return self.trajectory(images)[:, -1]

    def decode(
        self, code: Float[Tensor, "m c h w"], eta: float = 0.0, noise: Noise | None = None
    ) -> Float[Tensor, "m c h w"]:
        """The way back, to values in [0, 1] (not cut off there); (n - start) network passes a row.

        Args:
            code: from `encode`, or standard normal numbers for samples of the model itself.
            eta: 0 undoes the encoding, 1 is ancestral sampling.
            noise: a key for every row; not needed for eta = 0.
        """
        taken, x = self.taken, code
        for p in range(self.steps - self.start, 0, -1):
            z = normal(noise, p, x) if eta and noise is not None and p > 1 else None
            x = step_back(x, self.noise_of(x, p), taken.signal[p], taken.signal[p - 1], eta, z)
        return (x + 1) / 2

    def quality(self, images: Images) -> dict[str, Float[Tensor, "b"]]:
        """Root mean squared error of every image that is encoded and decoded with eta = 0, at the filler's steps and at few."""
        steps = min(FEW, len(self.module.signal))
        few = DDIM(given=self.module, steps=steps, refine=self.refine, precision=self.precision)
        out = {}
        for name, filler in (("", self), (f"_{FEW}_steps", few)):
            with torch.no_grad():
                back = filler.decode(Denoising.encode(filler, images))
            out[f"reconstruction_rmse{name}"] = (back - images).square().mean((1, 2, 3)).sqrt()
        return out


@dataclass(frozen=True)
class DDIM(Denoising):
    """Whole new images near the given one, drawn by a diffusion model.

    Args:
        checkpoint, trained_on, given, max_batch, compile, steps, refine, precision: see `Denoising`.
        eta: in [0, 1]; 0 gives the image back, 1 is ancestral sampling.
        start: how many of the noisiest steps are left out: the way back begins n - start steps from the image.
    """

    eta: float = 0.4
    start: int = 0

    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Float[Tensor, "b ..."],
        rows: Int[Tensor, "m"],
        keep: Bool[Tensor, "m h w"],
        noise: Noise,
    ) -> Float[Tensor, "m c h w"]:
        """A whole new image a row; what is visible does not matter to it."""
        return self.decode(code[rows], self.eta, noise)


@dataclass(frozen=True)
class DDIMInpainting(Denoising):
    """Hidden pixels painted by a diffusion model given the visible ones (as RePaint, without its resampling).

    At every position the visible part is put back as it was on the image's own way to noise:
    x_t = k x_t^image + (1 - k) x_t^drawn, k = the mask blurred by a Gaussian. The hidden part begins as pure noise.

    Args:
        checkpoint, trained_on, given, max_batch, compile, steps, refine, precision: see `Denoising`.
        eta: in [0, 1]; 1 is ancestral sampling.
        blur: sigma of that Gaussian, pixels; 0 = a hard edge. Within it, hidden pixels keep traces of the image, and visible
            ones are only put back in the end.
    """

    eta: float = 0.8
    blur: float = 1.0

    turn_off_rate = 0.75
    paints = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.blur, int | float) or not 0 <= self.blur < math.inf:
            raise UsageError(f"in-painting needs blur >= 0, found blur={self.blur}")

    def encode(self, images: Images) -> Float[Tensor, "b ..."]:
        """The whole way to noise: every position of it is put back."""
        return self.trajectory(images)

    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Float[Tensor, "b ..."],
        rows: Int[Tensor, "m"],
        keep: Bool[Tensor, "m h w"],
        noise: Noise,
    ) -> Float[Tensor, "m c h w"]:
        """One painting a row."""
        seen, taken = softened(keep[:, None].to(images), self.blur), self.taken
        x = normal(noise, self.steps + 1, images)
        for p in range(self.steps, 0, -1):
            x = seen * code[rows, p] + (1 - seen) * x
            z = normal(noise, p, x) if self.eta and p > 1 else None
            x = step_back(x, self.noise_of(x, p), taken.signal[p], taken.signal[p - 1], self.eta, z)
        return (seen * code[rows, 0] + (1 - seen) * x + 1) / 2


def normal(noise: Noise, position: int, like: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """Standard normal numbers of a position of the way, a row a key."""
    return noise.part(position).normal(like.shape[1:]).to(like.dtype)


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

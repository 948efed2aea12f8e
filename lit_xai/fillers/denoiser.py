"""The network and the noise schedule of a diffusion model: what is trained here, or what diffusers saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.errors import UsageError, at_least
from lit_xai.models.trainable import check_choice

NOISES = ("cosine", "linear")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
FAINTEST = 1e-3  # signal variance at the end of the cosine schedule
GROUPS = 8  # of the network's group normalisation


class Denoiser(nn.Module):
    """A trained network and its schedule.

    Args:
        network: x_t in [-1, 1] coordinates and t to its prediction.
        channels, side: of its images.
        signal: `[t]` the schedule (see `signal`).
        predicts: `epsilon` (the noise), `v_prediction` or `sample`.
        about: what it was trained on; empty = not known.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: int,
        side: int,
        signal: Float[Tensor, "t"],
        predicts: str = "epsilon",
        about: str = "",
    ) -> None:
        super().__init__()
        check_choice(predicts, PREDICTIONS, "predicts")
        self.network, self.channels, self.side = network, channels, side
        self.signal, self.predicts, self.about = signal, predicts, about
        self.levels: list[float] = signal.tolist()  # the same for arithmetic without tensors

    def noise(
        self, x: Float[Tensor, "m c h w"], t: int, network: Callable[..., Tensor] | None = None
    ) -> Float[Tensor, "m c h w"]:
        """The estimated noise in x at step t of the schedule, by its network or by another way to call that."""
        out = (network or self.network)(x, torch.full((len(x),), t, device=x.device)).to(x.dtype)
        if self.predicts == "epsilon":
            return out
        a = max(self.levels[t], 1e-12)
        if self.predicts == "sample":
            return (x - math.sqrt(a) * out) / math.sqrt(1 - a)
        return math.sqrt(a) * out + math.sqrt(1 - a) * x


def signal(noise: str = "cosine", steps: int = 1000) -> Float[Tensor, "t"]:
    """a_t, the share of signal variance after step t = 0 .. steps - 1, falling (float64).

    `linear`: betas from .0001 to .02 for 1,000 steps, scaled for other numbers (Ho et al., 2020). `cosine`: a_t falls as
    cos^2 (Nichol & Dhariwal, 2021), from the same angle .008 / 1.008 pi/2 on, to `FAINTEST` instead of to 0: the first
    deterministic steps back from a signal of 1e-9 would enlarge every error of the network a thousandfold.
    """
    check_choice(noise, NOISES, "noise")
    at_least(1, "model.", noise_steps=steps)
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
    """One step from signal share a to b > a (see `fillers.diffusion`); `z` `[m, c, h, w]` is standard normal, not needed for eta = 0."""
    clean = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
    out = math.sqrt(b) * clean + math.sqrt(max(0.0, 1 - b - sigma**2)) * e
    return out if z is None or sigma == 0 else out + sigma * z


def step_forth(x: Tensor, e: Tensor, a: float, b: float) -> Tensor:
    """The inverse of the deterministic step of x `[m, c, h, w]`: from signal share b back to a < b, given the noise e at a."""
    return math.sqrt(a / b) * (x - math.sqrt(1 - b) * e) + math.sqrt(1 - a) * e


class UNet(nn.Module):
    """diffusers' UNet2DModel, called with images `[m, c, h, w]` and steps `[m]` alone."""

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
        """The first half of the channels, `[m, c, h, w]`: the mean."""
        return super().forward(x, t)[:, : x.shape[1]]

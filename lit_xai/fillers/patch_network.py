"""The network of `fillers.patch`, and the states of its windows' pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.core import Images
from lit_xai.fillers.tiles import LEVELS, OUTSIDE, cut

SLOPE = 0.2  # of LeakyReLU
FREEDOM = 4  # of Student's t
SEEN, DRAWN, HIDDEN = 1.0, 0.5, 0.0  # states of a pixel, beside `OUTSIDE`; drawn = of a tile that was filled before
RIDGES = (1e-5, 0.1)  # variance of noise that the least-squares predictions expect, relative to the number of windows


class PatchNetwork(nn.Module):
    """Window to logits: two convolutions of side K + 1 at 3K x 3K, pooling by 2, the middle K x K of it, then `depth`
    convolutions of side K and one to 256 levels a channel. 38.9 M parameters at K = 8, width 256, colour; with `linear`,
    a smooth part beside them (see `Smooth`).
    """

    def __init__(self, channels: int, patch: int = 8, width: int = 32, depth: int = 5, linear: bool = True) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch

        def layer(a: int, b: int, side: int, after: bool = True) -> nn.Module:
            return nn.Sequential(Same(a, b, side, after), nn.LeakyReLU(SLOPE))

        self.seen = nn.Sequential(layer(channels + 1, width, patch + 1), layer(width, width, patch + 1, after=False))
        self.inner = nn.Sequential(*(layer(width, width, patch) for _ in range(depth)))
        self.head = Same(width, channels * LEVELS, patch)
        self.smooth = Smooth(channels, patch, width) if linear else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for last in (self.head, *([self.smooth.change] if self.smooth else ())):
            nn.init.zeros_(last.weight)  # begin with what is known without training: all levels alike, or the bell

    def forward(self, window: Float[Tensor, "m c1 s s"]) -> Float[Tensor, "m c levels k k"]:
        x = F.avg_pool2d(self.seen(window), 2) if self.patch > 1 else self.seen(window)
        edge = (x.shape[-1] - self.patch) // 2
        x = x[..., edge : edge + self.patch, edge : edge + self.patch]
        x = self.inner(x)
        free = self.head(x).unflatten(1, (self.channels, LEVELS))
        return free if self.smooth is None else free + self.smooth(x, window)


class Same(nn.Conv2d):
    """A convolution that keeps the size. Even sides have one more pixel of padding after than before, or before than after."""

    def __init__(self, a: int, b: int, side: int, after: bool = True) -> None:
        super().__init__(a, b, side)
        self.pads = ((side - after) // 2, (side - (not after)) // 2) * 2

    def forward(self, x: Float[Tensor, "m a h w"]) -> Float[Tensor, "m b h w"]:
        return super().forward(F.pad(x, self.pads))


class Smooth(nn.Module):
    """The log density of Student's t with `FREEDOM` degrees at (level - place) / scale, with levels on [-1, 1].

    Place and log scale are a fixed least-squares prediction from the window and its residual deviation, changed by a
    convolution of the network's features. Where all surroundings were seen the prediction is the exact one; where some are
    hidden or were drawn, one that noise hardly moves. The tails keep windows with holes from ruling the gradient.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.change = Same(width, 2 * channels, patch)
        outputs = channels * patch**2
        self.register_buffer("gain", torch.zeros(len(RIDGES), outputs, channels * (3 * patch) ** 2))
        self.register_buffer("offset", torch.zeros(len(RIDGES), outputs))
        self.register_buffer("log_scale", torch.zeros(len(RIDGES), outputs))

    def forward(
        self, features: Float[Tensor, "m w k k"], window: Float[Tensor, "m c1 s s"]
    ) -> Float[Tensor, "m c levels k k"]:
        place, scale = self.change(features).unflatten(1, (2, self.channels)).unbind(1)
        gain, offset, log_scale = (self.get_buffer(n) for n in ("gain", "offset", "log_scale"))
        with torch.autocast(window.device.type, enabled=False):  # a small difference of large numbers
            both = F.linear(window[:, :-1].flatten(1), gain.flatten(0, 1), offset.flatten())
        which = (~whole(window[:, -1], self.patch)).long()
        start = both.unflatten(1, offset.shape)[torch.arange(len(which), device=which.device), which]
        place = place + start.view(place.shape)
        precision = torch.exp(-scale - log_scale[which].view(place.shape))
        level = torch.linspace(-1, 1, LEVELS, device=window.device, dtype=place.dtype).view(1, 1, -1, 1, 1)
        z = (level - place[:, :, None]) * precision[:, :, None]
        return -0.5 * (FREEDOM + 1) * torch.log1p(z.square() / FREEDOM)

    @torch.no_grad()
    def solve(self, windows: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Set the least-squares predictions from batches of windows `[n, c + 1, 3K, 3K]` and true patches `[n, c, K, K]` in [0, 1]."""
        gram = cross = square = torch.zeros((), dtype=torch.float64)
        number = 0
        for window, truth in windows:
            x = F.pad(window[:, :-1].double().flatten(1), (0, 1), value=1.0)
            y = truth.double().flatten(1) * 2 - 1
            gram, cross, square = gram + x.mT @ x, cross + x.mT @ y, square + y.square().sum(0)
            number += len(x)
        for n, ridge in enumerate(RIDGES):
            noisy = gram + torch.eye(len(gram), dtype=gram.dtype) * ridge * number
            gain = torch.linalg.solve(noisy, cross)
            residual = (square - 2 * (gain * cross).sum(0) + (gain * (noisy @ gain)).sum(0)) / number
            self.get_buffer("gain")[n] = gain[:-1].mT
            self.get_buffer("offset")[n] = gain[-1]
            self.get_buffer("log_scale")[n] = residual.sqrt().clamp_min(1 / LEVELS).log()


def cut_with_state(
    images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"], patch: int
) -> tuple[Float[Tensor, "b c s s"], Float[Tensor, "b s s"]]:
    """The window around the patch at (top, left) of every image, black outside of it, and the state of its pixels."""
    padding, rows = (patch,) * 4, torch.arange(len(images), device=images.device)
    seen = cut(F.pad(images, padding), rows, top, left, 3 * patch)
    state = F.pad(torch.full_like(images[:, :1], SEEN), padding, value=OUTSIDE)
    return seen, cut(state, rows, top, left, 3 * patch)[:, 0]


def middle(patch: int) -> slice:
    """The patch within its window, along one side."""
    return slice(patch, 2 * patch)


def whole(state: Float[Tensor, "m s s"], patch: int) -> Bool[Tensor, "m"]:
    """Which windows hide exactly the patch, all of whose surroundings within the image were seen."""
    around = (state == SEEN) | (state == OUTSIDE)
    around[:, middle(patch), middle(patch)] = state[:, middle(patch), middle(patch)] == HIDDEN
    return around.flatten(1).all(1)

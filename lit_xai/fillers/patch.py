"""PatchSampler: a network that gives every pixel of a K x K patch a distribution over 256 levels, given its surroundings.

Yi et al., "Information-Theoretic Visual Explanation for Black-Box Classifiers", III-A and appendix B-C. The network sees
the 3K x 3K window around the patch, with the patch itself set to zero, and a pixel is drawn independently of the others
of its patch. Its training images are those of the predictor it explains: V_i is never seen.

Three things are added to the paper's network. A further input channel holds the state of every pixel, so that the borders
of the image and holes of other shapes can be told from dark or grey ones; a share of the training windows has such holes;
and the logits of the 256 levels have a smooth part, a bell whose place starts from the least-squares prediction from the
surroundings (`linear=False` leaves it out). On small data the network alone takes long to learn that neighbouring
levels are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.calls import autocast
from lit_xai.core import Images, Keep, Segments
from lit_xai.errors import UsageError
from lit_xai.fillers.fitted import Placed, Sampler, Saved, WindowFiller, WindowSampler, below, rebuilt
from lit_xai.fillers.tiles import LEVELS, Step, check_fits, cut, plan
from lit_xai.models.trainable import TrainableSampler
from lit_xai.rng import SampleRng, stable_hash

SLOPE = 0.2  # of LeakyReLU
FREEDOM = 4  # of Student's t
SEEN, DRAWN, HIDDEN, OUTSIDE = 1.0, 0.5, 0.0, -1.0  # states of a pixel; drawn = of a tile that was filled before
RIDGES = (
    1e-5,
    0.1,
)  # of the least-squares predictions, relative to the number of windows: variance of noise they expect
FIT_IMAGES, FIT_WINDOWS = 2000, 20_000  # most images it rests on, and windows
MOST_HOLES = 8  # squares that are hidden or were drawn before, in a training window with holes
NOISE = 0.1  # standard deviation of what was drawn before


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
        """Set the least-squares predictions from batches of (windows, true patches in [0, 1])."""
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


# -------------------------------------------------------------------------------------------------------------- windows


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


@dataclass(frozen=True, eq=False)
class Patches(WindowSampler):
    """A trained network as a sampler; `fill` is a `Filler`.

    Attributes:
        network: window to logits.
        mean, std: `[c]` normalisation.
        patch: K.
        about: what it was trained on.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most windows per network pass.
        placed: its copies.
    """

    network: PatchNetwork
    mean: Float[Tensor, "c"]
    std: Float[Tensor, "c"]
    patch: int
    about: str = ""
    precision: str = "float32"
    max_batch: int = 256
    placed: Placed = field(default_factory=Placed, repr=False)

    @property
    def channels(self) -> int:
        """Channels of the images it fits."""
        return len(self.mean)

    def windows(self, seen: Float[Tensor, "m c s s"], state: Float[Tensor, "m s s"]) -> Float[Tensor, "m c1 s s"]:
        """The network's input: normalised pixels and their states.

        Black outside the image; hidden pixels are zero in the patch, and elsewhere have the mean of those that are known.
        """
        shape = (1, -1, 1, 1)
        normal = (seen - self.mean.to(seen).view(shape)) / self.std.to(seen).view(shape)
        weight = (state > HIDDEN)[:, None].to(seen)
        mean = (normal * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1)
        blank = mean.expand_as(normal).clone()
        blank[..., middle(self.patch), middle(self.patch)] = 0
        return torch.cat([torch.where((state != HIDDEN)[:, None], normal, blank), state[:, None].to(seen)], dim=1)

    def logits(self, windows: Float[Tensor, "m c1 s s"]) -> Iterator[Float[Tensor, "some c levels k k"]]:
        """The network's output, chunk by chunk."""
        network = self.placed.like(self.network, windows)
        for chunk in windows.split(self.max_batch):
            with torch.inference_mode(), autocast(chunk, self.precision):
                out = network(chunk)
            yield out.to(windows.dtype)

    # -------------------------------------------------------------------------------------------------------- filling

    def fill(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """Hidden pixels drawn given the visible ones, as `Filler` says; draw d of mask n has noise of its own.

        A hidden K x K square costs one pass of the network, whatever the number of draws. Any other hole is filled in
        tiles, the one with most known surroundings first (see `tiles.plan`); later tiles see the earlier, drawn ones.

        Raises:
            UsageError: other channels than it was trained on; a patch larger than the image; draws < 1.
        """
        check_fits(images, self.channels, self.patch, "PatchSampler")
        if draws < 1:
            raise UsageError(f"draws must be at least 1, found {draws}")
        masks, k, device = keep.shape[1], self.patch, images.device
        with torch.no_grad():
            plans = [plan(m, k, k) for m in keep.flatten(0, 1).cpu().numpy()]
            noise = [self.noise(rng, r, masks, draws, len(p)) for r, p in enumerate(plans)]
            canvas = F.pad(images, (k, k, k, k)).repeat_interleave(masks, dim=0)[:, None].repeat(1, draws, 1, 1, 1)
            # seen or hidden; what is known beside the seen was drawn
            state = F.pad(keep.flatten(0, 1)[:, None].to(images), (k, k, k, k), value=OUTSIDE)
            for s in range(max((len(p) for p in plans), default=0)):
                rows = [r for r, p in enumerate(plans) if s < len(p)]
                u = torch.stack([noise[r][:, s] for r in rows]).to(device)
                self.fill_tiles(canvas, state, rows, [plans[r][s] for r in rows], u, first=s == 0)
        out = canvas[..., k:-k, k:-k].unflatten(0, (len(images), masks))
        return torch.where(keep[:, :, None, None], images[:, None, None], out)

    def noise(self, rng: SampleRng, row: int, masks: int, draws: int, tiles: int) -> Float[Tensor, "d t c k k"]:
        """Uniform numbers for the tiles of one mask (row i masks + n is mask n of image i)."""
        image, n = divmod(row, masks)
        g = rng.generator("filler", image, n)
        return torch.rand(draws, tiles, self.channels, self.patch, self.patch, generator=g)

    def fill_tiles(
        self,
        canvas: Float[Tensor, "r d c hp wp"],
        state: Float[Tensor, "r 1 hp wp"],
        rows: list[int],
        steps: list[Step],
        u: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """Fill one tile of each of these rows in place. On the `first` tile of a row its draws still look alike."""
        k, device = self.patch, canvas.device
        lanes = 1 if first else canvas.shape[1]
        row = torch.tensor(rows, device=device)
        top, left = (torch.tensor([getattr(s, side) for s in steps], device=device) for side in ("top", "left"))
        known = torch.stack([torch.from_numpy(s.known) for s in steps]).to(device)
        now = cut(state, row, top, left, 3 * k)[:, 0]
        now = torch.where(known & (now == HIDDEN), DRAWN, now)

        def each(t: Tensor) -> Tensor:
            return t if lanes == 1 else t.repeat_interleave(lanes, dim=0)

        lane = torch.arange(lanes, device=device).repeat(len(row))
        flat = canvas[:, :lanes].flatten(0, 1) if lanes > 1 else canvas[:, 0]
        seen = cut(flat, each(row) * lanes + lane, each(top), each(left), 3 * k)
        levels = u.flatten(0, 1)[:, None] if lanes > 1 else u  # [passes, draws of a pass, c, k, k]
        values, done = [], 0
        for logits in self.logits(self.windows(seen, each(now))):
            values.append(drawn(logits, levels[done : done + len(logits)]))
            done += len(logits)
        value = torch.cat(values).view(u.shape).to(canvas.dtype)
        along = torch.arange(k, device=device)
        y, x = (k + top[:, None] + along)[:, :, None], (k + left[:, None] + along)[:, None]
        hidden = ~known[:, middle(k), middle(k)]
        old = canvas[row[:, None, None], :, :, y, x].permute(0, 3, 4, 1, 2)  # [g, d, c, k, k]
        new = torch.where(hidden[:, None, None], value, old)
        canvas[row[:, None, None], :, :, y, x] = new.permute(0, 3, 4, 1, 2)

    # ----------------------------------------------------------------------------------------------------------- bits

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Bits per pixel and channel of the K x K window at (top, left) of every image, given its surroundings.

        -log2 of the probability of the true level, averaged over the window. 8 is a uniform guess.
        """
        check_fits(images, self.channels, self.patch, "PatchSampler")
        k = self.patch
        seen, state = cut_with_state(images, top, left, k)
        state[:, middle(k), middle(k)] = HIDDEN
        truth = levels_of(seen[..., middle(k), middle(k)])
        parts, done = [], 0
        for logits in self.logits(self.windows(seen, state)):
            loss = F.cross_entropy(
                logits.flatten(0, 1), truth[done : done + len(logits)].flatten(0, 1), reduction="none"
            )
            parts.append(loss.view(len(logits), -1).mean(1) / math.log(2))
            done += len(logits)
        return torch.cat(parts)


def levels_of(values: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The nearest of the levels 0, 1/255 .. 1."""
    return (values * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1)


def drawn(logits: Float[Tensor, "m c levels k k"], u: Float[Tensor, "m d c k k"]) -> Float[Tensor, "m d c k k"]:
    """Levels / 255 drawn from the softmax of `logits` by inversion: the first level whose cumulated probability exceeds u."""
    cumulated = logits.float().softmax(2).movedim(2, -1).flatten(0, 3).cumsum(-1)
    at = (
        u.movedim(1, -1).flatten(0, 3).contiguous().to(cumulated) * cumulated[:, -1:]
    )  # rounding may leave the last below 1
    level = torch.searchsorted(cumulated, at, right=True).clamp_max(LEVELS - 1)
    m, d, c, k, _ = u.shape
    return (level.to(cumulated) / (LEVELS - 1)).view(m, c, k, k, d).movedim(-1, 1)


# ------------------------------------------------------------------------------------------------------------- training


class PatchModule(TrainableSampler):
    """Trains a PatchSampler on random windows of the training folds: cross-entropy per pixel and channel.

    Args:
        channels, side, classes, colour: given by the data.
        patch: side K of what is hidden, pixels.
        width: filters of every layer but the last.
        depth: convolutions after the pooling, before the last.
        windows: random windows of every image in a batch.
        holes: share of the windows in which more than the patch is hidden, or less.
        linear: add the smooth part that starts from the least-squares prediction; False is the paper's network.
        lr, weight_decay, schedule, optimizer: see `Trainable`.

    Raises:
        UsageError: the patch exceeds the image; a number out of range.
    """

    measure = "bits_per_dim"

    def __init__(
        self,
        channels: int,
        side: int,
        classes: int = 0,
        colour: Sequence[Sequence[float]] = ((0.5,), (0.5,)),
        patch: int = 8,
        width: int = 32,
        depth: int = 5,
        windows: int = 1,
        holes: float = 0.1,
        linear: bool = True,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        schedule: str = "onecycle",
        optimizer: str = "adamw",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer)
        if not 1 <= patch <= side:
            raise UsageError(f"model.patch={patch} does not fit images of {side} x {side} pixels: choose 1..{side}")
        for name, value in (("width", width), ("depth", depth), ("windows", windows)):
            if value < 1:
                raise UsageError(f"model.{name} must be at least 1, found {value}")
        if not 0 <= holes <= 1:
            raise UsageError(f"model.holes must lie in [0, 1], found {holes}")
        self.patch, self.side, self.per_image, self.holes = patch, side, windows, holes
        for name, values in zip(("mean", "std"), colour, strict=True):
            self.register_buffer(name, torch.tensor([float(v) for v in values]))
        self.network = PatchNetwork(channels, patch, width, depth, linear)

    def sampler(self, about: str = "") -> Patches:
        """The network as a sampler."""
        return Patches(self.network, self.get_buffer("mean"), self.get_buffer("std"), self.patch, about)

    def random_windows(
        self, images: Images, hidden: Bool[Tensor, "b s s"], redrawn: Bool[Tensor, "b s s"] | None = None
    ) -> tuple[Float[Tensor, "b c1 s s"], Float[Tensor, "b c k k"]]:
        """The network's input for a window at a random place of every image, and what its patch shows.

        Pixels that are `redrawn` get noise, as those of tiles that were filled before have.
        """
        k = self.patch
        top, left = (torch.randint(0, n - k + 1, (len(images),)).to(images.device) for n in images.shape[-2:])
        seen, state = cut_with_state(images, top, left, k)
        truth = seen[..., middle(k), middle(k)]
        state[hidden & (state == SEEN)] = HIDDEN
        if redrawn is not None and bool(redrawn.any()):
            redrawn = redrawn & (state == SEEN)
            noisy = (seen + NOISE * torch.randn(seen.shape).to(seen)).clamp(0, 1)
            seen = torch.where(redrawn[:, None], noisy, seen)
            state[redrawn] = DRAWN
        return self.sampler().windows(seen, state), truth

    def prepare(self, data: Any) -> None:
        """The least-squares prediction, from windows of the training folds of a `FoldData`; once, before the training."""
        if self.network.smooth is None:
            return
        samples = data.split.training(data.fold) if data.k > 1 else data.split.samples
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_hash(data.seed, "least squares"))
            samples = samples[torch.randperm(len(samples))[:FIT_IMAGES]]

            def windows() -> Iterator[tuple[Tensor, Tensor]]:
                for _ in range(-(-FIT_WINDOWS // len(samples))):
                    for part in samples.split(500):
                        images = data.source.train.images(part.tolist())
                        yield self.random_windows(images, self.patterns(len(part), 0.0)[0])

            self.network.smooth.solve(windows())

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy of the hidden pixels of the middle of random windows."""
        images, k = batch[0].repeat_interleave(self.per_image, dim=0), self.patch
        hidden, redrawn = (m.to(images.device) for m in self.patterns(len(images), self.holes))
        windows, patches = self.random_windows(images, hidden, redrawn)
        logits = self.network(windows)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), levels_of(patches).flatten(0, 1), reduction="none")
        weight = hidden[:, None, middle(k), middle(k)].expand(-1, self.network.channels, -1, -1).flatten(0, 1)
        return (loss * weight).sum() / weight.sum()

    def patterns(self, number: int, holes: float) -> tuple[Bool[Tensor, "m s s"], Bool[Tensor, "m s s"]]:
        """What is hidden in each of `number` training windows, and what was drawn before.

        The patch and nothing; in a share `holes` of them squares around it, too, and in half of those a part of the patch.
        """
        k = self.patch
        out, before = torch.zeros(2, number, 3 * k, 3 * k, dtype=torch.bool)
        out[:, middle(k), middle(k)] = True
        for row in torch.nonzero(torch.rand(number) < holes)[:, 0].tolist():
            if torch.rand(()) < 0.5:
                edges = torch.stack([torch.randint(0, k, (2,)), torch.randint(0, k, (2,))]).sort(0).values + k
                (top, left), (bottom, right) = edges.tolist()
                out[row] = False
                out[row, top : bottom + 1, left : right + 1] = True
            for top, left in torch.randint(0, 2 * k + 1, (int(torch.randint(0, MOST_HOLES + 1, ())), 2)).tolist():
                square = (row, slice(top, top + k), slice(left, left + k))
                (out if torch.rand(()) < 0.5 else before)[square] = True
        return out, before & ~out

    def held_out(self, images: Tensor, index: int) -> Tensor:
        """Bits per dimension of one window of every image; the windows are the same in every epoch."""
        g = torch.Generator().manual_seed(stable_hash(self.seed, "bits", index, self.global_rank))
        top, left = (torch.randint(0, n - self.patch + 1, (len(images),), generator=g) for n in images.shape[-2:])
        return self.sampler().window_bits(images, top.to(images.device), left.to(images.device)).mean()


# --------------------------------------------------------------------------------------------------------------- filler


@dataclass(frozen=True)
class PatchSampler(WindowFiller):
    """The filler of a trained PatchSampler (see `Patches.fill`).

    Args:
        checkpoint, trained_on: see `FittedFiller`.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most windows per network pass.
    """

    precision: str = "float32"
    max_batch: int = 256

    model = "patch_sampler"

    @staticmethod
    def read(file: Path) -> Patches:
        """The sampler of a `model.ckpt` of `python -m lit_xai.train model=patch_sampler`."""

        def build(found: Saved) -> Patches:
            node, state = found.model, found.state
            network = PatchNetwork(found.shape["channels"], node["patch"], node["width"], node["depth"], node["linear"])
            network.load_state_dict(below(state, "network."))
            network.eval().requires_grad_(False)
            return Patches(network, state["mean"], state["std"], node["patch"], found.about)

        return rebuilt(file, PatchModule.__name__, PatchSampler.model, build)

    def adapted(self, sampler: Sampler) -> Patches:
        """The sampler with this filler's precision and batch."""
        assert isinstance(sampler, Patches)
        return replace(sampler, precision=self.precision, max_batch=self.max_batch)

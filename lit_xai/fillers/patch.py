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
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import autocast
from lit_xai.core import Corners, Images, Keep
from lit_xai.errors import UsageError, at_least, share
from lit_xai.fillers.base import keys_of
from lit_xai.fillers.patch_network import DRAWN, HIDDEN, SEEN, PatchNetwork, cut_with_state, middle
from lit_xai.fillers.tiles import LEVELS, OUTSIDE, Step, WindowFiller, cut
from lit_xai.models.trainable import TrainableSampler
from lit_xai.rng import Noise, SampleRng, stable_hash

FIT_IMAGES, FIT_WINDOWS = 2000, 20_000  # most images that the least-squares predictions rest on, and windows
MOST_HOLES = 8  # squares that are hidden or were drawn before, in a training window with holes
NOISE = 0.1  # standard deviation of what was drawn before


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
        at_least(1, "model.", width=width, depth=depth, windows=windows)
        share("model.", holes=holes)
        self.channels, self.side, self.patch, self.per_image, self.holes = channels, side, patch, windows, holes
        for name, values in zip(("mean", "std"), colour, strict=True):
            self.register_buffer(name, torch.tensor([float(v) for v in values]))
        self.network = PatchNetwork(channels, patch, width, depth, linear)

    @property
    def margin(self) -> int:
        """Surroundings on each side of the patch: K."""
        return self.patch

    def sampler(self) -> PatchSampler:
        """What draws with the network."""
        return PatchSampler(given=self)

    def windows(self, seen: Float[Tensor, "m c s s"], state: Float[Tensor, "m s s"]) -> Float[Tensor, "m c1 s s"]:
        """The network's input: normalised pixels and their states.

        Black outside the image; hidden pixels are zero in the patch, and elsewhere have the mean of those that are known.
        """
        shape = (1, -1, 1, 1)
        normal = (seen - self.get_buffer("mean").to(seen).view(shape)) / self.get_buffer("std").to(seen).view(shape)
        weight = (state > HIDDEN)[:, None].to(seen)
        mean = (normal * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp_min(1)
        blank = mean.expand_as(normal).clone()
        blank[..., middle(self.patch), middle(self.patch)] = 0
        return torch.cat([torch.where((state != HIDDEN)[:, None], normal, blank), state[:, None].to(seen)], dim=1)

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
        return self.windows(seen, state), truth

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
        """Bits per dimension of one window of every image `[b, c, h, w]`; the windows are the same in every epoch."""
        g = torch.Generator().manual_seed(stable_hash(self.seed, "bits", index, self.global_rank))
        top, left = (torch.randint(0, n - self.patch + 1, (len(images),), generator=g) for n in images.shape[-2:])
        return self.sampler().window_bits(images, top.to(images.device), left.to(images.device)).mean()


@dataclass(frozen=True)
class PatchSampler(WindowFiller):
    """Hidden pixels drawn by a trained network given the visible ones, level by level.

    A hidden K x K square costs one pass of the network, whatever the number of draws.

    Args:
        checkpoint, trained_on, given: see `FittedFiller`.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most windows per network pass.
    """

    precision: str = "float32"
    max_batch: int = 256

    model = "patch_sampler"
    kind = PatchModule
    noun = "PatchSampler"

    def logits(self, windows: Float[Tensor, "m c1 s s"]) -> Iterator[Float[Tensor, "some c levels k k"]]:
        """The network's output, chunk by chunk."""
        module: Any = self.opened.like(windows)
        for chunk in windows.split(self.max_batch):
            with torch.inference_mode(), autocast(chunk, self.precision):
                out = module.network(chunk)
            yield out.to(windows.dtype)

    def shown(self, seen: Float[Tensor, "m c s s"], state: Float[Tensor, "m s s"]) -> Float[Tensor, "m c1 s s"]:
        """The network's input, made where the windows are."""
        module: Any = self.opened.like(seen)
        return module.windows(seen, state)

    def noise(self, keys: Noise) -> Float[Tensor, "g d c k k"]:
        """Uniform numbers in [0, 1), one a value of the tile."""
        return keys.uniform((self.module.channels, self.patch, self.patch))

    def fill_tiles(
        self,
        canvas: Float[Tensor, "r d c hp wp"],
        state: Float[Tensor, "r 1 hp wp"],
        at: Int[Tensor, "g 3"],
        rows: list[int],
        steps: list[Step],
        noise: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """Fill one tile of each of these rows in place; what was hidden in it is marked as drawn from then on."""
        k, (row, top, left) = self.patch, at.unbind(1)
        now = cut(state, row, top, left, 3 * k)[:, 0]
        tile = now[:, middle(k), middle(k)]
        self.fill_places(canvas, row, top, left, now, tile == HIDDEN, noise, first)
        along = torch.arange(k, device=canvas.device)
        y, x = (k + top[:, None] + along)[:, :, None], (k + left[:, None] + along)[:, None]
        state[row[:, None, None], 0, y, x] = torch.where(tile == HIDDEN, DRAWN, tile)

    def in_windows(
        self, images: Images, keep: Keep, corners: Corners, rng: SampleRng, draws: int = 1
    ) -> Float[Tensor, "b 1 d c h w"]:
        """One tile a row, all of it hidden: nothing has to be found out about the masks."""
        self.check(images)
        at_least(1, draws=draws)
        k, rows = self.patch, torch.arange(len(images), device=images.device)
        top, left = corners[0].unbind(1)
        with torch.no_grad():
            canvas = F.pad(images, (k,) * 4)[:, None].repeat(1, draws, 1, 1, 1)
            state = F.pad(keep.to(images), (k,) * 4, value=OUTSIDE)
            now = cut(state, rows, top, left, 3 * k)[:, 0]
            noise = self.noise(keys_of(keep, rng, draws)[:, 0].part(0))
            hidden = torch.ones(len(images), k, k, dtype=torch.bool, device=images.device)
            self.fill_places(canvas, rows, top, left, now, hidden, noise, first=True)
        out = canvas[:, None, ..., k:-k, k:-k]
        return torch.where(keep[:, :, None, None], images[:, None, None], out)

    def fill_places(
        self,
        canvas: Float[Tensor, "r d c hp wp"],
        row: Int[Tensor, "g"],
        top: Int[Tensor, "g"],
        left: Int[Tensor, "g"],
        now: Float[Tensor, "g s s"],
        hidden: Bool[Tensor, "g k k"],
        noise: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """Fill what is hidden of one tile of each of these rows in place, given the state of its window's pixels `now`."""
        k, device = self.patch, canvas.device
        lanes = 1 if first else canvas.shape[1]

        def each(t: Tensor) -> Tensor:
            return t if lanes == 1 else t.repeat_interleave(lanes, dim=0)

        lane = torch.arange(lanes, device=device).repeat(len(row))
        flat = canvas[:, :lanes].flatten(0, 1) if lanes > 1 else canvas[:, 0]
        seen = cut(flat, each(row) * lanes + lane, each(top), each(left), 3 * k)
        levels = noise.flatten(0, 1)[:, None] if lanes > 1 else noise  # [passes, draws of a pass, c, k, k]
        values, done = [], 0
        for logits in self.logits(self.shown(seen, each(now))):
            values.append(drawn(logits, levels[done : done + len(logits)]))
            done += len(logits)
        value = torch.cat(values).view(noise.shape).to(canvas.dtype)
        along = torch.arange(k, device=device)
        y, x = (k + top[:, None] + along)[:, :, None], (k + left[:, None] + along)[:, None]
        old = canvas[row[:, None, None], :, :, y, x].permute(0, 3, 4, 1, 2)  # [g, d, c, k, k]
        new = torch.where(hidden[:, None, None], value, old)
        canvas[row[:, None, None], :, :, y, x] = new.permute(0, 3, 4, 1, 2)

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The mean over the window of -log2 of the probability of the true level."""
        self.check(images)
        k = self.patch
        seen, state = cut_with_state(images, top, left, k)
        state[:, middle(k), middle(k)] = HIDDEN
        truth = levels_of(seen[..., middle(k), middle(k)])
        parts, done = [], 0
        for logits in self.logits(self.shown(seen, state)):
            loss = F.cross_entropy(
                logits.flatten(0, 1), truth[done : done + len(logits)].flatten(0, 1), reduction="none"
            )
            parts.append(loss.view(len(logits), -1).mean(1) / math.log(2))
            done += len(logits)
        return torch.cat(parts)

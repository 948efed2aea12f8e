"""Shortcuts planted in any data set: a tag, a tint or a watermark that gives the class away, in all folds but one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lit_xai.data.images import InMemory, OnDisk, Source, digest
from lit_xai.data.split import Split
from lit_xai.data.truth import Truth
from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng

KINDS = ("tag", "colour", "watermark")
SHORTCUT = "shortcut"  # the name of its masks
CELLS = 5  # of a pattern, a side
SHARE_OF_SIDE = {"tag": 1 / 7, "watermark": 3 / 8}
STRENGTH = {"tag": 256, "colour": 64, "watermark": 64}  # of 256: how much of a pixel is the shortcut's
CHUNK = 1000  # images planted at once
CANDIDATES = 8  # random patterns of which a class has the one that is farthest from the others'
GREYS = 3  # a third of a turn between the channels of a tint


@dataclass(frozen=True)
class Plant:
    """A shortcut, as a function of (seed, sample, class) on bytes of images.

    - `tag`: a square of a seventh of the side (at least 5 pixels) in one of the four corners at random, a pixel from the edge: a
      pattern of 5 x 5 black and white cells of the class.
    - `watermark`: a quarter of the image's brightness mixed from the class's pattern, over a square of 3/8 of the side in the lower right corner.
    - `colour`: a quarter of every pixel is the class's tint: a hue, of one channel a brightness. It has no place.

    Attributes:
        kind: one of these.
        seed: of patterns and places.
        classes: how many there are.
    """

    kind: str
    seed: int
    classes: int

    def side(self, height: int, width: int) -> int:
        """Of its square, in pixels."""
        return max(CELLS, round(min(height, width) * SHARE_OF_SIDE[self.kind]))

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse images (channels, height, width) on which it cannot tell the classes apart.

        Raises:
            UsageError: they are too small, or have too few shades for so many classes.
        """
        channels, height, width = shape
        if self.kind != "colour":
            if min(height, width) < 2 * CELLS + 2:
                raise UsageError(
                    f"data.plant={self.kind} needs images of at least {2 * CELLS + 2} pixels a side, found {height} x {width}: "
                    "set data.size=, or plant a colour"
                )
            return
        black = torch.zeros(self.classes, channels, 1, 1, dtype=torch.uint8)
        every = torch.arange(self.classes)
        if len(self.on(black, every, every).flatten(1).unique(dim=0)) < self.classes:
            raise UsageError(
                f"data.plant=colour has no {self.classes} different tints of {channels} channels: plant a tag or a watermark"
            )

    def on(self, pixels: UInt8[Tensor, "b c h w"], labels: Tensor, samples: Tensor) -> UInt8[Tensor, "b c h w"]:
        """Images `samples` `[b]` with the shortcut of classes `labels` `[b]`."""
        target, a = self.target(pixels, labels, samples), STRENGTH[self.kind]
        mixed = (pixels.int() * (256 - a) + target.int() * a + 128) >> 8
        mask = self.place(samples, *pixels.shape[-2:])
        return torch.where(mask[:, None], mixed.to(torch.uint8), pixels)

    def target(self, pixels: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        """`[b, c, 1 or h, 1 or w]` bytes that the shortcut's pixels are drawn to."""
        if self.kind == "colour":
            return self.tints(pixels.shape[1])[labels][:, :, None, None]
        height, width = pixels.shape[-2:]
        side = self.side(height, width)
        cell = torch.arange(side) * CELLS // side
        drawn = self.patterns[labels][:, cell][:, :, cell]
        top, left = self.corner(samples, height, width)
        row, column = (
            (torch.arange(n)[None] - start[:, None]).clamp(0, side - 1) for n, start in ((height, top), (width, left))
        )
        each = torch.arange(len(labels))[:, None, None]
        return drawn[each, row[:, :, None], column[:, None, :]][:, None]

    def tints(self, channels: int) -> UInt8[Tensor, "k c"]:
        """The tint of every class: hues on a circle, of one channel brightness in equal steps from black to white."""
        number = torch.arange(self.classes, dtype=torch.float64)
        if channels == 1:
            value = (number / max(1, self.classes - 1))[:, None]
        else:
            turn = number[:, None] / self.classes + torch.arange(channels, dtype=torch.float64) / GREYS
            value = 0.5 + 0.5 * torch.cos(2 * torch.pi * turn)
        return (value * 255).round().to(torch.uint8)

    @cached_property
    def patterns(self) -> UInt8[Tensor, "k 5 5"]:
        """Black and white cells of every class: of a few random patterns the one that is farthest from those before, none twice."""
        noise = SampleRng(self.seed, tuple(range(self.classes))).noise("plant/pattern")
        drawn = noise.parts(CANDIDATES).uniform((CELLS * CELLS,)) < 0.5
        kept = drawn[:1, 0]
        for candidates in drawn[1:]:
            apart = (candidates[:, None] != kept[None]).sum(-1).amin(1)
            kept = torch.cat([kept, candidates[apart.argmax()][None]])
        return (kept.view(-1, CELLS, CELLS) * 255).to(torch.uint8)

    def corner(self, samples: Tensor, height: int, width: int) -> tuple[Int[Tensor, "b"], Int[Tensor, "b"]]:
        """The first row and column of the square of every sample `[b]`."""
        side = self.side(height, width)
        below = torch.ones(len(samples), 2, dtype=torch.bool)  # a watermark is always below and to the right
        if self.kind == "tag":
            below = SampleRng(self.seed, samples).noise("plant/corner").uniform((2,)) < 0.5
        top, left = (torch.where(b, n - side - 1, 1) for b, n in zip(below.unbind(1), (height, width), strict=True))
        return top, left

    def place(self, samples: Tensor, height: int, width: int) -> Bool[Tensor, "b h w"]:
        """The pixels that it changes in samples `[b]`: its square, or all."""
        if self.kind == "colour":
            return torch.ones(len(samples), height, width, dtype=torch.bool)
        side = self.side(height, width)
        rows, columns = (
            (torch.arange(n)[None] >= start[:, None]) & (torch.arange(n)[None] < start[:, None] + side)
            for n, start in zip((height, width), self.corner(samples, height, width), strict=True)
        )
        return rows[:, :, None] & columns[:, None, :]

    def other(self, labels: Int[Tensor, "b"], samples: Tensor) -> Int[Tensor, "b"]:
        """A wrong class for every sample `[b]`, all as likely."""
        u = SampleRng(self.seed, samples).noise("plant/other").uniform((1,), torch.float64)[:, 0]
        return (labels + 1 + (u * (self.classes - 1)).long()) % self.classes


@dataclass(frozen=True)
class PlantedMasks:
    """Where the shortcut lies, as masks named `shortcut` (empty where none is planted), beside the masks that the data had."""

    plant: Plant
    planted: Bool[Tensor, "n"]
    size: tuple[int, int]
    before: Truth | None

    @property
    def names(self) -> tuple[str, ...]:
        """What there are masks of."""
        return (*(self.before.names if self.before is not None else ()), SHORTCUT)

    def masks(self, name: str, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """Masks of these samples."""
        if name != SHORTCUT and self.before is not None:
            return self.before.masks(name, indices)
        samples = torch.as_tensor(indices, dtype=torch.long)
        return self.plant.place(samples, *self.size) & self.planted[samples][:, None, None]


@dataclass(frozen=True)
class Planted:
    """A data set with a shortcut in all folds but one.

    Attributes:
        plant: the shortcut.
        share: of the samples of those folds that have it, each with this probability.
        clean: the fold without it.
        raw: the data set without it.
        samples: `[n]` whether each training image has it.
    """

    plant: Plant
    share: float
    clean: int
    raw: Source
    samples: Bool[Tensor, "n"]

    @staticmethod
    def of(
        raw: Source, split: Split, kind: str, share: float = 1.0, clean: int | None = None, seed: int = 0
    ) -> Planted:
        """Choose the samples. Images outside of the split, and those of the test split, stay as they are.

        Args:
            raw: the data set.
            split: its folds.
            kind: one of `KINDS`.
            share: of the samples of the other folds.
            clean: the fold without; None = the last.
            seed: of patterns, places and samples.

        Raises:
            UsageError: the data have no labels, one class, something planted already, or a single fold.
        """
        if kind not in KINDS:
            raise UsageError(f"data.plant must be {', '.join(KINDS)} or null, found {kind!r}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UsageError(f"data.plant_share must lie in [0, 1], found {share}")
        if not raw.labelled or len(raw.classes) < 2:
            raise UsageError(
                f"data.plant={kind} tells classes apart, and {raw.name} has no labels of several: leave it out"
            )
        if raw.truth is not None and "tag" in raw.truth.names:
            raise UsageError(
                f"{raw.name} has a tag planted by data.tag= already: leave out one of data.tag= and data.plant="
            )
        if split.k < 2:
            raise UsageError(f"data.plant={kind} leaves one fold clean and needs at least two: raise data.folds=")
        clean = split.k - 1 if clean is None else clean
        if isinstance(clean, bool) or not isinstance(clean, int) or not 0 <= clean < split.k:
            raise UsageError(f"data.plant_clean={clean} does not exist: folds are 0..{split.k - 1}")
        plant = Plant(kind, seed, len(raw.classes))
        plant.check(raw.shape)
        samples = split.samples[split.fold_of != clean]
        u = SampleRng(seed, samples).noise("plant/share").uniform((1,), torch.float64)[:, 0]
        where = torch.zeros(len(raw.train), dtype=torch.bool)
        where[samples[u < share]] = True
        return Planted(plant, float(share), clean, raw, where)

    @cached_property
    def source(self) -> Source:
        """The data set with the shortcut; its masks are `shortcut` where it has a place."""
        raw, plant = self.raw, self.plant
        truth = raw.truth
        if plant.kind != "colour":
            truth = PlantedMasks(plant, self.samples, raw.shape[1:], raw.truth)
        about = f"plant {plant.kind} {self.share} clean={self.clean} seed={plant.seed}"
        identity = digest(raw.identity, about, self.samples)
        if isinstance(raw.train, OnDisk):
            return replace(raw, train=replace(raw.train, change=self.changed), truth=truth, identity=identity)
        if not isinstance(raw.train, InMemory):
            raise UsageError(f"data.plant={plant.kind} changes bytes of images, and {raw.name} has none: leave it out")
        pixels = raw.train.pixels.clone()
        for some in torch.nonzero(self.samples)[:, 0].split(CHUNK):
            pixels[some] = plant.on(pixels[some], raw.labels[some], some)
        return replace(raw, train=InMemory(pixels), truth=truth, identity=identity)

    def changed(self, i: int, pixels: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
        """One image as the planted data set has it."""
        if not bool(self.samples[i]):
            return pixels
        return self.plant.on(pixels[None], self.raw.labels[i : i + 1], torch.tensor([i]))[0]

    def three(self, samples: Int[Tensor, "b"]) -> dict[str, Tensor]:
        """The same images, in [0, 1], `with` the shortcut of their class, `without`, and with that of another class (`wrong`)."""
        x = (self.raw.train.images(samples.tolist()) * 255).round().to(torch.uint8)
        labels = self.raw.labels[samples]
        every = {
            "with": self.plant.on(x, labels, samples),
            "without": x,
            "wrong": self.plant.on(x, self.plant.other(labels, samples), samples),
        }
        return {name: images.float().div_(255) for name, images in every.items()}

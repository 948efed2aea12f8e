"""Augmentation: image by image as a transform is written, or of whole batches with the very same numbers.

What a sample looks like in an epoch is a function of (seed, epoch, sample): its transforms draw from torch's generator, seeded by
`stable_hash(seed, epoch, "augment", sample)`. Of flips and crops the numbers that they would draw are known without asking: torch's
generator is the Mersenne Twister (Matsumoto & Nishimura, 1998), of which they take the first few values. So a batch needs no loop over
its images, lies on any device, and is bitwise what the transforms make of it one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.rng import stable_hash, stable_hashes

Transform = Callable[[Tensor], Tensor]
Key = tuple[int, int]  # seed and epoch
TRIED = 16  # images on which a batch form must give what the transforms give
MIDDLE = 397  # of the Mersenne Twister's 624 words: value i mixes the words i, i + 1 and i + 397


def one_by_one(
    transforms: Iterable[Transform], images: Float[Tensor, "b c h w"], samples: Sequence[int], key: Key
) -> Float[Tensor, "b c i j"]:
    """Every image through the transforms in turn; torch's own generator is left as it is."""
    out = []
    for image, sample in zip(images, samples, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(stable_hash(*key, "augment", sample))  # no GPU's
            for transform in transforms:
                image = transform(image)
        out.append(image)
    return torch.stack(out)


def first_values(seeds: Sequence[int], number: int) -> Int[Tensor, "n number"]:
    """The first `number` (at most 227) values of 32 bits that torch's generator on the CPU gives after `manual_seed(seed)`."""
    word, shifted = (np.asarray(seeds, np.int64) & 0xFFFFFFFF).astype(np.uint32), np.empty(len(seeds), np.uint32)
    kept = {0: word.copy()}
    for i in range(1, MIDDLE + number):
        word ^= np.right_shift(word, 30, out=shifted)
        word *= np.uint32(1812433253)
        word += np.uint32(i)
        if i <= number or i >= MIDDLE:
            kept[i] = word.copy()
    low, high, far = (np.stack([kept[i + d] for i in range(number)], 1) for d in (0, 1, MIDDLE))
    mixed = (low & np.uint32(0x80000000)) | (high & np.uint32(0x7FFFFFFF))
    y = far ^ (mixed >> 1) ^ (mixed & np.uint32(1)) * np.uint32(0x9908B0DF)
    y ^= y >> 11
    y ^= (y << 7) & np.uint32(0x9D2C5680)
    y ^= (y << 15) & np.uint32(0xEFC60000)
    y ^= y >> 18
    return torch.from_numpy(y.astype(np.int64))


# ---------------------------------------------------------------------------------------------------------- batch forms

# Called with a batch `[b, c, h, w]` and with the `draws` values `[b, draws]` that the transform would draw for every image.


@dataclass(frozen=True)
class Flip:
    """torchvision's random flips of `[b, c, h, w]` along one axis, with probability `p`; values `[b, 1]`."""

    axis: int
    p: float
    draws: ClassVar[int] = 1

    def __call__(self, x: Tensor, values: Tensor) -> Tensor:
        uniform = (values[:, 0] & 0xFFFFFF).float() * 2**-24  # as torch.rand makes it
        return torch.where((uniform < self.p)[:, None, None, None], x.flip(self.axis), x)


@dataclass(frozen=True)
class Crop:
    """torchvision's random crop of `size`, of `[b, c, h, w]` `padding` (left, right, top, bottom) pixels larger; values `[b, draws]`.

    `places` says for rows and columns among how many places one is drawn; None where nothing is.
    """

    size: tuple[int, int]
    padding: tuple[int, ...]
    fill: float
    places: tuple[int | None, int | None]

    @property
    def draws(self) -> int:
        """How many values an image takes: one a side that is drawn."""
        return sum(n is not None for n in self.places)

    def __call__(self, x: Tensor, values: Tensor) -> Tensor:
        x, left = F.pad(x, self.padding, value=self.fill), list(values.unbind(1))
        b, c = (torch.arange(n, device=x.device) for n in x.shape[:2])
        at = []
        for side, places in zip(self.size, self.places, strict=True):
            within = torch.arange(side, device=x.device).expand(len(x), side)
            at.append(
                within if places is None else (left.pop(0) % places)[:, None] + within
            )  # as torch.randint makes it
        return x[b[:, None, None, None], c[:, None, None], at[0][:, None, :, None], at[1][:, None, None, :]]


Step = Flip | Crop


def flip_of(transform: Any) -> Flip | None:
    """The batch form of a flip."""
    from torchvision import transforms as first
    from torchvision.transforms import v2

    axes = {"RandomHorizontalFlip": -1, "RandomVerticalFlip": -2}
    axis = next((a for n, a in axes.items() if type(transform) in (vars(first)[n], vars(v2)[n])), None)
    return None if axis is None else Flip(axis, transform.p)


def crop_of(transform: Any, height: int, width: int) -> Crop | None:
    """The batch form of a crop that pads with one value."""
    from torchvision import transforms as first
    from torchvision.transforms import v2

    if type(transform) not in (first.RandomCrop, v2.RandomCrop):
        return None
    if transform.pad_if_needed or transform.padding_mode != "constant" or not isinstance(transform.fill, int | float):
        return None
    new, p = isinstance(transform, v2.RandomCrop), transform.padding  # new: left, right, top, bottom
    p = [p] if isinstance(p, int) else list(p or [0])
    p = p if new and len(p) == 4 else {1: p * 4, 2: [p[0], p[0], p[-1], p[-1]]}.get(len(p)) or [p[0], p[2], p[1], p[3]]
    free = height + p[2] + p[3] - transform.size[0], width + p[0] + p[1] - transform.size[1]
    if min(free) < 0:
        return None
    asks = [f > 0 if new else any(free) for f in free]  # the old one draws both numbers, or none
    rows, columns = (f + 1 if a else None for f, a in zip(free, asks, strict=True))
    return Crop(tuple(transform.size), tuple(p), float(transform.fill), (rows, columns))


@dataclass(frozen=True)
class AtOnce:
    """Augmentation of whole batches."""

    steps: tuple[Step, ...]

    @staticmethod
    def of(transforms: Sequence[Transform], shape: tuple[int, int, int]) -> AtOnce | None:
        """The batch form of transforms for images `[c, h, w]`; None where one has none, or torch drew other numbers than expected."""
        steps: list[Step] = []
        height, width = shape[1:]
        for transform in transforms:
            step = flip_of(transform) or crop_of(transform, height, width)
            if step is None:
                return None
            steps.append(step)
            height, width = step.size if isinstance(step, Crop) else (height, width)
        made, samples = AtOnce(tuple(steps)), range(TRIED)
        if not steps:
            return made
        images = torch.linspace(0, 1, TRIED * shape[0] * shape[1] * shape[2]).view(TRIED, *shape)
        expected = one_by_one(transforms, images, samples, (0, 0))
        return made if torch.equal(made(images, made.values((0, 0), samples)), expected) else None

    def values(self, key: Key, samples: Sequence[int]) -> Int[Tensor, "n d"]:
        """What the transforms draw for these samples in an epoch, on the CPU."""
        number = sum(step.draws for step in self.steps)
        if not number:
            return torch.empty(len(samples), 0, dtype=torch.long)
        return first_values(stable_hashes((*key, "augment"), samples), number)

    def __call__(self, images: Float[Tensor, "b c h w"], values: Int[Tensor, "b d"]) -> Float[Tensor, "b c i j"]:
        """The batch after all steps, each with its own of the values."""
        for step in self.steps:
            mine, values = values[:, : step.draws], values[:, step.draws :]
            images = step(images, mine)
        return images

"""Coloured shapes with known masks: a synthetic set on which an explanation can be wrong, and a shortcut be planted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.data.images import Source, digest, in_memory
from lit_xai.data.truth import InMemoryMasks
from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng

CLASSES = ("circle", "square", "triangle", "cross", "star", "ring")
SCALARS = 16  # random numbers of a sample's layout
COARSE = (3, 9)  # sides of the grids whose enlargements make the background's texture
CHUNK = 250  # samples drawn at once


TAG = 0.125  # side of a tag, in image sides
LARGEST_TAG = 0.2  # beside the largest shape there is always room for it


def shapes(
    size: int = 64, samples: int = 2000, tag: float = 0.0, seed: int = 0, test: int = 500, tag_side: float = TAG
) -> Source:
    """RGB images of one shape on a textured background; the class is the shape.

    Position, size, rotation (up to 30 degrees), colour and texture vary and carry no class information. A sample is a
    function of `(seed, its index, size, tag)` alone, its class is its index modulo 6. Ground truth `object` is exactly
    the pixels that the shape covers (a ring's ink). Shapes are not anti-aliased.

    With `tag` > 0 every image also has a small patch (`tag_side` of the side) of a bright checkerboard in one of six colours,
    at a random place beside the shape: in the training images the colour of the sample's own class with probability
    `tag`, otherwise (and always in the test split) that of a random class. Ground truth `tag` is the patch. A network
    that relies on the patch loses its accuracy on the test split. Nothing else differs from the images without tags.

    Args:
        size: side in pixels, at least 16.
        samples, test: number of training and of test images; test=0 leaves the test split out.
        tag: how much the patch tells of the class, in [0, 1]; 0 = no patches.
        seed: of everything.
        tag_side: side of the patch in image sides, in (0, 0.2].

    Raises:
        UsageError: the size, a number of images, `tag` or `tag_side` is out of its range.
    """
    if size < 16:
        raise UsageError(f"shapes need at least 16 pixels a side, found {size}: set data.size=")
    if samples < len(CLASSES) or test < 0:
        raise UsageError(f"shapes need data.samples >= {len(CLASSES)} and data.test >= 0, found {samples} and {test}")
    if not 0 <= tag <= 1:
        raise UsageError(f"data.tag must lie in [0, 1], found {tag}")
    if not 0 < tag_side <= LARGEST_TAG:
        raise UsageError(f"data.tag_side must lie in (0, {LARGEST_TAG}], found {tag_side}")
    drawn = Drawn.draw("train", samples, size, tag, seed, tag_side)
    held = Drawn.draw("test", test, size, tag, seed, tag_side) if test else None
    source = in_memory(
        "shapes",
        drawn.pixels,
        drawn.labels,
        CLASSES,
        held.pixels if held else None,
        held.labels if held else None,
    )
    masks = {"object": drawn.object, "tag": drawn.tag} if tag else {"object": drawn.object}
    parameters = f"shapes size={size} samples={samples} tag={float(tag)} seed={seed} test={test}"
    parameters += f" tag_side={tag_side}" if tag and tag_side != TAG else ""  # as it was before there was a choice
    return replace(source, identity=digest(source.identity, parameters), truth=InMemoryMasks(masks))


@dataclass(frozen=True)
class Drawn:
    """One split: uint8 pixels, classes, and the masks of shapes and of tags (empty without tags)."""

    pixels: Tensor  # uint8 [n, 3, s, s]
    labels: Int[Tensor, "n"]
    object: Bool[Tensor, "n s s"]
    tag: Bool[Tensor, "n s s"]

    @staticmethod
    def draw(split: str, samples: int, size: int, tag: float, seed: int, tag_side: float = TAG) -> Drawn:
        """Samples 0 .. samples - 1 of the `train` or `test` split."""
        parts = []
        for start in range(0, samples, CHUNK):
            indices = torch.arange(start, min(start + CHUNK, samples))
            parts.append(draw_chunk(split, indices, size, tag, seed, tag_side))
        return Drawn(*(torch.cat(x) for x in zip(*parts, strict=True)))


def draw_chunk(
    split: str, indices: Int[Tensor, "n"], size: int, tag: float, seed: int, tag_side: float = TAG
) -> tuple[Tensor, Int[Tensor, "n"], Bool[Tensor, "n s s"], Bool[Tensor, "n s s"]]:
    """Pixels, classes, shapes and tags of some samples."""
    rng = SampleRng(seed, tuple(indices.tolist()))
    grids = [3 * g * g for g in COARSE]
    numbers = (SCALARS, *grids, size * size)
    drawn = [torch.rand(sum(numbers), generator=rng.generator(f"shapes/{split}", row)) for row in range(len(indices))]
    u, *coarse, grain = torch.stack(drawn).split(numbers, dim=1)
    labels = indices % len(CLASSES)
    mask = shape_masks(labels, u[:, :4], size)

    paper = 0.15 + 0.7 * u[:, 4:7]
    ink = 0.1 + 0.8 * ((u[:, 4:7] + 0.3 + 0.4 * u[:, 7:10]) % 1)  # every channel far from the background's
    texture = torch.zeros(len(u), 3, size, size)
    for g, values in zip(COARSE, coarse, strict=True):
        values = 0.3 * values.view(-1, 3, g, g) - 0.15
        texture += u[:, 10].view(-1, 1, 1, 1) * F.interpolate(values, size=size, mode="bilinear", align_corners=True)
    image = torch.where(mask[:, None], ink[:, :, None, None] + 0.3 * texture, paper[:, :, None, None] + texture)
    image += 0.16 * u[:, 11].view(-1, 1, 1, 1) * (grain.view(-1, 1, size, size) - 0.5)
    image = 0.06 + 0.88 * image.clamp(0, 1)  # a tag's pure colours occur nowhere else

    patch = torch.zeros_like(mask)
    if tag:
        side = max(2, round(size * tag_side))
        correlated = 0.0 if split == "test" else tag
        anything = (u[:, 13] * len(CLASSES)).long()
        patch, top, left = places_beside(mask, u[:, 14], side)
        patterns = tag_patterns(side)[torch.where(u[:, 12] < correlated, labels, anything)]
        within = torch.arange(size)
        row = (within[None] - top[:, None]).clamp(0, side - 1)
        column = (within[None] - left[:, None]).clamp(0, side - 1)
        n = torch.arange(len(u))[:, None, None]
        painted = patterns.permute(0, 2, 3, 1)[n, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
        image = torch.where(patch[:, None], painted, image)
    return (image * 255).round().to(torch.uint8), labels, mask, patch


def shape_masks(labels: Int[Tensor, "n"], u: Float[Tensor, "n 4"], size: int) -> Bool[Tensor, "n s s"]:
    """The pixels whose centres each class's shape covers; `u` places, sizes and turns it."""
    radius = 0.18 + 0.1 * u[:, 2]  # of the circle around the shape, in image sides
    centre = radius[:, None] + (1 - 2 * radius[:, None]) * u[:, :2]
    turn = math.radians(30) * (2 * u[:, 3] - 1)
    at = (torch.arange(size) + 0.5) / size
    y = ((at[None] - centre[:, :1]) / radius[:, None])[:, :, None]
    x = ((at[None] - centre[:, 1:]) / radius[:, None])[:, None, :]
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    mask = torch.empty(len(labels), size, size, dtype=torch.bool)
    for c, inside in enumerate((circle, square, triangle, cross, star, ring)):
        mine = labels == c
        mask[mine] = inside(x[mine], y[mine])
    return mask


# Each shape is drawn inside the unit circle, x to the right and y downwards.


def circle(x: Tensor, y: Tensor) -> Tensor:
    """A disc, at points `[n, s, s]`."""
    return x**2 + y**2 <= 0.85**2


def square(x: Tensor, y: Tensor) -> Tensor:
    """An upright square, at points `[n, s, s]`."""
    return torch.maximum(x.abs(), y.abs()) <= 0.7


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """An equilateral triangle, its tip upwards, at points `[n, s, s]`."""
    return torch.maximum(y, math.sqrt(3) / 2 * x.abs() - y / 2) <= 0.5


def cross(x: Tensor, y: Tensor) -> Tensor:
    """An upright cross, at points `[n, s, s]`."""
    x, y = x.abs(), y.abs()
    return (torch.minimum(x, y) <= 0.26) & (torch.maximum(x, y) <= 0.95)


def star(x: Tensor, y: Tensor) -> Tensor:
    """A star of five points, one of them upwards, at points `[n, s, s]`."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (angle - sector * (angle / sector).round()).abs()  # from the nearest point
    along, across = torch.hypot(x, y) * angle.cos(), torch.hypot(x, y) * angle.sin()
    inner_along, inner_across = 0.42 * math.cos(sector / 2), 0.42 * math.sin(sector / 2)
    return across * (1 - inner_along) <= inner_across * (1 - along)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A ring, at points `[n, s, s]`."""
    square_distance = x**2 + y**2
    return (square_distance >= 0.55**2) & (square_distance <= 0.92**2)


def tag_patterns(side: int) -> Float[Tensor, "6 3 side side"]:
    """Checkerboards of 4 x 4 cells, black and one pure colour: red, green, blue, yellow, magenta, cyan."""
    cell = torch.arange(side) // max(1, side // 4)
    board = ((cell[:, None] + cell[None]) % 2 == 0).float()
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float()
    return colours[:, :, None, None] * board


def places_beside(
    mask: Bool[Tensor, "n s s"], u: Float[Tensor, "n"], side: int
) -> tuple[Bool[Tensor, "n s s"], Int[Tensor, "n"], Int[Tensor, "n"]]:
    """A square of `side` pixels that holds none of the mask, uniformly among all: its pixels, top and left."""
    free = F.max_pool2d(mask[:, None].float(), side, stride=1)[:, 0] == 0
    order = free.flatten(1).cumsum(1)
    chosen = (u * order[:, -1]).long() + 1
    place = (order < chosen[:, None]).sum(1)
    top, left = place // free.shape[2], place % free.shape[2]
    at = torch.arange(mask.shape[1])
    rows, columns = ((at >= start[:, None]) & (at < start[:, None] + side) for start in (top, left))
    return rows[:, :, None] & columns[:, None, :], top, left

"""What fillers that are fitted to image windows share: windows to fit on, and the order in which a hole is filled.

Both samplers know p(K x K tile | surroundings). A hole of any shape is filled tile by tile; see `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.core import Images
from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash

LEVELS = 256  # of a pixel's value
READ = 250  # images that are read together
CHUNK = 1000  # windows that are handled together


@runtime_checkable
class ImageSet(Protocol):
    """Images by index, in [0, 1] (as in `lit_xai.data`)."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of images."""
        ...


# ------------------------------------------------------------------------------------------------------------- windows


def pictures(images: ImageSet | Tensor, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
    """Some images of a set, or of a tensor `[n, c, h, w]`."""
    return images[list(indices)] if isinstance(images, Tensor) else images.images(list(indices))


def cut(
    padded: Float[Tensor, "n c h w"], rows: Int[Tensor, "m"], top: Int[Tensor, "m"], left: Int[Tensor, "m"], side: int
) -> Float[Tensor, "m c s s"]:
    """Squares of `side` pixels: number t from image `rows[t]`, beginning at `top[t], left[t]`."""
    along = torch.arange(side, device=padded.device)
    y, x = top[:, None] + along, left[:, None] + along
    return padded[rows[:, None, None], :, y[:, :, None], x[:, None]].movedim(-1, 1)


def check_fits(images: Images, channels: int, patch: int, name: str) -> None:
    """Refuse images that a sampler of this K was not fitted for."""
    height, width = images.shape[-2:]
    if images.shape[1] != channels:
        raise UsageError(
            f"this {name} was fitted on images of {channels} channels, found {images.shape[1]}: fit another"
        )
    if patch > min(height, width):
        raise UsageError(
            f"patch={patch} of this {name} does not fit images of {height} x {width} pixels: "
            f"fit one with patch <= {min(height, width)}"
        )


def windows(
    images: ImageSet | Tensor, side: int, number: int, seed: int = 0, samples: Sequence[int] | None = None
) -> Iterator[Float[Tensor, "m c s s"]]:
    """`number` windows of `side` pixels at uniformly random places, in batches of at most `CHUNK`.

    As many images as possible take part, each with equally many windows (give or take one).

    Args:
        images: an image set, or a tensor `[n, c, h, w]`.
        side: of a window, pixels.
        number: of windows.
        seed: of the choice.
        samples: indices of the images that may be used; all if None.

    Raises:
        UsageError: a window is larger than the images, there are no images, or number < 1.
    """
    pool = torch.as_tensor(range(len(images)) if samples is None else samples, dtype=torch.long)
    if len(pool) == 0 or number < 1:
        raise UsageError(f"windows need at least one image and one position, found {len(pool)} and {number}")
    generator = torch.Generator().manual_seed(stable_hash(seed, "windows"))
    order = torch.randperm(len(pool), generator=generator)[:number]
    each = torch.full((len(order),), number // len(order))
    each[: number % len(order)] += 1
    for some, repeat in zip(order.split(READ), each.split(READ), strict=True):
        batch = pictures(images, pool[some].tolist())
        spare = [size - side for size in batch.shape[-2:]]
        if min(spare) < 0:
            raise UsageError(f"windows of {side} pixels do not fit images of {batch.shape[-2]} x {batch.shape[-1]}")
        row = torch.arange(len(some)).repeat_interleave(repeat)
        top, left = (torch.randint(s + 1, (len(row),), generator=generator) for s in spare)
        for r, t, s in zip(row.split(CHUNK), top.split(CHUNK), left.split(CHUNK), strict=True):
            yield cut(batch, r, t, s, side)


class Step(NamedTuple):
    """One tile to fill: its top and left pixel, and which pixels of its window are known then."""

    top: int
    left: int
    known: np.ndarray


def plan(keep: np.ndarray, patch: int, margin: int) -> list[Step]:
    """In which tiles, and in which order, the hidden pixels of a mask `[h, w]` are filled.

    The first hidden pixel in reading order that no tile covers yet gets a tile with its top left corner there (moved
    into the image where it juts out), until all are covered: a hidden K x K square is one tile. Then, again and again,
    the tile whose window holds most known pixels is filled, the first in reading order of equals; its pixels are known
    from there on. Pixels outside the image are never known.
    """
    height, width = keep.shape
    side = patch + 2 * margin
    uncovered, tiles = ~keep, []
    while uncovered.any():
        y, x = divmod(int(uncovered.argmax()), width)
        top, left = min(y, height - patch), min(x, width - patch)
        uncovered[top : top + patch, left : left + patch] = False
        tiles.append((top, left))
    known, steps = np.pad(keep, margin), []
    while tiles:
        if len(tiles) > 1:
            sums = np.pad(known.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            t, s = np.array(tiles).T
            inside = sums[t + side, s + side] - sums[t, s + side] - sums[t + side, s] + sums[t, s]
            top, left = tiles.pop(int(inside.argmax()))
        else:
            top, left = tiles.pop()
        window = known[top : top + side, left : left + side]
        tile = window[margin : margin + patch, margin : margin + patch]
        if not tile.all():  # an overlapping tile may have filled it
            steps.append(Step(top, left, window.copy()))
            tile[:] = True
    return steps

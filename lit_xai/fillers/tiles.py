"""What fillers that are fitted to image windows share: windows to fit on, and how a hole is filled tile by tile."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.core import Images, Keep, Segments
from lit_xai.errors import UsageError, at_least
from lit_xai.fillers.base import keys_of
from lit_xai.fillers.fitted import FittedFiller
from lit_xai.rng import Noise, SampleRng, stable_hash

LEVELS = 256  # of a pixel's value
READ = 250  # images that are read together
CHUNK = 1000  # windows that are handled together
OUTSIDE = -1.0  # state of a pixel beyond the image; 1 = it is visible, 0 = hidden


@runtime_checkable
class ImageSet(Protocol):
    """Images by index, in [0, 1] (as in `lit_xai.data`)."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of images."""
        ...


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


@dataclass(frozen=True)
class WindowFiller(FittedFiller):
    """A filler that knows p(K x K tile | surroundings), wherever in an image of any size.

    Attributes:
        noun: what it is called in messages.
    """

    noun: ClassVar[str]
    on_host = True

    @property
    def patch(self) -> int:
        """Side K of the windows it was fitted to, pixels."""
        return self.module.patch

    @property
    def margin(self) -> int:
        """Surroundings on each side of a tile, pixels."""
        return self.module.margin

    def window_side(self) -> int:
        """K, the side of its windows."""
        return self.patch

    def content(self) -> dict[str, Any]:
        """K, and the digest of the file."""
        return {"patch": self.patch, **super().content()}

    @abstractmethod
    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Bits per pixel and channel of the K x K window at (top, left) of every image, given its surroundings.

        -log2 of the probability of the true level, averaged over the window. 8 is a uniform guess.
        """

    @abstractmethod
    def noise(self, keys: Noise) -> Float[Tensor, "g d c k k"]:
        """Random numbers for one tile a key, `[g, d]`."""

    @abstractmethod
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
        """Fill one tile of each of these rows in place; canvas and state have a margin around the image.

        `at` has row, top and left of each tile on the images' device, for whoever needs no more than these.

        On the `first` tile of a row its draws still look alike.
        """

    def check(self, images: Images) -> None:
        """Refuse images that this K was not fitted for."""
        (channels, height, width), patch = images.shape[1:], self.patch
        if channels != self.module.channels:
            raise UsageError(
                f"this {self.noun} was fitted on images of {self.module.channels} channels, found {channels}: fit another"
            )
        if patch > min(height, width):
            raise UsageError(
                f"patch={patch} of this {self.noun} does not fit images of {height} x {width} pixels: "
                f"fit one with patch <= {min(height, width)}"
            )

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """Hidden pixels drawn given the visible ones; draw d of mask n has noise of its own.

        Any hole is filled, in tiles (see `plan`): a hidden K x K square is one, whatever the number of draws. Later tiles
        see the earlier, drawn ones. What lies outside of the image is unknown.

        Raises:
            UsageError: other channels than it was fitted on; a tile larger than the image; draws < 1.
        """
        self.check(images)
        at_least(1, draws=draws)
        masks, edge = keep.shape[1], self.margin
        around, (height, width) = (edge,) * 4, images.shape[-2:]
        with torch.no_grad():
            plans = [plan(m, self.patch, edge) for m in keep.flatten(0, 1).cpu().numpy()]
            keys = keys_of(keep, rng, draws).reshape(-1, draws)
            canvas = F.pad(images, around).repeat_interleave(masks, dim=0)[:, None].repeat(1, draws, 1, 1, 1)
            state = F.pad(keep.flatten(0, 1)[:, None].to(images), around, value=OUTSIDE)
            rounds = [[r for r, p in enumerate(plans) if s < len(p)] for s in range(max(map(len, plans), default=0))]
            places = [(r, *plans[r][s][:2]) for s, rows in enumerate(rounds) for r in rows]
            where = torch.tensor(places, dtype=torch.long).view(-1, 3).to(images.device)  # all at once
            for s, (rows, at) in enumerate(zip(rounds, where.split([len(r) for r in rounds]), strict=True)):
                noise = self.noise(keys[at[:, 0]].part(s))
                self.fill_tiles(canvas, state, at, rows, [plans[r][s] for r in rows], noise, first=s == 0)
        out = canvas[..., edge : edge + height, edge : edge + width].unflatten(0, (len(images), masks))
        return torch.where(keep[:, :, None, None], images[:, None, None], out)

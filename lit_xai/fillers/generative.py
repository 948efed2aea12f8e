"""What generators of whole images share: an image is encoded once, and all its masks and draws start from there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_xai.cache import Cache, digest, nbytes
from lit_xai.core import Images, Keep, Segments
from lit_xai.errors import UsageError
from lit_xai.fillers.fitted import FittedFiller, Sampler
from lit_xai.fitting import describe
from lit_xai.rng import SampleRng

RANGE = 1e-3  # images may leave [0, 1] by so much
ENCODED = Cache(1 << 30)  # bytes of encoded images that are kept within a run
DRAWN = Cache(2 << 30)  # and of whole new images


@dataclass(frozen=True)
class ImageSampler(Sampler):
    """Draws images, or what is hidden in one, given an image.

    Attributes:
        channels, side: of the images it was trained on.
        about: what it was trained on; empty = not known.
        max_batch: most images per network call.
    """

    channels: int
    side: int
    about: str
    max_batch: int

    @abstractmethod
    def encode(self, images: Images) -> Any:
        """What all draws from an image share."""

    @abstractmethod
    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Any,
        rows: list[int],
        keep: Bool[Tensor, "m h w"],
        noise: list[torch.Generator],
    ) -> Float[Tensor, "m c h w"]:
        """One draw for every row: `images[t]` seen through `keep[t]`, its code at `rows[t]`, noise from `noise[t]`."""

    @abstractmethod
    def quality(self, images: Images) -> dict[str, Float[Tensor, "b"]]:
        """What held-out images tell about it, one number an image each."""

    def check(self, images: Images) -> None:
        """Refuse images unlike those it was trained on.

        Raises:
            UsageError: other channels, another size, values outside [0, 1].
        """
        self.check_shape(tuple(images.shape[1:]))
        low, high = (float(v) for v in images.aminmax()) if images.numel() else (0.0, 1.0)
        if not (low >= -RANGE and high <= 1 + RANGE):
            raise UsageError(
                f"this {type(self).__name__} takes values in [0, 1], found {low:.3g} to {high:.3g}: give images before any "
                f"normalisation (it belongs inside the model)"
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images of other channels or another size than it was trained on."""
        if shape != (self.channels, self.side, self.side):
            trained, found = f"{self.channels} x {self.side} x {self.side}", " x ".join(map(str, shape))
            raise UsageError(
                f"this {type(self).__name__} was trained on images of {trained} (channels, height, width), found {found}: "
                f"train one on the classifier's data"
            )

    def prepared(self, images: Images) -> Prepared:
        """These images, encoded."""
        self.check(images)
        with torch.no_grad():
            return Prepared(self, images, self.encode(images))

    def fill(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """Hidden pixels drawn, as `Filler` says; draw d of mask n has noise of its own.

        Raises:
            UsageError: images unlike those it was trained on; draws < 1.
        """
        return self.prepared(images)(list(range(len(images))), keep, rng, draws)


@dataclass(frozen=True)
class Prepared:
    """Encoded images, for any number of masks and draws.

    Attributes:
        sampler, images, code: see `ImageSampler`.
        key: of sampler and images, where whole new images may be kept for whoever asks for the same ones again (another
            explainer, or the same with other superpixels): they do not depend on the mask.
    """

    sampler: ImageSampler
    images: Images
    code: Any
    key: Hashable | None = None

    def __call__(
        self, rows: list[int], keep: Bool[Tensor, "r n h w"], rng: SampleRng, draws: int = 1
    ) -> Float[Tensor, "r n d c h w"]:
        """Row t is image `rows[t]` under its masks `keep[t]`; its noise is that of row t of `rng`."""
        if draws < 1:
            raise UsageError(f"draws must be at least 1, found {draws}")
        masks, each = keep.shape[1], 1 if self.sampler.deterministic else draws
        jobs = list(product(range(len(rows)), range(masks), range(each)))
        noise = [rng.generator("filler", r, n * draws + d) for r, n, d in jobs]
        of = [rows[r] for r, _, _ in jobs]
        visible = keep[[r for r, _, _ in jobs], [n for _, n, _ in jobs]]
        drawn = self.drawn(of, visible, noise)
        out = torch.where(visible[:, None], self.images[of], drawn)
        out = out.view(len(rows), masks, each, *self.images.shape[1:])
        return out.expand(-1, -1, draws, -1, -1, -1) if each < draws else out

    def drawn(
        self, rows: list[int], keep: Bool[Tensor, "m h w"], noise: list[torch.Generator]
    ) -> Float[Tensor, "m c h w"]:
        """One draw a row, in [0, 1], in network calls of at most `max_batch` rows."""
        keys = [(self.key, row, g.initial_seed()) for row, g in zip(rows, noise, strict=True)]
        reuse = self.key is not None and not self.sampler.paints
        if reuse and all(DRAWN.get(key) is not None for key in keys):
            return torch.stack([DRAWN.get(key) for key in keys])
        # where one is missing all are drawn: what a row shares a call with decides its rounding
        out = self.images.new_empty(len(rows), *self.images.shape[1:])
        with torch.no_grad():
            for start in range(0, len(rows), self.sampler.max_batch):
                now = slice(start, start + self.sampler.max_batch)
                drawn = self.sampler.draw(self.images[rows[now]], self.code, rows[now], keep[now], noise[now])
                out[now] = drawn.clamp(0, 1)
        if not bool(torch.isfinite(out).all()):
            raise UsageError(f"this {type(self.sampler).__name__} drew NaN: train it again with a lower model.lr=")
        for key, row in zip(keys, out, strict=True) if reuse else ():
            DRAWN.put(key, row.clone(), nbytes(row))
        return out


@dataclass(frozen=True)
class GenerativeFiller(FittedFiller):
    """A filler that knows whole images."""

    turn_off_rate = 1.0

    def prepared(self, images: Images) -> Prepared:
        """These images, encoded once for all masks and draws; errors as `ImageSampler.prepared`."""
        images = images.detach().contiguous()
        key = (repr(describe(self)), self.opened[1], digest(images))
        sampler: ImageSampler = self.sampler  # type: ignore[assignment]
        found = ENCODED.get(key)
        if found is None:
            found = replace(sampler.prepared(images.clone()), key=key)
            ENCODED.put(key, found, nbytes(found.code) + nbytes(images))
        return replace(found, sampler=sampler)

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        return self.prepared(images)(list(range(len(images))), keep, rng, draws)


def check_precision(precision: str) -> None:
    """Refuse a precision that is none, before any network is called."""
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision must be float32 or bf16, found {precision!r}")


def forget() -> None:
    """Keep no encoded and no drawn images: whoever takes the time of drawing wants it done."""
    ENCODED.clear()
    DRAWN.clear()


def normal(noise: list[torch.Generator], like: Float[Tensor, "m ..."]) -> Float[Tensor, "m ..."]:
    """Standard normal numbers, row t from `noise[t]`: the same on every device and in every type."""
    out = torch.stack([torch.randn(like.shape[1:], generator=g) for g in noise])
    return out.to(like)

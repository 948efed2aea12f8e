"""A model's inputs with hidden pixels, for every filler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import Chunk
from lit_xai.core import Corners, Filler, Images, Segments, as_filler
from lit_xai.errors import UsageError
from lit_xai.fillers.generative import Prepared
from lit_xai.rng import SampleRng

FEW = 8  # images of a chunk that are filled one by one


def chosen(
    keep: Bool[Tensor, "r h w"], seen: Float[Tensor, "#r c h w"], hidden: Float[Tensor, "#r c h w"]
) -> Float[Tensor, "r c h w"]:
    """`seen` where a pixel is kept, else `hidden`: `torch.where` bit by bit: exact, and vectorised where that is not."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[seen.element_size()]
    a, b = seen.view(bits), hidden.view(bits)
    return ((a ^ b) & -keep[:, None].to(bits)).bitwise_xor_(b).view(seen.dtype)


@dataclass(frozen=True)
class Refill:
    """Rows of a model's input with hidden pixels filled, for walks over `images x variants`.

    A filler whose replacement does not depend on the mask is asked for it once, and one that encodes images encodes each
    once (see `Filler`); any other is called chunk by chunk. Noise belongs to (sample, variant), so that a row does not depend
    on the chunk it is made in.

    Args:
        filler: what stands where a pixel is hidden.
        images: the images.
        rng: their noise.
        segments: their superpixels, for fillers that use them.
    """

    filler: Filler
    images: Images
    rng: SampleRng
    segments: Segments | None = None
    whole: Images | None = field(init=False)
    prepared: Any = field(init=False)
    here: SampleRng | None = field(init=False)  # the same noise on the host, where fillings are looked up by it
    first: int = field(init=False, default=0)  # the number of the first image among those that are prepared

    def __post_init__(self) -> None:
        object.__setattr__(self, "filler", as_filler(self.filler))
        object.__setattr__(self, "prepared", self.filler.prepared(self.images))
        looked_up = isinstance(self.prepared, Prepared) and self.prepared.key is not None
        object.__setattr__(self, "here", self.rng.on(torch.device("cpu")) if looked_up else None)
        object.__setattr__(self, "rng", self.rng.on(self.images.device))
        whole = self.filler.background(self.images, self.segments)
        if whole is not None and whole.shape != self.images.shape:
            raise UsageError(
                f"filler {type(self.filler).__name__} returned a background of shape {tuple(whole.shape)} "
                f"for images of shape {tuple(self.images.shape)}"
            )
        object.__setattr__(self, "whole", whole)

    def of(self, start: int, stop: int) -> Refill:
        """That of images start..stop-1 alone, by what was made of all of them together: their codes, their backgrounds."""
        rows, one = slice(start, stop), copy.copy(self)
        parts = {
            "images": self.images[rows],
            "rng": replace(self.rng, samples=self.rng.samples[rows]),
            "here": None if self.here is None else replace(self.here, samples=self.here.samples[rows]),
            "segments": None if self.segments is None else self.segments[rows],
            "whole": None if self.whole is None else self.whole[rows],
            "first": self.first + start,
        }
        for name, value in parts.items():
            object.__setattr__(one, name, value)
        return one

    def __call__(
        self,
        keep: Bool[Tensor, "r h w"],
        chunk: Chunk,
        variant: Int[Tensor, "r"] | int | None = None,
        draws: int = 1,
        corners: Corners | None = None,
        since: int = 0,
    ) -> Float[Tensor, "rows c h w"]:
        """Row t is image `chunk.image[t]` seen through `keep[t]`; `draws` fillings of a row follow each other.

        Args:
            keep: what is visible in every row of the chunk.
            chunk: of a walk over these images.
            variant: which variant of its image every row is, for its noise; the chunk's own if None, a number for all alike.
            draws: fillings of a row.
            corners: of the window of the filler's own side that a row hides, where that is all that it hides.
            since: the number of the chunk's first variant, where it has its own.

        Raises:
            UsageError: the filler returned another shape.
        """
        if self.whole is not None:
            if len(chunk.images) <= FEW:  # image by image: no copies of them are made
                parts = []
                for image in chunk.images:
                    one = slice(image, image + 1)
                    parts.append(chosen(keep[chunk.rows(image)], self.images[one], self.whole[one]))
                out = parts[0] if len(parts) == 1 else torch.cat(parts)
            else:
                out = chosen(keep, self.images[chunk.image], self.whole[chunk.image])
            return out if draws == 1 else out.repeat_interleave(draws, dim=0)
        rows = chunk.image
        rng = self.rng.take(rows, variants(chunk, variant, since))
        if self.prepared is not None:
            names = self.names(chunk, variant, since)
            out = self.prepared(self.first + rows, keep[:, None], rng, draws, **({"names": names} if names else {}))
        else:
            segments = self.segments[rows] if self.segments is not None else None
            shown, masks = self.images[rows], keep[:, None]
            filled = None if corners is None else self.filler.in_windows(shown, masks, corners, rng, draws)
            out = self.filler(shown, masks, rng, draws, segments) if filled is None else filled
        expected = (len(chunk), 1, draws, *self.images.shape[1:])
        if tuple(out.shape) != expected:
            name = type(self.filler).__name__
            raise UsageError(
                f"filler {name} returned shape {tuple(out.shape)}, expected {expected}: [b, n, d, c, h, w]"
            )
        return out.flatten(0, 2)

    def names(
        self, chunk: Chunk, variant: Int[Tensor, "r"] | int | None, since: int
    ) -> Callable[[int], list[list[int]]] | None:
        """What tells the fillings of a chunk apart, the image and the noise of each, worked out on the host; None where it cannot be."""
        noise, here = self.here, replace(chunk, device=torch.device("cpu"))
        if noise is None or isinstance(variant, Tensor):
            return None

        def of(draws: int) -> list[list[int]]:
            keys = noise.take(here.image, variants(here, variant, since)).noise("filler").parts(1).parts(draws).keys
            rows = (self.first + here.image).repeat_interleave(draws)
            return torch.stack([rows, keys.flatten()], 1).tolist()

        return of


def variants(chunk: Chunk, variant: Int[Tensor, "r"] | int | None, since: int) -> Int[Tensor, "r"]:
    """Which variant of its image every row of a chunk is: those given, one for all, or its own from a number on."""
    if variant is None:
        return chunk.variant + since if since else chunk.variant
    return torch.full_like(chunk.image, variant) if isinstance(variant, int) else variant

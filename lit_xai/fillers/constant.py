"""Fillers that need no training: a colour, the mean, blur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from lit_xai.core import LUMA, REFERENCE_SIDE, Filler, Images, Model, Segments, TrainedOn, scaled
from lit_xai.errors import UsageError
from lit_xai.fillers.base import BackgroundFiller


@dataclass(frozen=True)
class Colour(BackgroundFiller):
    """One colour: `Colour(0.0)` is black, `Colour(0.5)` grey, `Colour((r, g, b))` any other (its luma on grey images)."""

    value: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.value, int | float):
            object.__setattr__(self, "value", tuple(self.value))

    def check_channels(self, channels: int) -> None:
        """A colour has a value for every channel, or one for all; of three, grey images take the luma."""
        found = 1 if isinstance(self.value, int | float) else len(self.value)
        if found not in (1, channels) and (found, channels) != (3, 1):
            raise UsageError(
                f"fills images of {channels} channels by a colour of {found} values: take the data's mean, .filler._target_=lit_xai.fillers.Mean"
            )

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The colour, at the images' size."""
        self.check_channels(images.shape[1])
        colour = torch.as_tensor(self.value, dtype=images.dtype, device=images.device).reshape(-1)
        if len(colour) == 3 and images.shape[1] == 1:
            colour = (colour * colour.new_tensor(LUMA)).sum(0, keepdim=True)
        return colour[None, :, None, None].expand_as(images)


@dataclass(frozen=True)
class Mean(BackgroundFiller):
    """The mean colour of the training folds; whoever knows the data gives it with `fitted`."""

    colour: tuple[float, ...] | None = field(default=None)

    def fitted(self, trained_on: TrainedOn) -> Mean:
        """This filler with the training folds' mean colour."""
        return self if self.colour is not None else replace(self, colour=trained_on.colour)

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The mean colour, at the images' size."""
        if self.colour is None:
            raise UsageError("the mean filler does not know its colour: pass Mean(colour=(...)) or Colour(0.0)")
        return Colour(self.colour).background(images)


@dataclass(frozen=True)
class Blur(BackgroundFiller):
    """Gaussian blur. `kernel` and `sigma` are pixels at 224 px and scale with the image side (RISE's insertion)."""

    kernel: int = 11
    sigma: float = 5.0

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The kernel and sigma in pixels of these images."""
        side = min(images.shape[-2:])
        kernel = scaled(self.kernel, side)
        if self.sigma <= 0 or kernel // 2 >= side:
            raise UsageError(f"a blur needs sigma > 0 and a kernel narrower than twice the image, found {self}")
        return {"kernel": kernel, "sigma": self.sigma * side / REFERENCE_SIDE}

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The blurred images (borders reflect)."""
        size = self.resolve(lambda x: x, images)
        offsets = torch.arange(size["kernel"], dtype=images.dtype, device=images.device) - size["kernel"] // 2
        weights = torch.exp(-(offsets**2) / (2 * size["sigma"] ** 2))
        weights = weights / weights.sum()
        channels, pad = images.shape[1], size["kernel"] // 2
        x = F.pad(images, (pad, pad, pad, pad), mode="reflect")
        x = F.conv2d(x, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(x, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


@dataclass(frozen=True)
class BlurOrMean(BackgroundFiller):
    """A blur, and on images of less than `below` pixels a side the mean colour: a blur of that size leaves them readable."""

    blur: Blur = field(default_factory=Blur)
    mean: Mean = field(default_factory=Mean)
    below: int = 64

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """Which of the two stands on these images."""
        return {"start": "mean" if min(images.shape[-2:]) < self.below else "blur"}

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The blurred images, or the mean colour."""
        filler = self.mean if min(images.shape[-2:]) < self.below else self.blur
        return filler.background(images, segments)


def constant_colour(filler: Filler, images: Images) -> Images:
    """What a filler paints where that is one colour, whatever the image.

    Raises:
        UsageError: it is another filler.
    """
    if type(filler) not in (Colour, Mean):
        raise UsageError(
            f"{type(filler).__name__} paints with what it sees, so that masks alone do not say what changes: certificates need a "
            "colour, filler._target_=lit_xai.fillers.Colour or Mean"
        )
    return filler.background(images)  # type: ignore[return-value]

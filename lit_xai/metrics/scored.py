"""What scores of maps share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_xai.core import Filler, Images, Passes, Score
from lit_xai.errors import UsageError
from lit_xai.fillers.refill import Refill
from lit_xai.fitting import describe
from lit_xai.rng import SampleRng


def check_scored(images: Images, maps: Tensor) -> None:
    """Refuse maps that are not the images' or hold NaN: a score of them would look like any other."""
    if maps.shape != (len(images), *images.shape[-2:]):
        raise UsageError(f"maps of shape {tuple(maps.shape)} do not belong to images of shape {tuple(images.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise UsageError("a map holds NaN or infinite values: explain that image again, or leave it out")


class Hides(Score):
    """A score that shows the model images with hidden pixels."""

    filler: Filler

    def refill(self, images: Images, rng: SampleRng) -> Refill:
        """What makes these images."""
        return Refill(self.filler, images, rng)


class OfMaps(Score):
    """A score that makes no model pass of its own; `source` is where it was published."""

    source: ClassVar[str] = ""

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": self.source}

    def passes(self, height: int, width: int) -> Passes:
        """None."""
        return Passes(0)

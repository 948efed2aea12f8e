"""What scores of maps share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import gated
from lit_xai.core import Filler, Images, Maps, Model, Passes, Score, Scores, Targets
from lit_xai.errors import UsageError
from lit_xai.fillers.refill import Refill
from lit_xai.fitting import describe
from lit_xai.rng import SampleRng


def check_scored(images: Images, maps: Tensor) -> None:
    """Refuse maps that are not the images', `[b, h, w]`, or hold NaN: a score of them would look like any other."""
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


class Detailed(Score):
    """A score that learns more than its number on the way: the call gives the number alone."""

    @abstractmethod
    def with_details(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Float[Tensor, "b"]]]:
        """The score, and what else was learned, one number an image each, by name."""

    @gated
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores:
        return self.with_details(model, images, maps, targets, rng, observed)[0]


class OfMaps(Score):
    """A score that makes no model pass of its own; `source` is where it was published."""

    source: ClassVar[str] = ""

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": self.source}

    def passes(self, height: int, width: int) -> Passes:
        """No pass of the model."""
        return Passes(0)

"""A null that knows neither image nor model: photographs show their object in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lit_xai.calls import gated
from lit_xai.core import MAGNITUDE, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.rng import SampleRng

SPREAD = 0.25  # standard deviation, in sides of the image


@dataclass(frozen=True)
class Centre(Explainer):
    """A Gaussian blob in the middle, 1 at its top, of standard deviation a quarter of each side."""

    deterministic: ClassVar[bool] = True
    null: ClassVar[bool] = True
    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = nearer to the middle; nothing of image and model")

    def passes(self, height: int, width: int) -> Passes:
        """No model pass at all."""
        return Passes(0)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        down, across = (
            torch.exp(-0.5 * ((torch.arange(side).to(images) - (side - 1) / 2) / (SPREAD * side)) ** 2)
            for side in images.shape[-2:]
        )
        return (down[:, None] * across).expand(len(images), -1, -1).clone()

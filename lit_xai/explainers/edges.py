"""A null that knows the image and not the model: its edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from lit_xai.calls import gated
from lit_xai.core import MAGNITUDE, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.explainers.image import luma
from lit_xai.rng import SampleRng


@dataclass(frozen=True)
class Edges(Explainer):
    """Sobel's gradient magnitude of the brightness, in brightness a pixel; borders are repeated."""

    deterministic: ClassVar[bool] = True
    null: ClassVar[bool] = True
    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = a steeper edge of the image; nothing of the model")

    def passes(self, height: int, width: int) -> Passes:
        """No model pass at all."""
        return Passes(0)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        across = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        padded = F.pad(luma(images)[:, None], (1, 1, 1, 1), mode="replicate")
        both = F.conv2d(padded, torch.stack([across, across.T])[:, None])
        return both.square().sum(1).sqrt()

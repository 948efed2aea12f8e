"""The averaged gradient per superpixel: what LIME's coefficients approach on smooth models (Garreau & Mardaoui, 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, admit, gated
from lit_xai.core import SIGNED, Explainer, Images, Legend, Maps, Model, Passes, Segments, Targets
from lit_xai.errors import UsageError
from lit_xai.explainers.gradient import mean_gradient
from lit_xai.fillers.base import BackgroundFiller
from lit_xai.fillers.simple import SegmentMean
from lit_xai.rng import SampleRng
from lit_xai.segments import Quickshift, Segmenter, segment_sums, to_pixels


@dataclass(frozen=True)
class AveragedGradient(Explainer):
    """Per superpixel the sum of (x - filler) * (gradient averaged from filler to image), at each of its pixels.

    Integrated gradients summed over superpixels; equals LIME's limit on linear models. The trapezoid's weights sum to 1.

    Args:
        segments: makes the superpixels.
        filler: where the path begins; one that does not depend on the mask.
        points: of the trapezoid, ends included.
        output: `probability` or `logit`.
        max_batch: most images per model call.
    """

    deterministic: ClassVar[bool] = True

    segments: Segmenter = field(default_factory=Quickshift)
    filler: BackgroundFiller = field(default_factory=SegmentMean)
    points: int = 21
    output: str = "probability"
    max_batch: Size = AUTO

    @property
    def legend(self) -> Legend:
        """Contributions to the output."""
        return Legend(SIGNED, unit=self.output)

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass a point."""
        return Passes(self.points, self.points)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        segments = self.segments(images)
        return to_pixels(self.coefficients(model, images, targets, segments), segments).to(images.dtype)

    def coefficients(self, model: Model, images: Images, targets: Targets, segments: Segments) -> Float[Tensor, "b d"]:
        """One number a superpixel; 0 beyond an image's own.

        Raises:
            UsageError: fewer than two points; a filler that depends on the mask.
        """
        model, images, targets = admit(model, images, targets)
        if self.points < 2:
            raise UsageError(f"the path from filler to image needs points >= 2, found {self.points}")
        if not isinstance(self.filler, BackgroundFiller):
            raise UsageError(f"{type(self.filler).__name__} depends on the mask: the path begins at one fixed image")
        start = self.filler.background(images, segments)
        at = torch.linspace(0, 1, self.points, dtype=images.dtype, device=images.device)
        weights = torch.full_like(at, 1 / (self.points - 1))
        weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2

        def make(chunk: Chunk) -> Tensor:
            begin = start[chunk.image]
            return begin + at[chunk.variant].view(-1, 1, 1, 1) * (images[chunk.image] - begin)

        gradient = mean_gradient(model, images, targets, weights, make, self.max_batch, self.output)
        return segment_sums(((images - start) * gradient).sum(1), segments)

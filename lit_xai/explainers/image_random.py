"""A null: what input times anything gets for free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lit_xai.calls import gated
from lit_xai.core import SIGNED, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.explainers.control import Random
from lit_xai.explainers.image import luma
from lit_xai.rng import SampleRng


@dataclass(frozen=True)
class ImageRandom(Explainer):
    """The brightness of the image times the map of `Random`, whose noise is every model's own."""

    null: ClassVar[bool] = True
    legend: ClassVar[Legend] = Legend(SIGNED, "brightness times noise: the colours have no meaning")

    def passes(self, height: int, width: int) -> Passes:
        """No model pass at all."""
        return Passes(0)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return luma(images) * Random()(model, images, targets, rng)

"""A null that knows the image and not the model: its brightness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import gated
from lit_xai.core import BY_SIGN, LUMA, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng


def luma(images: Images) -> Float[Tensor, "b h w"]:
    """Brightness of RGB images (ITU-R BT.601), the mean of any other channels."""
    if images.shape[1] != 3:
        return images.mean(1)
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))


@dataclass(frozen=True)
class Image(Explainer):
    """The brightness of the image, as if it were an explanation; what a score gives it, it gives for the image alone.

    Args:
        hidden: brightness, in [0, 1], of what a score puts in a hidden place, so that what looks like it is 0.
    """

    deterministic: ClassVar[bool] = True

    hidden: float = 0.0
    null: ClassVar[bool] = True
    legend: ClassVar[Legend] = Legend(
        BY_SIGN, "red = brighter than what is put in a hidden place; nothing of the model"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.hidden <= 1:
            raise UsageError(f"Image's hidden must lie in [0, 1], found {self.hidden}")

    def passes(self, height: int, width: int) -> Passes:
        """No model pass at all."""
        return Passes(0)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return luma(images) - self.hidden

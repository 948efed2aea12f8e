"""Infidelity: does the map's sum over a removed window say how far the output drops? One number per image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_xai.calls import AUTO, Size
from lit_xai.core import REFERENCE_SIDE, Filler, Images, Model, Scores
from lit_xai.core import scaled as at_side
from lit_xai.errors import UsageError
from lit_xai.fillers.constant import Colour
from lit_xai.fitting import describe
from lit_xai.metrics.drops import Drops
from lit_xai.rng import Noise


@dataclass(frozen=True)
class Infidelity(Drops):
    """Mean squared difference of the map's sum in a removed window and the drop of the output without it: lower is better.

    (I . Phi - (f(x) - f(x without S)))^2, mean over square windows S at random places, all inside the image. I is 1 in S and 0 elsewhere:
    maps here are evidence of pixels, already multiplied by the input, for which Yeh et al. divide the perturbation x_S by x. In squared
    units of the output, so that numbers of different models do not compare; a map of zeros has the mean squared drop.

    Args:
        subsets: random windows an image.
        window: their side in pixels at 224 px; it scales with the image's shorter side.
        scaled: the map is multiplied by the factor that fits it best to the drops of its own image, which may be negative: only its
            proportions count. Else it counts as it is, in units of the output.
        output: `logit` or `probability`.
        filler: what stands where a pixel is removed.
        max_batch: most images per model call.

    Raises:
        UsageError: no window, or one as large as the image.
    """

    subsets: int = 200
    window: int = 56
    scaled: bool = True
    output: str = "logit"
    filler: Filler = field(default_factory=lambda: Colour(0.0))
    max_batch: Size = AUTO
    higher_is_better = False
    stream = "infidelity"

    def __post_init__(self) -> None:
        if self.subsets < 1 or not 0 < self.window < REFERENCE_SIDE:
            found = f"subsets={self.subsets}, window={self.window}"
            raise UsageError(
                f"infidelity needs at least 1 subset and a window in (0, {REFERENCE_SIDE}) pixels, found {found}"
            )

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        source = "Yeh et al. 2019, square removal; optimal scaling as in its experiments (captum: normalize=True)"
        return {**describe(self), "source": source}

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The windows' side in pixels of these images."""
        return {"window": self.side(*images.shape[-2:])}

    def side(self, height: int, width: int) -> int:
        """The same of an image of this size."""
        return at_side(self.window, min(height, width), odd=False, least=1)

    def removed(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "*r h w"]:
        """The window of every key."""
        side = self.side(height, width)
        corner, inside = noise.uniform((2,)), []
        for u, size in zip(corner.unbind(-1), (height, width), strict=True):
            start = (u * (size - side + 1)).long()[..., None]
            place = torch.arange(size, device=u.device)
            inside.append((place >= start) & (place < start + side))
        return inside[0][..., None] & inside[1][..., None, :]

    def judged(self, sums: Float[Tensor, "b n"], drops: Float[Tensor, "b n"]) -> Scores:
        """The mean squared difference, at the best scale if that is asked for; the best scale of zeros is 0."""
        if self.scaled:
            size = (sums * sums).sum(1, keepdim=True)
            best = (sums * drops).sum(1, keepdim=True) / size
            sums = torch.where(size > 0, best * sums, 0.0)
        return (sums - drops).square().mean(1)

"""How few pixels a map rests on. One number per image, of the map alone: the model is never asked."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import gated
from lit_xai.core import Images, Maps, Model, Scores, Targets
from lit_xai.metrics.scored import OfMaps, check_scored
from lit_xai.rng import SampleRng


class OfMass(OfMaps):
    """A score of |map| as a distribution over pixels; NaN for a map of zeros, which has none.

    It describes a map and says nothing of the model: it is not marked against nulls.
    """

    against_nulls = False
    deterministic: ClassVar[bool] = True

    @abstractmethod
    def value(self, mass: Float[Tensor, "b p"]) -> Float[Tensor, "b"]:
        """The score of float64 shares that sum to 1."""

    def of(self, maps: Maps) -> Scores:
        """The score of each map, float64."""
        mass = maps.detach().flatten(1).double().abs()
        mass = mass / mass.amax(1, keepdim=True)  # sums of extreme values would leave the range; 0 / 0 is the NaN above
        return self.value(mass / mass.sum(1, keepdim=True))

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
        check_scored(images, maps)
        return self.of(maps)


@dataclass(frozen=True)
class Sparseness(OfMass):
    """Gini index of |map|: 0 where all pixels are equal, 1 - 1 / pixels where one has everything. Higher is better."""

    higher_is_better = True
    source = "Chalasani et al. 2020: Gini index of the absolute attributions"

    def value(self, mass: Float[Tensor, "b p"]) -> Float[Tensor, "b"]:
        """Sum over ascending shares m_i, i = 1 .. p, of (2 i - p - 1) m_i / p."""
        pixels = mass.shape[1]
        rank = 2 * torch.arange(1, pixels + 1, dtype=mass.dtype, device=mass.device) - pixels - 1
        equal = mass.amin(1) == mass.amax(1)  # exactly 0, not what sums round to
        return torch.where(equal, 0.0, (mass.sort(1).values * rank).sum(1) / pixels)


@dataclass(frozen=True)
class Complexity(OfMass):
    """Entropy of |map| / sum |map| in nats: 0 where one pixel has everything, ln(pixels) where all are equal. Lower is better."""

    higher_is_better = False
    source = "Bhatt et al. 2020: entropy of the fractional contributions, natural logarithm"

    def value(self, mass: Float[Tensor, "b p"]) -> Float[Tensor, "b"]:
        """The entropy; a pixel of 0 adds 0."""
        return torch.special.entr(mass).sum(1)

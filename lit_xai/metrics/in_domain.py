"""Faithfulness by images that the network was trained to see: the same cells of the same grid, hidden by the same filler.

What deletion, insertion and muFidelity show a network are strangers to it, and its answers to strangers say little of the map. Of a
network that was trained with parts hidden (`lit_xai.fillers.Hiding`), they are none as long as no more is hidden than in
training: Hesse et al. (NeurIPS 2024) train with single parts of a grid deleted, Zheng et al. (ICLR 2025) with random shares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.core import Filler, Images, Maps, Model
from lit_xai.errors import UsageError
from lit_xai.fillers.hiding import CELLS, MOST, Hiding
from lit_xai.fillers.refill import Refill
from lit_xai.fitting import describe
from lit_xai.metrics.drops import MuFidelity
from lit_xai.metrics.fidelity import Curve, descending_position
from lit_xai.metrics.scored import Hides
from lit_xai.rng import Noise, SampleRng

SOURCE = (
    "Hesse et al., NeurIPS 2024 (in-domain deletion); Zheng et al., ICLR 2025 (F-Fidelity); Hooker et al., 2019 (ROAR)"
)
S = TypeVar("S", bound="InDomain")


class InDomain(Hides):
    """What these scores share: a filler and a grid that are the network's own, or given.

    Attributes:
        filler: None = that of the network's training, which `within` gives.
        cells: a side of the grid; None = that of the network's training.
    """

    filler: Filler | None  # type: ignore[assignment]
    cells: int | None

    def within(self: S, hiding: Hiding | None, name: str = "this score") -> S:
        """The score as the network was trained to see images; a filler that is given stands, whatever the network knows.

        Raises:
            UsageError: the network was trained on whole images, and no filler is given.
        """
        if self.filler is not None:
            return replace(self, cells=self.cells or CELLS)  # type: ignore[type-var]
        if hiding is None:
            raise UsageError(
                f"{name} shows images with hidden parts to a network that was trained on whole ones: train it by python -m "
                f"lit_xai.train hide=mean (or another filler), or insist by {name}.filler={{_target_: lit_xai.fillers.Mean}}"
            )
        return replace(self, filler=hiding.filler, cells=self.cells or hiding.cells)  # type: ignore[type-var]

    @property
    def hiding(self) -> Hiding:
        """The filler and the grid; errors as `within`."""
        known = self.within(None)
        assert known.filler is not None
        assert known.cells is not None
        return Hiding(known.filler, known.cells)

    def refill(self, images: Images, rng: SampleRng) -> Refill:
        """What hides cells; the filler is told of the grid."""
        return Refill(self.hiding.filler, images, rng, self.hiding.segments(images))

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": SOURCE}


class CellCurve(InDomain, Curve):
    """A walk over cells in descending order of the map's mean in them; ties in random order, from the sample's own stream."""

    what = "cells"

    def parts(self, height: int, width: int) -> int:
        """The cells of the grid."""
        return (self.cells or CELLS) ** 2

    def counts(self, height: int, width: int) -> Int[Tensor, "t"]:
        """How many cells have changed at every point: up to `fraction` of them, in steps of `step`."""
        if not 0 < self.fraction <= MOST or self.step < 1 or self.step != int(self.step) or self.repeats < 1:
            found = f"{self.fraction}, {self.step}, {self.repeats}"
            raise UsageError(
                f"in the network's domain are fractions in (0, {MOST}], in steps of whole cells, with repeats >= 1, found {found}"
            )
        last = int(self.fraction * self.parts(height, width))
        return torch.cat([torch.arange(0, last, int(self.step)), torch.tensor([last])]).unique()

    def span(self, height: int, width: int) -> tuple[float, float]:
        """The shares of the changed cells at the curve's two ends."""
        counts = self.counts(height, width)
        return tuple(float(counts[i]) / self.parts(height, width) for i in (0, -1))  # type: ignore[return-value]

    def position(self, maps: Maps, rng: SampleRng, repeat: int = 0) -> Int[Tensor, "b p"]:
        """The place of every pixel's cell in descending order of the cells."""
        images = maps[:, None]
        order = descending_position(self.means(maps).unflatten(1, (-1, self.cells or CELLS)), rng, repeat)
        return self.hiding.places(order, images).flatten(1)

    def means(self, maps: Maps) -> Float[Tensor, "b n"]:
        """The mean of every map in every cell, in float64."""
        cell = self.hiding.grid(maps[:, None]).flatten()
        total = maps.new_zeros(len(maps), self.parts(0, 0), dtype=torch.float64)
        total.index_add_(1, cell, maps.flatten(1).double())
        return total / torch.bincount(cell, minlength=total.shape[1])

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The number of points."""
        return {"points": len(self.counts(*images.shape[-2:]))}


@dataclass(frozen=True)
class InDomainDeletion(CellCurve):
    """Area under the probability as the most important cells are hidden, up to half of them: lower is better, at most .5.

    Args:
        step: cells a step.
        fraction: share of the cells that is hidden in the end, in (0, .5].
        repeats: random orders of the ties that the area is averaged over.
        output: `probability` or `logit`.
        filler, cells: see `InDomain`.
        max_batch: most images per model call.
    """

    step: float = 1
    fraction: float = MOST
    filler: Filler | None = None  # type: ignore[assignment]
    cells: int | None = None


@dataclass(frozen=True)
class InDomainInsertion(CellCurve):
    """Area under the probability as the least important half of the cells appears, the best of it first: higher is better.

    Insertion where no more than `fraction` of the cells is hidden: it starts with the least important ones hidden, and what it asks
    is whether the others are enough. The arguments are those of `InDomainDeletion`.
    """

    step: float = 1
    fraction: float = MOST
    filler: Filler | None = None  # type: ignore[assignment]
    cells: int | None = None
    higher_is_better = True

    def counts(self, height: int, width: int) -> Int[Tensor, "t"]:
        """How many cells are visible at every point."""
        return self.parts(height, width) - super().counts(height, width).flip(0)

    def keep(self, changed: Tensor) -> Tensor:
        """Inserted cells are visible."""
        return changed


@dataclass(frozen=True)
class InDomainMuFidelity(InDomain, MuFidelity):
    """muFidelity over random subsets of cells, all of the same size: higher is better. The arguments are those of both."""

    filler: Filler | None = None  # type: ignore[assignment]
    cells: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.definition == "xplique" or self.grid or self.share > MOST:  # type: ignore[operator]
            raise UsageError(
                f"in the network's domain are subsets of share at most {MOST} of its own grid: give cells= in the place of grid=, and "
                "no definition"
            )

    def removed(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "*r h w"]:
        """The cells of every key's subset: True = the pixel is hidden."""
        assert self.share is not None
        number = (self.cells or CELLS) ** 2
        cells = noise.subset(number, max(1, round(self.share * number)))
        return self.hiding.places(cells, torch.empty(1, 1, height, width, device=cells.device))

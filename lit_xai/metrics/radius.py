"""How far an image surely may move before a map's top region loses its rank, and how far it need not. One number per image."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import admit, gated
from lit_xai.core import Explainer, Images, Maps, Model, Scores, Targets, as_explainer
from lit_xai.errors import UsageError
from lit_xai.fitting import describe
from lit_xai.metrics.certificates import Question, attack_radius
from lit_xai.metrics.scored import Detailed, check_scored
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid, segment_counts, segment_sums

LOG = logging.getLogger(__name__)
ROUNDED = 1e-4  # of a map's range: by how much float32 may confuse two of its cells


@dataclass(frozen=True)
class CertifiedRadius(Detailed):
    """The largest l2 change of the image, in pixel values, within which the map's top cell surely stays the top: higher is better.

    A lower bound of the least change that ends its rank; the detail `attack` is an upper bound, the change that an attack within
    [0, 1] found, infinite where it found none (`lit_xai.metrics.certificates`; docs/deeper.md). NaN, with one line, of methods that
    are no weighted sum over masks which stay where they are, and of networks without a known Lipschitz constant; NaN also where the map's
    top is not that of the sum, as it is another method's, or the model's answer is no number. Nulls that ignore the model have no such sum
    either: nothing is marked against them.

    Args:
        cells: of the grid whose cells are ranked, along a side.
        steps: of the attack; 0 = none.
    """

    count = "steps"
    cells: int = 7
    steps: int = 100
    higher_is_better = True
    against_nulls = False

    def __post_init__(self) -> None:
        if self.cells < 2 or self.steps < 0:
            raise UsageError(
                f"a certified radius needs 2 cells a side and steps >= 0, found {self.cells}, {self.steps}"
            )

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": "lit_xai: Lipschitz bounds of weighted sums over masks (docs/deeper.md)"}

    @property
    def explanations(self) -> int:
        """The masked images once, and a forward and a backward pass of them a step of the attack."""
        return 1 + 3 * self.steps

    def again(
        self,
        explainer: Explainer | Callable[..., Maps],
        model: Model,
        images: Images,
        targets: Targets,
        rng: SampleRng | None = None,
    ) -> Float[Tensor, "b 3"]:
        """Both radii of every image, and which cell is its top."""
        method, found = as_explainer(explainer), images.new_full((len(images), 3), torch.nan, dtype=torch.float64)
        admit(model, images, targets)  # what is no question at all is refused
        try:
            question = Question.of(method, model, images, targets, rng, self.cells)
            parts = [torch.stack([r.radius(), r.order.top[:, 0].double()], 1) for r in question.rankings()]
        except UsageError as e:
            none(type(method).__name__, str(e))
            return found
        found[:, ::2] = torch.cat(parts)
        if self.steps:
            found[:, 1] = attack_radius(question, self.steps)
        return found

    @gated
    def with_details(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Scores, dict[str, Float[Tensor, "b"]]]:
        """The radius, and the attack's."""
        check_scored(images, maps)
        if observed is None or observed.shape != (len(images), 3):
            raise UsageError(
                "CertifiedRadius needs both radii: pass observed=score.again(explainer, model, images, targets, rng)"
            )
        certified, attack, top = observed.to(maps.device).unbind(1)
        labels = Grid(self.cells)(images)
        means = segment_sums(maps.double(), labels) / segment_sums(torch.ones_like(maps, dtype=torch.float64), labels)
        means = means[:, : int(segment_counts(labels)[0])] if len(maps) else means
        lacks = means.amax(1) - means.gather(1, top.nan_to_num().long()[:, None])[:, 0]
        other = lacks > ROUNDED * maps.double().flatten(1).abs().amax(1)
        return certified.masked_fill(other, torch.nan), {
            "attack": attack.masked_fill(other, torch.nan)
        } if self.steps else {}


@functools.cache
def none(method: str, why: str) -> None:
    """One line, once, where there is no radius."""
    LOG.warning("no certified radius of %s: %s", method, why)

"""How much of an image must be kept for its prediction to stay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, gated, predicted_rows
from lit_xai.core import Filler, Images, Maps, Model, Passes, Score, Scores, Targets
from lit_xai.fillers.constant import BlurOrMean
from lit_xai.fillers.refill import Refill
from lit_xai.fitting import describe
from lit_xai.metrics.conformal import kept_from
from lit_xai.metrics.fidelity import Insertion, descending_position
from lit_xai.metrics.scored import check_scored
from lit_xai.rng import SampleRng

KEPT = "kept_share"  # its name among scores


@dataclass(frozen=True)
class KeptShare(Score):
    """The smallest share of an image's pixels, the highest of its map first, from which on the prediction is that of the whole
    image, and stays it: in (0, 1] or 0, lower is better. NaN where the model's answer is no number at any point.

    The walk is insertion's (Petsiuk et al., 2018): it begins with the filler everywhere and ends with the whole image. Which class the
    map explains plays no part. Ties of the map are broken at random, from the sample's own stream.

    Args:
        step: pixels a step; 0 = the image side; below 1, a share of the pixels. The share is known to within a step.
        filler: what stands where a pixel is not kept.
        max_batch: most images per model call.
    """

    step: float = 0
    filler: Filler = field(default_factory=BlurOrMean)
    max_batch: Size = AUTO
    deterministic = True  # but for the order of ties, of which another is as good
    higher_is_better = False

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        source = "insertion's walk (Petsiuk et al. 2018); smallest share from which on the prediction stays the whole image's"
        return {**describe(self), "source": source}

    def counts(self, height: int, width: int) -> Int[Tensor, "t"]:
        """How many pixels are visible at every point."""
        return Insertion(step=self.step).counts(height, width)

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a point."""
        return Passes(len(self.counts(height, width)))

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
        rng = SampleRng.default(len(images), rng)
        counts = self.counts(*images.shape[-2:]).to(images.device)
        refill, shares = Refill(self.filler, images, rng), counts.double() / (images.shape[-2] * images.shape[-1])
        place = descending_position(maps, rng).view(-1, *images.shape[-2:])

        def make(chunk: Chunk) -> Tensor:
            kept = place[chunk.image] < counts[chunk.variant].view(-1, 1, 1)
            return refill(kept, chunk, 0)  # one noise along the whole walk

        said = predicted_rows(model, make, images, len(counts), self.max_batch)
        return kept_from(said == said[:, -1:], shares).masked_fill(said.isnan().any(1), torch.nan)

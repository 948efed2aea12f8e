"""MeGe and ReCo as torchmetrics: does an explanation persist when the training data change? See `measures`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torchmetrics import Metric

from lit_xai.core import Maps
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import map_distance
from lit_xai.metrics.estimation import MIN_DISAGREEMENTS, Measure, estimates
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import RESAMPLES, Estimate


class PairMetric(Metric):
    """Pairs of maps come in, a row of three numbers of each is kept.

    Works alone, in a loop, and under DDP (states are gathered; ranks may hold any number of pairs, also none).

    Args:
        definition: one of `DEFINITIONS`.
        distance: a name in `lit_xai.metrics.distance.DISTANCES`.
        seed: of the resamples.
        resamples: bootstrap resamples for `estimate`.
    """

    DEFINITIONS: ClassVar[dict[str, str]]  # its measure by definition
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor]

    def __init__(
        self,
        definition: str = "default",
        distance: str = "spearman",
        seed: int = 0,
        resamples: int = RESAMPLES,
        **kwargs: Any,
    ) -> None:
        if definition not in self.DEFINITIONS:
            raise UsageError(f"definition {definition!r} is unknown; choose one of: {', '.join(self.DEFINITIONS)}")
        super().__init__(**kwargs)
        self.measure: Measure = MEASURES[self.DEFINITIONS[definition]]
        self.distance, self.seed, self.resamples = self.measure.distance or distance, seed, resamples
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        maps_i: Maps,
        maps_j: Maps,
        correct_i: Shaped[Tensor, "b"],
        correct_j: Shaped[Tensor, "b"],
        sample: Int[Tensor, "b"],
    ) -> None:
        """Add pairs of maps of the same samples, sample by sample, from two predictors."""
        correct_i, correct_j = correct_i.bool(), correct_j.bool()
        if not len(maps_i) == len(maps_j) == len(correct_i) == len(correct_j) == len(sample):
            raise UsageError("maps_i, maps_j, correct_i, correct_j and sample must have one entry per sample")
        keep = correct_i | correct_j
        if not bool(keep.any()):
            return
        for maps in (maps_i, maps_j):
            if not bool(torch.isfinite(maps).all()):
                raise UsageError("a map holds NaN or infinite values: explain that sample again, or leave it out")
        delta = map_distance(maps_i[keep], maps_j[keep], self.distance)
        columns = (delta.double(), (correct_i & correct_j)[keep].double(), sample[keep].double())
        self.rows.append(torch.stack([c.to(self.device) for c in columns], dim=1))

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        if not self.rows:  # a rank without pairs must still send a tensor of the right shape and type
            self.rows = [torch.zeros(0, 3, dtype=torch.float64, device=self.device)]
        super()._sync_dist(*args, **kwargs)

    def pairs(self) -> Pairs:
        """The pairs of the local state, every sample drawn as often as any other; which predictors' they are is not known."""
        rows = [self.rows] if isinstance(self.rows, Tensor) else self.rows
        table = torch.cat([r.cpu() for r in rows]) if rows else torch.zeros(0, 3, dtype=torch.float64)
        equal, nobody = table[:, 1] == 1, torch.full((len(table),), -1)
        weight = torch.ones(len(table), dtype=torch.float64)
        columns = (table[:, 0], equal, ~equal, table[:, 2].long(), weight, nobody, nobody)
        return Pairs(*columns, name=self.distance, seed=self.seed)

    def compute(self) -> Tensor:
        """The value alone; NaN where it is undefined."""
        return torch.tensor(self.measure.alone(self.pairs())[0], dtype=torch.float64)

    def estimate(self) -> Estimate:
        """The value with its 95 % interval, its null and its counts, over all ranks."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return estimates(self.pairs(), {"": self.measure}, self.resamples)[""]

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return self.measure.definition(self.distance)


class MeGe(PairMetric):
    """Mean generalisability, 1 / (1 + mean(S_equal)): 1 for explanations that never change.

    `default` and `paper` are Eq. 5 on the given distance; `xplique` takes sqrt(1 - |Spearman|).
    """

    DEFINITIONS: ClassVar[dict[str, str]] = {"default": "mege", "paper": "mege", "xplique": "mege_xplique"}


class ReCo(PairMetric):
    """Relative consistency: 1 if a threshold tells agreeing from contradicting predictors' maps, about 0 if none does.

    `default` has the class-conditional rates of a balanced accuracy; `paper` is Eq. 6 as printed; `auc` the mean over
    thresholds (appendix D); `xplique` that library's computation. With fewer than `min_samples` distinct disagreeing samples
    the value is NaN.
    """

    DEFINITIONS: ClassVar[dict[str, str]] = {
        "default": "reco",
        "paper": "reco_eq6",
        "auc": "reco_auc",
        "xplique": "reco_xplique",
    }

    def __init__(
        self,
        definition: str = "default",
        distance: str = "spearman",
        min_samples: int = MIN_DISAGREEMENTS,
        **kwargs: Any,
    ) -> None:
        super().__init__(definition, distance, **kwargs)
        self.measure = replace(self.measure, least=min_samples)

"""The pairs of maps that a measure of an ensemble is a function of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.store.fold import Predictions

OTHER_SCALE = {("spearman", "sqrt_spearman"): lambda d: d.clamp_min(0).sqrt()}  # distances that another one tells


def source_of(distance: str) -> str:
    """The distance that maps are compared by where this one is wanted."""
    return next((of for of, wanted in OTHER_SCALE if wanted == distance), distance)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Distances between two predictors' maps of a sample: f_i never saw the sample, f_j is any other predictor.

    S_equal are random probes. Once all disagreements are explained, S_differ are those alone; before, random probes that happen
    to be some. Every other pair is of neither set.

    Attributes:
        distance: float64, NaN where it is undefined (a constant map has no ranks).
        equal: S_equal: both predictors are right.
        differ: S_differ: exactly one of them is.
        sample: index of the data set.
        weight: inverse of the sample's sampling rate.
        i, j: folds of the two predictors.
        label: of S_differ: the wrong predictor's map explains the label; else it explains the class that this predictor says. None =
            it is not known, and the pairs count for both.
        name: of the distance.
        seed: of resamples and permutations.
        predictions: of every predictor for all samples, by fold; empty where nobody knows them.
        found: how many disagreements the predictors have; None while not all of them are explained.
        mend: the command that explains them, where it is known.
        beside: pairs of two maps of the same predictor, all in `equal`: by `randomised` beside its network with fresh weights, by
            `repeated` with other noise; i and j are both its fold. By `test` pairs of two predictors on test probes, which neither saw.
        lacks: why S_differ holds no pair of decisions (`decisions`) or of labels (`labels`) though disagreements were explained, and why a kind is not
            `beside`.
    """

    distance: Float[Tensor, "p"]
    equal: Bool[Tensor, "p"]
    differ: Bool[Tensor, "p"]
    sample: Int[Tensor, "p"]
    weight: Float[Tensor, "p"]
    i: Int[Tensor, "p"]
    j: Int[Tensor, "p"]
    label: Bool[Tensor, "p"] | None = None
    name: str = "spearman"
    seed: int = 0
    predictions: Mapping[int, Predictions] = field(default_factory=dict, repr=False)
    found: int | None = None
    mend: str = ""
    beside: Mapping[str, Pairs] = field(default_factory=dict, repr=False)
    lacks: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.distance)

    def take(self, rows: Tensor) -> Pairs:
        """Some of the pairs, by a mask `[p]` or by indices `[n]`; an index may repeat."""
        columns: dict[str, Any] = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **columns)

    def known(self) -> Pairs:
        """The pairs whose distance is defined."""
        return self.take(torch.isfinite(self.distance))

    def sets(self) -> tuple[Float[Tensor, "e"], Float[Tensor, "d"]]:
        """The defined distances of S_equal and of S_differ: of decisions, and where there are none, of labels."""
        known, decisions, labels = torch.isfinite(self.distance), self.of_decisions, self.of_labels
        differ = decisions if bool(decisions.any()) else labels
        return self.distance[known & self.equal], self.distance[known & differ]

    @property
    def of_decisions(self) -> Bool[Tensor, "p"]:
        """S_differ whose maps explain what each predictor says."""
        return self.differ if self.label is None else self.differ & ~self.label

    @property
    def of_labels(self) -> Bool[Tensor, "p"]:
        """S_differ whose maps explain the label, the wrong predictor's also."""
        return self.differ if self.label is None else self.differ & self.label

    def on(self, distance: str) -> Pairs | None:
        """The same pairs by another distance; None where this one does not tell it."""
        if distance in ("", self.name):
            return self
        scale = OTHER_SCALE.get((self.name, distance))
        return None if scale is None else replace(self, distance=scale(self.distance), name=distance)

"""What a window's absence changes: contrasts of a model's answers with and without it."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.core import MAGNITUDE, SIGNED, Component, Legend, TrainedOn
from lit_xai.errors import UsageError

EPSILON = 1e-13  # of the published information maps: keeps logarithms finite
Probabilities = Float[Tensor, "r k"]


class Contrast(Component):
    """How much the output changed: from p(y|x) and the mean p(y|x without the window), positive = evidence for.

    `unit` is that of its values.
    """

    unit: str

    @property
    def legend(self) -> Legend:
        """What the colours of its maps say."""
        return Legend(SIGNED, unit=self.unit)

    @abstractmethod
    def __call__(self, whole: Probabilities, hidden: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
        """One number a row, or n `[r, n]`; float64."""


def of_target(p: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
    """The probabilities of the targets."""
    return p.gather(1, targets[:, None])[:, 0]


def in_unit(nats: Tensor, unit: str) -> Tensor:
    """Nats `[...]` as `bits` or as `nats`."""
    if unit not in ("bits", "nats"):
        raise UsageError(f"unit must be bits or nats, found {unit!r}")
    return nats / math.log(2) if unit == "bits" else nats


@dataclass(frozen=True)
class ProbabilityDifference(Contrast):
    """p(c|x) - p(c|x without the window) (Zeiler & Fergus, 2014), in [-1, 1]."""

    unit: ClassVar[str] = "probability"  # type: ignore[misc]

    def __call__(self, whole: Probabilities, hidden: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
        return of_target(whole, targets) - of_target(hidden, targets)


@dataclass(frozen=True)
class LogOddsDifference(Contrast):
    """Weight of evidence, log odds(p) - log odds(p without) (Zintgraf et al., 2017).

    Args:
        unit: `bits` or `nats`.
        samples: training samples N of the Laplace correction (p N + 1) / (N + classes); 0 = none, None = as many as the
            predictor was trained on, where that is known (see `fitted`).
    """

    unit: str = "bits"
    samples: int | None = 0

    def fitted(self, trained_on: TrainedOn) -> LogOddsDifference:
        """This contrast with the number of training samples."""
        return self if self.samples is not None else replace(self, samples=trained_on.samples)

    def __call__(self, whole: Probabilities, hidden: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
        def odds(p: Tensor) -> Tensor:
            chosen = of_target(p, targets)
            if self.samples:
                chosen = (chosen * self.samples + 1) / (self.samples + p.shape[1])
            return torch.log((chosen + EPSILON) / (1 - chosen + EPSILON))

        return in_unit(odds(whole) - odds(hidden), self.unit)


@dataclass(frozen=True)
class PMI(Contrast):
    """Pointwise mutual information of the class and the window, log p(c|x) / p(c|x without)."""

    unit: str = "bits"

    def __call__(self, whole: Probabilities, hidden: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
        pair = of_target(whole, targets), of_target(hidden, targets)
        return in_unit(torch.log((EPSILON + pair[0]) / (EPSILON + pair[1])), self.unit)


@dataclass(frozen=True)
class KL(Contrast):
    """Kullback-Leibler divergence of p(y|x without) from p(y|x): the mean PMI under p(y|x). At least 0."""

    unit: str = "bits"

    @property
    def legend(self) -> Legend:
        """It is about all classes together."""
        return Legend(MAGNITUDE, "darker = more informative, whichever the class; white = 0", self.unit)

    def __call__(self, whole: Probabilities, hidden: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r"]:
        return in_unit((whole * torch.log((EPSILON + whole) / (EPSILON + hidden))).sum(1), self.unit)

"""How the 95 % intervals of measures are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from lit_xai.metrics.statistics import (
    Estimate,
    basic_difference,
    basic_interval,
    difference,
    finish,
    percentile_interval,
    share_difference,
)


class Interval(NamedTuple):
    """How a 95 % interval is made of a value's replicates, and that of a paired difference.

    Attributes:
        three: this share of the rule of three, 3 / disagreeing samples, is added to both halves in quadrature: resamples of a
            value at the end of its range are all alike.
        predictors: the interval is over samples x predictors, by the jackknife (see `across_predictors`), and that over samples
            stands beside it.
        least, most: no value lies beyond.
    """

    meaning: str
    of: Callable[[float, Tensor], tuple[float, float]]
    difference: Callable[[Estimate, Estimate], Estimate]
    three: float = 0.0
    predictors: bool = False
    least: float = -math.inf
    most: float = math.inf

    def estimate(self, value: float, draws: Tensor, disagreeing: int, counts: Mapping[str, Any]) -> Estimate:
        """A value with its interval over samples, from its replicates `draws` `[r]`."""
        e = finish(value, draws, self.of, **counts)
        e.widen(3 * self.three / disagreeing if disagreeing else 0.0)
        e.clip(self.least, self.most)
        return e


PERCENTILE = Interval("percentile bootstrap over samples", percentile_interval, difference)
CROSSED = Interval(
    "low, high: over samples x predictors, jackknife over predictors with t; low_samples, high_samples: over samples alone, "
    "percentile bootstrap",
    percentile_interval,
    share_difference,
    predictors=True,
    least=0.0,
    most=1.0,
)
BASIC = Interval(
    "basic bootstrap over samples, both halves with 3 / disagreeing samples in quadrature, clipped to [0, 1]",
    basic_interval,
    partial(share_difference, of=basic_difference),
    three=1.0,
    least=0.0,
    most=1.0,
)
SIGNED = BASIC._replace(
    meaning="basic bootstrap over samples, both halves with 1.5 / disagreeing samples in quadrature, clipped to [-1, 1]",
    of=partial(basic_interval, least=-1.0),
    three=0.5,
    least=-1.0,
)

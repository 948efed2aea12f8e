"""How sure a predictor is of what it says, against how often it is right (Guo et al., ICML 2017)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_xai.metrics.statistics import LEVEL, RESAMPLES, Estimate, basic_interval, finish, resamples, share_estimate
from lit_xai.rng import Noise, stable_hash

BINS = 15  # of equal width
CALIBRATED = 200  # draws of what a perfectly calibrated predictor would have


def in_bins(confidence: Float[Tensor, "n"]) -> Float[Tensor, "n j"]:
    """One-hot, which of the bins ((j - 1) / 15, j / 15] each confidence lies in; 0 lies in the first."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    return torch.nn.functional.one_hot(torch.bucketize(confidence.double(), edges), BINS).double()


def calibration_error(
    confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], seed: int = 0, n_resamples: int = RESAMPLES
) -> Estimate:
    """The expected calibration error: sum over bins of n_j / n |accuracy_j - mean confidence_j|, in [0, 1].

    A sum of absolute values lies above what it estimates. `null` is its mean over predictors that are as sure and perfectly calibrated
    (each image right with the probability that is its confidence): what so few images leave of an error of 0. The interval is the
    basic one over samples, and reaches down to 0 where one in twenty of those predictors has as large an error.

    Args:
        confidence: the probability of the predicted class.
        correct: whether that is the label.
        seed: of the null.
        n_resamples: of the interval.
    """
    bins, n = in_bins(confidence), len(confidence)
    own = (confidence.double() - correct.double())[:, None] * bins
    value = float(own.sum(0).abs().sum() / n)
    draws = torch.cat([(c @ own).abs().sum(1) / n for c in resamples(torch.zeros(n).long(), n_resamples, seed)])
    uniform = Noise(torch.tensor(stable_hash(seed, "calibrated"))).parts(CALIBRATED).uniform((n,), torch.float64)
    drawn = confidence.double() - (uniform < confidence.double()).double()
    nulls = (drawn @ bins).abs().sum(1) / n
    found = finish(value, draws, basic_interval, samples=n, null=float(nulls.mean()))
    if value <= float(torch.quantile(nulls, LEVEL)) and not found.few:
        found.low = 0.0
    return found


def reliability(confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"]) -> list[dict[str, Any]]:
    """The bins that hold any image: edges, number, mean confidence, accuracy with its Wilson interval."""
    out, bins = [], in_bins(confidence).bool()
    for j, inside in enumerate(bins.T):
        if bool(inside.any()):
            e = share_estimate(correct[inside])
            edges = {"from": j / BINS, "to": (j + 1) / BINS, "n": int(inside.sum())}
            mean = float(confidence[inside].double().mean())
            out.append({**edges, "confidence": mean, "value": e.value, "low": e.low, "high": e.high})
    return out

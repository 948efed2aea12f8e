"""Of what maps vary: samples, folds, networks. Random-effects analysis of variance, by the method of moments.

A map, as unit ranks of its pixels, is m[x, j, s] = S[x] + F[x, j] + N[x, s] + e[x, j, s]: what the sample x has, what the fold j that the
predictor never saw adds, what the network (or its seed) s adds, and what is left: fold x network. Variances are summed over pixels.
The mean squares of every sample's folds x networks give F, N and e, the variance of the samples' means S (Searle, Casella and McCulloch,
*Variance Components*, 1992, ch. 4).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.statistics import LEVEL, Estimate

PARTS = ("sample", "fold", "network", "rest")


def moments(cells: Float[Tensor, "n k s p"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n p"]]:
    """Of every sample, the mean squares of its folds, its networks and the rest, summed over pixels, and its mean map."""
    _, k, s, _ = cells.shape
    mean, fold, network = cells.mean((1, 2), keepdim=True), cells.mean(2, keepdim=True), cells.mean(1, keepdim=True)

    def squares(effect: Tensor, times: int, freedom: int) -> Tensor:
        return times * effect.square().sum((1, 2, 3)) / freedom

    rest = cells - fold - network + mean
    found = [
        squares(fold - mean, s, k - 1),
        squares(network - mean, k, s - 1),
        squares(rest, 1, (k - 1) * (s - 1)),
    ]
    return torch.stack(found, 1), mean[:, 0, 0]


def variances(
    squares: Float[Tensor, "*r 3"], between: Float[Tensor, "*r"], folds: int, networks: int
) -> Float[Tensor, "*r 4"]:
    """The unbiased components `PARTS`, of mean squares over samples and of the variance between the samples' means."""
    fold, network, rest = squares.unbind(-1)
    fold, network = (fold - rest) / networks, (network - rest) / folds
    sample = between - fold / folds - network / networks - rest / (folds * networks)
    return torch.stack([sample, fold, network, rest], -1)


def components(
    squares: Float[Tensor, "n 3"], means: Float[Tensor, "n p"], folds: int, networks: int
) -> dict[str, Estimate]:
    """The shares of `PARTS` in the variance of maps, with 95 % intervals over samples (delete-one jackknife, t of n - 1).

    A component below 0, which happens where the true one is near 0, counts as 0.

    Raises:
        UsageError: fewer than two folds, networks or three samples.
    """
    n = len(squares)
    if min(folds, networks) < 2 or n < 3:
        raise UsageError(
            f"components of variance need 2 folds, 2 networks and 3 samples, found {folds}, {networks}, {n}"
        )
    squares, gram = squares.double(), means.double() @ means.double().T
    own, rows, total = gram.diagonal(), gram.sum(1), gram.sum()

    def shares(mean_squares: Tensor, sum_of_squares: Tensor, square_of_sum: Tensor, number: int) -> Tensor:
        between = (sum_of_squares - square_of_sum / number) / (number - 1)
        found = variances(mean_squares, between, folds, networks).clamp_min(0)
        return found / found.sum(-1, keepdim=True)

    value = shares(squares.mean(0), own.sum(), total, n)
    without = shares((squares.sum(0) - squares) / (n - 1), own.sum() - own, total - 2 * rows + own, n - 1)
    errors = ((n - 1) * without.var(0, unbiased=False)).sqrt()
    reach = float(student.ppf((1 + LEVEL) / 2, n - 1))
    out = {}
    for name, v, se in zip(PARTS, value.tolist(), errors.tolist(), strict=True):
        if math.isfinite(v):
            out[name] = Estimate(v, max(0.0, v - reach * se), min(1.0, v + reach * se), se, samples=n)
        else:
            out[name] = Estimate(v, samples=n, reason="no map varies")
    return out

"""The linear model that LIME fits to a network's answers: weighted ridge regression with its errors, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from torch import Tensor

from lit_xai.core import Segments
from lit_xai.errors import UsageError
from lit_xai.segments import to_pixels

TOP = 5  # superpixels that people look at
LEVEL = 0.95


@dataclass(frozen=True)
class Block:
    """Perturbed images that have been seen: bit-packed representation if it is on-off, responses and weights."""

    features: np.ndarray | Tensor
    width: int
    response: Float[Tensor, "b n"]
    weight: Float[Tensor, "b n"]

    @staticmethod
    def of(features: Tensor, response: Tensor, weight: Tensor) -> Block:
        """A block of features `[b, n, d]`, bit-packed if they are boolean, responses and weights `[b, n]`."""
        packed = np.packbits(features.numpy(), axis=-1) if features.dtype == torch.bool else features
        return Block(packed, features.shape[-1], response, weight)

    def design(self) -> Float[Tensor, "b n p"]:
        """A leading one and the features, float64."""
        if isinstance(self.features, np.ndarray):
            features = torch.from_numpy(np.unpackbits(self.features, axis=-1, count=self.width))
        else:
            features = self.features
        return torch.cat([torch.ones(*features.shape[:2], 1, dtype=torch.float64), features.double()], dim=-1)


@dataclass(frozen=True)
class Surrogate:
    """The fitted linear model of every image.

    Attributes:
        segments: `[b, h, w]` superpixels.
        counts: `[b]` how many.
        coefficients: `[b, d]`, 0 beyond an image's own superpixels; in units of the output.
        intercept: `[b]`.
        covariance: `[b, d+1, d+1]` of (intercept, coefficients), sandwich form; NaN for samples = d + 1.
        r2: `[b]` weighted R^2, at most 1; NaN where the response is constant.
        samples: `[b]` perturbed images used.
        settled: `[b]` whether the five largest coefficients are settled at 95 % (for `samples="auto"`).
    """

    segments: Segments
    counts: Int[Tensor, "b"]
    coefficients: Float[Tensor, "b d"]
    intercept: Float[Tensor, "b"]
    covariance: Float[Tensor, "b p p"]
    r2: Float[Tensor, "b"]
    samples: Int[Tensor, "b"]
    settled: Bool[Tensor, "b"]

    @property
    def standard_errors(self) -> Float[Tensor, "b d"]:
        """The standard errors of the coefficients."""
        return self.covariance.diagonal(dim1=1, dim2=2)[:, 1:].clamp_min(0).sqrt()

    def intervals(self) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """The 95 % interval of every coefficient."""
        half = float(norm.ppf((1 + LEVEL) / 2)) * self.standard_errors
        return self.coefficients - half, self.coefficients + half

    def top(self, k: int = TOP) -> list[list[int]]:
        """The superpixels of the k largest positive coefficients of every image, largest first."""
        order = self.coefficients.argsort(dim=1, descending=True, stable=True)
        return [[j for j in o[:k].tolist() if c[j] > 0] for o, c in zip(order, self.coefficients, strict=True)]

    def maps(self) -> Float[Tensor, "b h w"]:
        """Every coefficient at the pixels of its superpixel."""
        return to_pixels(self.coefficients, self.segments.to(self.coefficients.device))


def fit(
    blocks: list[Block], counts: Int[Tensor, "b"], ridge: float = 1.0
) -> tuple[Tensor, Float[Tensor, "b p p"], Float[Tensor, "b"]]:
    """Weighted ridge regression of the whole batch in float64; the intercept is not penalised.

    Returns the parameters `[b, 1 + d]`, their sandwich covariance (HC1: scaled by n / (n - d - 1); NaN for n = d + 1,
    where the fit is exact whatever the model) and the weighted R^2.

    Raises:
        UsageError: the design is singular.
    """
    if ridge < 0:
        raise UsageError(f"ridge must be at least 0, found {ridge}")
    width = blocks[0].width + 1
    gram = torch.zeros(len(counts), width, width, dtype=torch.float64)
    right = torch.zeros(len(counts), width, dtype=torch.float64)
    for b in blocks:
        weighted = b.design() * b.weight[..., None]
        gram += weighted.mT @ b.design()
        right += (weighted * b.response[..., None]).sum(1)
    mean = right[:, 0] / gram[:, 0, 0]
    own = torch.arange(width) <= counts[:, None]  # padded features have no rows: 1 on the diagonal gives them 0
    penalty = torch.where(own, ridge, 1.0).double()
    penalty[:, 0] = 0
    gram += torch.diag_embed(penalty)
    factor = factored(gram)
    theta = torch.cholesky_solve(right[..., None], factor)[..., 0]
    meat = torch.zeros_like(gram)
    left, spread = torch.zeros_like(mean), torch.zeros_like(mean)
    for b in blocks:
        design = b.design()
        residual = b.response - (design @ theta[..., None])[..., 0]
        scored = design * (b.weight * residual)[..., None]
        meat += scored.mT @ scored
        left += (b.weight * residual**2).sum(1)
        spread += (b.weight * (b.response - mean[:, None]) ** 2).sum(1)
    inverse = torch.cholesky_inverse(factor)
    # a constant response leaves rounding behind: call its R^2 undefined
    r2 = torch.where(spread > 1e-20 * gram[:, 0, 0], 1 - left / spread, torch.nan)
    number = sum(b.response.shape[1] for b in blocks)
    left_over = (number - counts - 1).double()
    freedom = torch.where(left_over > 0, number / left_over, torch.nan)
    return theta, freedom[:, None, None] * (inverse @ meat @ inverse), r2


def factored(gram: Float[Tensor, "b p p"]) -> Float[Tensor, "b p p"]:
    """Cholesky factors of penalised Gram matrices.

    Raises:
        UsageError: one is singular.
    """
    factor, info = torch.linalg.cholesky_ex(gram)
    share = factor.diagonal(dim1=1, dim2=2) ** 2 / gram.diagonal(dim1=1, dim2=2)
    singular = (info > 0) | ~(share.amin(1) > 1e-10)
    if bool(singular.any()):
        raise UsageError(
            f"the surrogate of image {int(singular.nonzero()[0])} of the batch has a singular design: two superpixels "
            f"always vary together, or weights are all but zero; draw more samples, widen the kernel, or set ridge > 0"
        )
    return factor


def solved(design: Float[Tensor, "n d"], weight: Float[Tensor, "n"], ridge: float) -> Float[Tensor, "p n"]:
    """By how much each parameter (the intercept first) grows with each response, of the fit of one image.

    Raises:
        UsageError: the design is singular, as of `fit`.
    """
    whole = torch.cat([torch.ones(len(design), 1, dtype=torch.float64), design], dim=1)
    weighted = whole * weight[:, None]
    penalty = torch.full(whole.shape[1:], ridge, dtype=torch.float64)
    penalty[0] = 0
    return torch.cholesky_solve(weighted.mT, factored((weighted.mT @ whole + penalty.diag())[None])[0])


def is_settled(theta: Float[Tensor, "p"], covariance: Float[Tensor, "p p"], count: int, level: float) -> bool:
    """Whether every one of the five largest coefficients exceeds every other one, at this level."""
    if count <= TOP:
        return True
    order = theta[1 : count + 1].argsort(descending=True) + 1
    inside, outside = order[:TOP], order[TOP:]
    variance = covariance.diagonal()
    spread = variance[inside, None] + variance[outside] - 2 * covariance[inside[:, None], outside]
    gap = theta[inside, None] - theta[outside]
    return bool((gap > float(norm.ppf(level)) * spread.clamp_min(0).sqrt()).all())

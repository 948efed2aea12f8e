"""Do two explanations name the same superpixels? Jaccard index of the top k (Garreau & Mardaoui, 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.errors import UsageError


def top_positive(values: Float[Tensor, "b d"], k: int) -> Bool[Tensor, "b d"]:
    """The k largest of the positive values of every row, fewer where fewer are positive; ties go to lower numbers."""
    if k < 1:
        raise UsageError(f"the top holds at least one superpixel, found k={k}")
    place = torch.empty_like(values, dtype=torch.long)
    order = values.argsort(dim=1, descending=True, stable=True)
    place.scatter_(1, order, torch.arange(values.shape[1], device=values.device).expand_as(order))
    return (place < k) & (values > 0)


def jaccard_top(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], k: int) -> Float[Tensor, "b"]:
    """|intersection| / |union| of the top-k positive superpixels of two explanations, in [0, 1]; both empty = 1.

    Values beyond an image's own superpixels must be 0, as `Surrogate.coefficients` has them.
    """
    if a.shape != b.shape:
        raise UsageError(f"explanations of shapes {tuple(a.shape)} and {tuple(b.shape)} share no superpixels")
    one, other = top_positive(a, k), top_positive(b, k)
    union = (one | other).sum(1)
    return torch.where(union > 0, (one & other).sum(1) / union.clamp_min(1), 1.0).double()


def expected_jaccard(superpixels: Int[Tensor, "b"] | int, k: int) -> Float[Tensor, "b"]:
    """Its mean for two independent random sets of k among `superpixels` (.048 and .095 for 5 and 10 of 60).

    With k superpixels or fewer, both sets are all of them: 1.
    """
    d = torch.as_tensor(superpixels).reshape(-1, 1).double()
    chosen = d.clamp_max(k)
    common = torch.arange(k + 1, dtype=torch.float64, device=d.device)

    def log_choose(n: Tensor, r: Tensor) -> Tensor:
        return torch.lgamma(n + 1) - torch.lgamma(r + 1) - torch.lgamma(n - r + 1)

    rest = d - chosen
    log_p = log_choose(chosen, common) + log_choose(rest, chosen - common) - log_choose(d, chosen)
    possible = (common <= chosen) & (rest >= chosen - common)
    return torch.where(possible, log_p.exp() * common / (2 * chosen - common), 0.0).sum(1)

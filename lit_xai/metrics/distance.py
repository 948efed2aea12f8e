"""Distances between two attribution maps of one image.

A distance has two steps, so that every map is prepared once and then compared many times: `prepare(maps)` and
`compare(prepared_i, prepared_j)`. A distance that is undefined for a pair (a constant map has no rank order) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.core import Maps
from lit_xai.errors import UsageError

DECIMALS = 12
RANK_BLOCK = 1 << 16  # values ranked at once on the CPU


class Distance(NamedTuple):
    """A named distance: what it means, how maps are prepared, what two prepared batches are apart."""

    meaning: str
    prepare: Callable[[Tensor], Tensor]
    apart: Callable[[Tensor, Tensor], Tensor]

    def compare(self, a: Tensor, b: Tensor) -> Float[Tensor, "b"]:
        """The distance of prepared maps `[b, ...]`, float64, rounded to 1e-12: that of identical maps is 0, not what sums round to."""
        return self.apart(a, b).double().round(decimals=DECIMALS)


# -------------------------------------------------------------------------------------------------------------- ranks


def argsort_rows(x: Float[Tensor, "n p"]) -> Int[Tensor, "n p"]:
    """Ascending order of every row. On the CPU NumPy's vectorised sort is several times faster than torch's."""
    if x.device.type != "cpu":
        return x.argsort(dim=1)
    return torch.from_numpy(x.detach().numpy().argsort(axis=1))


def average_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks 0..p-1 of every row of `[n, p]`, float64; tied values share the mean of their ranks."""
    order = x.argsort(axis=1)
    ordered = np.take_along_axis(x, order, 1)
    ranks = np.broadcast_to(np.arange(x.shape[1], dtype=np.float64), x.shape)
    starts = np.ones(x.shape, dtype=bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=starts[:, 1:])
    if not starts.all():
        first = np.flatnonzero(starts)
        length = np.diff(first, append=x.size)
        ranks = np.repeat(first % x.shape[1] + (length - 1) / 2, length).reshape(x.shape)
    out = np.empty(x.shape)
    np.put_along_axis(out, order, ranks, 1)
    return out


def ranks_there(x: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """The same of a tensor, by operations of its device: what is tied lies between where it begins and where it ends."""
    ordered, order = x.sort(dim=1)
    place = torch.arange(x.shape[1], device=x.device).expand(x.shape)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = begins.roll(-1, dims=1)  # the first value always begins
    first = torch.where(begins, place, 0).cummax(1).values
    last = torch.where(ends, place, x.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(place, dtype=torch.float64).scatter_(1, order, (first + last).double() / 2)


def unit_ranks(maps: Float[Tensor, "b ..."]) -> Float[Tensor, "b p"]:
    """Average ranks, centred and scaled to unit length, in float64: the Spearman correlation is then a dot product.

    A constant map becomes NaN. On the CPU, blocks of rows that fit the cache are ranked one after the other, on all threads (in
    NumPy, which leaves the other threads alone); maps of a GPU are ranked there.
    """
    if maps.device.type != "cpu":
        ranks = ranks_there(maps.detach().flatten(1))
        ranks -= (ranks.shape[1] - 1) / 2
        norm = ranks.square().sum(1, keepdim=True).sqrt()
        return ranks / torch.where(norm > 0, norm, torch.nan)
    flat = maps.detach().flatten(1).numpy()
    out = np.empty(flat.shape)

    def rank(start: int) -> None:
        ranks = average_ranks(flat[start : start + rows]) - (flat.shape[1] - 1) / 2
        norm = np.sqrt(np.einsum("np,np->n", ranks, ranks))[:, None]
        np.divide(ranks, np.where(norm > 0, norm, np.nan), out=out[start : start + rows])

    rows = max(1, RANK_BLOCK // max(1, flat.shape[1]))
    starts = range(0, len(flat), rows)
    threads = min(torch.get_num_threads(), len(starts))
    if threads < 2:
        for start in starts:
            rank(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(rank, starts))
    return torch.from_numpy(out)


def correlation(a: Float[Tensor, "b p"], b: Float[Tensor, "b p"]) -> Float[Tensor, "b"]:
    """Dot products of unit vectors, at most 1 in size."""
    return torch.einsum("bp,bp->b", a, b).double().clamp(-1, 1)


# ----------------------------------------------------------------------------------------------------- other distances


def mass(maps: Maps, most: int = 32) -> Float[Tensor, "b u v"]:
    """|map| as a distribution over positions, average-pooled to at most `most` pixels a side."""
    mass = maps.abs()[:, None].double()
    if max(maps.shape[-2:]) > most:
        mass = F.adaptive_avg_pool2d(mass, (min(most, maps.shape[-2]), min(most, maps.shape[-1])))
    total = mass.sum((-2, -1), keepdim=True)
    return (mass / torch.where(total > 0, total, torch.nan))[:, 0]


def earth_mover(a: Float[Tensor, "b h w"], b: Float[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Exact 1-Wasserstein distance of two distributions over pixel positions, Euclidean, in pixels of the pooled map."""
    import ot

    height, width = a.shape[-2:]
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2).astype(float)
    cost = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
    out = torch.full((len(a),), torch.nan, dtype=torch.float64)
    for row, (p, q) in enumerate(zip(a.flatten(1).cpu().numpy(), b.flatten(1).cpu().numpy(), strict=True)):
        if np.isfinite(p).all() and np.isfinite(q).all():
            out[row] = float(ot.emd2(p, q, cost, numItermax=1_000_000))
    return out.to(a.device)


def scaled_to_one(maps: Maps) -> Maps:
    """Maps divided by their largest magnitude (NaN for a map of zeros)."""
    top = maps.abs().amax((-2, -1), keepdim=True)
    return maps / torch.where(top > 0, top, torch.nan)


def dice(a: Maps, b: Maps) -> Float[Tensor, "b"]:
    """1 - Sorensen-Dice of the areas where |map| exceeds half its maximum."""
    undefined = torch.isnan(a).any(-1).any(-1) | torch.isnan(b).any(-1).any(-1)
    inside_a, inside_b = (a.abs() > 0.5).flatten(1), (b.abs() > 0.5).flatten(1)
    both = (inside_a & inside_b).sum(1).double()
    distance = 1 - 2 * both / (inside_a.sum(1) + inside_b.sum(1))
    return torch.where(undefined, torch.nan, distance)


def ssim(a: Maps, b: Maps, window: int = 5, data_range: float = 2.0) -> Float[Tensor, "b"]:
    """Mean structural similarity (Wang et al., 2004): uniform window, sample covariance, borders cropped."""
    if min(a.shape[-2:]) < window:
        raise UsageError(f"SSIM needs maps of at least {window} pixels a side, found {tuple(a.shape[-2:])}")
    a, b = a[:, None].double(), b[:, None].double()

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, stride=1)

    unbiased = window**2 / (window**2 - 1)
    mean_a, mean_b = pool(a), pool(b)
    var_a = unbiased * (pool(a * a) - mean_a**2)
    var_b = unbiased * (pool(b * b) - mean_b**2)
    cov = unbiased * (pool(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return index.mean((-3, -2, -1))


def norm(order: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The l1 or l2 norm of the difference of two raw maps."""
    return lambda a, b: torch.linalg.vector_norm((a - b).flatten(1).double(), ord=order, dim=1)


DISTANCES: dict[str, Distance] = {
    "spearman": Distance(
        "1 - |Spearman|, average ranks for ties", unit_ranks, lambda a, b: 1 - correlation(a, b).abs()
    ),
    "sqrt_spearman": Distance(
        "sqrt(1 - |Spearman|), as in Xplique",
        unit_ranks,
        lambda a, b: (1 - correlation(a, b).abs()).round(decimals=DECIMALS).sqrt(),
    ),
    "wasserstein": Distance("1-Wasserstein of |map| over positions, pixels (maps pooled to 32)", mass, earth_mover),
    "dice": Distance("1 - Sorensen-Dice of the areas above half the maximum of |map|", scaled_to_one, dice),
    "ssim": Distance("1 - SSIM of maps divided by max |map|, window 5", scaled_to_one, lambda a, b: 1 - ssim(a, b)),
    "l1": Distance("l1 norm of the difference of the raw maps", lambda m: m, norm(1)),
    "l2": Distance("l2 norm of the difference of the raw maps", lambda m: m, norm(2)),
}


def distance_of(name: str) -> Distance:
    """The distance of this name."""
    if name not in DISTANCES:
        raise UsageError(f"distance {name!r} is unknown; choose one of: {', '.join(DISTANCES)}")
    return DISTANCES[name]


def map_distance(maps_i: Maps, maps_j: Maps, name: str = "spearman") -> Float[Tensor, "b"]:
    """The distance of two batches of maps, float64, rounded to 1e-12, NaN where undefined."""
    if maps_i.shape != maps_j.shape:
        raise UsageError(
            f"maps to compare have shapes {tuple(maps_i.shape)} and {tuple(maps_j.shape)}: they must agree"
        )
    d = distance_of(name)
    return d.compare(d.prepare(maps_i), d.prepare(maps_j))

"""Robustness of maps: how alike are several maps of one image, made with other seeds or hyper-parameters?

Agarwal & Nguyen (2020), section 4.3. Higher is better for every similarity; 1 for identical maps. A constant map shows
nothing that could be compared: its similarities are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.core import Maps, Scores, scaled
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import correlation, scaled_to_one, ssim, unit_ranks
from lit_xai.metrics.drops import correlate
from lit_xai.metrics.statistics import Estimate, mean_estimate

CELL = 16  # side of a HOG cell, pixels at 224 px
BLOCK = 3  # cells a side over which HOG normalises: scikit-image's default


class Prepared(NamedTuple):
    """A batch of maps, ready to be compared."""

    scaled: Tensor
    hog: Tensor
    ranks: Tensor


def hog_features(maps: Maps) -> Float[Tensor, "b p"]:
    """scikit-image's histograms of oriented gradients; cells of 16 px at 224 px, scaled with the shorter side."""
    from skimage.feature import hog

    side = min(maps.shape[-2:])
    cell = scaled(CELL, side, odd=False, least=3)
    if side < BLOCK * cell:
        raise UsageError(f"HOG needs maps of at least {BLOCK * cell} pixels a side, found {tuple(maps.shape[-2:])}")
    features = [hog(m, pixels_per_cell=(cell, cell), cells_per_block=(BLOCK, BLOCK)) for m in maps.cpu().numpy()]
    return torch.from_numpy(np.stack(features)).to(maps.device)


def prepare(maps: Maps) -> Prepared:
    """What each similarity needs of every map, in float64."""
    if not bool(torch.isfinite(maps).all()):
        raise UsageError("a map holds NaN or infinite values: explain that image again, or leave it out")
    maps = maps.double()
    constant = maps.amax((-2, -1)) == maps.amin((-2, -1))
    unit = torch.where(constant[:, None, None], 0.0, scaled_to_one(maps))
    hog = hog_features(unit)
    undefined = torch.where(constant, torch.nan, 0.0)
    return Prepared(unit + undefined[:, None, None], hog + undefined[:, None], unit_ranks(maps))


def compare(a: Prepared, b: Prepared) -> dict[str, Scores]:
    """The similarities of two prepared batches."""
    return {
        "ssim": ssim(a.scaled, b.scaled),
        "hog": correlate(a.hog, b.hog, "pearson"),
        "spearman": correlation(a.ranks, b.ranks),
    }


def similarities(a: Maps, b: Maps) -> dict[str, Scores]:
    """How alike two maps of every image are, float64, NaN where a map is constant.

    Returns:
        ssim: structural similarity of the maps divided by max |map|, data range 2, window 5; in [-1, 1].
        hog: Pearson correlation of the HOG features of the maps divided by max |map|; in [-1, 1].
        spearman: signed rank correlation, average ranks for ties; in [-1, 1].

    Only `spearman` is -1 for a map and its negative: `hog` is 1, and `ssim` is positive where the mean is far from 0.

    Raises:
        UsageError: other shapes, NaN in a map, maps of fewer than 9 pixels a side.
    """
    if a.shape != b.shape:
        raise UsageError(f"maps to compare have shapes {tuple(a.shape)} and {tuple(b.shape)}: they must agree")
    return compare(prepare(a), prepare(b))


def stability(maps: Float[Tensor, "m b h w"]) -> Scores:
    """Mean l2 distance of the m maps of every image to their mean map, one coordinate a superpixel; lower is more stable.

    Ademi, Noppel & Wressnegger (POMELO), section 3.6, in the units of the maps. Superpixels are told from the maps: pixels
    that agree in all m of them are one (of maps without superpixels, every pixel is).
    """
    out = []
    for of_image in maps.double().flatten(2).unbind(1):
        values = of_image.unique(dim=1)  # [m, superpixels]
        out.append((values - values.mean(0)).norm(dim=1).mean())
    return torch.stack(out)


def robustness(maps: Float[Tensor, "m b h w"]) -> dict[str, Scores]:
    """The mean similarity over all m(m-1)/2 pairs of the m maps of every image, and their `stability`; see `similarities`.

    Pairs with a constant map are left out; NaN for an image without any pair left.

    Raises:
        UsageError: fewer than two maps an image, and what `similarities` refuses.
    """
    if len(maps) < 2:
        raise UsageError(f"robustness compares at least two maps of an image, found {len(maps)}")
    pairs = [compare(a, b) for a, b in combinations([prepare(m) for m in maps], 2)]
    found = {name: torch.stack([pair[name] for pair in pairs]).nanmean(0) for name in pairs[0]}
    return {**found, "stability": stability(maps)}


def robustness_table(families: Mapping[str, Float[Tensor, "_ _ _ _"]], seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Mean robustness over images, with intervals, of every family of maps `[m, b, h, w]`.

    Families of the same images share their resamples: `statistics.difference` may subtract their estimates.
    """
    return {
        name: {measure: mean_estimate(values.cpu(), seed) for measure, values in robustness(maps).items()}
        for name, maps in families.items()
    }

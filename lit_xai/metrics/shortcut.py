"""Does the top of a map lie on a planted shortcut?"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import hypergeom
from torch import Tensor

from lit_xai.metrics.localisation import check_masks

MOSTLY = 0.5  # of the top, from which it lies on the shortcut


def top_on(maps: Float[Tensor, "b h w"], masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """The share of a map's m highest pixels that lie on its mask of m pixels, float64 in [0, 1]; NaN where the mask is empty.

    Of pixels that are tied at the end of the top, as many are expected on the mask as a random choice would bring: a constant map
    has the mask's share of the image.
    """
    check_masks(maps, masks)
    flat, inside = maps.detach().flatten(1), masks.flatten(1)
    size = inside.sum(1)
    ordered = flat.sort(dim=1, descending=True).values
    least = ordered.gather(1, (size - 1).clamp_min(0)[:, None])
    above, tied = flat > least, flat == least
    rest = (size - above.sum(1)).double() / tied.sum(1).clamp_min(1)
    hits = (above & inside).sum(1) + rest * (tied & inside).sum(1)
    return torch.where(size > 0, hits / size.clamp_min(1), torch.nan).double()


def chance_on(masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """How likely at least `MOSTLY` of a random map's top lies on its mask: the hypergeometric tail; 1 for an empty or full mask."""
    size, pixels = masks.flatten(1).sum(1).numpy(), masks[0].numel()
    return torch.from_numpy(np.asarray(hypergeom.sf(np.ceil(MOSTLY * size) - 1, pixels, size, size), dtype=np.float64))

"""Noisy linear imputation (ROAD): hidden pixels are weighted means of their neighbours, and a little noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.core import Filler, Images, Keep, Segments
from lit_xai.errors import UsageError
from lit_xai.fillers.base import keys_of
from lit_xai.fillers.simple import GREY
from lit_xai.rng import SampleRng

WEIGHTS = {
    (0, 1): 1 / 6,
    (1, 0): 1 / 6,
    (1, 1): 1 / 12,
    (1, -1): 1 / 12,
}  # of half of the 8 neighbours; the others mirror them


@lru_cache(maxsize=4)
def neighbours(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of neighbours of an image: two pixels and the weight of each for the other, and every pixel's sum of weights."""
    place = np.arange(height * width).reshape(height, width)
    pairs = []
    for (down, right), weight in WEIGHTS.items():
        a = place[: height - down, max(0, -right) : width - max(0, right)].ravel()
        b = place[down:, max(0, right) : width + min(0, right)].ravel()
        pairs += [(a, b, np.full(len(a), weight)), (b, a, np.full(len(a), weight))]
    i, j, values = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return i, j, values, np.bincount(i, values, minlength=height * width)


def imputed(pixels: Float[np.ndarray, "p c"], hidden: np.ndarray, height: int, width: int) -> np.ndarray:
    """The hidden pixels `[n, c]` of a flat image, each the mean of its neighbours by weight, all at once.

    One factorisation for all channels. At a border the weights of the neighbours that are there sum to 1.

    Args:
        pixels: float64; what hidden ones hold is not read.
        hidden: `[p]` bool, not all True.
        height, width: of the image.
    """
    from scipy.sparse import csc_matrix
    from scipy.sparse.linalg import splu

    i, j, weight, total = neighbours(height, width)
    row = np.cumsum(hidden) - 1  # a hidden pixel's equation
    known, unknown = hidden[i] & ~hidden[j], hidden[i] & hidden[j]
    number = int(hidden.sum())
    right = np.stack(
        [np.bincount(row[i[known]], weight[known] * c[j[known]], minlength=number) for c in pixels.T], axis=1
    )
    inside = np.concatenate([total[hidden], -weight[unknown]])
    rows = np.concatenate([np.arange(number), row[i[unknown]]])
    columns = np.concatenate([np.arange(number), row[j[unknown]]])
    system = csc_matrix((inside, (rows, columns)), shape=(number, number))
    # symmetric and positive definite: no pivoting is needed
    factor = splu(system, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return factor.solve(right)


@dataclass(frozen=True)
class NoisyLinear(Filler):
    """Every hidden pixel the weighted mean of its 8 neighbours (1/6 beside it, 1/12 across), plus normal noise, clipped to [0, 1].

    Rong et al. (2022), ROAD: what is filled in does not give away which pixels were hidden. The hidden pixels of a mask solve one
    linear system, on the CPU; the noise is independent for every pixel, channel, mask and draw. Where nothing of an image is visible
    the system has no one solution, and it is grey with that noise.

    Args:
        noise: standard deviation, in pixel values; the authors' is .01.
    """

    noise: float = 0.01

    on_host = True

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise UsageError(f"noisy linear imputation needs noise >= 0, found {self.noise}")

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        noise = keys_of(keep, rng, draws)
        smooth = [
            torch.stack([self.smooth(image, hidden) for hidden in ~seen])
            for image, seen in zip(images.detach().cpu(), keep.cpu(), strict=True)
        ]
        out = torch.stack(smooth).to(images)[:, :, None] + self.noise * noise.normal(images.shape[1:]).to(images.dtype)
        return torch.where(keep[:, :, None, None], images[:, None, None], out.clamp_(0, 1))

    def smooth(self, image: Float[Tensor, "c h w"], hidden: Tensor) -> Float[Tensor, "c h w"]:
        """The image without noise, `hidden` `[h, w]` pixels imputed."""
        if bool(hidden.all()):
            return torch.full_like(image, GREY)
        out = image.flatten(1).to(torch.float64, copy=True)
        where = hidden.flatten()
        if bool(where.any()):
            found = imputed(out.T.numpy(), where.numpy(), *image.shape[-2:])
            out[:, where] = torch.from_numpy(found).T
        return out.view(image.shape).to(image.dtype)

"""Random cells of a grid, hidden by a filler: what a network is trained to see, and what scores in its domain show it.

A network that never saw an image with a hole is asked about strangers when a score removes pixels. Trained on images with holes,
it is asked what it knows (Hooker et al., 2019; Hesse et al., NeurIPS 2024; Zheng et al., ICLR 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lit_xai.core import Component, Filler, Images, Segments
from lit_xai.errors import UsageError
from lit_xai.rng import Noise, SampleRng, stable_hash
from lit_xai.segments import grid_cells

CELLS = 7  # a side of the grid
IMAGES = 0.5  # share of the training images that have something hidden
MOST = 0.5  # largest share of the cells of one image that are hidden


def keys_by_content(images: Images) -> Int[Tensor, "b"]:
    """A 64-bit number of every image: a hash of its pixels, whatever batch it is in.

    A sum of the pixels' bits times odd random numbers, in wrapping integers: the same on every device and in every order.
    """
    bits = images.float().flatten(1).contiguous().view(torch.int32).long()
    odd = Noise(torch.tensor(stable_hash("content"), device=images.device)).bits(bits.shape[1]) | 1
    return (bits * odd).sum(1)


@dataclass(frozen=True)
class Hiding(Component):
    """Cells of a grid, hidden by a filler.

    Args:
        filler: what stands where a cell is hidden.
        cells: a side of the grid, at least 2.
    """

    filler: Filler
    cells: int = CELLS

    def __post_init__(self) -> None:
        if isinstance(self.cells, bool) or not isinstance(self.cells, int) or self.cells < 2:
            raise UsageError(f"a grid of cells to hide needs at least 2 a side, found {self.cells}")

    def grid(self, images: Images) -> Int[Tensor, "h w"]:
        """The cell of every pixel, on the images' device; errors as `grid_cells`."""
        height, width = images.shape[-2:]
        return grid_cells(height, width, self.cells, images.device)

    def segments(self, images: Images) -> Segments:
        """The same for every image: the superpixels that a filler is told of."""
        return self.grid(images).expand(len(images), -1, -1)

    def places(self, cells: Tensor, images: Images) -> Tensor:
        """What every cell has, `[*r, cells²]`, at each of its pixels, `[*r, h, w]`."""
        return cells[..., self.grid(images)]

    def drawn(self, noise: Noise) -> Bool[Tensor, "*r n"]:
        """The hidden cells of every key: none with probability 1 - `IMAGES`, else a share that is uniform in [0, `MOST`]."""
        number = self.cells**2
        hides, share = noise.part(0).uniform((2,)).unbind(-1)
        count = torch.where(hides < IMAGES, (share * (int(MOST * number) + 1)).long(), 0)
        rank = noise.part(1).order(number).argsort(-1)
        return rank < count[..., None]

    @torch.no_grad()
    def shown(self, images: Images, seed: int, epoch: int) -> Images:
        """The images as a network in training sees them, a function of seed, epoch and image: not of the batch or the process."""
        keys, own = keys_by_content(images), stable_hash(seed, "hide", epoch)
        hidden = self.drawn(Noise(torch.tensor(own, device=images.device)).part(keys))
        keep = ~self.places(hidden, images)
        shown = self.filler(images, keep[:, None], SampleRng(own, keys), 1, self.segments(images))[:, 0, 0]
        return shown.to(images.dtype)

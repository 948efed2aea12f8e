"""What fillers share: keys of their noise, and one background for every mask."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.core import Filler, Images, Keep, Segments
from lit_xai.rng import Noise, SampleRng


def keys_of(keep: Keep, rng: SampleRng, draws: int) -> Noise:
    """The keys `[b, n, d]` of every filling: a function of image, mask and draw, whatever their numbers.

    Raises:
        UsageError: `rng` is of another number of images.
    """
    return SampleRng.default(len(keep), rng).noise("filler", keep.device).parts(keep.shape[1]).parts(draws)


class BackgroundFiller(Filler):
    """A filler whose replacement image does not depend on the mask."""

    deterministic = True

    @abstractmethod
    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The whole replacement image of every image; `segments` are its superpixels, where somebody has made any."""

    def __call__(
        self,
        images: Images,
        keep: Keep,
        rng: SampleRng,
        draws: int = 1,
        segments: Segments | None = None,
    ) -> Float[Tensor, "b n d c h w"]:
        filled = torch.where(keep[:, :, None], images[:, None], self.background(images, segments)[:, None])
        return filled[:, :, None].expand(-1, -1, draws, -1, -1, -1)

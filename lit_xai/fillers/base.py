"""What every filler of one background shares."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.core import Filler, Images, Keep, Segments
from lit_xai.rng import SampleRng


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

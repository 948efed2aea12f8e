"""Fillers without training: superpixel mean, patch mean, noise, shuffled pixels, biharmonic in-painting."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.core import Filler, Images, Keep, Segments
from lit_xai.errors import UsageError
from lit_xai.fillers.base import BackgroundFiller, keys_of
from lit_xai.rng import Noise, SampleRng

GREY = 0.5  # where nothing of an image is known


@dataclass(frozen=True)
class SegmentMean(BackgroundFiller):
    """Every superpixel's own mean colour (the default of the `lime` package).

    Where nobody has made superpixels, the whole image counts as one.
    """

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """Every pixel the mean colour of its superpixel."""
        if segments is None:
            return images.mean((-2, -1), keepdim=True).expand_as(images)
        index = segments.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        total = images.new_zeros(*images.shape[:2], int(segments.max()) + 1)
        number = torch.zeros_like(total).scatter_add_(2, index, torch.ones_like(index, dtype=images.dtype))
        total.scatter_add_(2, index, images.flatten(2))
        return (total / number.clamp_min(1)).gather(2, index).view(images.shape)


@dataclass(frozen=True)
class PatchMean(Filler):
    """What is hidden by a mask in its own mean colour, one for the whole hole (a baseline of Yi et al.)."""

    deterministic = True

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        hidden = (~keep).flatten(2).to(images.dtype)  # [b, n, p]
        total = torch.einsum("bnp,bcp->bnc", hidden, images.flatten(2))
        mean = (total / hidden.sum(2, keepdim=True).clamp_min(1))[..., None, None]
        out = torch.where(keep[:, :, None], images[:, None], mean)
        return out[:, :, None].expand(-1, -1, draws, -1, -1, -1)


class Independent(Filler):
    """A filler that paints a whole new image for every mask and draw, of which the hidden pixels are used."""

    @abstractmethod
    def paint(self, images: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b n d c h w"]:
        """A painting of every image for each of its keys `[b, n, d]`."""

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        out = self.paint(images, keys_of(keep, rng, draws))
        return torch.where(keep[:, :, None, None], images[:, None, None], out)


@dataclass(frozen=True)
class UniformNoise(Independent):
    """Uniform noise in [0, 1], independent for every pixel, channel, mask and draw."""

    def paint(self, images: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b n d c h w"]:
        """Noise of the images' shape for every key."""
        return noise.uniform(images.shape[1:]).to(images.dtype)

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Bits per pixel and channel of any window: 8, since all 256 levels are equally likely."""
        return images.new_full((len(images),), 8.0)


@dataclass(frozen=True)
class GaussianNoise(Independent):
    """Normal noise clipped to [0, 1], independent for every pixel, channel, mask and draw.

    Args:
        mean, sigma: before clipping.
    """

    mean: float = 0.5
    sigma: float = 0.25

    def paint(self, images: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b n d c h w"]:
        """Noise of the images' shape for every key."""
        if self.sigma <= 0:
            raise UsageError(f"Gaussian noise needs sigma > 0, found {self.sigma}")
        return noise.normal(images.shape[1:]).mul_(self.sigma).add_(self.mean).clamp_(0, 1).to(images.dtype)


@dataclass(frozen=True)
class Shuffle(Independent):
    """The image's own pixels at random places: its colours stay, its shapes go."""

    def paint(self, images: Float[Tensor, "b c h w"], noise: Noise) -> Float[Tensor, "b n d c h w"]:
        """All pixels of the image in random order (the channels of a pixel stay together)."""
        pixels = images.flatten(2)[:, None, None]  # [b, 1, 1, c, p]
        order = noise.order(pixels.shape[-1])[:, :, :, None].expand(-1, -1, -1, images.shape[1], -1)
        return pixels.expand_as(order).gather(4, order).unflatten(4, images.shape[-2:])


@dataclass(frozen=True)
class Biharmonic(Filler):
    """Smooth in-painting by the biharmonic equation (scikit-image; Damelin & Hoang, 2018): no learning, slow.

    Where nothing of an image is visible it is grey.
    """

    deterministic = True

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        from skimage.restoration import inpaint_biharmonic

        out = images[:, None].repeat(1, keep.shape[1], 1, 1, 1)
        for row, image in enumerate(images):
            pixels = image.permute(1, 2, 0).cpu().double().numpy()
            for n, hidden in enumerate(~keep[row].cpu().numpy()):
                if hidden.all():
                    out[row, n] = GREY
                elif hidden.any():
                    painted = np.clip(inpaint_biharmonic(pixels, hidden, channel_axis=-1), 0, 1)
                    out[row, n] = torch.from_numpy(painted).permute(2, 0, 1).to(images)
        out = torch.where(keep[:, :, None], images[:, None], out)
        return out[:, :, None].expand(-1, -1, draws, -1, -1, -1)

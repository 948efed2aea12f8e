"""Superpixels: grid, quickshift and SLIC, as integer labels `[b, h, w]` that run from 0 to d-1 in every image."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.cache import Cache
from lit_xai.core import REFERENCE_SIDE, Component, Images, Model, Segments
from lit_xai.errors import UsageError
from lit_xai.fitting import describe

CACHE_BYTES = 64 << 20  # of labels that are kept within a run


CACHE = Cache(CACHE_BYTES)


class Segmenter(Component):
    """Cuts images into superpixels; labels depend on the image alone and are cached by its content within a run.

    Grey images are repeated to three channels, for the segmentation only. A model is never asked.
    """

    @abstractmethod
    def label(self, image: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
        """One image's superpixels, any integers."""

    def check_channels(self, channels: int) -> None:
        """Colours are those of one or three channels."""
        if channels not in (1, 3):
            raise UsageError(
                "cuts superpixels by colour, of 1 or 3 channels: take a grid, .segments._target_=lit_xai.segments.Grid"
            )

    def __call__(self, images: Images) -> Segments:
        """Labels `[b, h, w]`, int64, on the images' device.

        Raises:
            UsageError: the images have neither one nor three channels, and colours decide.
        """
        self.check_channels(images.shape[1])
        images = images if images.shape[1] in (1, 3) else images[:, :1]
        mine = repr(describe(self)).encode()
        out = []
        for image in images.detach().float().cpu().permute(0, 2, 3, 1).contiguous().numpy():
            key = hashlib.blake2b(image.tobytes() + mine + repr(image.shape).encode(), digest_size=16).digest()
            labels = CACHE.get(key)
            if labels is None:
                rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
                _, numbered = np.unique(self.label(rgb), return_inverse=True)
                labels = numbered.reshape(image.shape[:2]).astype(np.int32)
                CACHE.put(key, labels, labels.nbytes)
            out.append(torch.from_numpy(labels.astype(np.int64)))
        return torch.stack(out).to(images.device)


def segment_counts(segments: Segments) -> Int[Tensor, "b"]:
    """The number of superpixels of every image.

    Raises:
        UsageError: labels that do not run from 0 to d-1.
    """
    if segments.is_floating_point() or int(segments.min()) < 0:
        raise UsageError("superpixels must be whole numbers from 0 without gaps: number them anew")
    counts = segments.flatten(1).amax(1) + 1
    present = torch.zeros(len(segments), int(counts.max()), dtype=torch.bool, device=segments.device)
    present.scatter_(1, segments.flatten(1), True)
    if bool((present.sum(1) != counts).any()):
        raise UsageError("superpixels must be numbered 0..d-1 without gaps in every image: number them anew")
    return counts


def segment_sums(values: Float[Tensor, "b h w"], segments: Segments) -> Float[Tensor, "b d"]:
    """The sum of `values` over every superpixel; 0 beyond an image's own number of superpixels."""
    out = values.new_zeros(len(values), int(segments.max()) + 1)
    return out.scatter_add_(1, segments.flatten(1), values.flatten(1))


def to_pixels(values: Float[Tensor, "b d"], segments: Segments) -> Float[Tensor, "b h w"]:
    """Every superpixel's value at each of its pixels."""
    return values.gather(1, segments.flatten(1)).view(segments.shape)


def side_of(images: Images) -> int:
    """The shorter side of the images, pixels."""
    return min(images.shape[-2:])


def grid_cells(height: int, width: int, cells: int, device: torch.device | None = None) -> Int[Tensor, "h w"]:
    """The cell of every pixel, 0..cells²-1, of a grid of `cells` a side, as equal as the size allows.

    Raises:
        UsageError: images of fewer pixels a side.
    """
    if not 1 <= cells <= min(height, width):
        raise UsageError(f"a grid of {cells} cells a side does not fit images of {height} x {width} pixels")
    row, column = (torch.arange(side, device=device) * cells // side for side in (height, width))
    return row[:, None] * cells + column


@dataclass(frozen=True)
class Grid(Segmenter):
    """`cells` x `cells` rectangles, as equal as the image size allows."""

    cells: int = 7

    def check_channels(self, channels: int) -> None:
        """Take any number: colours decide nothing."""

    def label(self, image: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
        """The cell of every pixel."""
        height, width = image.shape[:2]
        return grid_cells(height, width, self.cells).numpy()

    def __call__(self, images: Images) -> Segments:
        """The same labels for every image, made where the images are; errors as `grid_cells`."""
        height, width = images.shape[-2:]
        return grid_cells(height, width, self.cells, images.device).repeat(len(images), 1, 1)


@dataclass(frozen=True)
class Quickshift(Segmenter):
    """Quickshift with the defaults of the `lime` package (Vedaldi & Soatto, 2008; Ribeiro et al., 2016).

    Args:
        kernel_size: width of the density kernel in pixels at 224 px; scales with the side, at least 1.
        max_dist: largest distance of a link.
        ratio: weight of colour against space, in [0, 1].
        scale: False takes `kernel_size` as it is, at any image size.
        gain: what pixels in [0, 1] are multiplied by before. 255 gives scikit-image floats in 0..255, which it does not
            rescale: colour then weighs 255 times more (docs/perturbation.md).
    """

    kernel_size: float = 4
    max_dist: float = 200
    ratio: float = 0.2
    scale: bool = True
    gain: float = 1.0

    def kernel(self, side: int) -> float:
        """The kernel size in pixels of images of this side."""
        return max(1, round(self.kernel_size * side / REFERENCE_SIDE)) if self.scale else self.kernel_size

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The kernel size in pixels of these images."""
        return {"kernel_size": self.kernel(side_of(images))}

    def label(self, image: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
        """The superpixels of scikit-image's quickshift."""
        from skimage.segmentation import quickshift

        if self.kernel_size <= 0 or not 0 <= self.ratio <= 1:
            raise UsageError(f"quickshift needs kernel_size > 0 and ratio in [0, 1], found {self}")
        kernel = self.kernel(min(image.shape[:2]))
        return quickshift(image * np.float32(self.gain), ratio=self.ratio, kernel_size=kernel, max_dist=self.max_dist)


@dataclass(frozen=True)
class Slic(Segmenter):
    """SLIC (Achanta et al., 2012) with the settings of Agarwal & Nguyen (2020).

    Args:
        segments: about how many superpixels.
        compactness: weight of space against colour.
        sigma: of the smoothing before, pixels at 224 px; scales with the side.
    """

    segments: int = 50
    compactness: float = 30.0
    sigma: float = 3.0

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """Sigma in pixels of these images."""
        return {"sigma": self.sigma * side_of(images) / REFERENCE_SIDE}

    def label(self, image: Float[np.ndarray, "h w 3"]) -> Int[np.ndarray, "h w"]:
        """The superpixels of scikit-image's SLIC."""
        from skimage.segmentation import slic

        if self.segments < 2 or self.compactness <= 0 or self.sigma < 0:
            raise UsageError(f"SLIC needs segments >= 2, compactness > 0 and sigma >= 0, found {self}")
        sigma = self.sigma * min(image.shape[:2]) / REFERENCE_SIDE
        return slic(image, self.segments, self.compactness, sigma=sigma, start_label=0)

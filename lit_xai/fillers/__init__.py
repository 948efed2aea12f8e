"""What stands where a pixel is hidden: callables `filler(images, keep, rng, draws, segments) -> [b, n, d, c, h, w]`."""

from lit_xai.core import Blur, Colour, Mean
from lit_xai.fillers.gaussian import ConditionalGaussian
from lit_xai.fillers.patch import PatchSampler
from lit_xai.fillers.simple import Biharmonic, GaussianNoise, PatchMean, SegmentMean, Shuffle, UniformNoise

__all__ = [
    "Biharmonic",
    "Blur",
    "Colour",
    "ConditionalGaussian",
    "GaussianNoise",
    "Mean",
    "PatchMean",
    "PatchSampler",
    "SegmentMean",
    "Shuffle",
    "UniformNoise",
]

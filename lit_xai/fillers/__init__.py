"""What stands where a pixel is hidden: callables `filler(images, keep, rng, draws, segments) -> [b, n, d, c, h, w]`."""

from lit_xai.fillers.constant import Blur, BlurOrMean, Colour, Mean
from lit_xai.fillers.diffusion import DDIM, DDIMInpainting
from lit_xai.fillers.flow import Flow
from lit_xai.fillers.gaussian import ConditionalGaussian
from lit_xai.fillers.hiding import Hiding
from lit_xai.fillers.inpaint import Inpainter
from lit_xai.fillers.noisy_linear import NoisyLinear
from lit_xai.fillers.patch import PatchSampler
from lit_xai.fillers.simple import Biharmonic, GaussianNoise, PatchMean, SegmentMean, Shuffle, UniformNoise

__all__ = [
    "DDIM",
    "Biharmonic",
    "Blur",
    "BlurOrMean",
    "Colour",
    "ConditionalGaussian",
    "DDIMInpainting",
    "Flow",
    "GaussianNoise",
    "Hiding",
    "Inpainter",
    "Mean",
    "NoisyLinear",
    "PatchMean",
    "PatchSampler",
    "SegmentMean",
    "Shuffle",
    "UniformNoise",
]

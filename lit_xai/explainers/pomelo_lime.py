"""POMELO (Ademi, Noppel & Wressnegger): LIME that sees plausible images and asks how far each superpixel moved."""

from __future__ import annotations

from lit_xai.calls import AUTO, Size
from lit_xai.core import Auto, Filler
from lit_xai.explainers.lime import Lime, PixelCosineKernel, SegmentDistance, Toggle
from lit_xai.segments import Segmenter, Slic

SEGMENTS = Slic(segments=35, compactness=10.0, sigma=0.0)


def pomelo(
    filler: Filler,
    keep: float = 0.5,
    segments: Segmenter = SEGMENTS,
    width: float = 0.25,
    samples: int | Auto = 800,
    cap: int = 10_000,
    ridge: float = 1.0,
    output: str = "probability",
    repeat: int = 0,
    precision: str = "float32",
    max_batch: Size = AUTO,
) -> Lime:
    """POMELO's surrogate by this filler: `Lime` with distances of superpixels as representation and a kernel of pixels.

    Args:
        filler: draws what is hidden, or, with `keep=0`, whole new images.
        keep: chance of a superpixel to stay as it is (the paper: .5, .25 of in-painting, 0 of whole new images).
        segments: makes the superpixels.
        width: of the kernel, over the cosine distance of pixels.
        samples, cap, ridge, output, repeat, precision, max_batch: as those of `Lime`.
    """
    return Lime(
        segments,
        Toggle(filler, keep=keep, whole_first=False),
        SegmentDistance(),
        PixelCosineKernel(width),
        samples,
        cap,
        ridge,
        output,
        repeat,
        precision,
        max_batch,
    )

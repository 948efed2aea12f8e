"""Figures 3 and 4 of Garreau & Mardaoui (2021): LIME's coefficients in five runs, and the limit as crosses.

    python docs/lime_limit.py [FOLDER]      writes detectors.png and linear.png (default: checkpoints)

A digit, black filling, 1,000 samples, ridge 1: the package's defaults. Left: the superpixels, with what the model reads.
Right: a box of five runs for every superpixel, and a cross at the closed form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lit_xai.data.sources import digits
from lit_xai.explainers import Lime
from lit_xai.explainers.lime import Toggle
from lit_xai.explainers.lime_limit import ShapeDetector, linear_limit
from lit_xai.fillers.constant import Colour
from lit_xai.report.figure import new_figure, save
from lit_xai.rng import SampleRng
from lit_xai.segments import Quickshift
from torch import Tensor

RUNS, SAMPLES, SAMPLE = 5, 1000, 3


def runs(model: Callable[[Tensor], Tensor], image: Tensor, segments: Tensor) -> Tensor:
    """Coefficients of five runs `[5, d]`."""
    lime = Lime(perturbation=Toggle(Colour(0.0)), samples=SAMPLES, output="logit")
    images, rng = image.expand(RUNS, -1, -1, -1), SampleRng(0, tuple(range(RUNS)))
    target = torch.zeros(RUNS, dtype=torch.long)
    return lime.explain(model, images, target, rng, segments=segments.expand(RUNS, -1, -1)).coefficients


def draw(rows: list[tuple[str, Tensor, Tensor, Tensor]], image: Tensor, segments: Tensor, path: Path) -> None:
    """One row a model: what it reads, and its coefficients."""
    from skimage.segmentation import mark_boundaries

    figure, axes = new_figure(11, 2.6 * len(rows), len(rows), 2)
    for (title, reads, coefficients, limit), (left, right) in zip(rows, axes, strict=True):
        grey = np.repeat(image.permute(1, 2, 0).numpy(), 3, axis=2)
        left.imshow(mark_boundaries(grey, segments[0].numpy(), color=(0.4, 0.4, 0.4)))
        left.imshow(np.ma.masked_equal(reads.numpy(), 0), cmap="coolwarm", alpha=0.8)
        left.set_title(title, fontsize=9)
        left.axis("off")
        right.boxplot(coefficients.numpy(), positions=range(len(limit)), widths=0.5)
        right.plot(range(len(limit)), limit.numpy(), "x", color="red", markersize=7)
        right.axhline(0, color="#aaa", linewidth=0.6)
        right.tick_params(labelsize=7)
        right.set_xlabel("superpixel", fontsize=8)
        gap = float((coefficients.mean(0) - limit).abs().max())
        right.set_title(f"largest |mean of {RUNS} runs - limit| = {gap:.3f}", fontsize=8)
    print(f"{save(figure, path)}")


def main(folder: Path) -> None:
    """Both figures."""
    image = digits(28).train.images([SAMPLE])[0]
    segments = Quickshift()(image[None])
    bright = (image[0] > 0.5).double()
    ink = torch.zeros(int(segments.max()) + 1, dtype=torch.float64).index_add_(0, segments.flatten(), bright.flatten())
    inked = ink.argsort(descending=True).tolist()
    black = torch.zeros_like(image)
    detectors, linear = [], []
    for p in (1, 2, 3):
        shape = torch.isin(segments[0], torch.tensor(inked[:p])) & (bright > 0)
        detector = ShapeDetector(shape)
        limit = detector.limit(image, black, segments[0])[1]
        detectors.append(
            (f"all {int(shape.sum())} pixels above .5", shape.double(), runs(detector, image, segments), limit)
        )
    generator = torch.Generator().manual_seed(0)
    flat = torch.ones(image.shape)
    ramp = torch.linspace(-1, 1, image.shape[-1]).expand_as(flat)
    noise = torch.randn(image.shape, generator=generator)
    for title, weights in (("sum of all pixels", flat), ("horizontal ramp", ramp), ("normal weights", noise)):

        def model(x: Tensor, weights: Tensor = weights) -> Tensor:
            z = (x * weights).sum((1, 2, 3))
            return torch.stack([z, -z], 1)

        linear.append(
            (title, weights[0], runs(model, image, segments), linear_limit(weights, image, black, segments[0]))
        )
    folder.mkdir(parents=True, exist_ok=True)
    draw(detectors, image, segments, folder / "detectors.png")
    draw(linear, image, segments, folder / "linear.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("checkpoints"))

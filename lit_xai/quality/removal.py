"""Feature-removal quality: fill the object of an image, and ask what is left of it.

Agarwal & Nguyen (2020), section 4.2, table 1: the classifier's accuracy on the filled images (lower = better removal),
MS-SSIM (lower = less alike) and LPIPS (higher = less alike) to the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.calls import Gate, admit, chunks, evaluating, in_format_of
from lit_xai.core import Filler, Images, Model, Scores, Targets
from lit_xai.errors import UsageError
from lit_xai.metrics.statistics import Estimate, mean_estimate, share_estimate
from lit_xai.rng import SampleRng

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of the five scales (Wang et al., 2003)
KERNEL, SIGMA = 11, 1.5  # SSIM's Gaussian window, pixels
LEAST_LPIPS = 31  # AlexNet has no features left of a smaller image
REAL = "real"  # the row of a table where nothing is removed


@dataclass(frozen=True)
class Removal:
    """What is left of every image after its object was filled.

    Attributes:
        correct: whether the classifier still predicts the label.
        ms_ssim: multi-scale structural similarity to the original, in [0, 1]; 1 = the same image.
        lpips: learned perceptual distance to the original (AlexNet), 0 = the same image; None where it cannot be had.
        share: share of the pixels that changed.
        scales: scales that MS-SSIM used, of five.
        lpips_missing: why `lpips` is None.
    """

    correct: Bool[Tensor, "b"]
    ms_ssim: Scores
    lpips: Scores | None
    share: Scores
    scales: int
    lpips_missing: str = ""


def scales_of(side: int) -> int:
    """How many of MS-SSIM's five scales an image of this side allows (five from 176 px)."""

    def fits(scales: int) -> bool:  # the coarsest image holds the window; torchmetrics asks for a little more
        return side > (KERNEL - 1) * 2 ** (scales - 1) and side // max(1, scales - 1) ** 2 >= KERNEL

    return max((n for n in range(1, len(BETAS) + 1) if fits(n)), default=1)


def ms_ssim(images: Images, others: Images) -> Scores:
    """MS-SSIM of every pair of images, in [0, 1] (Wang et al., 2003; torchmetrics).

    An image below 176 px takes fewer than five scales, with exponents rescaled to sum 1, and one below 11 px a smaller
    window of the same form.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    side = min(images.shape[-2:])
    scales = scales_of(side)
    betas = BETAS if scales == len(BETAS) else tuple(b / sum(BETAS[:scales]) for b in BETAS[:scales])
    kernel = min(KERNEL, side - 1 + side % 2)
    return multiscale_structural_similarity_index_measure(
        others,
        images,
        sigma=SIGMA * kernel / KERNEL,
        kernel_size=kernel,
        reduction="none",
        data_range=1.0,
        betas=betas,
    ).view(len(images))


def perceptual_network(images: Images) -> tuple[nn.Module | None, str]:
    """The LPIPS network (torchmetrics) for these images, or None and why not. Nothing is ever downloaded."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights

    channels, side = images.shape[1], min(images.shape[-2:])
    weights = AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    if channels not in (1, 3):
        return None, f"needs 1 or 3 channels, found {channels}"
    if side < LEAST_LPIPS:
        return None, f"needs {LEAST_LPIPS} pixels a side, found {side}"
    if not (Path(torch.hub.get_dir()) / "checkpoints" / weights).is_file():
        return None, f"weights not on disk: {weights}"
    return LearnedPerceptualImagePatchSimilarity("alex").net.to(images.device), ""


def lpips(network: nn.Module, images: Images, others: Images) -> Scores:
    """LPIPS of every pair of images in [0, 1]; grey images are repeated to three channels (Zhang et al., 2018)."""
    a, b = (x.float().expand(-1, 3, -1, -1) for x in (images, others))
    return network(a, b, normalize=True).view(len(images))


def check_masks(images: Images, masks: Tensor, rng: SampleRng) -> None:
    """Refuse masks that are not the images', `[b, h, w]`, and those that leave nothing to remove or nothing to see."""
    expected = (len(images), *images.shape[-2:])
    if masks.dtype != torch.bool or masks.shape != expected:
        raise UsageError(f"object masks must be boolean {expected}, found {masks.dtype} {tuple(masks.shape)}")
    for row, covered in enumerate(masks.flatten(1).float().mean(1).tolist()):
        if covered in (0.0, 1.0):
            what = "full" if covered else "empty"
            raise UsageError(f"the object mask of row {row} (sample {rng.samples[row]}) is {what}: leave the image out")


def fill(
    name: str, filler: Filler, images: Images, masks: Bool[Tensor, "b h w"], rng: SampleRng, rows: Int[Tensor, "r"]
) -> Float[Tensor, "r c h w"]:
    """These rows of the images with their object filled."""
    filled = filler(images[rows], ~masks[rows][:, None], rng.take(rows))
    expected = (len(rows), 1, 1, *images.shape[1:])
    if filled.shape != expected:
        raise UsageError(f"the filler {name} must return shape {expected}, found {tuple(filled.shape)}")
    return filled[:, 0, 0]


def measure(
    model: Model,
    images: Images,
    labels: Targets,
    filled_rows: Callable[[Int[Tensor, "r"]], Images],
    max_batch: int,
    perceptual: tuple[nn.Module | None, str],
) -> Removal:
    """Compare every image with its filled one, in chunks of `max_batch`; `filled_rows(rows)` makes a chunk."""
    network, missing = perceptual
    found: list[tuple[Tensor, ...]] = []
    model = Gate.of(model)
    with torch.inference_mode(), evaluating(model):
        for chunk in chunks(len(images), 1, max_batch, images.device):
            rows = chunk.row
            original, filled = images[rows], filled_rows(rows)
            correct = model(in_format_of(filled, images)).argmax(1) == labels[rows]
            changed = (filled != original).any(1).flatten(1).to(images.dtype).mean(1)
            distance = () if network is None else (lpips(network, original, filled),)
            found.append((correct, ms_ssim(original, filled), changed, *distance))
    correct, similar, share, *distances = (torch.cat(parts) for parts in zip(*found, strict=True))
    scales = scales_of(min(images.shape[-2:]))
    return Removal(correct, similar, distances[0] if distances else None, share, scales, missing)


def removal(
    model: Model,
    images: Images,
    masks: Bool[Tensor, "b h w"],
    labels: Targets,
    filler: Filler,
    rng: SampleRng | None = None,
    max_batch: int = 64,
) -> Removal:
    """Fill the object of every image and compare with the original.

    Args:
        model: images -> logits `[b, k]`.
        images: the originals, in [0, 1].
        masks: True = the object.
        labels: the class of every image.
        filler: what replaces the object.
        rng: the samples' noise, for fillers that draw.
        max_batch: most images per call of the model and of the filler.

    Raises:
        UsageError: masks of another size, empty or full; a filler that returns another shape.
    """
    model, images, labels = admit(model, images, labels)
    rng = SampleRng.default(len(images), rng)
    check_masks(images, masks, rng)
    filled_rows = partial(fill, type(filler).__name__, filler, images, masks, rng)
    return measure(model, images, labels, filled_rows, max_batch, perceptual_network(images))


def estimates(result: Removal) -> dict[str, Estimate]:
    """The means over images, with intervals; what is missing or unusual is the estimate's `reason`."""
    similar = mean_estimate(result.ms_ssim.cpu())
    if result.scales < len(BETAS):
        similar.add_reason(f"{result.scales} of {len(BETAS)} scales")
    distance = Estimate(nan, reason=result.lpips_missing) if result.lpips is None else mean_estimate(result.lpips.cpu())
    return {
        "accuracy": share_estimate(result.correct.cpu()),
        "ms_ssim": similar,
        "lpips": distance,
        "share": mean_estimate(result.share.cpu()),
    }


def removal_table(
    model: Model,
    images: Images,
    masks: Bool[Tensor, "b h w"],
    labels: Targets,
    fillers: Mapping[str, Filler],
    rng: SampleRng | None = None,
    max_batch: int = 64,
) -> dict[str, dict[str, Estimate]]:
    """`accuracy` (Wilson interval), `ms_ssim`, `lpips` and `share` (bootstrap) of every filler.

    The first row, `real`, is the images themselves. The other arguments and errors are those of `removal`.
    """
    model, images, labels = admit(model, images, labels)
    if REAL in fillers:
        raise UsageError(f"a filler is named {REAL!r}, which is the row of the untouched images: name it otherwise")
    rng = SampleRng.default(len(images), rng)
    check_masks(images, masks, rng)
    ways: dict[str, Callable[[Int[Tensor, "r"]], Images]] = {REAL: lambda rows: images[rows]}
    ways |= {name: partial(fill, name, filler, images, masks, rng) for name, filler in fillers.items()}
    perceptual = perceptual_network(images)
    return {name: estimates(measure(model, images, labels, way, max_batch, perceptual)) for name, way in ways.items()}

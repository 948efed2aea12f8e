"""Does the map point at the object? Scores against a mask; each also gives the whole image's value as a baseline."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import gated
from lit_xai.core import REFERENCE_SIDE, Images, Maps, Model, Scores, Targets
from lit_xai.data.truth import boxes, ends, unsaying
from lit_xai.errors import UsageError
from lit_xai.metrics.scored import OfMaps, check_scored
from lit_xai.rng import SampleRng, stable_hash

Masks = Bool[Tensor, "b h w"]  # True = on the object
ALPHAS = tuple(i / 20 for i in range(20))  # shares of the maximum at which a map is cut into a box
LEVELS = 101  # thresholds of an area over tau in [0, 1]


def check_masks(maps: Tensor, masks: Tensor) -> None:
    """Refuse masks that are not those of the maps `[b, h, w]`."""
    if masks.shape != maps.shape or masks.dtype != torch.bool:
        raise UsageError(
            f"masks of shape {tuple(masks.shape)} and type {masks.dtype} do not belong to maps of shape "
            f"{tuple(maps.shape)}: pass one bool mask an image, True = on the object"
        )


def defined(values: Tensor, masks: Masks) -> Tensor:
    """The values, `[b]` or `[b, t]`, NaN where any map is right (the mask is full) or none is (it is empty)."""
    says = ~unsaying(masks)
    return torch.where(says.view(-1, *[1] * (values.ndim - 1)), values.double(), torch.nan)


@dataclass(frozen=True)
class AgainstMask(OfMaps):
    """What the scores against a mask share. The model is never asked; `observed` is the batch's masks `[b, h, w]`.

    Args:
        truth: which mask of the data's ground truth, such as `object` or `tag`.
    """

    deterministic: ClassVar[bool] = True

    truth: str = "object"
    higher_is_better = True
    name = ""

    @abstractmethod
    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Float[Tensor, "b ..."]:
        """The score of float64 maps; whatever it gives for masks that are empty or full is not used."""

    @abstractmethod
    def whole(self, masks: Masks) -> Scores:
        """The whole image's value against valid masks."""

    def of(self, maps: Maps, masks: Masks) -> Float[Tensor, "b ..."]:
        """The score of each map against its mask, without a model, in float64; NaN where the mask is empty or full.

        Args:
            maps: signed maps.
            masks: True = on the object.

        Raises:
            UsageError: a mask is not of its map's size; a map holds NaN.
        """
        check_masks(maps, masks)
        if not bool(torch.isfinite(maps).all()):
            raise UsageError("a map holds NaN or infinite values: explain that image again, or leave it out")
        return defined(self.value(maps.detach().double(), masks), masks)

    def reference(self, masks: Masks) -> Scores:
        """The value of the whole image as an explanation (every pixel equally, at every threshold): the baseline."""
        check_masks(masks, masks)
        return defined(self.whole(masks), masks)

    @gated
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Float[Tensor, "b ..."]:
        check_scored(images, maps)
        if observed is None:
            raise UsageError(
                f"score {self.name} needs masks: use data with ground truth (data=shapes, or masks beside the "
                f"pictures), or call .of(maps, masks)"
            )
        return self.of(maps, observed.to(maps.device))


def area_share(masks: Masks) -> Float[Tensor, "b"]:
    """The share of the image that is on the object."""
    return masks.flatten(1).double().mean(1)


# --------------------------------------------------------------------------------------------------------------- boxes


def box_iou(a: Int[Tensor, "... 4"], b: Int[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Intersection over union of boxes (top, left, bottom, right), bottom and right exclusive, not both empty."""
    sides = (torch.minimum(a, b)[..., 2:] - torch.maximum(a, b)[..., :2]).clamp_min(0)
    inter = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    return inter.double() / union


def boxes_at(maps: Float[Tensor, "b h w"], alphas: Sequence[float]) -> Int[Tensor, "b t 4"]:
    """The tight box of {map >= alpha * maximum}, negatives set to 0 first; of {map > 0} for alpha = 0.

    A map without a positive value has the whole image as its box.
    """
    maps = maps.clamp_min(0)
    rows, columns = maps.amax(2)[:, None], maps.amax(1)[:, None]  # a row is in the box if its largest value is
    least = rows.amax(2, keepdim=True) * torch.tensor(alphas, dtype=maps.dtype, device=maps.device)[:, None]
    sides = [ends((along >= least) & ((along > 0) | (rows.amax(2, keepdim=True) == 0))) for along in (rows, columns)]
    (top, bottom), (left, right) = sides
    return torch.stack([top, left, bottom, right], dim=-1)


@dataclass(frozen=True)
class BoxIoU(AgainstMask):
    """IoU of the mask's tight box with the map's, `[b, 20]`: one column a threshold of `settings()`. In [0, 1].

    The map's box is that of {map >= alpha * maximum} ({map > 0} for alpha = 0), negatives set to 0 first; the whole
    image if no value is positive. Which alpha counts is chosen on other samples: see `settle`.
    """

    name = "box_iou"
    source = "Agarwal & Nguyen 2020, section 4.4 (localisation); Fong & Vedaldi 2017: box at alpha * maximum"

    def settings(self) -> list[float]:
        """The thresholds alpha, a column each: 0, .05, .. .95."""
        return list(ALPHAS)

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Float[Tensor, "b t"]:
        """IoU at every alpha."""
        return box_iou(boxes_at(maps, ALPHAS), boxes(masks)[:, None])

    def whole(self, masks: Masks) -> Scores:
        """The true box's share of the image."""
        height, width = masks.shape[-2:]
        return box_iou(torch.tensor([0, 0, height, width], device=masks.device), boxes(masks))


@dataclass(frozen=True)
class LocalisationError(BoxIoU):
    """1 where the `BoxIoU` is at most .5, else 0: `[b, 20]`, lower is better."""

    higher_is_better = False
    name = "localisation_error"

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Float[Tensor, "b t"]:
        """Error at every alpha."""
        return (super().value(maps, masks) <= 0.5).double()

    def whole(self, masks: Masks) -> Scores:
        """1 where the true box covers at most half of the image."""
        return (super().whole(masks) <= 0.5).double()


# --------------------------------------------------------------------------------------------------------------- areas


def counts_above(
    maps: Float[Tensor, "b h w"], masks: Masks
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], Int[Tensor, "b 1"]]:
    """How many pixels of the min-max scaled map exceed 0, .01, .. 1: on the object, anywhere; the object's size.

    A constant map is scaled to 0 everywhere.
    """
    flat, inside = maps.flatten(1), masks.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = torch.where(high > low, (flat - low) / (high - low), 0.0)
    levels = (torch.arange(LEVELS, dtype=flat.dtype, device=flat.device) / (LEVELS - 1)).repeat(len(flat), 1)

    def above(values: Tensor) -> Tensor:
        return values.shape[1] - torch.searchsorted(values.sort(1).values, levels, right=True)

    return above(torch.where(inside, scaled, -1.0)), above(scaled), inside.sum(1, keepdim=True)


def area(curve: Float[Tensor, "b t"]) -> Float[Tensor, "b"]:
    """The area under a curve over tau in [0, 1], by the trapezoid."""
    return torch.trapezoid(curve, dx=1 / (LEVELS - 1), dim=1)


@dataclass(frozen=True)
class MaskIoU(AgainstMask):
    """Area over tau in [0, 1] under the IoU of {min-max scaled map > tau} with the mask, 101 thresholds. In [0, 1]."""

    name = "mask_iou"
    source = "Ademi, Noppel & Wressnegger (POMELO), reasonability: area under IoU over 101 thresholds of the min-max scaled map"

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Scores:
        """The area under IoU."""
        hit, found, size = counts_above(maps, masks)
        return area(hit.double() / (found + size - hit))

    def whole(self, masks: Masks) -> Scores:
        """The object's share of the image."""
        return area_share(masks)


@dataclass(frozen=True)
class MaskRecall(AgainstMask):
    """Area over tau under the share of the mask that {min-max scaled map > tau} covers (EMR). In [0, 1]."""

    name = "mask_recall"
    source = "Ademi, Noppel & Wressnegger (POMELO), reasonability: area under recall (EMR) over 101 thresholds of the min-max scaled map"

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Scores:
        """The area under recall."""
        hit, _, size = counts_above(maps, masks)
        return area(hit.double() / size)

    def whole(self, masks: Masks) -> Scores:
        """1 for every mask: a whole image covers it."""
        return torch.ones(len(masks), dtype=torch.float64, device=masks.device)


@dataclass(frozen=True)
class MaskPrecision(AgainstMask):
    """Area over tau under the share of {min-max scaled map > tau} that is in the mask (EMP), 0 if empty. In [0, 1]."""

    name = "mask_precision"
    source = "Ademi, Noppel & Wressnegger (POMELO), reasonability: area under precision (EMP) over 101 thresholds of the min-max scaled map"

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Scores:
        """The area under precision."""
        hit, found, _ = counts_above(maps, masks)
        return area(hit.double() / found.clamp_min(1))

    def whole(self, masks: Masks) -> Scores:
        """The object's share of the image."""
        return area_share(masks)


# ------------------------------------------------------------------------------------------------------ points and mass


@dataclass(frozen=True)
class PointingGame(AgainstMask):
    """1 if the map's maximum lies on the object; of several maxima the share that does. In [0, 1].

    Args:
        truth: which mask.
        tolerance: the maximum may lie this far from the object (Euclidean, inclusive), in pixels at 224 px (TorchRay:
            15).
    """

    tolerance: float = 0.0
    name = "pointing_game"
    source = "Zhang et al. 2018 (excitation backprop), pointing game; tolerance as in TorchRay, Fong et al. 2019"

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise UsageError(f"the pointing game's tolerance must be at least 0 pixels, found {self.tolerance}")

    def near(self, masks: Masks) -> Masks:
        """The masks, grown by the tolerance."""
        distance = self.tolerance * min(masks.shape[-2:]) / REFERENCE_SIDE
        reach = int(distance)
        if not reach:
            return masks
        offset = torch.arange(-reach, reach + 1, device=masks.device).double()
        disc = (offset[:, None] ** 2 + offset[None] ** 2 <= distance**2).float()
        return F.conv2d(masks[:, None].float(), disc[None, None], padding=reach)[:, 0] > 0.5

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Scores:
        """The share of maximal pixels that hit."""
        largest = maps == maps.amax((1, 2), keepdim=True)
        return (largest & self.near(masks)).sum((1, 2)).double() / largest.sum((1, 2))

    def whole(self, masks: Masks) -> Scores:
        """The share of the image that counts as a hit: the chance of a random point."""
        return area_share(self.near(masks))


@dataclass(frozen=True)
class MassInside(AgainstMask):
    """The share of the map's positive values that lies on the object, in [0, 1]; NaN if no value is positive."""

    name = "mass_inside"
    source = "Kohlbrenner et al. 2020 and Arras et al. 2022, relevance mass accuracy, of the positive values"

    def value(self, maps: Float[Tensor, "b h w"], masks: Masks) -> Scores:
        """The share of the positive mass."""
        positive = maps.clamp_min(0)
        return (positive * masks).sum((1, 2)) / positive.sum((1, 2))

    def whole(self, masks: Masks) -> Scores:
        """The object's share of the image."""
        return area_share(masks)


# ------------------------------------------------------------------------------------------------- choosing a threshold


def settle(
    values: Float[Tensor, "p t"], samples: Int[Tensor, "p"], higher_is_better: bool, seed: int = 0
) -> tuple[Float[Tensor, "p"], int]:
    """Choose a score's setting (a column) on one half of the probes and report it on the other.

    The halves are keyed by sample, the same for every explainer. The first of several equal settings is chosen. A row
    with a NaN belongs to neither half.

    Args:
        values: the score of every probe at every setting.
        samples: each probe's index in the data set.
        higher_is_better: the score's direction.
        seed: of the halves.

    Returns:
        The chosen column with NaN on the choosing half, and which column it is.

    Raises:
        UsageError: one half is empty.
    """
    chooses = torch.tensor([stable_hash(seed, "settle", s) % 2 == 0 for s in samples.tolist()], device=values.device)
    defined = ~values.isnan().any(1)
    choosing, reporting = chooses & defined, ~chooses & defined
    if not bool(choosing.any() and reporting.any()):
        raise UsageError(
            f"{int(choosing.sum())} probes choose the threshold and {int(reporting.sum())} report it: "
            f"both must be at least 1, raise data.probes_per_fold="
        )
    mean = values[choosing].mean(0)
    column = int(mean.argmax() if higher_is_better else mean.argmin())
    return torch.where(reporting, values[:, column], torch.nan), column

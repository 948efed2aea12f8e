"""Faithfulness to one model: deletion, insertion, negative evidence. One number per image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, evaluate_rows, gated
from lit_xai.core import Filler, Images, Maps, Model, Passes, Scores, Targets
from lit_xai.errors import UsageError
from lit_xai.fillers.constant import Blur, Mean
from lit_xai.fitting import describe
from lit_xai.metrics.drops import MuFidelity as MuFidelity  # saved configurations name it from here
from lit_xai.metrics.scored import Detailed, Hides, check_scored
from lit_xai.rng import SampleRng

HELD = 1 << 28  # values of inputs that are made together where a filler works on the host

# ------------------------------------------------------------------------------------------------ deletion, insertion


class Walk(Detailed, Hides):
    """The target's output as more and more pixels change; what its heirs hold is said there.

    Its details are `start` and `end`, the output at the curve's two ends: what an area can be worth at most.
    """

    deterministic: ClassVar[bool] = True  # but for the order of ties, of which another is as good
    what: ClassVar[str] = "pixels"  # that change
    fraction: float  # of them, at the curve's end
    output: str
    max_batch: Size

    def span(self, height: int, width: int) -> tuple[float, float]:
        """The shares of the changed parts at the curve's two ends."""
        return 0.0, self.fraction

    def keep(self, changed: Tensor) -> Tensor:
        """Which pixels are visible, given those that have changed, `[..., h, w]` both."""
        return ~changed

    @abstractmethod
    def curve(
        self, model: Model, images: Images, maps: Maps, targets: Targets, rng: SampleRng | None = None
    ) -> Float[Tensor, "b t"]:
        """The output at every point."""

    def walk(
        self,
        model: Model,
        images: Images,
        targets: Targets,
        rng: SampleRng,
        position: Int[Tensor, "b p"],
        counts: Int[Tensor, "b t"],
    ) -> Float[Tensor, "b t"]:
        """The output at every point t of every image, where its first `counts` pixels by `position` have changed."""
        refill = self.refill(images, rng)
        place, counts = position.view(-1, *images.shape[-2:]), counts.to(images.device)

        def make(chunk: Chunk) -> Tensor:
            changed = place[chunk.image] < counts[chunk.image, chunk.variant].view(-1, 1, 1)
            return refill(self.keep(changed), chunk, 0)  # one noise along the whole curve

        far = refill.filler.on_host and images.device.type != "cpu"
        made = ahead(make, len(images) * counts.shape[1], counts.shape[1], images) if far else make
        return evaluate_rows(model, made, images, targets, counts.shape[1], self.max_batch, self.output)


def ahead(make: Callable[[Chunk], Tensor], total: int, each: int, images: Images) -> Callable[[Chunk], Tensor]:
    """The same inputs `[r, c, h, w]` of a walk over `images x each`, made by as few calls as `HELD` values allow, which are kept till the next."""
    size = max(1, HELD // max(1, images[:1].numel()))
    held: dict[int, Tensor] = {}

    def taken(chunk: Chunk) -> Tensor:
        parts = []
        for number in range(chunk.start // size, (chunk.stop - 1) // size + 1):
            first = number * size
            if number not in held:
                held.clear()
                held[number] = make(Chunk(first, min(first + size, total), each, images.device))
            parts.append(held[number][max(0, chunk.start - first) : chunk.stop - first])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return taken


@dataclass(frozen=True)
class Curve(Walk):
    """What deletion and insertion share: the target's softmax as pixels change in descending order of the map.

    The area under the curve over the changed fraction in [0, `fraction`] by the trapezoid, never divided by a maximum
    (Petsiuk et al., 2018). Ties of the map are broken at random, from the sample's own stream; of a map without ties nothing is drawn.

    Args:
        step: pixels a step; 0 = the image side (224 px: 225 points); below 1, a share of the pixels.
        fraction: share of the pixels that is changed in the end, in (0, 1].
        repeats: random orders of the ties that the area is averaged over. The filler's draws are the same for all, so
            a batch of maps without ties is computed once.
        output: `probability` or `logit`.
        filler: what stands where a pixel is absent.
        max_batch: most images per model call.
    """

    step: float = 0
    fraction: float = 1.0
    repeats: int = 1
    output: str = "probability"
    filler: Filler = field(default_factory=Mean)
    max_batch: Size = AUTO
    higher_is_better = False

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": "Petsiuk et al. 2018 (RISE), area by trapezoid over the changed fraction"}

    def counts(self, height: int, width: int) -> Int[Tensor, "t"]:
        """How many pixels have changed at every point of the curve."""
        whole = self.step >= 1 and self.step == int(self.step)
        if not 0 < self.fraction <= 1 or not (whole or 0 <= self.step < 1) or self.repeats < 1:
            found = f"{self.fraction}, {self.step}, {self.repeats}"
            raise UsageError(
                f"a curve needs fraction in (0, 1], step in whole pixels or a share below 1, and repeats >= 1, found {found}"
            )
        pixels = height * width
        last = round(self.fraction * pixels)
        if 0 < self.step < 1:
            points = (torch.arange(0, self.fraction, self.step, dtype=torch.float64) * pixels).round().long()
        else:
            points = torch.arange(0, last, int(self.step) or max(height, width))
        return torch.cat([points, torch.tensor([last])]).unique()

    def parts(self, height: int, width: int) -> int:
        """How many parts change one after the other: the pixels."""
        return height * width

    def position(self, maps: Maps, rng: SampleRng, repeat: int = 0) -> Int[Tensor, "b p"]:
        """The place of every pixel's part in descending order of the map."""
        return descending_position(maps, rng, repeat)

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a point and order of the ties."""
        return Passes(len(self.counts(height, width)) * self.repeats)

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The step in pixels and the number of points."""
        height, width = images.shape[-2:]
        step = round(self.step * height * width) if self.step < 1 else int(self.step)
        return {"step": step or max(height, width), "points": len(self.counts(height, width))}

    def curve(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        repeat: int = 0,
    ) -> Float[Tensor, "b t"]:
        """The output at every point, with the ties in the order of this repeat."""
        rng = SampleRng.default(len(images), rng)
        counts = self.counts(*images.shape[-2:]).expand(len(images), -1)
        return self.walk(model, images, targets, rng, self.position(maps, rng, repeat), counts)

    @gated
    def with_details(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Scores, dict[str, Float[Tensor, "b"]]]:
        """The area, and the output at the curve's ends."""
        check_scored(images, maps)
        height, width = images.shape[-2:]
        at = self.counts(height, width).to(images.device, torch.float64) / self.parts(height, width)
        tied = has_ties(maps) if self.repeats > 1 else maps.new_zeros(len(maps), dtype=torch.bool)
        repeats = range(self.repeats if bool(tied.any()) else 1)
        curves = torch.stack([self.curve(model, images, maps, targets, rng, r).double() for r in repeats])

        def over_repeats(values: Float[Tensor, "r b"]) -> Float[Tensor, "b"]:
            return torch.where(tied, values.mean(0), values[0])

        ends = {"start": over_repeats(curves[..., 0]), "end": over_repeats(curves[..., -1])}
        return over_repeats(torch.trapezoid(curves, at, dim=-1)), ends


@dataclass(frozen=True)
class Deletion(Curve):
    """Area under the probability as the most important pixels are removed: lower is better. Filler: mean colour."""


@dataclass(frozen=True)
class Insertion(Curve):
    """Area under the probability as the most important pixels appear on a blurred image: higher is better."""

    filler: Filler = field(default_factory=Blur)
    higher_is_better = True

    def keep(self, changed: Tensor) -> Tensor:
        """Inserted pixels are visible."""
        return changed


# --------------------------------------------------------------------------------------------------- negative evidence


@dataclass(frozen=True)
class NegativeEvidence(Walk):
    """How much the probability rises as an image's negative pixels are removed, the most negative first: higher is better.

    The area under p(t) - p(0) over the removed share of this image's negative pixels (map < 0), from 0 to all of them, by
    the trapezoid: in [-1, 1], positive where removal raises the probability on average (Yi et al., section IV-C). Ties of
    the map are broken at random, from the sample's own stream. NaN for an image whose map has no negative pixel: it names
    no evidence that could be tested.

    Args:
        steps: steps T; at point t of T + 1 the share t / T of `fraction` of the negative pixels is gone, in whole pixels.
        fraction: share of the negative pixels that is gone in the end, in (0, 1]; the area is over [0, fraction]. In maps of
            few draws the weakest are noise.
        output: `probability`; or `logit`, whose area has no bounds.
        filler: what stands where a pixel is removed.
        max_batch: most images per model call.

    Raises:
        UsageError: fewer than one step; maps that are not the images' or hold NaN.
    """

    steps: int = 20
    fraction: float = 1.0
    output: str = "probability"
    filler: Filler = field(default_factory=Mean)
    max_batch: Size = AUTO
    higher_is_better = True
    what = "negative pixels"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.fraction <= 1:
            found = f"steps={self.steps}, fraction={self.fraction}"
            raise UsageError(f"negative evidence needs at least 1 step and a fraction in (0, 1], found {found}")

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        source = "Yi et al., Information-Theoretic Visual Explanation, section IV-C and Fig. 20"
        return {
            **describe(self),
            "source": f"{source}; area by trapezoid over the removed share of the negative pixels",
        }

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a point."""
        return Passes(self.steps + 1)

    def counts(self, maps: Maps) -> Int[Tensor, "b t"]:
        """How many pixels of every image are gone at every point; half a pixel counts as one."""
        negative = ((maps < 0).flatten(1).sum(1, keepdim=True) * self.fraction).ceil().long()  # at least one, of any
        points = torch.arange(self.steps + 1, device=maps.device)
        return (2 * points * negative + self.steps) // (2 * self.steps)

    def curve(
        self, model: Model, images: Images, maps: Maps, targets: Targets, rng: SampleRng | None = None
    ) -> Float[Tensor, "b t"]:
        """The output at every point; constant for an image without negative pixels."""
        rng = SampleRng.default(len(images), rng)
        return self.walk(model, images, targets, rng, descending_position(-maps, rng), self.counts(maps))

    @gated
    def with_details(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Scores, dict[str, Float[Tensor, "b"]]]:
        """The area, and the output at the curve's ends; all NaN where no pixel is negative."""
        check_scored(images, maps)
        curve = self.curve(model, images, maps, targets, rng).double()
        curve = torch.where((maps < 0).flatten(1).any(1, keepdim=True), curve, torch.nan)
        rise = torch.trapezoid(curve - curve[:, :1], dx=self.fraction / self.steps, dim=1)
        return rise, {"start": curve[:, 0], "end": curve[:, -1]}


# --------------------------------------------------------------------------------------------------- order of the pixels


def has_ties(maps: Maps) -> Bool[Tensor, "b"]:
    """Whether two pixels of a map have the same value."""
    ordered = maps.flatten(1).sort(dim=1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any(1)


def descending_position(maps: Maps, rng: SampleRng, repeat: int = 0) -> Int[Tensor, "b p"]:
    """Each pixel's place in descending order of its map (0 = largest); ties in random order, keyed by sample."""
    flat = maps.flatten(1)
    places = torch.arange(flat.shape[1], device=maps.device)
    shuffled = rng.noise("ties", maps.device).part(repeat).order(flat.shape[1])
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return torch.empty_like(order).scatter_(1, order, places.expand_as(order))

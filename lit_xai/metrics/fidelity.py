"""Faithfulness to one model: muFidelity, deletion, insertion, negative evidence. One number per image."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, admit, evaluate_rows, gated
from lit_xai.core import Filler, Images, Maps, Model, Passes, Score, Scores, Targets
from lit_xai.errors import UsageError
from lit_xai.fillers.constant import Blur, Colour, Mean
from lit_xai.fillers.refill import Refill
from lit_xai.fitting import describe
from lit_xai.metrics.distance import unit_ranks
from lit_xai.rng import Noise, SampleRng

SUMMED = 1 << 22  # pixels of subsets whose sums are taken at once


def check_scored(images: Images, maps: Tensor) -> None:
    """Refuse maps that are not the images' or hold NaN: a score of them would look like any other."""
    if maps.shape != (len(images), *images.shape[-2:]):
        raise UsageError(f"maps of shape {tuple(maps.shape)} do not belong to images of shape {tuple(images.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise UsageError("a map holds NaN or infinite values: explain that image again, or leave it out")


class Hides(Score):
    """A score that shows the model images with hidden pixels."""

    filler: Filler

    def refill(self, images: Images, rng: SampleRng) -> Refill:
        """What makes these images."""
        return Refill(self.filler, images, rng)


class OfMaps(Score):
    """A score that makes no model pass of its own; `source` is where it was published."""

    source: ClassVar[str] = ""

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": self.source}

    def passes(self, height: int, width: int) -> Passes:
        """None."""
        return Passes(0)


# ------------------------------------------------------------------------------------------- drops against sums of the map


class Drops(Hides):
    """The map's sum over random subsets S of an image's pixels, held against the drops of the output without S.

    What its heirs hold is said there. The drops do not depend on the map: they are observed once for all explainers.
    """

    count = "subsets"
    stream: ClassVar[str]  # of the noise
    subsets: int
    output: str
    max_batch: Size

    @abstractmethod
    def removed(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "*r h w"]:
        """The subset S of every key, one of an image and a subset's number: True = the pixel is removed."""

    @abstractmethod
    def judged(self, sums: Float[Tensor, "b n"], drops: Float[Tensor, "b n"]) -> Scores:
        """The score, of float64 sums and drops."""

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a subset and one for the image; shared by all explainers of a probe."""
        return Passes(self.subsets + 1)

    def noise(self, rng: SampleRng, device: torch.device | str = "cpu") -> Noise:
        """A key an image; the subsets are its parts."""
        return rng.noise(self.stream, device)

    def sums(self, maps: Maps, noise: Noise) -> Float[Tensor, "b n"]:
        """The map's sum over every subset, in float64."""
        flat, parts = maps.flatten(1).double()[:, :, None], []
        each = max(1, SUMMED // max(1, flat.numel()))  # subsets of every image at once
        for start in range(0, self.subsets, each):
            removed = self.removed(noise.parts(start, min(start + each, self.subsets)), *maps.shape[1:])
            parts.append((removed.flatten(2).double() @ flat)[..., 0])
        return torch.cat(parts, dim=1)

    def observe(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> Float[Tensor, "b n"]:
        """The drops f(x) - f(x without S)."""
        model, images, targets = admit(model, images, targets)
        rng = SampleRng.default(len(images), rng)
        noise, refill = self.noise(rng, images.device), self.refill(images, rng)

        def make(chunk: Chunk) -> Tensor:
            removed = self.removed(noise[chunk.image].part(chunk.variant), *images.shape[-2:])
            return refill(~removed, chunk)

        outputs = evaluate_rows(model, make, images, targets, self.subsets, self.max_batch, self.output)
        whole = evaluate_rows(model, lambda c: images[c.image], images, targets, 1, self.max_batch, self.output)
        return whole - outputs

    @gated
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores:
        check_scored(images, maps)
        rng = SampleRng.default(len(images), rng)
        drops = self.observe(model, images, targets, rng) if observed is None else observed
        return self.judged(self.sums(maps, self.noise(rng, maps.device)), drops.double())


@dataclass(frozen=True)
class MuFidelity(Drops):
    """Correlation, over random subsets S of pixels, of the attribution in S with the drop of the output without S.

    Bhatt et al. (2020), Fel et al. (2022) appendix C. In [-1, 1]; NaN for a map or drops that are constant. Over single pixels
    a smooth map cannot be near 1, however right it is about regions: hence `grid`.

    Args:
        subsets: random subsets an image.
        definition: `default` and `paper` take subsets of exactly |S| pixels and Pearson; `xplique` has that library's
            settings: a 9-grid, cells dropped independently with probability .2, Spearman, undefined counted as 0.
        share: |S| as a share of the image; None = the definition's (.15, or .2).
        grid: side of the grid of cells that subsets are made of, 0 = pixels; None = the definition's (0, or 9).
        correlation: `pearson` or `spearman`; None = the definition's.
        output: `logit` or `probability`.
        filler: what replaces the pixels of S.
        max_batch: most images per model call.
    """

    subsets: int = 200
    definition: str = "default"
    share: float | None = None
    grid: int | None = None
    correlation: str | None = None
    output: str = "logit"
    filler: Filler = field(default_factory=lambda: Colour(0.0))
    max_batch: Size = AUTO
    higher_is_better = True
    stream = "mufidelity"

    def __post_init__(self) -> None:
        if self.definition not in ("default", "paper", "xplique"):
            raise UsageError(f"muFidelity's definition must be default, paper or xplique, found {self.definition!r}")
        share, grid, correlation = (0.2, 9, "spearman") if self.definition == "xplique" else (0.15, 0, "pearson")
        for name, value in (("share", share), ("grid", grid), ("correlation", correlation)):
            if vars(self)[name] is None:
                object.__setattr__(self, name, value)
        if self.correlation not in ("pearson", "spearman"):
            raise UsageError(f"muFidelity's correlation must be pearson or spearman, found {self.correlation!r}")
        if not 0 < self.share < 1 or self.subsets < 3:  # type: ignore[operator]
            raise UsageError(f"muFidelity needs share in (0, 1) and 3 subsets, found {self.share}, {self.subsets}")

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {**describe(self), "source": "Bhatt et al. 2020, def. 3; Fel et al. 2022, appendix C"}

    def removed(self, noise: Noise, height: int, width: int) -> Bool[Tensor, "*r h w"]:
        """The subset S of every key: True = the pixel is removed."""
        assert self.share is not None
        rows, columns = (self.grid, self.grid) if self.grid else (height, width)
        if self.definition == "xplique":
            chosen = noise.uniform((rows * columns,)) <= self.share
        else:
            chosen = noise.subset(rows * columns, max(1, round(self.share * rows * columns)))
        if not self.grid:
            return chosen.unflatten(-1, (height, width))
        cells = chosen.view(-1, 1, rows, columns).float()
        chosen = F.interpolate(cells, size=(height, width), mode="nearest")[:, 0] > 0.5
        return chosen.view(*noise.keys.shape, height, width)

    def judged(self, sums: Float[Tensor, "b n"], drops: Float[Tensor, "b n"]) -> Scores:
        """Their correlation."""
        value = correlate(sums, drops, str(self.correlation))
        return torch.nan_to_num(value) if self.definition == "xplique" else value


def correlate(a: Float[Tensor, "b n"], b: Float[Tensor, "b n"], how: str) -> Float[Tensor, "b"]:
    """Row-wise Pearson or Spearman correlation; NaN where a row is constant."""
    if how == "spearman":
        return (unit_ranks(a[:, None]) * unit_ranks(b[:, None])).sum(-1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = a.norm(dim=1) * b.norm(dim=1)
    # rounding leaves a constant row a tiny spread: call it constant
    tiny = 1e-12 * (1 + a.abs().amax(1)) * (1 + b.abs().amax(1))
    return torch.where(size > tiny, (a * b).sum(1) / size, torch.nan)


# ------------------------------------------------------------------------------------------------ deletion, insertion


class Walk(Hides):
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
        """Which pixels are visible, given those that have changed."""
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

        return evaluate_rows(model, make, images, targets, counts.shape[1], self.max_batch, self.output)

    @gated
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores:
        return self.with_details(model, images, maps, targets, rng, observed)[0]


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

"""Shared vocabulary: tensor types, the protocols of explainers, fillers and scores, how maps are drawn."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.rng import SampleRng

Images = Float[Tensor, "b c h w"]  # values in [0, 1]
Maps = Float[Tensor, "b h w"]  # signed, image-sized, raw evidence
Keep = Bool[Tensor, "b n h w"]  # n masks an image; True = the pixel stays visible
Targets = Int[Tensor, "b"]  # class index
Scores = Float[Tensor, "b"]
Segments = Int[Tensor, "b h w"]  # superpixel of every pixel, 0 .. d-1 in every image
Model = Callable[[Tensor], Tensor]  # [b, c, h, w] -> logits [b, k]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
REFERENCE_SIDE = 224  # pixel-sized parameters are given for this image side


class Passes(NamedTuple):
    """Model passes per image: what an explainer or a score costs."""

    forward: int
    backward: int = 0

    def __add__(self, other: object) -> Passes:  # type: ignore[override]
        assert isinstance(other, Passes)
        return Passes(self.forward + other.forward, self.backward + other.backward)


@runtime_checkable
class Explainer(Protocol):
    """A frozen dataclass of hyper-parameters; the model is given to the call and nothing is kept.

    Optional methods are used where they exist: `passes(height, width) -> Passes` (the cost of one image),
    `resolve(model, images) -> dict` (parameters that only the model or the image size decide), and `with_details(model,
    images, targets, rng) -> (maps, {name: one number an image})` for what a method knows about its own maps. For pictures,
    `legend` says how its maps are drawn and what their colours mean (see `Legend`).
    """

    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps: ...


@runtime_checkable
class Filler(Protocol):
    """Replaces hidden pixels. Kept pixels are returned untouched.

    A filler whose replacement does not depend on the mask also has `background(images, segments=None) -> Images`. One
    that is fitted to data has `fitted(trained_on) -> Filler`; one that reads a file has `content() -> {name: value}`, where
    `digest` is the file's own and everything else the same for all folds, and `patch`, the side K of the windows it knows.
    `deterministic = True` says that all draws are alike. One that encodes an image before it draws has `prepared(images)`,
    which gives `(rows, keep [r n h w], rng, draws) -> [r n d c h w]` for rows of these images: all masks and draws of an
    image share its code. A differentiable one has `painted(images, visible [b 1 h w]) -> Images`, its painting at every pixel.
    """

    def __call__(
        self,
        images: Images,
        keep: Keep,
        rng: SampleRng,
        draws: int = 1,
        segments: Segments | None = None,
    ) -> Float[Tensor, "b n d c h w"]: ...


@runtime_checkable
class Score(Protocol):
    """One number per probe. `higher_is_better` is its direction; `meaning()` says what the number means.

    A score may have `observe(model, images, targets, rng) -> Tensor`: model outputs that do not depend on the map,
    computed once per probe and handed to the scoring of every explainer as `observed`. A score with an attribute `truth`
    is handed the mask of that name instead; `reference(masks)` is then the score of the whole image. A score may give
    several columns `[b, t]`, one for every setting of `settings()`; which one counts is chosen on half of the probes.
    """

    higher_is_better: bool

    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores: ...

    def meaning(self) -> dict[str, Any]: ...


SIGNED, MAGNITUDE, RANGE, BY_SIGN = "signed", "magnitude", "range", "by sign"
SAYS = {
    SIGNED: "red = for {label}, blue = against it, white = 0",
    MAGNITUDE: "darker = the output depends more on the pixel, white = 0",
    RANGE: "red = higher, yellow = lower; no value is a zero point",
}


@dataclass(frozen=True)
class Legend:
    """How the maps of a method are drawn, and what their colours say.

    Attributes:
        scale: `signed`, symmetric about 0; `magnitude`, from 0 up; `range`, from each map's least to its largest value, for
            values that have no zero point; `by sign`, `signed` if any value is negative, else `magnitude`.
        says: what the colours say; `{label}` is the explained class. Empty = what the scale says by itself.
        unit: of the values; empty = none.
    """

    scale: str = BY_SIGN
    says: str = ""
    unit: str = ""

    def text(self, label: str = "the class", signed: bool = True) -> str:
        """The caption; `signed` is whether there are negative values."""
        scale = self.scale if self.scale != BY_SIGN else SIGNED if signed else MAGNITUDE
        says = (self.says or SAYS[scale]).replace("{label}", label)
        return f"{self.unit}: {says}" if self.unit else says


def legend_of(explainer: Explainer) -> Legend:
    """The legend of an explainer; of one that does not say, by the sign of its values."""
    return getattr(explainer, "legend", Legend())


def scaled(pixels: float, side: int, odd: bool = True, least: int = 3) -> int:
    """A pixel-sized parameter given for 224 px, on an image of `side` pixels (odd where needed, at least `least`)."""
    size = max(least, round(pixels * side / REFERENCE_SIDE))
    return size + 1 if odd and size % 2 == 0 else size


MOVED = {"Blur": "lit_xai.fillers.constant", "Colour": "lit_xai.fillers.constant", "Mean": "lit_xai.fillers.constant"}
MOVED["UsageError"] = "lit_xai.errors"


def __getattr__(name: str) -> Any:
    """Names that saved configurations and users' own files know from here."""
    if name in MOVED:
        return getattr(importlib.import_module(MOVED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

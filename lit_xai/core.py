"""Shared vocabulary: tensor types, the base classes of explainers, fillers and scores, how maps are drawn."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng

Images = Float[Tensor, "b c h w"]  # values in [0, 1]
Maps = Float[Tensor, "b h w"]  # signed, image-sized, raw evidence
Keep = Bool[Tensor, "b n h w"]  # n masks an image; True = the pixel stays visible
Targets = Int[Tensor, "b"]  # class index
Scores = Float[Tensor, "b"]
Segments = Int[Tensor, "b h w"]  # superpixel of every pixel, 0 .. d-1 in every image
Corners = tuple[Int[Tensor, "b 2"], Int[Tensor, "b 2"]]  # top and left pixel of windows: on the device, on the host
Model = Callable[[Tensor], Tensor]  # [b, c, h, w] -> logits [b, k]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
ROUNDING = 1e-3  # by which pixel values may leave [0, 1]
REFERENCE_SIDE = 224  # pixel-sized parameters are given for this image side

# the word auto, in the place of a number: as many as are needed, or as there is room for (`errors.counted`)
Auto = Annotated[str, "auto"]


class Passes(NamedTuple):
    """Model passes per image: what an explainer or a score costs."""

    forward: int
    backward: int = 0

    def __add__(self, other: object) -> Passes:  # type: ignore[override]
        assert isinstance(other, Passes)
        return Passes(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class TrainedOn:
    """What a predictor was trained on, for fillers and contrasts that are fitted to the same images.

    Attributes:
        colour: mean colour of the training folds.
        fold: the fold that the predictor never saw; None = not known.
        samples: number of training images; 0 = not known.
        about: data set, content and fold in one line, the same for whatever is fitted to them; empty = not known.
        shape: channels, height and width of the images; empty = not known.
    """

    colour: tuple[float, ...]
    fold: int | None = None
    samples: int = 0
    about: str = ""
    shape: tuple[int, ...] = ()


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


C = TypeVar("C", bound="Component")


def components_of(thing: Any) -> dict[str, Component]:
    """The components among the fields of a dataclass, by name; none of anything else."""
    values = {f.name: getattr(thing, f.name) for f in fields(thing)} if is_dataclass(thing) else {}
    return {name: value for name, value in values.items() if isinstance(value, Component)}


class Component(ABC):  # noqa: B024
    """A frozen dataclass of parameters, other components among them: explainers, scores, fillers, contrasts, segmenters.

    Every method has a default, and what a default says of a component it says of those inside it, too.

    Attributes:
        count: the parameter that says how many masks, steps or samples a result rests on; empty where there is none. The head of
            a table gives it.
        deterministic: it takes no number from the samples' noise itself. A class that is handed noise and does not say takes some.
    """

    count: ClassVar[str] = ""
    deterministic: ClassVar[bool] = True

    def components(self) -> dict[str, Component]:
        """The components among its own fields, by name."""
        return components_of(self)

    def draws_numbers(self) -> bool:
        """Whether it, or a component inside it, takes numbers from the samples' noise: then another noise gives another result."""
        return not self.deterministic or any(c.draws_numbers() for c in self.components().values())

    def fitted(self: C, trained_on: TrainedOn) -> C:
        """This component, and all inside it, told what the predictor was trained on."""
        inside = self.components()
        now = {name: component.fitted(trained_on) for name, component in inside.items()}
        changed = {name: component for name, component in now.items() if component is not inside[name]}
        return replace(self, **changed) if changed else self  # type: ignore[type-var]

    def content(self) -> dict[str, Any]:
        """What the file that it reads holds: `digest` is the file's own, everything else the same for all folds.

        Raises:
            UsageError: the file is missing, damaged, or was fitted to other images.
        """
        return {}

    def contents(self) -> dict[str, dict[str, Any]]:
        """Its `content` and that of the components inside it, by dotted name, of those that read a file."""
        out = {"": own} if (own := self.content()) else {}
        for name, component in self.components().items():
            out |= {f"{name}.{k}".rstrip("."): content for k, content in component.contents().items()}
        return out

    def check_channels(self, channels: int) -> None:
        """Refuse images of so many channels where it, or a component inside it, cannot use them: before anything is trained.

        Raises:
            UsageError: it cannot; the message says what can.
        """
        for component in self.components().values():
            component.check_channels(channels)

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The parameters that only the model or the image size decide."""
        return {}

    def resolved(self, model: Model, images: Images) -> dict[str, Any]:
        """What it resolves, and what the components inside it do, by dotted name."""
        out = dict(self.resolve(model, images))
        for name, component in self.components().items():
            out |= {f"{name}.{k}": v for k, v in component.resolved(model, images).items()}
        return out


def refuse_channels(things: Mapping[str, Component], channels: int, group: str = "") -> None:
    """Refuse components, by name, that cannot use images of so many channels.

    Raises:
        UsageError: naming all of them.
    """
    why = []
    for name, thing in things.items():
        try:
            thing.check_channels(channels)
        except UsageError as e:
            why.append(f"{group}{name} {str(e).replace(' .', f' {group}{name}.')}")
    if why:
        raise UsageError(f"images have {channels} channels: {'; '.join(why)}; or leave these out")


class MaskedSum(NamedTuple):
    """A map whose value at pixel p is sum_n weights_np f(keep_n x + (1 - keep_n) fill), with masks, fill and weights that are the same
    for every image x.

    Attributes:
        keep: in [0, 1].
        fill: what stands where nothing is kept.
        weights: float64.
        output: f: the explained class's `logit` or softmax `probability`.
    """

    keep: Float[Tensor, "b n h w"]
    fill: Images
    weights: Float[Tensor, "b n h w"]
    output: str


class Explainer(Component):
    """A frozen dataclass of hyper-parameters; the model is given to the call and nothing is kept.

    Attributes:
        null: it does not ask the model for evidence; tables show it below a line, and others are compared with it.
    """

    null: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        """The maps; `rng` is the samples' noise."""

    def with_details(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> tuple[Maps, dict[str, Float[Tensor, "b *cells"]]]:
        """The maps, and what the method knows about them, by name: one number an image each, and `undecided`, which of its cells
        `[b, r, c]` are drawn pale (1).
        """
        return self(model, images, targets, rng).detach(), {}

    def masked_sum(self, images: Images, rng: SampleRng | None = None) -> MaskedSum:
        """The method as a weighted sum of outputs at masked images, with these samples' noise.

        Raises:
            UsageError: it is none, or its masks, fill or weights move with the image; the message says which.
        """
        raise UsageError(
            f"{type(self).__name__} is no sum of outputs at masked images, and so has no certificate: take RISE, SlidingPatch, or "
            "Lime on a grid"
        )

    def passes(self, height: int, width: int) -> Passes:
        """What one image costs; of a method that does not say, one forward and one backward pass."""
        return Passes(1, 1)

    @property
    def legend(self) -> Legend:
        """How its maps are drawn; of a method that does not say, by the sign of their values."""
        return Legend()


class Filler(Component):
    """Replaces hidden pixels. Kept pixels are returned untouched.

    Attributes:
        deterministic: all draws are alike; whatever it paints, it takes no noise.
        turn_off_rate: share of the superpixels that are hidden where its samples are judged, in (0, 1]; 1 = they are whole
            new images.
        on_host: it looks at masks on the host, wherever images are: whoever has many of them gives them in one call.
    """

    deterministic: ClassVar[bool] = False
    turn_off_rate = 0.5
    on_host: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """`draws` fillings of every mask; `segments` are superpixels, where somebody has made any."""

    def background(self, images: Images, segments: Segments | None = None) -> Images | None:
        """The whole replacement image of every image; None where it depends on the mask."""
        return None

    def prepared(self, images: Images) -> Callable[..., Float[Tensor, "r n d c h w"]] | None:
        """`(rows, keep [r n h w], rng, draws) -> [r n d c h w]` for rows of these images, encoded once for all; or None."""
        return None

    def painted(self, images: Images, visible: Float[Tensor, "b 1 h w"]) -> Images | None:
        """Its painting at every pixel, differentiable; None where it has none."""
        return None

    def window_side(self) -> int | None:
        """Side K of the square windows that it knows, pixels; None where it takes any hole alike."""
        return None

    def in_windows(
        self, images: Images, keep: Keep, corners: Corners, rng: SampleRng, draws: int = 1
    ) -> Float[Tensor, "b 1 d c h w"] | None:
        """As the call with one mask an image that hides its K x K window alone, without a look at it; None = it has to look."""
        return None

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"] | None:
        """Bits per pixel and channel of the K x K window at (top, left) of every image; None where it has no density."""
        return None


class Score(Component):
    """One number per probe.

    Attributes:
        higher_is_better: its direction.
        against_nulls: whether being better than maps that ignore the model says something; else the column has no marks.
        truth: the mask of that name is handed to the call as `observed`; None = it is not scored against masks.
    """

    deterministic: ClassVar[bool] = False
    higher_is_better: bool
    against_nulls: ClassVar[bool] = True
    truth: str | None = None

    @abstractmethod
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores:
        """The score of every map; of a score with `settings`, one column `[b, t]` each."""

    def with_details(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Float[Tensor, "b"]]]:
        """The call's scores, `[b]` or `[b, t]`, and what else it learned on the way: one number an image each, by name."""
        return self(model, images, maps, targets, rng, observed), {}

    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """What the number means."""

    def passes(self, height: int, width: int) -> Passes:
        """What one image costs; of a score that does not say, one forward and one backward pass."""
        return Passes(1, 1)

    def observe(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Tensor | None:
        """Model outputs that do not depend on the map: computed once per probe, `observed` by the call for every explainer."""
        return None

    @property
    def observes(self) -> bool:
        """Whether it has such outputs."""
        return type(self).observe is not Score.observe

    @property
    def explanations(self) -> int:
        """How many maps of an image `again` asks of its explainer; 0 of a score that takes the map as it is."""
        return 0

    def again(
        self,
        explainer: Explainer | Callable[..., Maps],
        model: Model,
        images: Images,
        targets: Targets,
        rng: SampleRng | None = None,
    ) -> Float[Tensor, "b n h w"] | None:
        """More maps of every image by the explainer whose maps are scored: `observed` by the call, for no other explainer."""
        return None

    def settings(self) -> Sequence[float] | None:
        """What its columns are, of which one is chosen on half of the probes; None of a score of one number."""
        return None

    def reference(self, masks: Bool[Tensor, "b h w"]) -> Scores | None:
        """The score of the whole image against these masks, the baseline of a score against masks."""
        return None


@dataclass(frozen=True)
class PlainExplainer(Explainer):
    """A plain callable that explains; it is described as what it is."""

    function: Callable[..., Maps]

    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return self.function(model, images, targets, rng)


@dataclass(frozen=True)
class PlainFiller(Filler):
    """A plain callable that fills; it is described as what it is."""

    function: Callable[..., Tensor]

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        return self.function(images, keep, rng, draws, segments)


def as_explainer(thing: Any, name: str = "the explainer") -> Explainer:
    """An explainer as it is, a plain callable `(model, images, targets, rng) -> maps` as one.

    Raises:
        UsageError: it is neither, or a class that has more than a call and does not inherit `Explainer`.
    """
    if isinstance(thing, Explainer):
        return thing
    refuse_more_than_a_call(thing, name, Explainer)
    return PlainExplainer(thing)


def as_filler(thing: Any, name: str = "the filler") -> Filler:
    """A filler as it is, a plain callable of `Filler`'s arguments as one; errors as `as_explainer`."""
    if isinstance(thing, Filler):
        return thing
    refuse_more_than_a_call(thing, name, Filler)
    return PlainFiller(thing)


def as_score(thing: Any, name: str = "the score") -> Score:
    """A score as it is; anything else lacks its meaning and its direction, and is refused."""
    if not isinstance(thing, Score):
        raise UsageError(f"{name} ({type(thing).__name__}) is no score: let its class inherit lit_xai.core.Score")
    return thing


# what an object may say of itself beside its call, if its class inherits
MORE = {
    Explainer: {"passes", "resolve", "with_details", "legend", "fitted", "content"},
    Filler: {"background", "prepared", "painted", "patch", "deterministic", "window_bits", "fitted", "content"},
}


def refuse_more_than_a_call(thing: Any, name: str, kind: type[Component]) -> None:
    """Refuse an object that says more of itself without inheriting: nobody would ask it."""
    more = sorted(MORE[kind] & set(dir(thing))) + list(components_of(thing))
    if more or not callable(thing):
        has = f"has {more[0]}" if more else "cannot be called"
        raise UsageError(f"{name} ({type(thing).__name__}) {has}: let its class inherit lit_xai.core.{kind.__name__}")


def scaled(pixels: float, side: int, odd: bool = True, least: int = 3) -> int:
    """A pixel-sized parameter given for 224 px, on an image of `side` pixels (odd where needed, at least `least`)."""
    size = max(least, round(pixels * side / REFERENCE_SIDE))
    return size + 1 if odd and size % 2 == 0 else size


MOVED = {"Blur": "lit_xai.fillers.constant", "Colour": "lit_xai.fillers.constant", "Mean": "lit_xai.fillers.constant"}


def __getattr__(name: str) -> Any:
    """Names that saved configurations and users' own files know from here."""
    if name in MOVED:
        return getattr(importlib.import_module(MOVED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

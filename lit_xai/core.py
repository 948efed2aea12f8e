"""Shared vocabulary: tensor types, the protocols, noise keyed by sample, and the fillers that need no training.

Everything above imports this module; this module imports nothing of lit_xai but its errors.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.errors import UsageError

Images = Float[Tensor, "b c h w"]  # values in [0, 1]
Maps = Float[Tensor, "b h w"]  # signed, image-sized, raw evidence
Keep = Bool[Tensor, "b n h w"]  # n masks an image; True = the pixel stays visible
Targets = Int[Tensor, "b"]  # class index
Scores = Float[Tensor, "b"]
Segments = Int[Tensor, "b h w"]  # superpixel of every pixel, 0 .. d-1 in every image
Model = Callable[[Tensor], Tensor]  # [b, c, h, w] -> logits [b, k]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
CPU_VALUES = 16 * 3 * 224 * 224  # most pixel values of one model call on the CPU
ROUNDING = 1e-3  # by which pixel values may leave [0, 1]
REFERENCE_SIDE = 224  # pixel-sized parameters are given for this image side


class Passes(NamedTuple):
    """Model passes per image: what an explainer or a score costs."""

    forward: int
    backward: int = 0

    def __add__(self, other: object) -> Passes:  # type: ignore[override]
        assert isinstance(other, Passes)
        return Passes(self.forward + other.forward, self.backward + other.backward)


# ---------------------------------------------------------------------------------------------------------- randomness


def stable_hash(*parts: object) -> int:
    """A 63-bit integer from the text of `parts`, the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class SampleRng:
    """Noise that belongs to samples, not to batches.

    Every value is a function of `(seed, stream, sample index, draw)` alone, so an explanation depends neither on the
    batch it was computed in, nor on the rank, nor on which fold's model is explained (common random numbers).

    Args:
        seed: the run's seed.
        samples: the index of every image of the batch in its data set.
        variants: which variant of its image (mask, window) every row is, where rows share a sample.
    """

    seed: int
    samples: tuple[int, ...]
    variants: tuple[int, ...] | None = None

    @staticmethod
    def default(batch: int, rng: SampleRng | None = None) -> SampleRng:
        """`rng` itself, or samples 0..batch-1 under seed 0."""
        if rng is None:
            return SampleRng(0, tuple(range(batch)))
        if len(rng.samples) != batch:
            raise UsageError(f"rng names {len(rng.samples)} samples for {batch} images: pass one index per image")
        return rng

    def take(self, rows: Sequence[int], variants: Sequence[int] | None = None) -> SampleRng:
        """The generator of a part of the batch; with `variants`, row t has its own noise for variant `variants[t]`."""
        return SampleRng(self.seed, tuple(self.samples[r] for r in rows), tuple(variants) if variants else None)

    def repeated(self, repeat: int) -> SampleRng:
        """Independent noise for another run of the same method; repeat 0 is this generator itself."""
        return replace(self, seed=stable_hash(self.seed, "repeat", repeat)) if repeat else self

    def generator(self, stream: str, row: int, draw: int = 0) -> torch.Generator:
        """A CPU generator for one sample (`row` of this batch) and one draw."""
        variant = () if self.variants is None else (self.variants[row],)
        return torch.Generator().manual_seed(stable_hash(self.seed, stream, self.samples[row], draw, *variant))

    def uniform(self, stream: str, row: int, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1) for one sample, float32 on the CPU."""
        return torch.rand(tuple(shape), generator=self.generator(stream, row))

    def normal(self, stream: str, rows: Sequence[int], draws: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal `[len(rows), *shape]`; entry t belongs to sample `rows[t]` and draw `draws[t]`."""
        out = torch.empty(len(rows), *shape)
        for t, (row, draw) in enumerate(zip(rows, draws, strict=True)):
            torch.randn(tuple(shape), generator=self.generator(stream, row, draw), out=out[t])
        return out


# ----------------------------------------------------------------------------------------------------------- protocols


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


UNDESCRIBED = ("max_batch", "incremental", "checkpoint", "trained_on")


def describe(thing: Any) -> dict[str, Any]:
    """The plain, comparable description of a frozen dataclass: its name and its parameters, nested ones included.

    `max_batch` and `incremental` are left out: they change how something is computed, not what. So are the place of a `checkpoint` and
    what `fitted` adds: what lies there is told by `contents`. A function, or an object of another class, is described by its code
    and its attributes.
    """
    if not is_dataclass(thing) or isinstance(thing, type):
        return describe_code(thing)
    out: dict[str, Any] = {"name": type(thing).__name__}
    for f in fields(thing):
        if f.name in UNDESCRIBED:
            continue
        value = getattr(thing, f.name)
        if is_dataclass(value) or callable(value):
            value = describe(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = {str(k): v for k, v in value.items()}
        out[f.name] = value
    return out


def describe_code(thing: Any) -> dict[str, Any]:
    """The same for a function, or an object that is no dataclass: its name, a digest of its code, its attributes."""
    if isinstance(thing, functools.partial):
        return {**describe_code(thing.func), "arguments": plain_value([list(thing.args), dict(thing.keywords)])}
    kind = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    own = vars(thing) if kind is type(thing) and hasattr(thing, "__dict__") else {}
    return {"name": kind.__qualname__, "code": code_digest([kind]), **{k: plain_value(v) for k, v in own.items()}}


def plain_value(value: Any) -> Any:
    """A value as JSON holds it: numbers and texts as they are, tensors and arrays by digest, code by its own, the rest by type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_value(v) for v in value]
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return f"{array.dtype}{list(array.shape)} {hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()}"
    return describe(value) if is_dataclass(value) or callable(value) else type(value).__qualname__


def code_digest(things: Iterable[Any]) -> str:
    """A digest of the code of functions and classes, whatever their comments and layout; in order, each once."""
    h = hashlib.blake2b(digest_size=8)
    for thing in dict.fromkeys(things):
        try:
            text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(thing))))
        except (
            OSError,
            TypeError,
            SyntaxError,
        ):  # no source, or a lambda within a line: names, constants and byte code
            members = list(vars(thing).values()) if isinstance(thing, type) else [thing]
            codes = [inspect.unwrap(m).__code__ for m in members if inspect.isfunction(m)]
            text = repr([(c.co_names, c.co_code, [k for k in c.co_consts if not inspect.iscode(k)]) for c in codes])
        h.update(f"{getattr(thing, '__qualname__', '')}\0{text}\0".encode())
    return h.hexdigest()


# ---------------------------------------------------------------------------------------------------------- the model


def check_batch(images: Images, targets: Targets) -> None:
    """Refuse what no explainer can use: images that are not a batch or not in [0, 1], a target per image missing."""
    if images.ndim != 4:
        raise UsageError(f"images must be [batch, channels, height, width], found shape {tuple(images.shape)}")
    check_range(images)
    if len(targets) != len(images):
        raise UsageError(f"{len(targets)} targets for {len(images)} images: pass one class index per image")
    if len(targets) and int(targets.min()) < 0:
        raise UsageError(f"target {int(targets.min())} is no class: pass class indices from 0")


def check_range(images: Tensor) -> None:
    """Refuse images that are not numbers in [0, 1], but for rounding: fillers, noise and scores take them to be."""
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}: pass floating-point values in [0, 1], as images / 255")
    if not images.numel():
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    if not math.isfinite(low) or not math.isfinite(high):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        raise UsageError(f"image {bad} of this batch holds NaN or infinite values: mend it or leave it out")
    mend = (
        "put the normalisation inside the model" if low < 0 else f"divide by {'255' if high > 16 else 'their largest'}"
    )
    raise UsageError(f"images lie in [{low:.3g}, {high:.3g}]: pass values in [0, 1] ({mend})")


def check_classes(logits: Float[Tensor, "r k"], targets: Targets) -> None:
    """Refuse targets that the model has no output for."""
    if len(targets) and int(targets.max()) >= logits.shape[1]:
        raise UsageError(f"target {int(targets.max())} does not exist: the model has classes 0..{logits.shape[1] - 1}")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode (no dropout, fixed batch statistics); every module's mode is restored afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [m.training for m in modules]
    try:
        if any(modes):
            model.eval()  # type: ignore[attr-defined]
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


def select_output(logits: Float[Tensor, "b k"], targets: Targets, output: str = "logit") -> Float[Tensor, "b"]:
    """The logit (`output="logit"`) or softmax probability (`"probability"`) of each row's target class."""
    if output == "probability":
        logits = logits.softmax(dim=-1)
    elif output != "logit":
        raise UsageError(f"output must be logit or probability, found {output!r}")
    return logits.gather(-1, targets[:, None])[:, 0]


def in_format_of(chunk: Tensor, like: Tensor) -> Tensor:
    """`chunk` in channels-last memory if `like` is (a gather forgets it, and convolutions are faster with it)."""
    if like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return chunk.contiguous(memory_format=torch.channels_last)
    return chunk


def row_chunks(images: int, each: int, max_batch: int) -> Iterator[tuple[list[int], list[int]]]:
    """Walk `images x each` model inputs in chunks of at most `max_batch` rows.

    Yields two lists of equal length: the image of every row, and which of that image's inputs it is.
    """
    if max_batch < 1:
        raise UsageError(f"max_batch must be at least 1, found {max_batch}")
    for start in range(0, images * each, max_batch):
        rows = range(start, min(start + max_batch, images * each))
        yield [r // each for r in rows], [r % each for r in rows]


def per_call(images: Images, max_batch: int) -> int:
    """How many of these images go into one model call: `max_batch`, and on the CPU fewer of large ones.

    Past some 2 million values the activations leave the caches, and larger calls are slower, not faster.
    """
    if images.device.type != "cpu" or max_batch < 1:
        return max_batch
    return min(max_batch, max(1, CPU_VALUES // images[0].numel()))


@contextmanager
def autocast(images: Tensor, precision: str) -> Iterator[None]:
    """`precision="bf16"` runs the model under autocast; `"float32"` leaves it as it is."""
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision must be float32 or bf16, found {precision!r}")
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def evaluate_rows(
    model: Model,
    make: Callable[[list[int], list[int]], Tensor],
    images: Images,
    targets: Targets,
    each: int,
    max_batch: int,
    output: str = "logit",
    precision: str = "float32",
) -> Float[Tensor, "b n"]:
    """The target's output for `each` variants of every image: `[images, each]`, in chunks of `max_batch` rows.

    `make(image_of_row, variant_of_row)` builds one chunk. No gradient is recorded.
    """
    out = torch.empty(len(images) * each, dtype=images.dtype, device=images.device)
    with torch.inference_mode(), evaluating(model):
        done = 0
        for image_of, variant_of in row_chunks(len(images), each, per_call(images, max_batch)):
            with autocast(images, precision):
                logits = model(in_format_of(make(image_of, variant_of), images))
            if not done:
                check_classes(logits, targets)
            chunk = select_output(logits.to(images.dtype), targets[image_of], output)
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
    return out.view(len(images), each)


# ------------------------------------------------------------------------------------------------------------- fillers


def scaled(pixels: float, side: int, odd: bool = True, least: int = 3) -> int:
    """A pixel-sized parameter given for 224 px, on an image of `side` pixels (odd where needed, at least `least`)."""
    size = max(least, round(pixels * side / REFERENCE_SIDE))
    return size + 1 if odd and size % 2 == 0 else size


class BackgroundFiller(ABC):
    """A filler whose replacement image does not depend on the mask."""

    deterministic = True

    @abstractmethod
    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The whole replacement image of every image; `segments` are its superpixels, where somebody has made any."""

    def __call__(
        self,
        images: Images,
        keep: Keep,
        rng: SampleRng,
        draws: int = 1,
        segments: Segments | None = None,
    ) -> Float[Tensor, "b n d c h w"]:
        filled = torch.where(keep[:, :, None], images[:, None], self.background(images, segments)[:, None])
        return filled[:, :, None].expand(-1, -1, draws, -1, -1, -1)


@dataclass(frozen=True)
class Colour(BackgroundFiller):
    """One colour: `Colour(0.0)` is black, `Colour(0.5)` grey, `Colour((r, g, b))` any other (its luma on grey images)."""

    value: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.value, int | float):
            object.__setattr__(self, "value", tuple(self.value))

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The colour, at the images' size."""
        colour = torch.as_tensor(self.value, dtype=images.dtype, device=images.device).reshape(-1)
        if len(colour) == 3 and images.shape[1] == 1:
            colour = (colour * colour.new_tensor(LUMA)).sum(0, keepdim=True)
        if len(colour) not in (1, images.shape[1]):
            raise UsageError(f"a colour of {len(colour)} values cannot fill images of {images.shape[1]} channels")
        return colour[None, :, None, None].expand_as(images)


@dataclass(frozen=True)
class Mean(BackgroundFiller):
    """The mean colour of the training folds; whoever knows the data gives it with `fitted`."""

    colour: tuple[float, ...] | None = field(default=None)

    def fitted(self, trained_on: TrainedOn) -> Mean:
        """This filler with the training folds' mean colour."""
        return self if self.colour is not None else Mean(trained_on.colour)

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The mean colour, at the images' size."""
        if self.colour is None:
            raise UsageError("the mean filler does not know its colour: pass Mean(colour=(...)) or Colour(0.0)")
        return Colour(self.colour).background(images)


@dataclass(frozen=True)
class Blur(BackgroundFiller):
    """Gaussian blur. `kernel` and `sigma` are pixels at 224 px and scale with the image side (RISE's insertion)."""

    kernel: int = 11
    sigma: float = 5.0

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The kernel and sigma in pixels of these images."""
        side = min(images.shape[-2:])
        kernel = scaled(self.kernel, side)
        if self.sigma <= 0 or kernel // 2 >= side:
            raise UsageError(f"a blur needs sigma > 0 and a kernel narrower than twice the image, found {self}")
        return {"kernel": kernel, "sigma": self.sigma * side / REFERENCE_SIDE}

    def background(self, images: Images, segments: Segments | None = None) -> Images:
        """The blurred images (borders reflect)."""
        size = self.resolve(lambda x: x, images)
        offsets = torch.arange(size["kernel"], dtype=images.dtype, device=images.device) - size["kernel"] // 2
        weights = torch.exp(-(offsets**2) / (2 * size["sigma"] ** 2))
        weights = weights / weights.sum()
        channels, pad = images.shape[1], size["kernel"] // 2
        x = F.pad(images, (pad, pad, pad, pad), mode="reflect")
        x = F.conv2d(x, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(x, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def chosen(
    keep: Bool[Tensor, "r h w"], seen: Float[Tensor, "#r c h w"], hidden: Float[Tensor, "#r c h w"]
) -> Float[Tensor, "r c h w"]:
    """`seen` where a pixel is kept, else `hidden`: `torch.where` bit by bit: exact, and vectorised where that is not."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[seen.element_size()]
    a, b = seen.view(bits), hidden.view(bits)
    return ((a ^ b) & -keep[:, None].to(bits)).bitwise_xor_(b).view(seen.dtype)


@dataclass(frozen=True)
class Refill:
    """Rows of a model's input with hidden pixels filled, for walks over `images x variants`.

    A filler whose replacement does not depend on the mask is asked for it once, and one that encodes images encodes each
    once (see `Filler`); any other is called row by row. Noise belongs to (sample, variant), so that a row does not depend
    on the chunk it is made in.

    Args:
        filler: what stands where a pixel is hidden.
        images: the images.
        rng: their noise.
        segments: their superpixels, for fillers that use them.
    """

    filler: Filler
    images: Images
    rng: SampleRng
    segments: Segments | None = None
    whole: Images | None = field(init=False)
    prepared: Any = field(init=False)

    def __post_init__(self) -> None:
        prepare = getattr(self.filler, "prepared", None)
        object.__setattr__(self, "prepared", prepare(self.images) if prepare is not None else None)
        whole = (
            self.filler.background(self.images, self.segments) if isinstance(self.filler, BackgroundFiller) else None
        )
        if whole is not None and whole.shape != self.images.shape:
            raise UsageError(
                f"filler {type(self.filler).__name__} returned a background of shape {tuple(whole.shape)} "
                f"for images of shape {tuple(self.images.shape)}"
            )
        object.__setattr__(self, "whole", whole)

    def __call__(
        self, keep: Bool[Tensor, "r h w"], image_of: list[int], variant_of: list[int], draws: int = 1
    ) -> Float[Tensor, "rows c h w"]:
        """Row t is image `image_of[t]` seen through `keep[t]`; `draws` fillings of a row follow each other.

        Raises:
            UsageError: the filler returned another shape.
        """
        if self.whole is not None:
            parts, start = [], 0
            while start < len(image_of):  # image by image: no copies of them are made
                image = image_of[start]
                stop = start + image_of[start:].count(image)
                rows = slice(image, image + 1)
                parts.append(chosen(keep[start:stop], self.images[rows], self.whole[rows]))
                start = stop
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
            return out if draws == 1 else out.repeat_interleave(draws, dim=0)
        rng = self.rng.take(image_of, variant_of)
        if self.prepared is not None:
            out = self.prepared(image_of, keep[:, None], rng, draws)
        else:
            segments = self.segments[image_of] if self.segments is not None else None
            out = self.filler(self.images[image_of], keep[:, None], rng, draws, segments)
        expected = (len(image_of), 1, draws, *self.images.shape[1:])
        if tuple(out.shape) != expected:
            name = type(self.filler).__name__
            raise UsageError(
                f"filler {name} returned shape {tuple(out.shape)}, expected {expected}: [b, n, d, c, h, w]"
            )
        return out.flatten(0, 2)


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


def fit_fillers(thing: Any, trained_on: TrainedOn) -> Any:
    """`thing` (an explainer, a score or a filler) with everything inside that has `fitted(trained_on)` fitted."""
    if hasattr(thing, "fitted"):
        return thing.fitted(trained_on)
    if not is_dataclass(thing) or isinstance(thing, type):
        return thing
    values = {f.name: fit_fillers(getattr(thing, f.name), trained_on) for f in fields(thing)}
    if all(values[f.name] is getattr(thing, f.name) for f in fields(thing)):
        return thing
    return type(thing)(**values)


def contents(thing: Any) -> dict[str, Any]:
    """What the files that `thing` and the objects inside it read hold, by dotted name (see `Filler`); usually nothing.

    Raises:
        UsageError: a file is missing, damaged, or was fitted to other images.
    """
    out: dict[str, Any] = {"": thing.content()} if hasattr(thing, "content") else {}
    for f in fields(thing) if is_dataclass(thing) and not isinstance(thing, type) else ():
        for name, content in contents(getattr(thing, f.name)).items():
            out[f"{f.name}.{name}".rstrip(".")] = content
    return out


def resolve(thing: Any, model: Model, images: Images) -> dict[str, Any]:
    """What `thing` and the objects inside it decide from the model and the image size, by dotted name."""
    out: dict[str, Any] = {}
    if hasattr(thing, "resolve"):
        out.update(thing.resolve(model, images))
    for f in fields(thing) if is_dataclass(thing) else ():
        inner = getattr(thing, f.name)
        if is_dataclass(inner):
            out.update({f"{f.name}.{k}": v for k, v in resolve(inner, model, images).items()})
    return out


def passes_of(thing: Any, height: int, width: int) -> Passes:
    """The model passes one image costs; one forward and one backward pass where a third party's code does not say."""
    return thing.passes(height, width) if hasattr(thing, "passes") else Passes(1, 1)


def accepts(target: Callable[..., Any]) -> set[str] | None:
    """The keyword names `target` takes, or None if it takes any."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}

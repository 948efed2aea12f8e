"""What generators of whole images share: an image is encoded once, and all its masks and draws start from there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.cache import Cache, digest, nbytes
from lit_xai.calls import AUTO, Size, check_size, per_call
from lit_xai.core import Images, Keep, Model, Segments
from lit_xai.errors import UsageError, at_least
from lit_xai.fillers.base import keys_of
from lit_xai.fillers.fitted import FittedFiller
from lit_xai.fillers.static import Call, Static, Way, check_compile, ways_on
from lit_xai.fitting import describe
from lit_xai.rng import Noise, SampleRng

RANGE = 1e-3  # images may leave [0, 1] by so much
ENCODED = Cache(1 << 30)  # bytes of encoded images that are kept within a run
CPU_ROWS, DEVICE_ROWS = 64, 256  # images of a call where nobody says
DRAWN = Cache(2 << 30)  # and of whole new images


@dataclass(frozen=True)
class GenerativeFiller(FittedFiller):
    """A filler that knows whole images: it draws new ones near a given one, or (`paints`) what is hidden in it.

    Args:
        checkpoint, trained_on, given: see `FittedFiller`.
        max_batch: most images per network call; `auto` is 256, and on the CPU 64, fewer of large ones.
        compile: `auto` makes passes of the network on a GPU in few shapes, recorded or compiled (see `static.ways_on`), which
            changes what is drawn by rounding; `never`, and a CPU, makes them as they are.
    """

    max_batch: Size = AUTO
    compile: str = field(default="auto", kw_only=True, metadata={"described": False})

    turn_off_rate = 1.0
    paints = False
    fused: ClassVar[bool] = False  # an image takes so many passes that compiling the network pays

    def __post_init__(self) -> None:
        check_size(self.max_batch)
        check_compile(self.compile)

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """Also whether passes are compiled, where they are."""
        compiled = {"compile": self.compile} if self.ways(images.device) else {}
        return {**super().resolve(model, images), **compiled}

    def ways(self, device: torch.device) -> tuple[Way, ...]:
        """How passes on this device are made faster."""
        return ways_on(device, self.fused) if self.compile == "auto" else ()

    def quick(self, images: Tensor, make: Callable[[Any], Call], *about: Hashable) -> Static:
        """A call of the network in few shapes, kept for whoever asks again.

        Args:
            images: `[b, c, h, w]`, on whose device and in whose type the network is.
            make: the call, of the module that is there; it depends on nothing else but `about`.
            about: what else decides the call.
        """
        module, ways = self.opened.like(images), self.ways(images.device)
        most = self.most(images.device)
        key = (module, ways, most, *about)
        if key not in self.opened.quick:
            self.opened.quick[key] = Static(module, make(module), ways, most)
        return self.opened.quick[key]

    def most(self, device: torch.device) -> int:
        """Most images of a call of the network on a device."""
        auto = CPU_ROWS if device.type == "cpu" else DEVICE_ROWS
        return auto if self.max_batch == AUTO else int(self.max_batch)

    def rows(self, images: Images) -> int:
        """The same of these images: on a CPU fewer of large ones."""
        return per_call(images, self.most(images.device))

    def begin(self, images: Tensor) -> None:
        """What is done once a call for images `[b, c, h, w]`, before loops over chunks and steps: there nothing waits for the device."""

    def encode(self, images: Images) -> Float[Tensor, "b ..."]:
        """What all draws from an image share, for `max_batch` images; of a painter nothing: every mask is another input."""
        return images.new_empty(len(images), 0)

    @abstractmethod
    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Float[Tensor, "b ..."],
        rows: Int[Tensor, "m"],
        keep: Bool[Tensor, "m h w"],
        noise: Noise,
    ) -> Float[Tensor, "m c h w"]:
        """One draw for each of `max_batch` rows, after `begin`: `images[t]` seen through `keep[t]`, its code at `rows[t]`, noise from key t."""

    @abstractmethod
    def quality(self, images: Images) -> dict[str, Float[Tensor, "b"]]:
        """What held-out images tell about it, one number an image each."""

    def check(self, images: Images) -> None:
        """Refuse images unlike those it was trained on.

        Raises:
            UsageError: other channels, another size, values outside [0, 1].
        """
        self.check_shape(self.module, tuple(images.shape[1:]))
        low, high = (float(v) for v in images.aminmax()) if images.numel() else (0.0, 1.0)
        if not (low >= -RANGE and high <= 1 + RANGE):
            raise UsageError(
                f"this {type(self).__name__} takes values in [0, 1], found {low:.3g} to {high:.3g}: give images before any "
                f"normalisation (it belongs inside the model)"
            )

    def check_shape(self, module: Any, shape: tuple[int, ...]) -> None:
        """Refuse images of other channels or another size than it was trained on."""
        if shape != (module.channels, module.side, module.side):
            trained, found = f"{module.channels} x {module.side} x {module.side}", " x ".join(map(str, shape))
            raise UsageError(
                f"this {type(self).__name__} was trained on images of {trained} (channels, height, width), found {found}: "
                f"train one on the classifier's data"
            )

    def encoded(self, images: Images) -> Float[Tensor, "b ..."]:
        """The codes of any number of images."""
        self.check(images)
        self.begin(images)
        with torch.no_grad():
            return torch.cat([self.encode(part) for part in images.split(self.rows(images))])

    def prepared(self, images: Images) -> Prepared:
        """These images, encoded once for all masks and draws; what comes from a file is kept for whoever asks again.

        Raises:
            UsageError: as `check`.
        """
        images = images.detach().contiguous()
        if not self.opened.digest or self.paints:  # of a painter nothing is encoded
            return Prepared(self, images, self.encoded(images))
        ways = self.ways(images.device)  # which decide the rounding
        key = (repr(describe(self)), self.opened.digest, digest(images), ways, self.rows(images) if ways else None)
        found = ENCODED.get(key)
        if found is None:
            images = images.clone()
            found = Prepared(self, images, self.encoded(images), key)
            ENCODED.put(key, found, nbytes(found.code) + nbytes(images))
        return replace(found, filler=self)

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """Hidden pixels drawn; draw d of mask n has noise of its own.

        Raises:
            UsageError: as `check`; draws < 1.
        """
        return self.prepared(images)(torch.arange(len(images), device=images.device), keep, rng, draws)


@dataclass(frozen=True)
class Prepared:
    """Encoded images, for any number of masks and draws.

    Attributes:
        filler, images, code: see `GenerativeFiller`.
        looked_at: not empty once its draws were found to be numbers.
        key: of filler and images, where whole new images may be kept for whoever asks for the same ones again (another
            explainer, or the same with other superpixels): they do not depend on the mask.
    """

    filler: GenerativeFiller
    images: Images
    code: Float[Tensor, "b ..."]
    key: Hashable | None = None
    looked_at: list[bool] = field(default_factory=list, compare=False)

    def __call__(
        self,
        rows: Int[Tensor, "r"],
        keep: Bool[Tensor, "r n h w"],
        rng: SampleRng,
        draws: int = 1,
        names: Callable[[int], list[list[int]]] | None = None,
    ) -> Float[Tensor, "r n d c h w"]:
        """Row t is image `rows[t]` under its masks `keep[t]`; its noise is that of row t of `rng`.

        `names(draws)` gives row and noise key of every draw where the host knows them; else they are read from the device.
        """
        at_least(1, draws=draws)
        masks, each = keep.shape[1], 1 if self.filler.deterministic else draws
        noise = keys_of(keep, rng, each).reshape(-1)
        of = rows.repeat_interleave(masks * each)
        visible = keep.flatten(0, 1).repeat_interleave(each, dim=0)
        drawn = self.drawn(of, visible, noise, partial(names, each) if names else None)
        out = torch.where(visible[:, None], self.images[of], drawn)
        out = out.view(len(rows), masks, each, *self.images.shape[1:])
        return out.expand(-1, -1, draws, -1, -1, -1) if each < draws else out

    def drawn(
        self,
        rows: Int[Tensor, "m"],
        keep: Bool[Tensor, "m h w"],
        noise: Noise,
        names: Callable[[], list[list[int]]] | None = None,
    ) -> Float[Tensor, "m c h w"]:
        """One draw a row, in [0, 1]."""
        reuse = self.key is not None and not self.filler.paints
        pairs = [] if not reuse else names() if names else torch.stack([rows, noise.keys], 1).tolist()
        keys = [(self.key, *pair) for pair in pairs]
        if reuse and all(DRAWN.get(key) is not None for key in keys):
            return torch.stack([DRAWN.get(key) for key in keys])
        # where one is missing all are drawn: what a row shares a call with decides its rounding
        out = self.images.new_empty(len(rows), *self.images.shape[1:])
        each = self.filler.rows(self.images)
        self.filler.begin(self.images)
        with torch.no_grad():
            for start in range(0, len(rows), each):
                now = slice(start, start + each)
                drawn = self.filler.draw(self.images[rows[now]], self.code, rows[now], keep[now], noise[now])
                out[now] = drawn.clamp(0, 1)
        # looked at once: nobody waits for every chunk, and a map of what is no number is refused
        if not self.looked_at and not bool(torch.isfinite(out).all()):
            raise UsageError(f"this {type(self.filler).__name__} drew NaN: train it again with a lower model.lr=")
        self.looked_at[:] = [True]
        for key, row in zip(keys, out, strict=True) if reuse else ():
            DRAWN.put(key, row.clone(), nbytes(row))
        return out


def check_precision(precision: str) -> None:
    """Refuse a precision that is none, before any network is called."""
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision must be float32 or bf16, found {precision!r}")


def forget() -> None:
    """Keep no encoded and no drawn images: whoever takes the time of drawing wants it done."""
    ENCODED.clear()
    DRAWN.clear()

"""Hide a window, refill it, contrast the outputs: occlusion, sliding patch, and every other map of one moving window.

A method is a contrast of a few lines; walking the windows, refilling them and spreading the values over the pixels is
the same for all. Where a window is refilled several times, the softmax is averaged over the fillings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import (
    AUTO,
    Chunk,
    Gate,
    Size,
    autocast,
    evaluating,
    gated,
    images_a_call,
    in_format_of,
    raw,
    walk,
)
from lit_xai.core import (
    REFERENCE_SIDE,
    Corners,
    Explainer,
    Filler,
    Images,
    Legend,
    Maps,
    MaskedSum,
    Model,
    Passes,
    Targets,
    as_filler,
    scaled,
)
from lit_xai.errors import UsageError
from lit_xai.explainers.contrasts import EPSILON as EPSILON  # these are named from here by saved configurations
from lit_xai.explainers.contrasts import KL as KL
from lit_xai.explainers.contrasts import PMI as PMI
from lit_xai.explainers.contrasts import Contrast, ProbabilityDifference
from lit_xai.explainers.contrasts import LogOddsDifference as LogOddsDifference
from lit_xai.explainers.half import in_half
from lit_xai.explainers.windows import Windows
from lit_xai.fillers.constant import Colour, constant_colour
from lit_xai.fillers.refill import Refill
from lit_xai.fillers.tiles import cut
from lit_xai.incremental import MODES, Network, WindowLogits
from lit_xai.rng import SampleRng

GROUP = 64  # fillings of one window that are made together
# Pixels of an image in all its windows: in a smaller sweep, tracing the network takes longer than it can save.
FEW = 1 << 18
AHEAD = 4  # model calls for which fillings are made together: fillers are faster on more windows


def fillings(filler: Filler, draws: int) -> int:
    """How often a window is refilled: once, where all draws are alike."""
    return 1 if filler.deterministic else draws


def softmax_of(
    model: Model, x: Float[Tensor, "r c h w"], like: Images, max_batch: int, precision: str
) -> Float[Tensor, "r k"]:
    """Softmax in float64, in slices of `max_batch` rows."""
    gate, parts = Gate.of(model), []
    for part in x.split(max_batch):
        with autocast(x, precision):
            logits = gate(in_format_of(part, like))
        parts.append(logits.double().softmax(-1))
    return torch.cat(parts)


def sweep(
    model: Model,
    images: Images,
    targets: Targets,
    windows: Windows,
    filler: Filler,
    contrasts: Sequence[Contrast],
    rng: SampleRng,
    draws: int = 1,
    precision: str = "float32",
    max_batch: Size = AUTO,
    incremental: str = "auto",
    some: Sequence[int] | None = None,
) -> Float[Tensor, "contrasts b windows *n"]:
    """Every contrast for every window (or for `some`), from one walk over them; n as in `Contrast`.

    Memory is bounded by `AHEAD` times `max_batch` images, or `GROUP`. A filler without randomness of its own is asked once a
    window, whatever `draws` says. Where it is exact and pays, only what a window changes in the network is computed anew
    (`incremental`, see `lit_xai.incremental`). In bf16, see `lit_xai.explainers.half`.

    Raises:
        UsageError: draws < 1; max_batch < 1; a filler that returns another shape.
    """
    if draws < 1:
        raise UsageError(f"draws must be at least 1, found {draws}")
    model, size = Gate.of(model), images_a_call(model, images, max_batch)
    if precision == "bf16" and some is None:
        rest = windows, filler, contrasts
        again = lambda which, p, s: sweep(  # noqa: E731
            model, images[which], targets[which], *rest, rng.take(which), draws, p, max_batch, incremental, s
        )
        return in_half(again, model, images, len(windows))
    refill = Refill(filler, images, rng)
    draws = fillings(refill.filler, draws)
    groups = [min(GROUP, draws - start) for start in range(0, draws, GROUP)]
    row, column = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    which = None if some is None else torch.as_tensor(some, device=images.device)
    one_tile = refill.filler.window_side() == windows.patch
    number_of, parts = len(windows) if some is None else len(some), dict[int, Tensor]()
    with torch.inference_mode(), evaluating(model):
        whole = softmax_of(model, images, images, size, precision)
        trusted = refill.whole is not None
        outputs = Outputs(model, images, windows, draws, size, precision, incremental, trusted, some)

        def ask(chunk: Chunk) -> None:
            window = chunk.variant if which is None else which[chunk.variant]
            corners = outputs.corners_of(chunk)
            t, s = corners[0].T[..., None]
            down, across = (row >= t) & (row < t + windows.patch), (column >= s) & (column < s + windows.patch)
            keep, before = ~(down[:, :, None] & across[:, None]), whole[chunk.image]
            hidden = torch.zeros_like(before)
            for g, number in enumerate(groups):
                x = refill(keep, chunk, window * len(groups) + g, number, corners if one_tile else None)
                hidden += outputs(x, keep, chunk, number).view(len(chunk), number, -1).sum(1) / draws
            parts[chunk.start] = torch.stack([c(before, hidden, targets[chunk.image]).double() for c in contrasts])

        most = max(1, min(outputs.together(), AHEAD * size // groups[0]))
        walk(model, images, number_of, max(size, most), ask, most)
    if bool(outputs.changed | outputs.apart):  # patches do not show it: the model answers for all
        if incremental == "always" and bool(outputs.apart):
            raise UsageError("incremental=always is not possible: the model's traced form differs from it on an image")
        given = model, images, targets, windows, filler, contrasts, rng, draws, precision, max_batch
        return sweep(*given, "never", some)
    return torch.cat(list(parts.values()), dim=1).unflatten(1, (len(images), number_of))


class Outputs:
    """Softmax of images with one window refilled, a row each: incremental where that is exact and pays.

    Args:
        model, images, windows, draws, max_batch, precision: as in `sweep`.
        mode: `auto`, `always` or `never`.
        trusted: the filler cannot change what is visible; else that is looked at.

    Attributes:
        rows: most windows in a call by patches; of one image, and no more than are filled together.
        changed: whether it was found to have done so, and what was answered from patches is void; on the images' device.
        apart: the same where the traced network was found to be another than the model on an image.
    """

    def __init__(
        self,
        model: Model,
        images: Images,
        windows: Windows,
        draws: int,
        max_batch: int,
        precision: str,
        mode: str,
        trusted: bool,
        some: Sequence[int] | None = None,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"incremental must be one of {', '.join(MODES)}, found {mode!r}")
        if mode == "always" and precision != "float32":
            raise UsageError(
                f"incremental=always is not possible: precision={precision} rounds windows otherwise than whole maps"
            )
        self.model, self.images, self.windows, self.max_batch = Gate.of(model), images, windows, max_batch
        self.precision, self.mode, self.trusted = precision, mode if precision == "float32" else "never", trusted
        self.changed, self.apart = torch.zeros(2, dtype=torch.bool, device=images.device)
        # Few windows a call are dear where calls are; on the CPU, whose larger calls are slower, they are not looked at.
        cpu = images.device.type == "cpu"
        self.rows = max_batch if cpu else min(AHEAD * max_batch, len(windows) * draws)
        if self.mode != "never" and not self.answers_plainly():
            if mode == "always":
                raise UsageError(
                    "incremental=always is not possible: the model's answer holds its logits, and is not them"
                )
            self.mode = "never"
        if mode == "auto" and len(windows) * draws * images.shape[-2:].numel() < FEW:
            self.mode = "never"
        which = slice(None) if some is None else list(some)
        on_host = torch.stack(windows.corners(), 1)[which]
        self.corners: Corners = on_host.to(images.device), on_host
        self.of_image: tuple[int, WindowLogits | None] = (-1, None)
        self.network: Network | None = None  # traced once for all images

    def __call__(self, x: Tensor, keep: Tensor, chunk: Chunk, draws: int) -> Float[Tensor, "r k"]:
        """Rows `x` `[r * draws, c, h, w]`, whose row t shows image `chunk.image[t]` but for window `chunk.variant[t]`."""
        if self.mode == "never":
            return softmax_of(self.model, x, self.images, self.max_batch, self.precision)
        parts = []
        for image in chunk.images:
            of_image = chunk.rows(image)
            rows = slice(of_image.start * draws, of_image.stop * draws)
            logits = self.incremental(image)
            if logits is not None:
                if not self.trusted:
                    self.changed |= self.differs(x[rows], keep[of_image], image, draws)
                first = chunk.start + of_image.start - image * chunk.each
                some = slice(first, first + of_image.stop - of_image.start)
                pixels = self.shown(x[rows], some, draws)
                top, left = (np.repeat(c[some], draws) for c in self.corners[1].numpy().T)
                here = self.corners[0][some].repeat_interleave(draws, dim=0, output_size=len(pixels))
                parts.append(logits(pixels, top, left, here).double().softmax(-1))
            else:
                parts.append(softmax_of(self.model, x[rows], self.images, self.max_batch, self.precision))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def corners_of(self, chunk: Chunk) -> Corners:
        """The corners of every row's window; on the host they are found there."""
        here = replace(chunk, device=torch.device("cpu"))
        return self.corners[0][chunk.variant], self.corners[1][here.variant]

    def incremental(self, image: int) -> WindowLogits | None:
        """The image's, if patches are carried; one image's feature maps are kept at a time."""
        if self.mode == "never":
            return None
        if self.of_image[0] != image:
            self.of_image = (-1, None)
            one, k = self.images[image : image + 1], self.windows.patch
            known: dict[str, Any] = {"network": self.network, "windows": self.rows, "later": self.network is not None}
            logits = WindowLogits(raw(self.model), one, (k, k), self.max_batch, self.mode, **known)
            self.network = logits.network
            if logits.why:
                self.mode = "never"  # it is no other for the next image
            else:
                self.apart |= logits.differs
            self.of_image = image, None if logits.why else logits
        return self.of_image[1]

    def together(self) -> int:
        """Most rows that are made together: a model call, or as many as a call by patches takes, if that is more."""
        logits = self.incremental(0)
        return max(self.max_batch, logits.windows) if logits is not None else self.max_batch

    def answers_plainly(self) -> bool:
        """Whether the model may be called without its gate."""
        if self.model.classes is None:
            self.model(self.images[:1])
        return self.model.plain

    def differs(self, x: Tensor, keep: Tensor, image: int, draws: int) -> Tensor:
        """Whether a visible pixel of `[m * draws, c, h, w]` (`keep` `[m, h, w]`) is not the image's; a scalar that nobody waits for."""
        other = (x != self.images[image]).any(1)
        return (other & keep.repeat_interleave(draws, dim=0)).any()

    def shown(self, x: Tensor, some: slice, draws: int) -> Tensor:
        """The pixels `[r, c, k, k]` of some windows, of whose `draws` fillings `x` has a row each."""
        top, left = self.corners[0][some].repeat_interleave(draws, dim=0, output_size=len(x)).unbind(1)
        return cut(x, torch.arange(len(x), device=x.device), top, left, self.windows.patch).contiguous()


@dataclass(frozen=True)
class SlidingPatch(Explainer):
    """A patch that slides over the image; A = contrast of the outputs with and without it (Agarwal & Nguyen, 2020).

    On an additive model the map of non-overlapping patches sums, patch by patch, to f(x) - f(everything filled).

    Args:
        patch, stride: pixels at 224 px; both scale with the side (the patch odd and at least 3, the stride at least 1).
            None = the side K of the windows that a fitted filler knows, in pixels of these images.
        filler: what the patch shows.
        draws: fillings of every window, for fillers with randomness.
        contrast: of the outputs.
        projection: `bilinear` enlarges the grid of (side - patch) // stride + 1 values a side; `mean` gives a pixel the
            mean over the windows that cover it, with extra windows flush with the edges. What is enlarged is displaced: the first
            window's centre, 14 px from the edge at 224 px, is shown at 1.2 px, the last one's as far the other way.
        scale: False takes patch and stride as they are, at any image size.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most images per model call.
        incremental: `auto` computes only what a window changes in the network, where that is exact and pays; `always`
            refuses where it is not possible; `never` calls the model.
    """

    deterministic: ClassVar[bool] = True

    patch: int | None = 29
    stride: int | None = 3
    filler: Filler = field(default_factory=lambda: Colour((0.485, 0.456, 0.406)))
    draws: int = 1
    contrast: Contrast = field(default_factory=ProbabilityDifference)
    projection: str = "bilinear"
    scale: bool = True
    precision: str = "float32"
    max_batch: Size = AUTO
    incremental: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "filler", as_filler(self.filler))

    def windows(self, height: int, width: int) -> Windows:
        """The windows of images of this size."""
        if any(value is not None and value < 1 for value in (self.patch, self.stride)):
            raise UsageError(f"patch and stride must be at least 1 pixel, found {self.patch} and {self.stride}")
        if self.draws < 1:
            raise UsageError(f"draws must be at least 1, found {self.draws}")
        if self.projection not in ("bilinear", "mean"):
            raise UsageError(f"projection must be bilinear or mean, found {self.projection!r}")
        knows, side = self.filler.window_side(), min(height, width)
        if knows is None and None in (self.patch, self.stride):
            raise UsageError(f"filler {type(self.filler).__name__} knows no K: set patch= and stride= in pixels")
        scale = self.scale and side != REFERENCE_SIDE
        patch: Any = knows if self.patch is None else scaled(self.patch, side) if scale else self.patch
        stride: Any = knows if self.stride is None else scaled(self.stride, side, False, 1) if scale else self.stride
        if knows is not None and patch != knows:
            raise UsageError(
                f"patch={patch} is not the K={knows} that the sampler of {type(self.filler).__name__} was fitted to: "
                f"set patch={knows} or null (the sampler's own), or train one with model.patch={patch}"
            )
        if patch > side:
            most, given = (REFERENCE_SIDE, f" (given for {REFERENCE_SIDE} px)") if self.scale else (side, "")
            raise UsageError(
                f"patch={self.patch}{given} does not fit images of {height} x {width} pixels: choose at most {most}"
            )
        return Windows(height, width, patch, stride, cover=self.projection == "mean")

    @property
    def legend(self) -> Legend:
        """What the contrast says of its values."""
        return self.contrast.legend

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """Patch and stride in pixels of these images, and the number of windows."""
        windows = self.windows(*images.shape[-2:])
        return {"patch": windows.patch, "stride": windows.stride, "windows": len(windows)}

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a window and filling, and one of the whole image."""
        return Passes(len(self.windows(height, width)) * fillings(self.filler, self.draws) + 1)

    def share(self, model: Model, images: Images) -> float:
        """The share of its passes' time that it is expected to take, where only what a window changes is computed."""
        windows, rows = self.windows(*images.shape[-2:]), images_a_call(model, images, self.max_batch)
        draws = fillings(self.filler, self.draws)
        outputs = Outputs(model, images, windows, draws, rows, self.precision, self.incremental, trusted=True)
        with torch.inference_mode(), evaluating(model):
            logits = outputs.incremental(0)
        return logits.share if logits is not None else 1.0

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        rng = SampleRng.default(len(images), rng)
        windows = self.windows(*images.shape[-2:])
        values = sweep(
            model,
            images,
            targets,
            windows,
            self.filler,
            [self.contrast],
            rng,
            self.draws,
            self.precision,
            self.max_batch,
            self.incremental,
        )[0]
        spread = windows.covering_mean if self.projection == "mean" else windows.upsampled
        return spread(values).to(images.dtype)

    def masked_sum(self, images: Images, rng: SampleRng | None = None) -> MaskedSum:
        """The whole image and its windows, with the windows' shares of every pixel, of a probability's difference."""
        if type(self.contrast) is not ProbabilityDifference or self.precision != "float32":
            found = f"{type(self.contrast).__name__}, {self.precision}"
            raise UsageError(
                f"certificates of a sliding patch are of the contrast ProbabilityDifference in float32, found {found}"
            )
        windows = self.windows(*images.shape[-2:])
        top, left = windows.corners(images.device)
        row, column = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        down, across = (
            (at >= first[:, None]) & (at < first[:, None] + windows.patch) for at, first in ((row, top), (column, left))
        )
        hidden = down[:, :, None] & across[:, None]
        spread = windows.covering_mean if self.projection == "mean" else windows.upsampled
        shares = spread(torch.eye(len(windows), dtype=torch.float64, device=images.device))
        keep = torch.cat([torch.ones_like(hidden[:1]), ~hidden]).to(images.dtype)
        weights = torch.cat([shares.sum(0, keepdim=True), -shares])
        both = (t.expand(len(images), -1, -1, -1) for t in (keep, weights))
        return MaskedSum(next(both), constant_colour(self.filler, images), next(both), "probability")

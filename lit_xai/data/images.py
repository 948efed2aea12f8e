"""Images in [0, 1] by index, in memory or on disk, and the data set that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lit_xai.data.threads import side_by_side
from lit_xai.data.truth import Truth, check_opaque, flattened, framed, opened, upright
from lit_xai.errors import UsageError

GREY = ("1", "L", "LA")  # modes of grey-scale files
NAMED = 20  # files that one error names
KEPT = 256 * 2**20  # bytes of decoded pictures that are kept in memory: 1,783 of 224 px


@runtime_checkable
class ImageSet(Protocol):
    """Images by index, in [0, 1]."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of images."""
        ...


@dataclass(frozen=True)
class InMemory:
    """uint8 pixels `[n, c, h, w]` kept in memory: of the CPU, or of a device, where batches are then made."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Sequence[int] | Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
        """A batch of images, scaled to [0, 1]; the same bits on every device."""
        x = self.pixels[torch.as_tensor(indices, dtype=torch.long, device=self.pixels.device)].float()
        return x.div_(torch.full((), 255.0, device=x.device))  # a GPU multiplies by 1/255 where it is given a number

    def on(self, device: torch.device) -> InMemory:
        """The same images in the memory of a device."""
        return self if device == self.pixels.device else InMemory(self.pixels.to(device))


@dataclass(frozen=True)
class OnDisk:
    """Picture files, decoded when asked for: shorter side to `resize`, then the central `size` pixels.

    `grey` says what a grey-scale file among colour pictures is: `refuse` it, or `convert` it; `transparent`, on what pixels that let
    something through lie: `white` or `black` (None refuses them). `change` makes something else of picture i. Where all of them fit into
    `KEPT` bytes, each is decoded once in a process.
    """

    files: tuple[Path, ...]
    size: int
    resize: int
    grey: str = "refuse"
    interpolation: str = "bilinear"
    transparent: str | None = None
    change: Callable[[int, Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    decoded: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.grey not in ("refuse", "convert"):
            raise UsageError(f"data.grey must be refuse or convert, found {self.grey!r}")
        if self.transparent not in (None, "white", "black"):
            raise UsageError(f"data.transparent must be white or black, or null to refuse, found {self.transparent!r}")

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of decoded images.

        Raises:
            UsageError: one of them cannot be used; then every file is looked at, and all that cannot are named.
        """
        try:
            return torch.stack([self.pixels(i) for i in indices]).float().div_(255)
        except UsageError as e:
            raise UsageError(self.all_refused(str(e))) from None

    def all_refused(self, first: str) -> str:
        """One line on every file that cannot be used, the first `NAMED` by name."""

        def why_not(file: Path) -> str | None:
            try:
                self.read(file)
            except UsageError as e:
                return str(e)
            return None

        found = [why for why in side_by_side(why_not, self.files) if why is not None]
        if len(found) < 2:
            return first
        more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return f"{len(found)} of {len(self.files)} pictures cannot be used: {'; '.join(found[:NAMED])}{more}"

    @property
    def fits(self) -> bool:
        """Whether the decoded pictures are kept in memory."""
        return len(self.files) * 3 * self.size**2 <= KEPT

    def pixels(self, i: int) -> UInt8[Tensor, "c h w"]:
        """One picture, from memory if it was decoded before."""
        found = self.decoded.get(i)
        if found is None:
            found = self.read(self.files[i])
            found = found if self.change is None else self.change(int(i), found)
            if self.fits:
                self.decoded[i] = found
        return found

    def read(self, file: Path) -> UInt8[Tensor, "c h w"]:
        """One picture as RGB, upright: palette files are converted, transparent pixels flattened.

        Raises:
            UsageError: the file is damaged, grey-scale, has transparent pixels, or more than 8 bits a channel.
        """
        from torchvision.transforms.v2 import functional as T

        with opened(file) as picture:
            if picture.mode.startswith(("I", "F")):  # the conversion would clip
                raise UsageError(f"{file} has more than 8 bits a channel ({picture.mode}): save it with 8 bits first")
            if self.transparent is None:
                check_opaque(picture, file)
            if self.grey == "refuse" and picture.mode in GREY:
                raise UsageError(
                    f"{file} is grey-scale among colour pictures: save it as RGB, or set data.grey=convert"
                )
            image = T.pil_to_tensor(flattened(upright(picture), self.transparent).convert("RGB"))
        return framed(image, self.resize, self.size, interpolation=self.interpolation)


def seen(images: Float[Tensor, "*b c h w"], show: Sequence[int] | None = None) -> Float[Tensor, "*b d h w"]:
    """One or three channels of images, to be drawn: those of `show`, else as they are where they are grey or colour, else the first
    three (of two, the first).
    """
    c = images.shape[-3]
    wanted = list(show) if show is not None else list(range(c)) if c in (1, 3) else [0, 1, 2][: 1 if c == 2 else 3]
    return images[..., wanted, :, :]


def check_show(show: Sequence[int] | None, channels: int) -> None:
    """Refuse channels to draw that are not there.

    Raises:
        UsageError: they are neither one nor three of the images' channels.
    """
    whole = show is None or all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < channels for i in show)
    if show is not None and (not whole or len(show) not in (1, 3)):
        raise UsageError(
            f"show must be one or three of the channels 0..{channels - 1}, as in data.show=[2,1,0] (show=), found {list(show)}"
        )


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        name: its name.
        train: the images that are split into folds.
        labels: `[n]` class of each; -1 where there is none.
        classes: class names.
        identity: a digest of the content; two stores are compared only if it agrees.
        test, test_labels: the fixed test split, where the set has one.
        truth: masks of the training images, where the set has them.
        root: the folder that `paths` are below.
        paths: of the training images, with `/`; empty where they are no files.
        columns: what else is known of every training image, by name.
        notes: what a user must know of how it was read, a line each.
    """

    name: str
    train: ImageSet
    labels: Int[Tensor, "n"]
    classes: tuple[str, ...]
    identity: str
    test: ImageSet | None = None
    test_labels: Int[Tensor, "m"] | None = None
    truth: Truth | None = None
    root: Path | None = None
    paths: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether there are labels to train on."""
        return bool((self.labels >= 0).all())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.train.images([0]).shape[1:]
        return c, h, w


def digest(*arrays: Any) -> str:
    """A short digest of arrays, byte strings and texts."""
    h = hashlib.sha256()
    for a in arrays:
        if isinstance(a, str):
            h.update(a.encode(errors="surrogateescape"))  # names of files may be no UTF-8
        else:
            h.update(np.ascontiguousarray(a.numpy() if isinstance(a, Tensor) else a).tobytes())
    return h.hexdigest()[:16]


def in_memory(
    name: str,
    pixels: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    test: Tensor | None = None,
    test_labels: Tensor | None = None,
) -> Source:
    """A source from uint8 pixels `[n, c, h, w]`."""
    pixels, test = pixels.contiguous(), test.contiguous() if test is not None else None  # training is not channels-last
    labels = labels.long().flatten()
    test_labels = test_labels.long().flatten() if test_labels is not None else None
    for part, x, y in (("training", pixels, labels), ("test", test, test_labels)):
        if x is None or y is None:
            continue
        if len(y) != len(x) or not len(x):
            raise UsageError(f"{name} has {len(x)} {part} images and {len(y)} labels: fetch or write the file again")
        if not 0 <= int(y.min()) <= int(y.max()) < len(classes):
            raise UsageError(f"{name} has {part} labels {int(y.min())}..{int(y.max())} for {len(classes)} classes")
    return Source(
        name,
        InMemory(pixels),
        labels,
        tuple(classes),
        digest(pixels, labels),
        InMemory(test) if test is not None else None,
        test_labels,
    )

"""Ground truth beside images: where the object is, as masks of the images' size (True = on the object)."""

from __future__ import annotations

import csv
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lit_xai.errors import UsageError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # Pillow's names
# what decoders of damaged files raise
DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
)
DAMAGE += (RuntimeError, MemoryError, struct.error, zlib.error)
TURNED = 0x0112  # EXIF's tag of the orientation
TURNS = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's transpositions that put a picture upright
COLUMNS = ("file", "x", "y", "width", "height")
Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@runtime_checkable
class Truth(Protocol):
    """Masks of a source's training images, by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """What there are masks of, such as `object` and `tag`."""
        ...

    def masks(self, name: str, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """Masks of these samples at image size, True = on the object.

        Raises:
            UsageError: there is no such name; a sample's annotation is missing, damaged or does not fit its picture.
        """
        ...


def check_name(truth: Truth, name: str) -> None:
    """Refuse a name that this ground truth lacks."""
    if name not in truth.names:
        raise UsageError(f"no ground truth {name!r} in this data: set the score's truth= to {' or '.join(truth.names)}")


def unsaying(masks: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b"]:
    """Which masks are empty or full (after the crop, it may be): on these no map is better than another."""
    area = masks.flatten(1).sum(1)
    return (area == 0) | (area == masks[0].numel())


def file_of(truth: Truth, index: int) -> str:
    """Where a sample's mask comes from, for messages."""
    if isinstance(truth, MaskFiles):
        return str(truth.files[index])
    return f"{truth.table}: {truth.pictures[index]}" if isinstance(truth, BoxTable) else f"sample {index}"


def boxes(masks: Bool[Tensor, "b h w"]) -> Int[Tensor, "b 4"]:
    """The tight box of every mask as (top, left, bottom, right) in pixels, bottom and right exclusive; empty = zeros."""
    top, bottom = ends(masks.any(2))
    left, right = ends(masks.any(1))
    return torch.stack([top, left, bottom, right], dim=1)


def ends(present: Bool[Tensor, "... n"]) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
    """First True of every row and one past its last; (0, 0) where there is none."""
    n = present.shape[-1]
    places = torch.arange(n, device=present.device)
    first = torch.where(present, places, n).amin(-1)
    last = torch.where(present, places + 1, 0).amax(-1)
    return torch.where(last > 0, first, 0), last


# ----------------------------------------------------------------------------------------------------- reading pictures


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A picture file; whatever fails while it is open names it. Of Pillow's decoders only those of pictures are asked: the
    one of PostScript would run Ghostscript.

    Raises:
        UsageError: the file is damaged.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as picture:
            yield picture
    except UsageError:
        raise
    except Image.DecompressionBombError:
        raise UsageError(
            f"{file} has more pixels than is safe to decode (over {2 * (Image.MAX_IMAGE_PIXELS or 0):,}): make it smaller"
        ) from None
    except DAMAGE as e:
        reason = str(e) or type(e).__name__
        raise UsageError(f"{file} cannot be decoded ({reason}): replace or remove the file") from None


def orientation(picture: Any) -> int:
    """How an open picture says that it is turned or mirrored, by EXIF's number 1..8; 1 where it does not say."""
    try:
        found = picture.getexif().get(TURNED, 1)
    except Exception:  # a damaged head; the pixels may be whole
        return 1
    return found if found in TURNS else 1


def upright(picture: Any) -> Any:
    """An open picture as people see it."""
    how = orientation(picture)
    if how == 1:
        return picture
    picture.load()
    how = orientation(picture)  # of TIFF files, Pillow turns the pixels itself
    return picture.transpose(TURNS[how]) if how != 1 else picture


def opaque(picture: Any) -> bool:
    """Whether a picture has no pixels that let something else through."""
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return True
    return bool(picture.convert("RGBA").getchannel("A").getextrema()[0] == 255)


def check_opaque(picture: Any, file: Path) -> None:
    """Refuse a picture with an alpha channel, or a transparent colour, that is not fully opaque."""
    if not opaque(picture):
        raise UsageError(
            f"{file} has transparent pixels: flatten it onto a background first, or by data.transparent=white"
        )


def flattened(picture: Any, colour: str | None) -> Any:
    """A picture on a background of this colour, where it lets something through; None leaves it as it is."""
    from PIL import Image

    if colour is None or opaque(picture):
        return picture
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, colour), above)


def framed(image: Tensor, resize: int, size: int, nearest: bool = False, interpolation: str = "bilinear") -> Tensor:
    """`[c, h, w]` with its shorter side at `resize` (as `interpolation` says, or nearest neighbour), then the central `size` pixels."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as T

    how = InterpolationMode.NEAREST_EXACT if nearest else InterpolationMode(interpolation)
    return T.center_crop(T.resize(image, [resize], interpolation=how, antialias=not nearest), [size, size])


def framed_mask(mask: Bool[Tensor, "h w"], resize: int, size: int) -> Bool[Tensor, "size size"]:
    """A mask of a whole picture, resized and cropped like it."""
    return framed(mask[None].to(torch.uint8), resize, size, nearest=True)[0] > 0


def shape_of(picture: Path) -> tuple[int, int]:
    """Height and width of a picture file as people see it."""
    with opened(picture) as p:
        if p.format == "TIFF":
            p = upright(p)
        return (p.width, p.height) if orientation(p) >= 5 else (p.height, p.width)


# ------------------------------------------------------------------------------------------------------ implementations


@dataclass(frozen=True)
class InMemoryMasks:
    """Masks `[n, h, w]` (bool, or uint8 with 0 = not on the object) kept in memory, by name."""

    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """What there are masks of."""
        return tuple(self.tensors)

    def masks(self, name: str, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """Masks of these samples."""
        check_name(self, name)
        return self.tensors[name][list(indices)] != 0


@dataclass(frozen=True)
class MaskFiles:
    """Mask pictures, decoded when asked for: a pixel that is not 0 (palette index, grey or any colour) is on the object.

    Attributes:
        files: the mask of every picture, at that picture's size.
        pictures: the pictures.
        size, resize: how pictures are cropped and resized (see `OnDisk`).
    """

    files: tuple[Path, ...]
    pictures: tuple[Path, ...]
    size: int
    resize: int
    names = ("object",)

    def masks(self, name: str, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """Masks of these samples."""
        check_name(self, name)
        return torch.stack([self.read(i) for i in indices])

    def read(self, i: int) -> Bool[Tensor, "h w"]:
        """The mask of picture i, as the picture is resized and cropped: True = any channel but alpha is not 0."""
        file, picture = self.files[i], self.pictures[i]
        if not file.is_file():
            raise UsageError(f"{picture} has no mask {file}: draw one, or leave out the scores that need masks")
        with opened(file) as p:
            check_opaque(p, file)
            p = upright(p)
            values = np.asarray(p)[..., None] if len(p.getbands()) == 1 else np.asarray(p)
            mask = (values[..., :-1] if p.getbands()[-1] == "A" else values).any(-1)
        shape = shape_of(picture)
        if mask.shape != shape:
            found, wanted = (f"{w} x {h}" for h, w in (mask.shape, shape))
            raise UsageError(f"{file} is {found} pixels and its picture {picture} {wanted}: save the mask at that size")
        return framed_mask(torch.from_numpy(mask), self.resize, self.size)


@dataclass(frozen=True)
class BoxTable:
    """Boxes instead of masks: a pixel is on the object if its centre lies in one of its picture's boxes.

    Attributes:
        table: the file that the boxes come from.
        boxes: of each picture, in its own pixels.
        pictures: the pictures.
        size, resize: how pictures are cropped and resized (see `OnDisk`).
    """

    table: Path
    boxes: Mapping[Path, tuple[Box, ...]]
    pictures: tuple[Path, ...]
    size: int
    resize: int
    names = ("object",)

    @staticmethod
    def read(table: Path, root: Path, pictures: tuple[Path, ...], size: int, resize: int) -> BoxTable:
        """From a CSV with the header `file,x,y,width,height`; `file` is relative to `root`, and may have several rows.

        Raises:
            UsageError: the file is missing or damaged, lacks a column, or a row does not hold a box.
        """
        found: dict[Path, tuple[Box, ...]] = {}
        try:
            with table.open(newline="", encoding="utf-8-sig") as lines:
                rows = csv.DictReader(lines)
                lacking = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
                if lacking:
                    raise UsageError(f"{table} lacks {', '.join(lacking)}: its first line must be {','.join(COLUMNS)}")
                for row in rows:
                    where, picture = f"{table} line {rows.line_num}", root / (row["file"] or "")
                    found[picture] = (*found.get(picture, ()), box_of(row, where))
        except (OSError, UnicodeDecodeError, csv.Error) as e:
            raise UsageError(f"{table} cannot be read ({e}): write it as text, {','.join(COLUMNS)} a line") from None
        return BoxTable(table, found, pictures, size, resize)

    def masks(self, name: str, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """Masks of these samples."""
        check_name(self, name)
        return torch.stack([self.drawn(self.pictures[i]) for i in indices])

    def drawn(self, picture: Path) -> Bool[Tensor, "h w"]:
        """The union of one picture's boxes."""
        if picture not in self.boxes:
            raise UsageError(
                f"{picture} has no box in {self.table}: add a row, or leave out the scores that need masks"
            )
        height, width = shape_of(picture)
        mask = torch.zeros(height, width, dtype=torch.bool)
        for x, y, w, h in self.boxes[picture]:
            left, right, top, bottom = (max(0, math.ceil(edge - 0.5)) for edge in (x, x + w, y, y + h))
            inside = mask[top:bottom, left:right]
            if not inside.numel():
                raise UsageError(
                    f"{self.table}: box {x:g},{y:g},{w:g},{h:g} holds no pixel of {picture} "
                    f"({width} x {height} pixels): boxes are x,y,width,height from the top left corner"
                )
            inside.fill_(True)
        return framed_mask(mask, self.resize, self.size)


def box_of(row: Mapping[str, str | None], where: str) -> Box:
    """The box of one row of a table."""
    try:
        x, y, w, h = (float(row[c] or "") for c in COLUMNS[1:])
    except ValueError:
        x = y = w = h = math.nan
    if not (math.isfinite(x + y) and 0 < w < math.inf and 0 < h < math.inf):
        found = ",".join(str(row[c]) for c in COLUMNS[1:])
        raise UsageError(f"{where}: x,y,width,height must be numbers, width and height positive, found {found}")
    return x, y, w, h

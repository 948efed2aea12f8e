"""Which files of a folder are pictures of which class, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_xai.data.images import digest
from lit_xai.data.threads import side_by_side
from lit_xai.data.truth import opened, orientation
from lit_xai.errors import UsageError

PICTURES: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff")
PICTURES += (".ppm", ".pgm", ".pbm", ".pnm")
UNREAD = (
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jxl",
    ".svg",
    ".psd",
    ".dng",
    ".cr2",
    ".nef",
    ".dcm",
)  # pictures all the same
TRAIN, HELD = ("train", "training"), ("val", "valid", "validation", "test", "testing")  # names of parts, in any case
NAMED = 5  # files or classes that a note names
LOOKED_AT = (
    20_000  # pictures whose orientation is part of a data set's stamp; of more, reading all heads takes too long
)
HEAD = 4096  # bytes of a JPEG file that would say so


@dataclass
class Found:
    """Picture files of some classes, and what lies beside them.

    Attributes:
        files: the pictures, class by class, sorted within.
        labels: the class of each.
        others: files that are no pictures.
    """

    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def add(self, folder: Path, label: int) -> int:
        """Take in a class's folder with all folders below; the number of its pictures."""
        files, others = pictures_below(folder)
        self.files += files
        self.labels += [label] * len(files)
        self.others += others
        return len(files)


def visible(name: str) -> bool:
    """Whether a file or folder is not a system's own (`.DS_Store`, `._photo.jpg`)."""
    return not name.startswith(".") and name not in ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_picture(file: Path) -> bool:
    """Whether a file is there and its name is that of a picture."""
    return file.suffix.lower() in PICTURES and file.is_file()


def pictures_in(folder: Path) -> list[Path]:
    """The picture files directly in a folder, sorted."""
    return sorted(f for f in folder.iterdir() if visible(f.name) and is_picture(f))


def pictures_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The picture files of a folder and of all folders below, sorted; and all other files."""
    files: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(filter(visible, folders))
        for name in filter(visible, names):
            file = Path(place, name)
            (files if is_picture(file) else others).append(file)
    return sorted(files), sorted(others)


def shown(name: str) -> str:
    """A name of a file as text: one that is no UTF-8 is taken for Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def some(things: Iterable[str]) -> str:
    """The first few of some names."""
    known = list(things)
    return f"{', '.join(map(shown, known[:NAMED]))}{', ...' if known[NAMED:] else ''}"


@dataclass(frozen=True)
class Layout:
    """Where the parts of a data set lie.

    Attributes:
        base: the data root.
        train: the folder of the training classes, which may be `base` itself.
        held: that of the test classes.
        notes: what lies beside them and is not read.
    """

    base: Path
    train: Path
    held: Path | None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(base: Path) -> Layout:
        """The layout of a data root.

        Raises:
            UsageError: there is no such folder, or it has parts for testing alone.
        """
        if not base.is_dir():
            raise UsageError(
                f"no folder {base}: point data.root= at a folder with one sub-folder of pictures per class"
            )
        folders = {d.name: d for d in sorted(base.iterdir()) if d.is_dir() and visible(d.name)}
        parts = {name.lower(): d for name, d in folders.items()}
        has_classes = {n for n, d in parts.items() if any(c.is_dir() and visible(c.name) for c in d.iterdir())}
        train = next((parts[n] for n in TRAIN if n in has_classes), None)  # else it may be the class of railway trains
        held = next((parts[n] for n in HELD if n in has_classes), None)
        if train is None:
            if has_classes and set(parts) <= {*HELD, "masks"} and has_classes & set(HELD):
                raise UsageError(f"{base} has {', '.join(folders)} and no train/: name the part to train on so")
            return Layout(base, base, None)
        left = [f"{d.name}/" for d in folders.values() if d not in (train, held) and d.name != "masks"]
        used = f"{train.name}/{f' and {held.name}/' if held else ''}"
        notes = (f"of {base}, {used} is read and {some(left)} is not",) if left else ()
        return Layout(base, train, held, notes)

    def classes(self, leave: Sequence[Path]) -> tuple[list[str], list[str]]:
        """The names of the classes, in the order of their numbers, and a note on folders that are none.

        Every folder is a class, also one without pictures: else the numbers of the classes after it would shift.
        Beside the classes of a root without `train/` there may be other things.

        Args:
            leave: folders of masks.
        """
        folders = [d for d in self.train.iterdir() if d.is_dir() and visible(d.name) and d.resolve() not in leave]
        names: list[str] = []
        none: list[str] = []
        for folder in sorted(folders, key=lambda d: d.name):
            beside = self.train == self.base and (any(folder.glob("*/fold=*")) or not may_be_class(folder))
            (none if beside else names).append(folder.name)
        return names, [f"{some(f'{n}/' for n in none)} in {self.base}: no pictures, no class"] if none else []


def may_be_class(folder: Path) -> bool:
    """Whether a folder holds pictures, also of kinds that are not read, or nothing at all."""
    files, others = pictures_below(folder)
    return bool(files) or not others or any(f.suffix.lower() in UNREAD for f in others)


def remarks(layout: Layout, names: Sequence[str], found: Found, held: Found | None) -> list[str]:
    """What of a data root's pictures is left out, and which classes have none, a line each."""
    out = list(layout.notes)
    empty = [n for i, n in enumerate(names) if i not in set(found.labels)]
    if empty:
        out.append(f"no pictures in {layout.train} of {len(empty)} of {len(names)} classes: {some(empty)}")
    for part, of in ((layout.train, found), (layout.held, held)):
        if part is None or of is None:
            continue
        if of.others:
            kinds = some(str(f.relative_to(part)) for f in of.others)
            out.append(f"{len(of.others)} files in {part} are no pictures that are read here, and left out: {kinds}")
        loose = pictures_in(part)
        if loose:
            out.append(f"{len(loose)} pictures in {part} lie in no class's folder, and are left out")
    if layout.held is not None and held is not None:
        lacking = [n for i, n in enumerate(names) if i not in set(held.labels) and n not in empty]
        if lacking:
            out.append(f"no test pictures in {layout.held} of {len(lacking)} of {len(names)} classes: {some(lacking)}")
    return out


def unknown_classes(layout: Layout, known: Sequence[str]) -> list[str]:
    """A line on test pictures of classes that the training part lacks: no predictor can know them."""
    if layout.held is None:
        return []
    folders = [d for d in layout.held.iterdir() if d.is_dir() and visible(d.name) and d.name not in known]
    number = {d.name: len(pictures_below(d)[0]) for d in sorted(folders)}
    lost = {n: count for n, count in number.items() if count}
    if not lost:
        return []
    text = f"{sum(lost.values())} test pictures are left out: {layout.held} has classes that {layout.train} has not"
    return [f"{text} ({some(lost)})"]


def listing_digest(files: Sequence[Path], base: Path, size: int, resize: int, empty: Sequence[str] = ()) -> str:
    """Stamp of a set of files: names and sizes (reading every picture would take too long), classes without pictures, and which
    pictures are turned when they are read.
    """
    text = "\n".join(f"{f.relative_to(base)} {os.path.getsize(f)}" for f in files)
    heads = side_by_side(turned, files) if len(files) <= LOOKED_AT else iter(())
    turns = [f"{i} {t}" for i, t in enumerate(heads) if t != 1]
    return digest(text, f"{size} {resize}", *(f"\n{n}" for n in empty), *(f"\nturned {t}" for t in turns))


def turned(file: Path) -> int:
    """How a picture says that it is turned (1: it is not), read from the head of its file."""
    try:
        if file.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif"):
            with file.open("rb") as f:
                if b"Exif" not in f.read(HEAD):
                    return 1
        with opened(file) as picture:
            return orientation(picture)
    except (UsageError, OSError):
        return 1  # whoever reads it says what is wrong with it

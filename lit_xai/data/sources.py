"""Where images come from. Every source gives a `Source`: images in [0, 1], labels, class names, an identity.

Archives are read where they lie; nothing is ever written under a data root.
"""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_xai.data.archives import medmnist, npz
from lit_xai.data.images import OnDisk, Source, digest, in_memory
from lit_xai.data.listing import (
    PICTURES,
    UNREAD,
    Found,
    Layout,
    listing_digest,
    pictures_in,
    remarks,
    shown,
    some,
    unknown_classes,
    visible,
)
from lit_xai.data.truth import BoxTable, MaskFiles, Truth
from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash

# -------------------------------------------------------------------------------------------------------- embedded set


def digits(size: int = 32) -> Source:
    """scikit-learn's handwritten digits (1,797 real 8 x 8 images, shipped with it), enlarged bilinearly."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = torch.from_numpy(raw.images / 16.0)[:, None]
    large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    pixels = (large.clamp(0, 1) * 255).round().to(torch.uint8)
    return in_memory("digits", pixels, torch.from_numpy(raw.target), [str(i) for i in range(10)])


# ------------------------------------------------------------------------------------------------------ downloaded sets


def missing(what: str, where: Path, option: str = "data.root=") -> UsageError:
    """The line for a data set that is not there."""
    return UsageError(f"{what} is not at {where}: put it there, point {option} elsewhere, or set data.download=true")


def fashion_mnist(root: str = "data", download: bool = False) -> Source:
    """Fashion-MNIST, 60,000 + 10,000 grey 28 x 28 (Xiao et al., 2017); the .gz archives are read where they lie."""
    folder = Path(root).expanduser() / "FashionMNIST" / "raw"
    if download and not (folder / "train-images-idx3-ubyte.gz").exists():
        fetch("FashionMNIST", root)
    arrays = []
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        arrays.append(read_idx(folder / f"{part}-ubyte.gz"))
    names = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    x, y, xt, yt = arrays
    return in_memory("fashion_mnist", x[:, None], y, names, xt[:, None], yt)


def read_idx(file: Path) -> Tensor:
    """An idx file of bytes (LeCun's format), gzipped or plain."""
    plain = file.with_suffix("")
    if not file.exists() and not plain.exists():
        raise missing("Fashion-MNIST", file)
    try:
        data = gzip.decompress(file.read_bytes()) if file.exists() else plain.read_bytes()
    except (OSError, EOFError, gzip.zlib.error) as e:  # type: ignore[attr-defined]
        raise UsageError(f"{file} is damaged ({e}): fetch it again") from None
    dims = data[3] if len(data) > 3 else 0
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    body = data[4 + 4 * dims :]
    if data[:3] != b"\x00\x00\x08" or len(body) != int(np.prod(shape)):
        raise UsageError(f"{file} is damaged ({len(body)} bytes for shape {shape}): fetch it again")
    return torch.from_numpy(np.frombuffer(body, dtype=np.uint8).copy()).view(*shape)


def fetch(kind: str, root: str) -> None:
    """Let torchvision download a data set to `root` (only when the user set data.download=true)."""
    import torchvision.datasets

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            vars(torchvision.datasets)[kind](root=root, download=True)
    except Exception as e:
        raise UsageError(f"{kind} could not be downloaded to {root} ({type(e).__name__}): fetch it by hand") from None


def cifar10(root: str = "data", download: bool = False) -> Source:
    """CIFAR-10, 50,000 + 10,000 RGB 32 x 32 (Krizhevsky, 2009), from torchvision's unpacked batches."""
    import torchvision.datasets

    if download and not (Path(root).expanduser() / "cifar-10-batches-py").exists():
        fetch("CIFAR10", root)
    try:
        parts = [torchvision.datasets.CIFAR10(root=root, train=train) for train in (True, False)]
    except (RuntimeError, OSError) as e:
        where = Path(root).expanduser() / "cifar-10-batches-py"
        raise missing("CIFAR-10" if not where.exists() else f"CIFAR-10 (whole: {e})", where) from None
    (x, y), (xt, yt) = (
        (torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts
    )
    return in_memory("cifar10", x, y, parts[0].classes, xt, yt)


def eurosat(root: str = "data", download: bool = False) -> Source:
    """EuroSAT, 27,000 RGB 64 x 64 satellite images in 10 classes (Helber et al., 2019), torchvision's layout."""
    if download and not (Path(root).expanduser() / "eurosat" / "2750").exists():
        fetch("EuroSAT", root)
    folder = Path(root).expanduser() / "eurosat" / "2750"
    if not folder.is_dir():
        raise missing("EuroSAT", folder)
    return folder_source(folder, size=64, resize=64, name="eurosat")


# ---------------------------------------------------------------------------------------------------------- user's data


def folder_source(
    root: str | Path,
    size: int = 224,
    resize: int = 256,
    classes: int | None = None,
    seed: int = 0,
    name: str = "folder",
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    grey: str = "refuse",
    transparent: str | None = None,
) -> Source:
    """Pictures in one folder per class (torchvision's ImageFolder layout), with `train/` and `val/` or `test/` if there.

    Args:
        root: the folder.
        size, resize: side in pixels, and of the shorter side before the central crop.
        classes: how many classes to choose by `seed`; None takes all.
        seed: chooses the classes.
        name: the data set's name.
        masks, boxes: ground truth of the training pictures (see `truth_beside`).
        grey: `refuse` or `convert` grey-scale files.
        transparent: `white` or `black`, on which transparent pixels lie; None refuses them.
    """
    base = Path(root).expanduser()
    layout = Layout.of(base)
    leave = [d for d in (own_path(masks), masks_folder(base, nested=True)) if d is not None]
    names, notes = layout.classes([d.resolve() for d in leave])
    known = list(names)
    if classes is not None:
        if classes > len(names):
            raise UsageError(f"{classes} classes are asked for and {layout.train} has {len(names)}: set data.classes=")
        names = sorted(sorted(names, key=lambda n: stable_hash(seed, "classes", n))[:classes])
    found, held = Found(), Found() if layout.held is not None else None
    for i, n in enumerate(names):
        found.add(layout.train / n, i)
        if held is not None and layout.held is not None and (layout.held / n).is_dir():
            held.add(layout.held / n, i)
    if not found.files:
        raise UsageError(
            f"{layout.train} has no sub-folder with pictures ({', '.join(PICTURES)}): one per class is expected"
        )
    notes += [*remarks(layout, names, found, held), *unknown_classes(layout, known)]
    files, test = tuple(found.files), tuple(held.files) if held is not None else ()
    empty = [n for i, n in enumerate(names) if i not in set(found.labels)]
    return Source(
        name,
        OnDisk(files, size, resize, grey, transparent=transparent),
        torch.tensor(found.labels, dtype=torch.long),
        tuple(map(shown, names)),
        stamped(listing_digest(files, base, size, resize, empty), transparent),
        OnDisk(test, size, resize, grey, transparent=transparent) if test else None,
        torch.tensor(held.labels, dtype=torch.long) if held is not None and test else None,
        truth_beside(files, base, size, resize, own_path(masks), own_path(boxes)),
        root=base,
        paths=tuple(f.relative_to(base).as_posix() for f in files),
        notes=tuple(notes),
    )


def stamped(identity: str, transparent: str | None) -> str:
    """The stamp of pictures whose transparent pixels lie on a background; as it was where they are refused."""
    return identity if transparent is None else digest(identity, f"on {transparent}")


def own_path(path: str | Path | None) -> Path | None:
    """A path that a user gives, `~` as their home."""
    return None if path is None else Path(path).expanduser()


def pictures(
    root: str,
    size: int = 224,
    resize: int = 256,
    name: str = "pictures",
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    grey: str = "refuse",
    interpolation: str = "bilinear",
    transparent: str | None = None,
) -> Source:
    """Pictures without labels, directly in one folder: for explaining a pretrained network's own predictions.

    `masks` and `boxes` are their ground truth (see `truth_beside`); `grey` files are refused or converted;
    `interpolation` is `bilinear`, `bicubic`, `nearest` or `lanczos`.
    """
    base = Path(root).expanduser()
    files = tuple(pictures_in(base)) if base.is_dir() else ()
    if not files:
        raise UsageError(f"no pictures ({', '.join(PICTURES)}) in {base}: point data.root= at a folder that has some")
    labels = torch.full((len(files),), -1)
    truth = truth_beside(files, base, size, resize, own_path(masks), own_path(boxes))
    identity = stamped(listing_digest(files, base, size, resize), transparent)
    left = [f.name for f in sorted(base.iterdir()) if f.suffix.lower() in UNREAD and visible(f.name)]
    notes = (f"{len(left)} files in {base} are of kinds that are not read here: {some(left)}",) if left else ()
    images = OnDisk(files, size, resize, grey, interpolation, transparent)
    if interpolation != "bilinear":
        identity = digest(identity, interpolation)
    return Source(
        name, images, labels, (), identity, truth=truth, root=base, paths=tuple(f.name for f in files), notes=notes
    )


def masks_folder(base: Path, nested: bool) -> Path | None:
    """`masks/` below a data root, if it is there; where pictures lie in sub-folders (`nested`), masks do too.

    A folder `masks/` without sub-folders is a class of that name.
    """
    folder = base / "masks"
    found = folder.is_dir() and (not nested or any(d.is_dir() for d in folder.iterdir()))
    return folder if found else None


def truth_beside(
    files: tuple[Path, ...],
    base: Path,
    size: int,
    resize: int,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
) -> Truth | None:
    """The ground truth of picture files: masks or boxes, given or found below the root, or None.

    Args:
        files: the pictures.
        base: the data root.
        size, resize: how pictures are cropped and resized.
        masks: a folder with the pictures' paths relative to the root, as .png; None looks for `masks/`.
        boxes: a CSV with the header `file,x,y,width,height`, paths relative to the root; None looks for `boxes.csv`.

    Raises:
        UsageError: both are there, or what was given is not.
    """
    if masks is None and boxes is None:
        masks = masks_folder(base, nested=any(f.parent != base for f in files))
        boxes = base / "boxes.csv" if (base / "boxes.csv").is_file() else None
    if masks is not None and boxes is not None:
        raise UsageError(f"{base} has masks ({masks}) and boxes ({boxes}): choose one with data.masks= or data.boxes=")
    if boxes is not None:
        return BoxTable.read(Path(boxes), base, files, size, resize)
    if masks is None:
        return None
    if not Path(masks).is_dir():
        raise UsageError(f"no folder {masks}: point data.masks= at a folder with the pictures' paths, as .png")
    drawn = tuple(Path(masks) / f.relative_to(base).with_suffix(".png") for f in files)
    return MaskFiles(drawn, files, size, resize)


__all__ = ["cifar10", "digits", "eurosat", "fashion_mnist", "folder_source", "medmnist", "npz", "pictures"]

"""Where images come from. Every source gives a `Source`: images in [0, 1], labels, class names, an identity.

Archives are read where they lie; nothing is ever written under a data root.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_xai.data.images import OnDisk, Source, digest, in_memory
from lit_xai.data.truth import BoxTable, MaskFiles, Truth
from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


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
    folder = Path(root) / "FashionMNIST" / "raw"
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

    if download and not (Path(root) / "cifar-10-batches-py").exists():
        fetch("CIFAR10", root)
    try:
        parts = [torchvision.datasets.CIFAR10(root=root, train=train) for train in (True, False)]
    except (RuntimeError, OSError) as e:
        where = Path(root) / "cifar-10-batches-py"
        raise missing("CIFAR-10" if not where.exists() else f"CIFAR-10 (whole: {e})", where) from None
    (x, y), (xt, yt) = (
        (torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)) for p in parts
    )
    return in_memory("cifar10", x, y, parts[0].classes, xt, yt)


def eurosat(root: str = "data", download: bool = False) -> Source:
    """EuroSAT, 27,000 RGB 64 x 64 satellite images in 10 classes (Helber et al., 2019), torchvision's layout."""
    if download and not (Path(root) / "eurosat" / "2750").exists():
        fetch("EuroSAT", root)
    folder = Path(root) / "eurosat" / "2750"
    if not folder.is_dir():
        raise missing("EuroSAT", folder)
    return folder_source(folder, size=64, resize=64, name="eurosat")


# ---------------------------------------------------------------------------------------------------------- user's data


def npz(path: str, classes: Sequence[str] | None = None, name: str | None = None) -> Source:
    """A NumPy archive with MedMNIST's keys: train_images `[n, h, w(, c)]` uint8, train_labels `[n, 1]`, test_..."""
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no file {file}: point data.path= at a .npz with train_images and train_labels")
    try:
        with np.load(file, allow_pickle=False) as archive:
            keys = set(archive.files)
            needed = {"train_images", "train_labels"} - keys
            if needed:
                raise UsageError(f"{file} lacks {', '.join(sorted(needed))}; it has: {', '.join(sorted(keys))}")
            arrays = {k: archive[k] for k in keys if k.startswith(("train_", "test_"))}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"{file} is damaged or holds pickled objects ({e}): fetch or write it again") from None

    def pixels(key: str) -> Tensor:
        a = arrays[key]
        if a.dtype != np.uint8 or a.ndim not in (3, 4):
            raise UsageError(f"{file}: {key} must be uint8 [n, h, w] or [n, h, w, c], found {a.dtype} {a.shape}")
        a = a[..., None] if a.ndim == 3 else a
        return torch.from_numpy(a).permute(0, 3, 1, 2).contiguous()

    labels = arrays["train_labels"].astype(np.int64)
    names = list(classes) if classes else [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    test = pixels("test_images") if "test_images" in arrays else None
    test_labels = torch.from_numpy(arrays["test_labels"].astype(np.int64)) if "test_labels" in arrays else None
    return in_memory(name or file.stem, pixels("train_images"), torch.from_numpy(labels), names, test, test_labels)


def pictures_in(folder: Path) -> list[Path]:
    """The picture files directly in a folder, sorted."""
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES)


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
    """
    base = Path(root)
    if not base.is_dir():
        raise UsageError(f"no folder {base}: point data.root= at a folder with one sub-folder of pictures per class")
    train = base / "train" if (base / "train").is_dir() else base
    held = next((base / d for d in ("val", "test") if train != base and (base / d).is_dir()), None)
    no_classes = {Path(d).resolve() for d in (masks, masks_folder(base, nested=True)) if d is not None}
    folders = [d for d in train.iterdir() if d.is_dir() and d.resolve() not in no_classes]
    names = sorted(d.name for d in folders if pictures_in(d))
    if not names:
        raise UsageError(f"{train} has no sub-folder with pictures ({', '.join(PICTURES)}): one per class is expected")
    if classes is not None:
        if classes > len(names):
            raise UsageError(f"{classes} classes are asked for and {train} has {len(names)}: set data.classes=")
        names = sorted(sorted(names, key=lambda n: stable_hash(seed, "classes", n))[:classes])

    def listing(part: Path) -> tuple[tuple[Path, ...], Tensor]:
        found = [(f, i) for i, n in enumerate(names) if (part / n).is_dir() for f in pictures_in(part / n)]
        return tuple(f for f, _ in found), torch.tensor([i for _, i in found], dtype=torch.long)

    files, labels = listing(train)
    test_files, test_labels = listing(held) if held else ((), torch.empty(0))
    return Source(
        name,
        OnDisk(files, size, resize, grey),
        labels,
        tuple(names),
        listing_digest(files, base, size, resize),
        OnDisk(test_files, size, resize, grey) if test_files else None,
        test_labels if test_files else None,
        truth_beside(files, base, size, resize, masks, boxes),
    )


def pictures(
    root: str,
    size: int = 224,
    resize: int = 256,
    name: str = "pictures",
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    grey: str = "refuse",
) -> Source:
    """Pictures without labels, directly in one folder: for explaining a pretrained network's own predictions.

    `masks` and `boxes` are their ground truth (see `truth_beside`); `grey` files are refused or converted.
    """
    base = Path(root)
    files = tuple(pictures_in(base)) if base.is_dir() else ()
    if not files:
        raise UsageError(f"no pictures ({', '.join(PICTURES)}) in {base}: point data.root= at a folder that has some")
    labels = torch.full((len(files),), -1)
    truth = truth_beside(files, base, size, resize, masks, boxes)
    identity = listing_digest(files, base, size, resize)
    return Source(name, OnDisk(files, size, resize, grey), labels, (), identity, truth=truth)


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


def listing_digest(files: Sequence[Path], base: Path, size: int, resize: int) -> str:
    """Stamp of a set of files: names and sizes (reading every picture would take too long)."""
    return digest("\n".join(f"{f.relative_to(base)} {os.path.getsize(f)}" for f in files), f"{size} {resize}")

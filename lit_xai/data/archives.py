"""Images in NumPy archives with MedMNIST's keys."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_xai.data.images import Source, in_memory
from lit_xai.errors import UsageError

COLOURS = (1, 3, 4)  # numbers of channels that an axis of this length must be
MOST = 16  # channels; more on an axis are rather the slices of a volume, unless somebody says so
ORGANS = "bladder,femur-left,femur-right,heart,kidney-left,kidney-right,liver,lung-left,lung-right,pancreas,spleen"
# the classes of MedMNIST's sets (Yang et al., 2023); their pictures alone are read, and one label a picture
MEDMNIST: dict[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil", "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb",
    ),
    **dict.fromkeys(("organamnist", "organcmnist", "organsmnist"), tuple(ORGANS.split(","))),
}  # fmt: skip


def npz(
    path: str,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    val: str | None = None,
    channels: str | None = None,
) -> Source:
    """A NumPy archive with MedMNIST's keys: train_images `[n, h, w(, c)]` uint8, train_labels `[n, 1]`, test_..., val_...

    Labels are whole numbers, one-hot rows or words. Other arrays `train_<column>` are columns of `data.groups=`.

    Args:
        path: the file.
        classes: their names, in the order of the labels.
        name: the data set's name.
        val: `join` puts val_images to the training images, `test` to the test images; None leaves them out.
        channels: `first` or `last`; None sees it by the shape.

    Raises:
        UsageError: the file is not there or damaged, or its arrays are no pictures with one label each.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"no file {file}: point data.path= at a .npz with train_images and train_labels")
    if val not in (None, "join", "test") or channels not in (None, "first", "last"):
        raise UsageError(f"data.val is join or test, data.channels first or last, found {val} and {channels}")
    arrays = read(file)
    parts = {"train": ["train"], "test": ["test"]}
    there, notes = "val_images" in arrays, []
    if there and val is not None:
        parts["test" if val == "test" else "train"].append("val")
    elif there:
        notes = [
            f"the {len(arrays['val_images'])} val_images of {file} are left out: data.val=join trains on them, too"
        ]

    def images(part: str) -> Tensor:
        return torch.cat([pixels(file, f"{p}_images", arrays[f"{p}_images"], channels) for p in having(part)])

    def having(part: str) -> list[str]:
        return [p for p in parts[part] if f"{p}_images" in arrays]

    known = {p: plain_labels(file, p, arrays) for p in dict.fromkeys((*having("train"), *having("test")))}
    numbers, names, told = numbered(file, known, classes)
    labels = {part: torch.cat([numbers[p] for p in having(part)]) for part in parts if having(part)}
    test = images("test") if having("test") else None
    source = in_memory(name or file.stem, images("train"), labels["train"], names, test, labels.get("test"))
    return replace(source, columns=columns(arrays, having("train")), notes=(*notes, *told))


def read(file: Path) -> dict[str, np.ndarray]:
    """The arrays of the three parts."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            keys = set(archive.files)
            needed = {"train_images", "train_labels"} - keys
            if needed:
                raise UsageError(f"{file} lacks {', '.join(sorted(needed))}; it has: {', '.join(sorted(keys))}")
            arrays = {k: archive[k] for k in keys if k.startswith(("train_", "val_", "test_"))}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as e:
        if isinstance(e, UsageError):
            raise
        raise UsageError(f"{file} is damaged or holds pickled objects ({e}): fetch or write it again") from None
    lacking = [f"{p}_labels" for p in ("val", "test") if f"{p}_images" in arrays and f"{p}_labels" not in arrays]
    if lacking:
        raise UsageError(f"{file} has images and no {', '.join(lacking)}: add them, or leave out the images")
    return arrays


def pixels(file: Path, key: str, a: np.ndarray, channels: str | None) -> Tensor:
    """Images `[n, c, h, w]` uint8 of an array, wherever its channels are.

    Raises:
        UsageError: it is something else; the message says what.
    """
    shape = " x ".join(map(str, a.shape[1:]))
    if a.dtype != np.uint8 or a.ndim not in (3, 4, 5):
        finite = np.isfinite(a.reshape(len(a), -1)).all(1) if a.dtype.kind == "f" and a.size else np.ones(0, bool)
        bad = np.flatnonzero(~finite)
        found = f"; sample {bad[0]} of them has NaN or infinite pixels" if len(bad) else ""
        mend = ": multiply values in [0, 1] by 255, round, and save as uint8" if a.dtype.kind == "f" else ""
        raise UsageError(
            f"{file}: {key} must be uint8 [n, h, w] or [n, h, w, c], found {a.dtype} {a.shape}{found}{mend}"
        )
    if a.ndim == 3:
        return torch.from_numpy(a[:, None]).contiguous()
    first, last = a.shape[1], a.shape[-1]
    if channels is None and a.ndim == 4:
        channels = layout(*a.shape[1:])
    if channels is None or a.ndim == 5:
        raise UsageError(
            f"{file}: {key} are volumes or films of {shape}: lit_xai explains pictures [n, h, w, c]; choose slices of them"
            + (
                f", or say by data.channels=first (or last) that {first} (or {last}) are channels"
                if a.ndim == 4
                else ""
            )
        )
    return torch.from_numpy(a if channels == "first" else a.transpose(0, 3, 1, 2)).contiguous()


def layout(a: int, b: int, c: int) -> str | None:
    """Where the channels of images `a x b x c` are: `first` or `last`; None where nobody can know."""
    if c in COLOURS:
        return "last"
    if a in COLOURS or (b == c and a != b and a <= MOST):
        return "first"
    return "last" if c <= MOST and c < min(a, b) else None


def plain_labels(file: Path, part: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """One label an image, `[n]`: whole numbers or words.

    Raises:
        UsageError: they are something else; the message says what.
    """
    key = f"{part}_labels"
    y, n = arrays[key], len(arrays[f"{part}_images"])
    if y.dtype.kind not in "iubUS":
        raise UsageError(f"{file}: {key} are {y.dtype}, and classes are whole numbers or words: save them as integers")
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "iub":
        ones = (y == 1).sum(1)
        if not len(y) or bool((ones != 1).any()) or bool(((y != 0) & (y != 1)).any()):
            raise UsageError(
                f"{file}: {key} of shape {y.shape} are several labels an image: keep one class an image, as numbers [n]"
            )
        y = y.argmax(1)
    if y.size != n:
        raise UsageError(f"{file.stem} has {n} {part} images and {y.size} labels: fetch or write the file again")
    y = y.reshape(-1)
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y


def numbered(
    file: Path, known: Mapping[str, np.ndarray], classes: Sequence[str] | None
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Labels of every part as numbers from 0, the classes' names, and what is to be said of it.

    Whole numbers stay as they are where they run from 0 with few gaps.
    """
    if len({y.dtype.kind in "U" for y in known.values()}) > 1:
        raise UsageError(f"{file} has words as labels in one part and numbers in another: write all in one way")
    words = next(iter(known.values())).dtype.kind == "U"
    there = sorted({v for y in known.values() for v in y.tolist()})
    if not there:
        raise UsageError(f"{file.stem} has 0 training images: fetch or write the file again")
    least, most = (0, len(there) - 1) if words else (int(there[0]), int(there[-1]))
    if not words and least >= 0 and most + 1 <= max(2 * len(there), len(classes or ())):
        most = int(known["train"].astype(np.int64).max(initial=-1)) + 1
        names = list(classes) if classes else [str(i) for i in range(most)]
        return {p: torch.from_numpy(y.astype(np.int64)) for p, y in known.items()}, names, []
    if least < 0 and there != [-1, 1]:
        raise UsageError(
            f"{file} has the label {least} beside others: classes are numbered from 0; leave unlabelled images out"
        )
    order: list[Any] = list(classes) if words and classes else there
    if words and not set(there) <= set(order):
        raise UsageError(f"{file} has labels that data.classes lacks: {', '.join(sorted(set(there) - set(order))[:5])}")
    if not words and classes and len(classes) != len(there):
        raise UsageError(
            f"{file} has {len(there)} different labels, {least} to {most}, and data.classes {len(classes)}"
        )
    number = {v: i for i, v in enumerate(order)}
    taken = ", ".join(f"{v} = {i}" for i, v in enumerate(order[:10])) + (", ..." if order[10:] else "")
    names = [str(v) for v in (classes or order)]
    out = {p: torch.tensor([number[v] for v in y.tolist()], dtype=torch.long) for p, y in known.items()}
    return out, names, [f"labels of {file} by class: {taken}"]


def columns(arrays: Mapping[str, np.ndarray], parts: Sequence[str]) -> dict[str, np.ndarray]:
    """Further arrays with one value a training image, by their names with and without `train_`."""
    out: dict[str, np.ndarray] = {}
    for key in sorted(k.removeprefix("train_") for k in arrays if k.startswith("train_")):
        found = [arrays[f"{p}_{key}"] for p in parts if f"{p}_{key}" in arrays]
        if key in ("images", "labels") or len(found) < len(parts):
            continue
        if all(len(a) == len(arrays[f"{p}_images"]) for a, p in zip(found, parts, strict=True) if a.ndim):
            out[key] = out[f"train_{key}"] = np.concatenate([a.reshape(len(a), -1)[:, 0] for a in found])
    return out


def medmnist(
    set: str,
    root: str = "data",
    size: int | None = None,
    path: str | None = None,
    val: str | None = "join",
    name: str | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """A set of MedMNIST (Yang et al., 2023) from the file that its authors ship.

    Args:
        set: as `pathmnist`, or `pathmnist_64` for a larger size.
        root: the folder that holds `pathmnist.npz`.
        size: 64, 128 or 224 for the larger files; None or 28 for the first.
        path: the file itself, in the place of `root`.
        val: what becomes of the validation images, see `npz`.
        name: the data set's name.
        classes: in the place of the known names.

    Raises:
        UsageError: the file is not there, or holds volumes or several labels a picture.
    """
    base, _, larger = set.lower().partition("_")
    larger = larger or ("" if size in (None, 28) else str(size))
    stem = f"{base}_{larger}" if larger and larger != "28" else base
    places = [Path(path)] if path is not None else [Path(root, f"{stem}.npz"), Path(root, "medmnist", f"{stem}.npz")]
    file = next((p for p in (p.expanduser() for p in places) if p.is_file()), None)
    if file is None:
        raise UsageError(
            f"{set} is not at {places[0]}: put MedMNIST's {stem}.npz there, or point data.root= or data.path= elsewhere"
        )
    return npz(str(file), classes or MEDMNIST.get(base), name or stem, val)

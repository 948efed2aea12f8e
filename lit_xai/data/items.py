"""Data sets as people write them, for the library: what is the image of an item, what its label, and whether both stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from lit_xai.core import ROUNDING, Component, refuse_channels
from lit_xai.data.groups import of_samples
from lit_xai.data.images import GREY, check_show, digest
from lit_xai.data.split import Split
from lit_xai.data.truth import opaque
from lit_xai.errors import UsageError
from lit_xai.rng import seeded, stable_hash

IMAGE_KEYS = ("image", "img", "pixel_values", "images", "picture", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "class", "class_id", "y")
TWICE = 32  # samples that are read twice: a flip of every second image is noticed but once in billions
LAST = (1, 3, 4)  # channels that an array's last axis may be
GIVE = "give (image [c, h, w] in [0, 1], label), the label a whole number or a word"


@runtime_checkable
class Indexed(Protocol):
    """A data set whose items have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@runtime_checkable
class OfFiles(Protocol):
    """A data set that knows the file of every item, as torchvision's folders do."""

    @property
    def samples(self) -> Sequence[tuple[str, int]]:
        """File and class of every item."""
        ...


def name_of(dataset: Any, i: int) -> str:
    """A sample in words, with its file where the data set knows it."""
    inside: Any = dataset
    j = i
    while isinstance(inside, Subset | ConcatDataset):
        if isinstance(inside, Subset):
            inside, j = inside.dataset, int(inside.indices[j])
            continue
        part = next(n for n, end in enumerate(inside.cumulative_sizes) if j < end)
        j -= inside.cumulative_sizes[part - 1] if part else 0
        inside = inside.datasets[part]
    known = inside.samples if isinstance(inside, OfFiles) else ()
    file = known[j][0] if isinstance(known, list | tuple) and len(known) > j and isinstance(known[j], tuple) else None
    return f"sample {i} ({file})" if isinstance(file, str) else f"sample {i}"


# ------------------------------------------------------------------------------------------------------------ one item


def places(item: Any) -> tuple[Any, Any]:
    """Where an item has its image and its label: two indices, or two keys.

    Raises:
        ValueError: nobody can know; the message says what there is.
    """
    if isinstance(item, Mapping):
        images, labels = ([k for k in keys if k in item] for keys in (IMAGE_KEYS, LABEL_KEYS))
        if len(images) != 1 or len(labels) != 1:
            raise ValueError(f"is a dictionary of {', '.join(map(str, item))}")
        return images[0], labels[0]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise ValueError(f"is {in_words(item)}")
    if is_label(item[1]):
        return 0, 1
    others = [i for i in range(2, len(item)) if is_label(item[i])]
    if len(others) != 1:
        raise ValueError(f"has as its label {in_words(item[1])}")
    return 0, others[0]


def is_label(value: Any) -> bool:
    """Whether a value is one whole number or one word."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_floating_point() and not value.is_complex()
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "iubU"
    return isinstance(value, int | np.integer | np.bool_ | str)


def plain_label(value: Any) -> int | str:
    """A label as a whole number or a word."""
    value = value.reshape(-1)[0] if isinstance(value, np.ndarray) else value
    value = value.item() if isinstance(value, Tensor | np.generic) else value
    return value if isinstance(value, str) else int(value)


def in_words(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        shape: tuple[int, ...] = tuple(value.shape)
        many = " (several labels, or one as one-hot?)" if len(shape) == 1 and shape != (1,) else ""
        return f"{str(value.dtype).removeprefix('torch.')} of shape {shape}{many}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value[:5]) or 'nothing'}"
    return f"{value!r}"[:40] if value is None or isinstance(value, float) else f"a {type(value).__name__}"


def as_image(value: Any) -> Float[Tensor, "c h w"]:
    """A picture of Pillow's, an array or a tensor as `[c, h, w]`; bytes of pictures and arrays are divided by 255.

    An array whose last axis alone can be its channels has them put first.

    Raises:
        ValueError: it is something else; the message says what.
    """
    if isinstance(value, Image):
        from torchvision.transforms.v2 import functional as T

        if value.mode.startswith(("I", "F")):
            raise ValueError(f"is a picture of more than 8 bits a channel ({value.mode})")
        if not opaque(value):
            raise ValueError("is a picture with transparent pixels")
        return T.pil_to_tensor(value.convert("L" if value.mode in GREY else "RGB")).float().div_(255)
    if not isinstance(value, Tensor | np.ndarray):
        raise ValueError(f"has as its image {in_words(value)}")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiub":
        raise ValueError(f"has as its image {in_words(value)}")
    image = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value).detach()
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or not image.numel() or image.is_complex():
        raise ValueError(f"has an image of shape {tuple(image.shape)}")
    a, b, c = image.shape
    if (c in LAST and a > max(LAST)) or (a == b > 16 >= c):
        image = image.permute(2, 0, 1)
    byte = isinstance(value, np.ndarray) and value.dtype == np.uint8
    return image.float().div(255).contiguous() if byte else image.float().contiguous()


# ------------------------------------------------------------------------------------------------------------ all items


@dataclass(frozen=True)
class MapStyle:
    """Any map-style data set of images and labels as an image set.

    Attributes:
        dataset: gives an item by its number: a tuple of image and label, or a dictionary with usual names.
        kept: images that are not read again.
        show: the channels that pictures are drawn of; None = see `lit_xai.data.images.seen`.
    """

    dataset: Any
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    show: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dataset, IterableDataset) or not isinstance(self.dataset, Indexed):
            raise UsageError(
                f"{type(self.dataset).__name__} has no numbered items, and samples are asked for by number: pass "
                f"list(dataset), or of a DataLoader its .dataset"
            )
        if not len(self.dataset):
            raise UsageError("the data set is empty: pass one with images")

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, i: int) -> tuple[Float[Tensor, "c h w"], int | str]:
        """Image and label of one item, as the data set gives them now.

        Raises:
            UsageError: they are none; the message names the sample.
        """
        try:
            item = self.dataset[i]
        except Exception as e:
            raise UsageError(f"{name_of(self.dataset, i)} cannot be read ({type(e).__name__}: {e}): mend it") from e
        try:
            x, y = places(item)
            image = as_image(item[x])
        except (ValueError, TypeError) as e:
            raise UsageError(f"{name_of(self.dataset, i)} {e}: {GIVE}") from None
        if not bool(torch.isfinite(image).all()):
            raise UsageError(
                f"{name_of(self.dataset, i)} has NaN or infinite pixels: mend it, or leave it out by torch.utils.data.Subset"
            )
        low, high = (float(v) for v in torch.aminmax(image))
        if low < -ROUNDING or high > 1 + ROUNDING:
            divide = " (divide by 255)" if low >= 0 and 16 < high <= 255 else ""
            raise UsageError(
                f"the data set gives images of shape {tuple(image.shape)} in [{low:.3g}, {high:.3g}] "
                f"({name_of(self.dataset, i)}): give [c, h, w] in [0, 1]{divide} and put normalisation inside the model"
            )
        return image, plain_label(item[y])

    def image(self, i: int) -> Float[Tensor, "c h w"]:
        """One image, from memory where it is kept."""
        if i not in self.kept:
            return self.item(i)[0]
        x = self.kept[i]
        return x.float().div_(255) if x.dtype == torch.uint8 else x

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of images."""
        return torch.stack([self.image(int(i)) for i in indices])

    def read(self, cache: bool = False) -> list[int | str]:
        """Go through all items once, and through some twice; the label of each.

        Args:
            cache: keep every image as it is read now, under a seed of its own, and never ask for it again.

        Raises:
            UsageError: an item cannot be used, images differ in size, or a second reading gives something else.
        """
        n = len(self)
        again = dict.fromkeys(torch.linspace(0, n - 1, min(n, TWICE)).long().tolist())
        first: dict[int, Tensor] = {}
        labels: list[int | str] = []
        shape = torch.Size()
        for i in range(n):
            with seeded(stable_hash("item", i) % 2**32) if cache else nullcontext():
                image, label = self.item(i)
            if i and image.shape != shape:
                raise UsageError(
                    f"images differ in size: sample 0 is {tuple(shape)} and {name_of(self.dataset, i)} {tuple(image.shape)} "
                    f"(channels, height, width): resize and crop them, e.g. by torchvision.transforms.v2"
                )
            shape = image.shape
            labels.append(label)
            if cache:
                self.kept[i] = small(image)
            elif i in again:
                first[i] = image
        for i, image in first.items():
            other, label = self.item(i)
            if label != labels[i] or not torch.equal(other, image):
                what = "label" if label != labels[i] else "image"
                raise UsageError(
                    f"the data set gives another {what} whenever {name_of(self.dataset, i)} is read (augmentation left on?): take "
                    f"random transforms out of it, or pass cache=True, which reads every sample once and keeps it"
                )
        return labels

    def identity(self, labels: Int[Tensor, "n"]) -> str:
        """A digest of all labels and of 64 images."""
        some = torch.linspace(0, len(self) - 1, min(64, len(self))).long().unique().tolist()
        return digest(labels, self.images(some))


def small(image: Float[Tensor, "c h w"]) -> Tensor:
    """An image as bytes where these hold it exactly."""
    as_bytes = (image * 255).round().to(torch.uint8)
    return as_bytes if torch.equal(as_bytes.float().div_(255), image) else image.clone()


@dataclass(frozen=True)
class Labels:
    """Labels as numbers of classes.

    Attributes:
        numbers: `[n]`, from 0.
        names: of the classes, where the labels were no such numbers; else empty.
    """

    numbers: Int[Tensor, "n"]
    names: tuple[str, ...] = ()

    @staticmethod
    def of(found: Sequence[int | str], outputs: Callable[[], int | None], names: Sequence[str] = ()) -> Labels:
        """Whole numbers that a model has classes for stay as they are; others are numbered in their order.

        Args:
            found: the label of every sample.
            outputs: the number of the model's classes; asked only where it matters. None = not known.
            names: of the classes; words among these have their places.

        Raises:
            UsageError: words and numbers are mixed, or there are not as many different ones as the model has classes.
        """
        words = [v for v in found if isinstance(v, str)]
        if words and len(words) < len(found):
            raise UsageError(f"some labels are words, such as {words[0]!r}, and some numbers: give all in one way")
        if words and all(w.strip().isdecimal() for w in words):
            found, words = [int(v) for v in found], []
        there = sorted(set(found))  # type: ignore[type-var]
        if not words and there == list(range(len(there))):
            return Labels(torch.tensor(found, dtype=torch.long))
        if words and names and set(there) <= set(names):
            place: dict[Any, int] = {w: i for i, w in enumerate(names)}
            return Labels(torch.tensor([place[v] for v in found], dtype=torch.long), tuple(names))
        if not words and int(there[0]) < 0 and there != [-1, 1]:
            raise UsageError(f"label {there[0]} is no class: leave unlabelled samples out, and number classes from 0")
        k = outputs()
        if not words and int(there[0]) >= 0 and (k is None or int(there[-1]) < k):
            return Labels(torch.tensor(found, dtype=torch.long))
        shown = ", ".join(f"{v}" for v in (there if len(there) < 7 else [*there[:3], "...", *there[-2:]]))
        if k is not None and len(there) != k:
            raise UsageError(
                f"labels are {shown} ({len(there)} different) and the model has {k} classes: give whole numbers 0..{k - 1}"
                f"{' or classes=, their names in the order of the outputs' if words else ''}"
            )
        number: dict[Any, int] = {v: i for i, v in enumerate(there)}
        return Labels(torch.tensor([number[v] for v in found], dtype=torch.long), tuple(map(str, there)))


class Training(Dataset):
    """Some items of a data set, to train on, with images and labels that a model takes in the place of those that it could not."""

    def __init__(self, images: MapStyle, labels: Labels, samples: Sequence[int]) -> None:
        self.images, self.labels, self.samples = images, labels, list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        i = self.samples[row]
        label = int(self.labels.numbers[i])
        if i in self.images.kept:
            return self.images.image(i), label
        item = self.images.dataset[i]
        if not isinstance(item, Mapping):
            return self.images.image(i), label
        x, y = places(item)
        return {**item, x: self.images.image(i), y: label}


def trainable(item: Any) -> bool:
    """Whether a loader makes batches of an item as it is, and a model takes its image."""
    x, y = places(item)
    image = item[x]
    return isinstance(image, Tensor) and image.shape == as_image(image).shape and not isinstance(item[y], str)


@dataclass(frozen=True)
class Samples:
    """A data set that was read once.

    Attributes:
        images: of every sample.
        labels: their classes.
        groups: which of them belong together; None = each stands alone.
    """

    images: MapStyle
    labels: Labels
    groups: Int[Tensor, "n"] | None = None

    @staticmethod
    def of(
        dataset: Any,
        outputs: Callable[[Float[Tensor, "1 c h w"]], int | None],
        cache: bool = False,
        groups: Any = None,
        names: Sequence[str] = (),
        show: Sequence[int] | None = None,
    ) -> Samples:
        """Read a data set; see `explain_folds` of `lit_xai.crossval` for the options.

        Args:
            dataset: map-style; one that was read already stays as it is.
            outputs: the number of the model's classes, from one image; None = not known.
            cache: read every sample once and keep its image.
            groups: a value a sample, equal where samples belong together.
            names: of the classes, for labels that are words.
            show: the channels that pictures are drawn of.

        Raises:
            UsageError: it cannot be used.
        """
        if isinstance(dataset, Samples):
            return dataset
        images = MapStyle(dataset, show=show)
        known = of_samples(groups, len(images), "groups=") if groups is not None else None
        labels = Labels.of(images.read(cache), lambda: outputs(images.images([0])), names)
        return Samples(images, labels, known)

    def check(self, *things: Mapping[str, Component]) -> None:
        """Refuse channels to draw that are not there, and explainers or scores that cannot use so many."""
        channels = len(self.images.image(0))
        check_show(self.images.show, channels)
        for some in things:
            refuse_channels(some, channels)

    def split(self, k: int, seed: int) -> Split:
        """Their split into k folds."""
        return Split.make(self.labels.numbers, k, seed, groups=self.groups)

    def notes(self, split: Split) -> list[str]:
        """What is to be known of labels and folds, a line each."""
        first = ", ".join(f"{name} = {i}" for i, name in enumerate(self.labels.names[:10]))
        more = ", ..." if self.labels.names[10:] else ""
        said = [f"note: labels by the number of the model's class: {first}{more}"] if first else []
        return said + ([f"note: {r}" for r in split.remarks(self.labels.names)] if self.groups is not None else [])

    def shared(self, split: Split) -> dict[str, Any]:
        """What folds must have in common to be compared."""
        return {
            "data": type(self.images.dataset).__name__,
            "content": self.images.identity(self.labels.numbers),
            "samples": len(self.labels.numbers),
            "folds": split.k,
            "split_seed": split.seed,
            "label_noise": 0.0,
            "target": "label",
            **({} if self.groups is None else {"groups": digest(self.groups)}),
        }

    def training(self, samples: Sequence[int]) -> Subset | Training:
        """Some of them to train on: as the data set gives them, unless a model could not take that."""
        as_it_is = not self.images.kept and not self.labels.names and trainable(self.images.dataset[0])
        return Subset(self.images.dataset, samples) if as_it_is else Training(self.images, self.labels, samples)

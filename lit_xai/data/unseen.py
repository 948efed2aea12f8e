"""Images that no fold saw, from which test probes are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.data.images import ImageSet, Source, digest
from lit_xai.data.split import Split
from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash


@dataclass(frozen=True)
class After:
    """The images of a test split, numbered on from the last training image."""

    test: ImageSet
    first: int

    def __len__(self) -> int:
        return self.first + len(self.test)

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of images."""
        return self.test.images([int(i) - self.first for i in indices])


@dataclass(frozen=True)
class Unseen:
    """Some images that no fold saw.

    Attributes:
        images: by sample number.
        split: their numbers, ascending, and labels; all lie in the fold -1.
        content: a digest of their pixels.
    """

    images: ImageSet
    split: Split
    content: str

    @property
    def samples(self) -> Int[Tensor, "p"]:
        """Their numbers in the source, ascending."""
        return self.split.samples

    @staticmethod
    def draw(source: Source, split: Split, most: int | None, groups: Int[Tensor, "n"] | None = None) -> Unseen:
        """At most `most` random images of the labelled test split, or where the data set has none, of what `train_subset` leaves out; of all
        images where nothing is trained on them (one fold).

        Of what is left out, samples whose group lies in a fold are left out, too. All images are as likely, whatever their class, so that another
        image of the same kind is like one of these. The draw is the same for every fold, and nested across `most`.

        Raises:
            UsageError: there are none.
        """
        if source.test is not None and source.test_labels is not None and len(source.test):
            first = len(source.train)
            images: ImageSet = After(source.test, first)
            pool = torch.arange(first, first + len(source.test))
            labels = source.test_labels
        else:
            outside = torch.ones(len(source.train), dtype=torch.bool)
            outside[split.samples] = split.k == 1
            if groups is not None and split.k > 1:
                outside &= ~torch.isin(groups, groups[split.samples])
            images, pool = source.train, torch.nonzero(outside)[:, 0]
            labels = source.labels[pool]
        if not len(pool):
            raise UsageError(none_left(source, split))
        g = torch.Generator().manual_seed(stable_hash(split.seed, "test probes"))
        rows = torch.randperm(len(pool), generator=g)[:most].sort().values
        pixels = (digest(images.images(part.tolist())) for part in pool[rows].split(250))
        own = Split(pool[rows], torch.full_like(rows, -1), labels[rows], split.k, split.seed)
        return Unseen(images, own, digest(*pixels))


def none_left(source: Source, split: Split) -> str:
    """Why a data set has no image that no fold saw, and what to do, in a line."""
    number = len(source.train)
    if len(split.samples) < number:
        return (
            f"{source.name} has no image that no fold saw: it has no test split, and every group outside of data.train_subset= lies "
            "in a fold, too: choose a smaller data.train_subset= and another name="
        )
    part = f"data.train_subset={max(split.k, number * 4 // 5)} and another name="
    return (
        f"{source.name} has no test split, and all its {number} images lie in a fold: train with {part}, whose rest no fold sees, "
        "or give data that have one (a folder with train/ and test/, an archive with test_images)"
    )

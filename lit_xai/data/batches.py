"""The images of a fold in batches: a data set of some samples, and the orders that they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lit_xai.data.augment import AtOnce, Transform, one_by_one
from lit_xai.data.images import ImageSet
from lit_xai.rng import stable_hash


class FoldDataset(Dataset):
    """Samples of an image set with labels; whole batches are read at once.

    Augmentation of a sample is a function of (seed, epoch, sample), whatever worker, rank or device makes it.

    Args:
        images, samples, labels: the set, and which of it with which labels.
        augment: transforms of one image.
        key: seed and epoch.
        at_once: the batch form of `augment`, that takes its place.
        device: where `images` keeps its pixels, and batches are made; None = wherever it reads them, asked by lists.
    """

    def __init__(
        self,
        images: ImageSet,
        samples: Int[Tensor, "n"],
        labels: Int[Tensor, "n"],
        augment: Sequence[Transform] = (),
        key: tuple[int, int] = (0, 0),
        at_once: AtOnce | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.images, self.samples, self.labels = images, samples, labels
        self.there = samples.to(device), labels.to(device)  # the same where batches are made
        self.augment, self.key, self.at_once, self.device = tuple(augment), key, at_once, device
        self.drawn: tuple[tuple[int, int], Tensor] | None = None  # a key, and what is drawn under it for every sample

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Float[Tensor, "c h w"], Tensor]:
        x, y = self.__getitems__([i])
        return x[0], y[0]

    def __getitems__(self, rows: list[int] | Int[Tensor, "b"]) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]:
        rows = torch.as_tensor(rows, dtype=torch.long).to(self.device, non_blocking=True)
        samples, labels = (x[rows] for x in self.there)
        images = self.images.images(samples.tolist() if self.device is None else samples)  # type: ignore[arg-type]
        if self.at_once is not None:
            images = self.at_once(images, self.values(self.at_once)[rows])
        elif self.augment:
            images = one_by_one(self.augment, images, samples.tolist(), self.key)
        return images, labels

    def values(self, at_once: AtOnce) -> Int[Tensor, "n d"]:
        """What the augmentation draws for every sample in this epoch, made once."""
        if self.drawn is None or self.drawn[0] != self.key:
            self.drawn = self.key, at_once.values(self.key, self.samples.tolist()).to(self.device)
        return self.drawn[1]

    def batches(self, rows: Int[Tensor, "m b"]) -> Iterator[list[int]] | Iterator[Tensor]:
        """Batches as they are asked for; on a device they all are at once, else each would be waited for."""
        return iter(rows.tolist()) if self.device is None else iter(rows.to(self.device).unbind(0))


def as_batch(batch: Any) -> Any:
    """Collate for data sets that read whole batches."""
    return batch


class EpochSampler(Sampler[Any]):
    """Shuffled batches of one rank. Order and augmentation are functions of (seed, epoch) alone.

    Every rank gets the same number of batches of the same size: the few samples that do not fill one a rank are left
    out of this epoch (another few in the next).

    Args:
        data: what is sampled; it is told the epoch, for its augmentation.
        batch_size: of one rank.
        seed, rank, world: the run's seed, this process and the number of processes.
        begins: says which epoch begins, and with which of its batches (asked whenever iteration starts, so that a
            resumed run goes on rightly).
    """

    def __init__(
        self,
        data: FoldDataset,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        begins: Callable[[], tuple[int, int]],
    ) -> None:
        self.data, self.seed, self.rank, self.world, self.begins = data, seed, rank, world, begins
        self.size = min(batch_size, max(1, len(data) // world))

    def __iter__(self) -> Iterator[Any]:
        n, whole = len(self.data), len(self)
        epoch, first = self.begins()
        self.data.key = (self.seed, epoch)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(stable_hash(self.seed, "order", epoch)))
        mine = order[: whole * self.size * self.world].view(whole, self.world, self.size)[:, self.rank]
        return self.data.batches(mine[first:])

    def __len__(self) -> int:
        return len(self.data) // (self.size * self.world)


class ShareSampler(Sampler[list[int]]):
    """Batches of one rank's share of n samples, in order, none twice and none left out."""

    def __init__(self, n: int, batch_size: int, rank: int, world: int) -> None:
        self.batches = [list(range(s, min(s + batch_size, n))) for s in range(0, n, batch_size)][rank::world]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

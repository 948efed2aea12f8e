"""The stratified k-fold split, the probes, and the LightningDataModule that trains on D without V_i."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_xai.data import groups
from lit_xai.data.images import ImageSet, OnDisk, Source, digest
from lit_xai.data.split import Split
from lit_xai.errors import UsageError
from lit_xai.fitting import TrainedOn
from lit_xai.rng import SampleRng, stable_hash


def noisy_labels(split: Split, classes: int, share: float) -> Int[Tensor, "n"]:
    """The split's labels with exactly `share` of them replaced by another class.

    Which ones, and by what, is keyed by the sample: the same for all folds, and nested across shares.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"label_noise must lie in [0, 1], found {share}")
    labels = split.labels.clone()
    rng = SampleRng(split.seed, tuple(split.samples.tolist()))
    if share:
        generators = (rng.generator("label_noise", row) for row in range(len(labels)))
        draws = torch.stack([torch.rand(2, generator=g) for g in generators])
        wrong = draws[:, 0].argsort(stable=True)[: round(share * len(labels))]
        shift = 1 + (draws[wrong, 1] * (classes - 1)).long().clamp_max(classes - 2)
        labels[wrong] = (labels[wrong] + shift) % classes
    return labels


@dataclass(frozen=True)
class Disagreements:
    """Samples of V_i on which f_i and at least one f_j contradict each other: exactly one of the two is right.

    Attributes:
        samples: `[d]` fold by fold, ascending within.
        concerned: `[d, k]` the predictors that explain each sample: i, and every j that contradicts it.
        weight: `[d]` inverse of the rate at which the fold's disagreements were kept (1 without a cap).
        found: how many there are before the cap.
    """

    samples: Int[Tensor, "d"]
    concerned: Bool[Tensor, "d k"]
    weight: Float[Tensor, "d"]
    found: int

    @staticmethod
    def find(split: Split, correct: Bool[Tensor, "k n"], cap: int | None) -> Disagreements:
        """At most `cap` random disagreements of every fold; None keeps all."""
        kept, concerned, weight, found = [], [], [], 0
        for fold in range(split.k):
            inside = torch.nonzero(split.fold_of == fold)[:, 0]
            differ = correct[:, inside] != correct[fold, inside]
            rows = torch.nonzero(differ.any(0))[:, 0]
            found += len(rows)
            g = torch.Generator().manual_seed(stable_hash(split.seed, "disagreements", fold))
            rows = rows[torch.randperm(len(rows), generator=g)[:cap].sort().values] if len(rows) else rows
            total = int(differ.any(0).sum())
            involved = differ[:, rows].T.clone()
            involved[:, fold] = True
            kept.append(split.samples[inside[rows]])
            concerned.append(involved)
            weight.append(torch.full((len(rows),), total / max(1, len(rows)), dtype=torch.float64))
        return Disagreements(torch.cat(kept), torch.cat(concerned), torch.cat(weight), found)


# ------------------------------------------------------------------------------------------------------------ loading


class FoldDataset(Dataset):
    """Samples of an image set with labels; whole batches are read at once.

    Augmentation of a sample is a function of (seed, epoch, sample), whatever worker or rank loads it.
    """

    def __init__(
        self,
        images: ImageSet,
        samples: Int[Tensor, "n"],
        labels: Int[Tensor, "n"],
        augment: Sequence[Callable[[Tensor], Tensor]] = (),
        key: tuple[int, int] = (0, 0),
    ) -> None:
        self.images, self.samples, self.labels = images, samples, labels
        self.augment, self.key = tuple(augment), key

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Float[Tensor, "c h w"], Tensor]:
        x, y = self.__getitems__([i])
        return x[0], y[0]

    def __getitems__(self, rows: list[int]) -> tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]]:
        samples = self.samples[rows]
        images = self.images.images(samples.tolist())
        if self.augment:
            images = torch.stack([self.augmented(x, int(s)) for x, s in zip(images, samples, strict=True)])
        return images, self.labels[rows]

    def augmented(self, image: Float[Tensor, "c h w"], sample: int) -> Float[Tensor, "c h w"]:
        """The image after every transform in turn."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(stable_hash(*self.key, "augment", sample))  # no GPU's
            for transform in self.augment:
                image = transform(image)
        return image


def as_batch(batch: Any) -> Any:
    """Collate for data sets that read whole batches."""
    return batch


class EpochSampler(Sampler[list[int]]):
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

    def __iter__(self) -> Iterator[list[int]]:
        n, whole = len(self.data), len(self)
        epoch, first = self.begins()
        self.data.key = (self.seed, epoch)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(stable_hash(self.seed, "order", epoch)))
        mine = order[: whole * self.size * self.world].view(whole, self.world, self.size)[:, self.rank]
        return iter(mine[first:].tolist())

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


class FoldData(pl.LightningDataModule):
    """Trains on D without V_i, validates and tests on V_i.

    Args:
        source: gives the data set (called once).
        fold: i.
        folds: k.
        seed: of the split, the probes and the order.
        probes_per_fold: random samples of every fold that get explained; None = all.
        train_subset: a stratified part of the training data that stands for D; None = all of it.
        batch_size: training batch of one process.
        num_workers: loader processes (of picture files that do not fit into memory, and of augmentation).
        augment: transforms `[c, h, w] -> [c, h, w]` of training images.
        label_noise: share of training labels replaced by another class.
        name: the data set's name.
        groups: where it is written which samples belong together, see `lit_xai.data.groups`; None = each stands alone.
        show: the channels that pictures are drawn of (red, green, blue, or one); None = see `seen`.
        fold_column: where the fold of every sample is written, in the same ways; None = they are drawn.
    """

    def __init__(
        self,
        source: Callable[[], Source],
        fold: int = 0,
        folds: int = 5,
        seed: int = 0,
        probes_per_fold: int | None = 100,
        train_subset: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: Sequence[Callable[[Tensor], Tensor]] = (),
        label_noise: float = 0.0,
        name: str | None = None,
        groups: str | None = None,
        fold_column: str | None = None,
        show: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.make_source, self.fold, self.k, self.seed = source, fold, folds, seed
        self.probes_per_fold, self.train_subset = probes_per_fold, train_subset
        self.batch_size, self.num_workers = batch_size, num_workers
        self.augment, self.label_noise, self.name = tuple(augment), label_noise, name
        self.show = show
        self.groups_in, self.folds_in = groups, fold_column
        self.first_epoch, self.first_batch = 0, 0  # whoever resumes says where
        if probes_per_fold is not None and probes_per_fold < 1:
            raise UsageError(f"data.probes_per_fold must be at least 1, found {probes_per_fold}")

    @cached_property
    def source(self) -> Source:
        """The data set; what is to be known of how it was read is said."""
        source = self.make_source()
        self.say(source.notes)
        return source

    @staticmethod
    def say(notes: Iterable[str]) -> None:
        """A line each, from rank 0."""
        for note in notes:
            shown = "".join(c if c.isprintable() else "?" for c in note)  # names may come from a file
            rank_zero_only(print)(f"note: {shown}", flush=True)

    @cached_property
    def grouping(self) -> dict[str, Int[Tensor, "m"]]:
        """The group and the given fold of every sample, where somebody says them."""
        said = {"groups": self.groups_in, "fold_column": self.folds_in}
        return {what: groups.read(self.source, str(text), what) for what, text in said.items() if text is not None}

    @cached_property
    def split(self) -> Split:
        """The split of its training part."""
        known = self.grouping
        options = {"groups": known.get("groups"), "given": known.get("fold_column")}
        split = Split.make(self.source.labels, self.k, self.seed, self.train_subset, **options)
        split.check(self.fold)
        if known:
            self.say(split.remarks(self.source.classes))
        return split

    @property
    def held_out(self) -> Int[Tensor, "v"]:
        """V_i."""
        return self.split.held_out(self.fold)

    @cached_property
    def probes(self) -> Int[Tensor, "p"]:
        """The random probes of all folds."""
        return self.split.probes(self.probes_per_fold)

    @cached_property
    def colour(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of every channel over (at most 2,000 of) the training folds."""
        samples = self.split.training(self.fold) if self.k > 1 else self.split.samples
        if len(samples) > 2000:
            g = torch.Generator().manual_seed(stable_hash(self.seed, "colour"))
            samples = samples[torch.randperm(len(samples), generator=g)[:2000].sort().values]
        total, square, n = torch.zeros(1), torch.zeros(1), 0
        for part in samples.split(250):
            x = self.source.train.images(part.tolist()).double()
            total = total + x.sum((0, 2, 3))
            square = square + (x * x).sum((0, 2, 3))
            n += x.numel() // x.shape[1]
        mean = total / n
        std = (square / n - mean**2).clamp_min(1e-8).sqrt()
        return tuple(mean.float().tolist()), tuple(std.float().tolist())

    @property
    def about(self) -> str:
        """Data set, content and held-out fold in one line: what is fitted to one of these may fill for no other."""
        held_out = f"fold {self.fold} of {self.k} held out" if self.k > 1 else "nothing held out"
        parts = "".join(f", {what} {digest(values)}" for what, values in self.grouping.items())
        samples = f"{len(self.split.samples)} samples, seed {self.seed}"
        return f"{self.source.name} ({self.source.identity}), {samples}{parts}, {held_out}"

    @cached_property
    def trained_on(self) -> TrainedOn:
        """The same for fillers that are fitted to the training folds."""
        number = len(self.split.training(self.fold) if self.k > 1 else self.split.samples)
        return TrainedOn(self.colour[0], self.fold, number, self.about, self.source.shape)

    def shared(self) -> dict[str, Any]:
        """What two stores must share to be compared: the content, the split, the probes."""
        return {
            "data": self.source.name,
            "content": self.source.identity,
            "samples": len(self.split.samples),
            "folds": self.k,
            "split_seed": self.seed,
            "label_noise": self.label_noise,
            **{what: digest(values) for what, values in self.grouping.items()},
        }

    # -------------------------------------------------------------------------------------------------------- loaders

    def rank(self) -> tuple[int, int]:
        """This process's rank and the world size."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def loader(self, data: FoldDataset, batches: Sampler[list[int]]) -> DataLoader:
        """A loader of whole batches; of pictures that are kept in memory without processes, which would decode each anew."""
        in_memory = isinstance(data.images, OnDisk) and data.images.fits
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=as_batch,
            num_workers=0 if in_memory else self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader:
        """D without V_i, shuffled anew every epoch."""
        if not self.source.labelled:
            raise UsageError(f"{self.source.name} has no labels to train on: use lit_xai.explain with model=pretrained")
        samples = self.split.training(self.fold)
        labels = noisy_labels(self.split, len(self.source.classes), self.label_noise)
        mine = labels[torch.searchsorted(self.split.samples, samples)]
        data = FoldDataset(self.source.train, samples, mine, self.augment)
        rank, world = self.rank()
        return self.loader(data, EpochSampler(data, self.batch_size, self.seed, rank, world, self.begins))

    def begins(self) -> tuple[int, int]:
        """The epoch that begins, and its batch. A resumed run's loader starts before Lightning knows."""
        epoch = max(self.trainer.current_epoch if self.trainer else 0, self.first_epoch)
        return epoch, self.first_batch if epoch == self.first_epoch else 0

    def val_dataloader(self) -> DataLoader:
        """V_i; it never selects a checkpoint."""
        return self.part(self.source.train, self.held_out, self.split.label(self.held_out))

    def test_dataloader(self) -> list[DataLoader]:
        """V_i, and the fixed test split where the set has one."""
        loaders = [self.val_dataloader()]
        if self.source.test is not None and self.source.test_labels is not None:
            everything = torch.arange(len(self.source.test))
            loaders.append(self.part(self.source.test, everything, self.source.test_labels))
        return loaders

    def part(self, images: ImageSet, samples: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> DataLoader:
        """This rank's share, without padding."""
        data = FoldDataset(images, samples, labels)
        rank, world = self.rank()
        size = min(max(256, self.batch_size), -(-len(data) // world))  # every rank has at least one batch
        return self.loader(data, ShareSampler(len(data), size, rank, world))

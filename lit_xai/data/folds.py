"""The stratified k-fold split, the probes, and the LightningDataModule that trains on D without V_i."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lit_xai.cache import share_of_memory
from lit_xai.data import groups
from lit_xai.data.augment import AtOnce, Transform
from lit_xai.data.batches import EpochSampler, FoldDataset, ShareSampler, as_batch
from lit_xai.data.images import ImageSet, InMemory, OnDisk, Source, digest
from lit_xai.data.plant import Planted
from lit_xai.data.split import Split
from lit_xai.data.unseen import Unseen
from lit_xai.errors import UsageError
from lit_xai.fitting import TrainedOn
from lit_xai.rng import SampleRng, stable_hash

SHARE = 10  # of a device's free memory, images may take one in so many parts


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
        on_device: whether images that are kept in memory are put into that of the device which trains, where batches are made
            and augmented as a whole: `auto` where they fit into a tenth of what is free there and every transform is a flip or a
            crop; True insists; False reads them by the loader, and augments one by one. The batches are the same.
        label_noise: share of training labels replaced by another class.
        name: the data set's name.
        groups: where it is written which samples belong together, see `lit_xai.data.groups`; None = each stands alone.
        show: the channels that pictures are drawn of (red, green, blue, or one); None = see `seen`.
        fold_column: where the fold of every sample is written, in the same ways; None = they are drawn.
        train_seed: of the order, augmentation and whatever else training draws; None = `seed`.
        plant: a shortcut in all folds but one: `tag`, `colour` or `watermark`, see `lit_xai.data.plant`; None = none.
        plant_share: of the samples of those folds that have it.
        plant_clean: the fold without it; None = the last.
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
        augment: Sequence[Transform] = (),
        on_device: bool | str = "auto",
        label_noise: float = 0.0,
        name: str | None = None,
        groups: str | None = None,
        fold_column: str | None = None,
        show: Sequence[int] | None = None,
        train_seed: int | None = None,
        plant: str | None = None,
        plant_share: float = 1.0,
        plant_clean: int | None = None,
    ) -> None:
        super().__init__()
        self.make_source, self.fold, self.k, self.seed = source, fold, folds, seed
        self.train_seed = seed if train_seed is None else train_seed
        self.probes_per_fold, self.train_subset = probes_per_fold, train_subset
        self.batch_size, self.num_workers = batch_size, num_workers
        self.augment, self.label_noise, self.name = tuple(augment), label_noise, name
        self.show = show
        self.plant, self.plant_share, self.plant_clean = plant, plant_share, plant_clean
        self.groups_in, self.folds_in = groups, fold_column
        self.first_epoch, self.first_batch = 0, 0  # whoever resumes says where
        self.drawn: dict[int | None, Unseen] = {}  # test probes, by their largest number
        self.there: dict[torch.device, InMemory | None] = {}  # the training images on devices
        if probes_per_fold is not None and probes_per_fold < 1:
            raise UsageError(f"data.probes_per_fold must be at least 1, found {probes_per_fold}")
        if on_device not in ("auto", True, False):
            raise UsageError(f"data.on_device must be auto, true or false, found {on_device!r}")
        self.on_device: bool | str = on_device if on_device == "auto" else bool(on_device)

    @cached_property
    def source(self) -> Source:
        """The data set, with what is planted in it."""
        return self.raw if self.planted is None else self.planted.source

    @cached_property
    def planted(self) -> Planted | None:
        """The shortcut in it, if there is one."""
        if self.plant is None:
            return None
        return Planted.of(self.raw, self.split, self.plant, self.plant_share, self.plant_clean, self.seed)

    @cached_property
    def raw(self) -> Source:
        """The data set as it was read; what is to be known of that is said."""
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
        return {what: groups.read(self.raw, str(text), what) for what, text in said.items() if text is not None}

    @cached_property
    def split(self) -> Split:
        """The split of its training part."""
        known = self.grouping
        options = {"groups": known.get("groups"), "given": known.get("fold_column")}
        split = Split.make(self.raw.labels, self.k, self.seed, self.train_subset, **options)
        split.check(self.fold)
        if known:
            self.say(split.remarks(self.raw.classes))
        return split

    @property
    def held_out(self) -> Int[Tensor, "v"]:
        """The samples of V_i, which the predictor never sees."""
        return self.split.held_out(self.fold)

    @cached_property
    def probes(self) -> Int[Tensor, "p"]:
        """The random probes of all folds."""
        return self.split.probes(self.probes_per_fold)

    def unseen(self, most: int | None) -> Unseen:
        """At most so many random images that no fold saw, see `Unseen.draw`."""
        if most not in self.drawn:
            self.drawn[most] = Unseen.draw(self.source, self.split, most, self.grouping.get("groups"))
        return self.drawn[most]

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

    @cached_property
    def at_once(self) -> AtOnce | None:
        """The batch form of the augmentation."""
        return None if self.on_device is False else AtOnce.of(self.augment, self.source.shape)

    def placed(self, images: ImageSet) -> tuple[ImageSet, torch.device | None]:
        """The training images where batches are made of them, and the device; None where they are read by lists.

        Raises:
            UsageError: `data.on_device=true` cannot be done.
        """
        why = self.why_not()
        if why and self.on_device is True:
            raise UsageError(f"data.on_device=true cannot be: {why}; set data.on_device=auto")
        if self.on_device is False or type(images) is not InMemory:
            return images, None
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cpu":
            return images, None if why else device
        if images is not self.source.train:  # the test split is read once
            return images, None
        if device not in self.there:
            self.there[device] = self.moved(images, device, why)
        found = self.there[device]
        return (images, None) if found is None else (found, device)

    def why_not(self) -> str | None:
        """Why the training images cannot live where they are trained on, wherever that is."""
        if type(self.source.train) is not InMemory:
            return f"the images of {self.source.name} are read one by one, not kept in memory as bytes"
        if self.on_device is not False and self.at_once is None:
            names = ", ".join(type(t).__name__ for t in self.augment)
            return f"not all transforms of data.augment ({names}) have a form for whole batches"
        return None

    def moved(self, images: InMemory, device: torch.device, why: str | None = None) -> InMemory | None:
        """Images in a device's memory; None, and a line, where they are too large for it, or for another reason `why`."""
        size = images.pixels.numel()
        if self.on_device == "auto" and device.type != "cuda":
            return None
        if self.on_device == "auto" and not why:
            free = torch.cuda.mem_get_info(device)[0] * share_of_memory()
            large = f"{size / 1e9:.1f} GB of images are more than a tenth of the {free / 1e9:.1f} GB that are free on {device}"
            why = large if size > free / SHARE else None
        try:
            moved = None if why else images.on(device)
        except torch.OutOfMemoryError:
            moved, why = None, f"{size / 1e9:.1f} GB of images do not fit into {device}"
            if self.on_device is True:
                raise UsageError(f"data.on_device=true cannot be: {why}; set data.on_device=auto") from None
        if why:
            self.say([f"training batches come from the loader: {why}"])
        return moved

    def loader(self, data: FoldDataset, batches: Sampler[Any]) -> DataLoader:
        """A loader of whole batches.

        Pictures that are kept in memory have no processes, which would decode each anew, and neither have batches that are made in one go.
        """
        in_memory = isinstance(data.images, OnDisk) and data.images.fits
        return DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=as_batch,
            num_workers=0 if in_memory or data.device is not None else self.num_workers,
            pin_memory=torch.cuda.is_available() and data.device is None,
        )

    def train_dataloader(self) -> DataLoader:
        """D without V_i, shuffled anew every epoch."""
        if not self.source.labelled:
            raise UsageError(f"{self.source.name} has no labels to train on: use lit_xai.explain with model=pretrained")
        samples = self.split.training(self.fold)
        labels = noisy_labels(self.split, len(self.source.classes), self.label_noise)
        mine = labels[torch.searchsorted(self.split.samples, samples)]
        images, device = self.placed(self.source.train)
        data = FoldDataset(images, samples, mine, self.augment, at_once=self.at_once, device=device)
        rank, world = self.rank()
        return self.loader(data, EpochSampler(data, self.batch_size, self.train_seed, rank, world, self.begins))

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
        images, device = self.placed(images)
        data = FoldDataset(images, samples, labels, device=device)
        rank, world = self.rank()
        size = min(max(256, self.batch_size), -(-len(data) // world))  # every rank has at least one batch
        return self.loader(data, ShareSampler(len(data), size, rank, world))

"""The stratified k-fold split of a data set; with groups, one that keeps every group in one fold."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash

TRIES = 20  # shuffles of the groups, where one leaves a class out of a fold that could hold it
NAMED = 5  # remarks of a kind that are said


@dataclass(frozen=True)
class Split:
    """k disjoint stratified folds of the samples D.

    Attributes:
        samples: `[n]` index of every sample of D in its data set, ascending.
        fold_of: `[n]` the fold whose predictor never sees the sample.
        labels: `[n]` its class.
        k: number of folds; 1 means no split (a pretrained predictor, everything is held out).
        seed: the split's seed.
    """

    samples: Int[Tensor, "n"]
    fold_of: Int[Tensor, "n"]
    labels: Int[Tensor, "n"]
    k: int
    seed: int

    @staticmethod
    def make(
        labels: Int[Tensor, "m"],
        k: int,
        seed: int,
        subset: int | None = None,
        groups: Int[Tensor, "m"] | None = None,
        given: Int[Tensor, "m"] | None = None,
    ) -> Split:
        """Split `labels` into k stratified folds; with `subset`, of a stratified choice of that many samples.

        Args:
            labels: the class of every sample.
            k, seed: number of folds, and what they depend on.
            subset: how many samples stand for all; None = all.
            groups: of every sample; no group lies in two folds, and classes are spread over folds as evenly as that allows.
            given: the fold of every sample, 0..k-1, which is then only checked.

        Raises:
            UsageError: a class has fewer members than there are folds, or there are fewer groups; the subset is larger than
                the set; a given fold is empty, or parts a group.
        """
        if k < 1:
            raise UsageError(f"folds must be at least 1, found {k}")
        samples = torch.arange(len(labels))
        if subset is not None:
            if not k <= subset <= len(labels):
                raise UsageError(f"train_subset={subset} must lie between {k} folds and {len(labels)} samples")
            samples = stratified_subset(labels, subset, seed)
        labels = labels[samples]
        if k == 1:
            return Split(samples, torch.zeros_like(samples), labels, k, seed)
        if given is not None:
            fold_of = checked(given[samples], k, None if groups is None else groups[samples])
        elif groups is not None:
            fold_of = grouped(labels, groups[samples], k, seed)
        else:
            fold_of = stratified(labels, k, seed)
        return Split(samples, fold_of, labels, k, seed)

    def remarks(self, names: Sequence[str] = ()) -> list[str]:
        """What is uneven about the folds, a line each: classes that a fold lacks, and classes that a predictor never sees."""
        out = []
        classes = self.labels.unique().tolist() if self.k > 1 else []
        for c in classes:
            held = torch.bincount(self.fold_of[self.labels == c], minlength=self.k)
            lacking, name = torch.nonzero(held == 0)[:, 0].tolist(), names[c] if c < len(names) else str(c)
            if len(lacking) == self.k - 1:
                only = int(held.argmax())
                out.append(f"all samples of class {name} lie in fold {only}: its predictor never sees one in training")
            elif lacking:
                out.append(f"class {name} has no sample in fold {', '.join(map(str, lacking))}")
        return [*out[:NAMED], *([f"and {len(out) - NAMED} more classes are missing from folds"] if out[NAMED:] else [])]

    def check(self, fold: int) -> int:
        """`fold` itself if it exists."""
        if not 0 <= fold < self.k:
            raise UsageError(f"fold={fold} does not exist: folds are 0..{self.k - 1} (data.folds={self.k})")
        return fold

    def held_out(self, fold: int) -> Int[Tensor, "v"]:
        """Sample indices of V_i."""
        return self.samples[self.fold_of == self.check(fold)]

    def training(self, fold: int) -> Int[Tensor, "t"]:
        """Sample indices of D without V_i."""
        return self.samples[self.fold_of != self.check(fold)]

    def probes(self, per_fold: int | None) -> Int[Tensor, "p"]:
        """`per_fold` random samples of every fold, fold by fold and ascending within; None takes all."""
        return torch.cat([members[:per_fold].sort().values for members in self.shuffled])

    @cached_property
    def shuffled(self) -> list[Int[Tensor, "v"]]:
        """Every V_i in the order in which probes are taken from it."""
        out = []
        for fold in range(self.k):
            members, g = self.held_out(fold), torch.Generator().manual_seed(stable_hash(self.seed, "probes", fold))
            out.append(members[torch.randperm(len(members), generator=g)])
        return out

    def per_fold(self, sample: int, place: int) -> Iterator[int]:
        """Every number of probes per fold with which `sample` stands at `place` among the `probes`, the largest first."""
        fold = int(self.fold(torch.tensor([sample])))
        taken = self.shuffled[fold]
        sizes = torch.bincount(self.fold_of, minlength=self.k)
        number = torch.arange(1, int(sizes.max()) + 1)
        before = torch.stack([number.clamp_max(s) for s in sizes[:fold]]).sum(0) if fold else 0
        rank = (taken < sample).cumsum(0)[number.clamp_max(len(taken)) - 1]
        there = number > int((taken == sample).nonzero())
        yield from number[there & (before + rank == place)].flip(0).tolist()

    def fold(self, samples: Int[Tensor, "p"]) -> Int[Tensor, "p"]:
        """The fold of each of these samples."""
        return self.fold_of[torch.searchsorted(self.samples, samples)]

    def label(self, samples: Int[Tensor, "p"]) -> Int[Tensor, "p"]:
        """The class of each of these samples."""
        return self.labels[torch.searchsorted(self.samples, samples)]


def stratified_subset(labels: Int[Tensor, "m"], size: int, seed: int) -> Int[Tensor, "s"]:
    """`size` samples with the classes in proportion (largest remainders), ascending."""
    number = torch.bincount(labels).double()
    share = number * size / len(labels)
    take = share.floor().long()
    take[(share - take).argsort(descending=True, stable=True)[: size - int(take.sum())]] += 1
    chosen = []
    for c, n in enumerate(take.tolist()):
        members = torch.nonzero(labels == c)[:, 0]
        g = torch.Generator().manual_seed(stable_hash(seed, "subset", c))
        chosen.append(members[torch.randperm(len(members), generator=g)[:n]])
    return torch.cat(chosen).sort().values


def stratified(labels: Int[Tensor, "n"], k: int, seed: int) -> Int[Tensor, "n"]:
    """The fold of every sample, the classes in proportion.

    Raises:
        UsageError: a class has fewer members than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    number = torch.bincount(labels)
    scarce = torch.nonzero((number < k) & (number > 0))[:, 0].tolist()
    if scarce:
        raise UsageError(
            f"class {scarce[0]} has {int(number[scarce[0]])} members for {k} folds: "
            f"lower data.folds=, raise data.train_subset=, or remove the class"
        )
    return folded(
        StratifiedKFold(k, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels.numpy()), labels
    )


def grouped(labels: Int[Tensor, "n"], groups: Int[Tensor, "n"], k: int, seed: int) -> Int[Tensor, "n"]:
    """The fold of every sample, whole groups, the classes as even as that allows: of a few shuffles the first that leaves no
    class out of a fold, else the one that leaves out the fewest.

    Raises:
        UsageError: there are fewer groups than folds, or a fold stays empty.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    number = len(groups.unique())
    if number < k:
        raise UsageError(f"{number} groups cannot fill {k} folds: lower data.folds= (k=), or group by something finer")
    classes = labels.unique()
    unavoidable = sum(max(0, k - len(groups[labels == c].unique())) for c in classes)
    best, least = None, None
    for attempt in range(TRIES):
        parts = StratifiedGroupKFold(k, shuffle=True, random_state=seed + attempt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a class has few members: remarks say so
            try:
                found = folded(parts.split(np.zeros(len(labels)), labels.numpy(), groups.numpy()), labels)
            except ValueError:
                largest = int(torch.bincount(labels).max())
                raise UsageError(
                    f"every class has at most {largest} members for {k} folds: lower data.folds="
                ) from None
        there = torch.zeros(k, int(labels.max()) + 1, dtype=torch.bool)
        there[found, labels] = True
        lacks = int((~there.any(1)).sum()), int((~there[:, classes]).sum()) - unavoidable
        if least is None or lacks < least:
            best, least = found, lacks
        if least[0] == 0 and least[1] <= 0:
            break
    assert best is not None
    assert least is not None
    if least[0]:
        raise UsageError(
            f"{number} groups of so different sizes leave {least[0]} of {k} folds empty: lower data.folds= (k=)"
        )
    return best


def folded(parts: Iterable[tuple[np.ndarray, np.ndarray]], like: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The fold of every sample, from scikit-learn's pairs of training and held-out rows."""
    fold_of = torch.empty_like(like)
    for i, (_, held) in enumerate(parts):
        fold_of[torch.from_numpy(held)] = i
    return fold_of


def checked(given: Int[Tensor, "n"], k: int, groups: Int[Tensor, "n"] | None) -> Int[Tensor, "n"]:
    """Folds that are given.

    Raises:
        UsageError: one is empty or does not exist, or a group lies in two.
    """
    found = given.unique().tolist()
    if found != list(range(k)):
        raise UsageError(
            f"the given folds are {', '.join(map(str, found))}, and there are {k} folds: set data.folds= (k=)"
        )
    if groups is not None:
        pairs = torch.stack([groups, given], 1).unique(dim=0)[:, 0]
        twice = int((torch.bincount(pairs) > 1).sum())
        if twice:
            raise UsageError(
                f"{twice} groups lie in several of the given folds: mend the folds, or leave out the groups"
            )
    return given

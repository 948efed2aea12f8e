"""ReCo of many weightings of the same pairs, from sums between the distances of S_differ.

Every form of ReCo needs, at a threshold g, how much of S_equal and of S_differ lies below and above it. Between two
neighbouring distances of S_differ the latter does not change and the former only grows, so a maximum can lie at these
distances and at the last one of S_equal before each, nowhere else. A bootstrap of 160,000 pairs with 4,000 of them in
S_differ needs 4,000 sums of sparse products, not 160,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import CHUNK

TINY = 1e-9  # weights below it are rounding
PERMUTATIONS = 1000  # p-values as small as .001, which a correction over some tens of explainers leaves small


def before(x: Float[np.ndarray, "r k"]) -> Float[np.ndarray, "r k1"]:
    """Sums of what stands left of every column; the additional last one is the sum of all."""
    return np.hstack([np.zeros((len(x), 1)), x.cumsum(1)])


@dataclass(frozen=True)
class Sums:
    """Weights of r weightings of the pairs, at and between the k distances of S_differ.

    Attributes:
        gap: `[r, k + 1]` of S_equal, before, between and after those distances.
        tie: `[r, k]` of S_equal, at those distances.
        differ: `[r, k]` of S_differ, at those distances.
        last: gives `[r, k + 1]` of S_equal, at its last distance in every gap; 0 where the gap is empty.
        squares: `[r]` squared weights of S_equal, summed over its distances in the gaps.
    """

    gap: Float[np.ndarray, "r k1"]
    tie: Float[np.ndarray, "r k"]
    differ: Float[np.ndarray, "r k"]
    last: Callable[[], Float[np.ndarray, "r k1"]]
    squares: Float[np.ndarray, "r"]

    def balanced(self) -> Float[np.ndarray, "r k"]:
        """TPR + TNR - 1 with class-conditional rates, `<` for S_equal and `>=` for S_differ, at the distances of S_differ."""
        e, d = self.gap.cumsum(1) + before(self.tie), before(self.differ)
        return e[:, :-1] / e[:, -1:] - d[:, :-1] / d[:, -1:]

    def reco(self) -> Float[np.ndarray, "r"]:
        """The balanced maximum, at least 0."""
        return self.balanced().max(1).clip(0)

    def eq6(self) -> Float[np.ndarray, "r"]:
        """Eq. 6 as printed: rates among all distances below (above) the threshold; empty denominators are skipped."""
        e, d, last = self.gap.cumsum(1) + before(self.tie), before(self.differ), self.last()
        e_all, d_all = e[:, -1:], d[:, -1:]
        at_differ = (e[:, :-1], d[:, :-1], e_all - e[:, :-1] - self.tie, d_all - d[:, 1:], self.differ + self.tie)
        in_gap = (e - last, d, e_all - e, d_all - d, last)
        best = []
        for e_below, d_below, e_above, d_above, here in (at_differ, in_gap):
            below, above = e_below + d_below, e_above + d_above
            usable = (here > 0) & (below > TINY) & (above > TINY)
            value = e_below / below + d_above / above - 1
            best.append(np.where(usable, value, -np.inf).max(1))
        return np.maximum(*best).clip(0)

    def auc(self) -> Float[np.ndarray, "r"]:
        """The mean of TPR + TNR - 1 over all pairs' distances as thresholds (appendix D)."""
        e, d = self.gap.cumsum(1) + before(self.tie), before(self.differ)
        e_all, d_all = e[:, -1], d[:, -1]
        e_below = (e_all**2 - self.squares - (self.tie**2).sum(1)) / 2 + (e[:, :-1] * self.differ).sum(1)
        d_below = (self.gap * d).sum(1) + ((self.tie + self.differ) * d[:, :-1]).sum(1)
        return (e_below / e_all - d_below / d_all) / (e_all + d_all)


class Sorted:
    """Pairs in ascending order of distance.

    Attributes:
        equal: `[p]` True for S_equal.
        cluster: `[p]` the sample of every pair, 0 .. n-1.
        weight: `[p]`.
        first: `[t]` where a run of equal distances begins: a run of ties is one threshold.
    """

    def __init__(self, pairs: Pairs, cluster: Int[Tensor, "p"]) -> None:
        distance, order = pairs.distance.double().sort()
        change = torch.ones(len(distance), dtype=torch.bool)
        change[1:] = distance[1:] != distance[:-1]
        self.first: Int[np.ndarray, "t"] = torch.nonzero(change)[:, 0].numpy()
        columns = (pairs.equal[order], cluster[order], pairs.weight.double()[order])
        self.equal, self.cluster, self.weight = (c.numpy() for c in columns)


class Gaps(Sorted):
    """Pairs in order of distance, and where those of S_differ lie among them.

    Args:
        pairs: of S_equal and S_differ, with known distances.
        cluster: `[p]` the sample of every pair, 0 .. n-1.
        samples: n.
    """

    def __init__(self, pairs: Pairs, cluster: Int[Tensor, "p"], samples: int) -> None:
        super().__init__(pairs, cluster)
        equal, first, cluster_, weight = self.equal, self.first, self.cluster, self.weight
        length = np.diff(first, append=len(equal))
        run = np.repeat(np.arange(len(first)), length)
        differs = np.bincount(run[~equal], minlength=len(first)) > 0  # runs with a pair of S_differ
        number = differs.cumsum() - differs  # such runs before this one
        place = np.where(differs[run], 2 * number[run] + 1, 2 * number[run])  # gaps are even, ties odd
        k = int(differs.sum())

        def sums(of: np.ndarray, group: np.ndarray, groups: int) -> csr_matrix:
            return csr_matrix((weight[of], (group, cluster_[of])), shape=(groups, samples))

        self.sums_equal, self.sums_differ = (
            sums(equal, place[equal], 2 * k + 1),
            sums(~equal, number[run[~equal]], k),
        )
        runs = np.flatnonzero(~differs)  # those in the gaps
        several = length[runs] > 1
        self.several = np.where(several, several.cumsum() - 1, -1)
        inside = np.isin(run, runs[several])
        self.of_several = sums(inside, np.searchsorted(runs[several], run[inside]), int(several.sum()))
        self.single, self.single_weight = cluster_[first[runs]], weight[first[runs]]  # of runs of one pair
        self.squared = np.bincount(self.single[~several], self.single_weight[~several] ** 2, minlength=samples)
        self.end = np.bincount(number[runs], minlength=k + 1).cumsum()  # where a gap's runs end

    def __call__(self, counts: Float[Tensor, "r n"]) -> Iterator[Sums]:
        """The sums where sample s counts `counts[:, s]` times, some weightings after the other: memory is bounded."""
        for part in counts.split(max(1, CHUNK // len(self.equal))):
            yield self.sums(part.numpy())

    def sums(self, counts: Float[np.ndarray, "r n"]) -> Sums:
        """The sums of all these weightings."""
        columns = np.ascontiguousarray(counts.T)
        equal, differ, several = ((m @ columns).T for m in (self.sums_equal, self.sums_differ, self.of_several))
        squares = (columns**2).T @ self.squared + (several**2).sum(1)
        return Sums(equal[:, ::2], equal[:, 1::2], differ, lambda: self.last(counts, several), squares)

    def last(self, counts: Float[np.ndarray, "r n"], several: Float[np.ndarray, "r m"]) -> Float[np.ndarray, "r k1"]:
        """The weight of the last distance in every gap whose weight is not 0, found from the gap's end."""
        out = np.zeros((len(counts), len(self.end)))
        row, gap = (a.ravel() for a in np.indices(out.shape))
        at, begin = self.end[gap] - 1, np.concatenate([[0], self.end])[gap]
        while True:
            left = at >= begin
            row, gap, at, begin = row[left], gap[left], at[left], begin[left]
            if not len(at):
                return out
            weight = counts[row, self.single[at]] * self.single_weight[at]
            many = self.several[at] >= 0
            weight[many] = several[row[many], self.several[at[many]]]
            out[row, gap] = weight
            at = np.where(weight > 0, -1, at - 1)


def permuted(pairs: Pairs, cluster: Int[Tensor, "p"]) -> Iterator[Sums]:
    """The sums after the labels S_equal and S_differ were given anew to the groups of pairs of one sample, `PERMUTATIONS` times.

    The weight of a set is its sampling rate's: it goes with the label, not with the sample.
    """
    s = Sorted(pairs, cluster)
    group, member = np.unique(s.cluster * 2 + s.equal, return_inverse=True)
    label = (group % 2) == 1
    generator = torch.Generator().manual_seed(pairs.seed)
    weights = float(pairs.weight[pairs.equal].mean()), float(pairs.weight[pairs.differ].mean())
    for _ in range(PERMUTATIONS):
        yield of_two_weights(label[torch.randperm(len(label), generator=generator).numpy()][member], s.first, *weights)


def of_two_weights(
    equal: Bool[np.ndarray, "p"], first: Int[np.ndarray, "t"], weight_equal: float, weight_differ: float
) -> Sums:
    """The sums of one weighting that knows two weights: of every pair of S_equal, and of every one of S_differ.

    Args:
        equal: `[p]` True for S_equal, in ascending order of distance.
        first: `[t]` where a run of equal distances begins.
        weight_equal, weight_differ: the two weights.
    """
    length = np.diff(first, append=len(equal))
    runs, differ = np.unique(np.searchsorted(first, np.flatnonzero(~equal), side="right") - 1, return_counts=True)
    tie = length[runs] - differ
    e_before = first[runs] - (differ.cumsum() - differ)
    gap = np.diff(np.concatenate([[0], e_before, [equal.sum()]])) - np.concatenate([[0], tie])
    ends = np.concatenate([runs, [len(first)]]) - 1  # the run before each of S_differ, and the last of all
    last = np.where(gap > 0, length[ends], 0)
    squares = (length**2).sum() - (length[runs] ** 2).sum()
    e, d = float(weight_equal), float(weight_differ)
    return Sums(gap[None] * e, tie[None] * e, differ[None] * d, lambda: last[None] * e, np.array([squares * e * e]))


class Repeated(Sorted):
    """Pairs in order of distance, each taken a whole number of times and weightless: what Xplique's ReCo looks at."""

    def __init__(self, pairs: Pairs, cluster: Int[Tensor, "p"], samples: int) -> None:
        super().__init__(pairs, cluster)
        self.end = np.append(self.first[1:], len(self.equal))

    def __call__(self, counts: Float[Tensor, "r n"]) -> Iterator[Float[np.ndarray, "1"]]:
        """`reco` of every row of counts."""
        for row in counts.numpy():
            yield np.array([self.reco(row[self.cluster].astype(np.int64))])

    def reco(self, counts: Int[np.ndarray, "p"]) -> float:
        """ReCo as Xplique computes it: strict inequalities, ties outside the denominators, every (n // 20 + 1)-th threshold."""
        everything, equal = (np.concatenate([[0], c.cumsum()]) for c in (counts, counts * self.equal))
        differ, number = everything - equal, int(everything[-1])
        if not equal[-1] or not differ[-1]:
            return np.nan
        pair = np.searchsorted(everything, np.arange(0, number, number // 20 + 1), side="right") - 1
        run = np.searchsorted(self.first, pair, side="right") - 1
        first, end = self.first[run], self.end[run]
        tp, fn = equal[first], equal[-1] - equal[end]
        tn, fp = differ[-1] - differ[end], differ[first]
        return max(0.0, float((tp / (tp + fn + 1e-10) + tn / (tn + fp + 1e-10) - 1.0).max()))

"""ReCo of many weightings of the same pairs, from sums between the distances of S_differ.

Every form of ReCo needs, at a threshold g, how much of S_equal and of S_differ lies below and above it. Between two
neighbouring distances of S_differ the latter does not change and the former only grows, so a maximum can lie at these
distances and at the last one of S_equal before each, nowhere else. A bootstrap of 160,000 pairs with 4,000 of them in
S_differ needs 4,000 sums of sparse products, not 160,000. `stability.Thresholds` is the same without this thought.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix

TINY = 1e-9  # weights below it are rounding


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
        last: `[r, k + 1]` of S_equal, at its last distance in every gap; 0 where the gap is empty.
        squares: `[r]` squared weights of S_equal, summed over its distances in the gaps.
    """

    gap: Float[np.ndarray, "r k1"]
    tie: Float[np.ndarray, "r k"]
    differ: Float[np.ndarray, "r k"]
    last: Float[np.ndarray, "r k1"]
    squares: Float[np.ndarray, "r"]

    def reco(self) -> Float[np.ndarray, "r"]:
        """The maximum of TPR + TNR - 1 with class-conditional rates, at least 0."""
        e, d = self.gap.cumsum(1) + before(self.tie), before(self.differ)
        with np.errstate(invalid="ignore"):
            return (e[:, :-1] / e[:, -1:] - d[:, :-1] / d[:, -1:]).max(1).clip(0)

    def eq6(self) -> Float[np.ndarray, "r"]:
        """Eq. 6 as printed: rates among all distances below (above) the threshold; empty denominators are skipped."""
        e, d = self.gap.cumsum(1) + before(self.tie), before(self.differ)
        e_all, d_all = e[:, -1:], d[:, -1:]
        at_differ = (e[:, :-1], d[:, :-1], e_all - e[:, :-1] - self.tie, d_all - d[:, 1:], self.differ + self.tie)
        in_gap = (e - self.last, d, e_all - e, d_all - d, self.last)
        best = []
        for e_below, d_below, e_above, d_above, here in (at_differ, in_gap):
            below, above = e_below + d_below, e_above + d_above
            usable = (here > 0) & (below > TINY) & (above > TINY)
            with np.errstate(invalid="ignore", divide="ignore"):
                value = e_below / below + d_above / above - 1
            best.append(np.where(usable, value, -np.inf).max(1))
        return np.maximum(*best).clip(0)

    def auc(self) -> Float[np.ndarray, "r"]:
        """The mean of TPR + TNR - 1 over all pairs' distances as thresholds (appendix D)."""
        e, d = self.gap.cumsum(1) + before(self.tie), before(self.differ)
        e_all, d_all = e[:, -1], d[:, -1]
        e_below = (e_all**2 - self.squares - (self.tie**2).sum(1)) / 2 + (e[:, :-1] * self.differ).sum(1)
        d_below = (self.gap * d).sum(1) + ((self.tie + self.differ) * d[:, :-1]).sum(1)
        with np.errstate(invalid="ignore"):
            return (e_below / e_all - d_below / d_all) / (e_all + d_all)


class Gaps:
    """Pairs in order of distance, and where those of S_differ lie among them.

    Args:
        equal: `[p]` True for S_equal, in ascending order of distance.
        first: `[t]` where a run of equal distances begins.
        cluster: `[p]` the sample of every pair, 0 .. n-1.
        weight: `[p]` of every pair.
    """

    def __init__(
        self,
        equal: Bool[np.ndarray, "p"],
        first: Int[np.ndarray, "t"],
        cluster: Int[np.ndarray, "p"],
        weight: Float[np.ndarray, "p"],
    ) -> None:
        self.length = np.diff(first, append=len(equal))
        run = np.repeat(np.arange(len(first)), self.length)
        differs = np.bincount(run[~equal], minlength=len(first)) > 0  # runs with a pair of S_differ
        number = differs.cumsum() - differs  # such runs before this one
        place = np.where(differs[run], 2 * number[run] + 1, 2 * number[run])  # gaps are even, ties odd
        n, k = (int(cluster.max()) + 1 if len(cluster) else 0), int(differs.sum())

        def sums(of: np.ndarray, group: np.ndarray, groups: int) -> csr_matrix:
            return csr_matrix((weight[of], (group, cluster[of])), shape=(groups, n))

        self.equal, self.differ = sums(equal, place[equal], 2 * k + 1), sums(~equal, number[run[~equal]], k)
        runs = np.flatnonzero(~differs)  # those in the gaps
        several = self.length[runs] > 1
        self.several = np.where(several, several.cumsum() - 1, -1)
        inside = np.isin(run, runs[several])
        self.of_several = sums(inside, np.searchsorted(runs[several], run[inside]), int(several.sum()))
        self.cluster, self.weight = cluster[first[runs]], weight[first[runs]]  # of runs of one pair
        self.squared = np.bincount(self.cluster[~several], self.weight[~several] ** 2, minlength=n)
        self.end = np.bincount(number[runs], minlength=k + 1).cumsum()  # where a gap's runs end

    def sums(self, counts: Float[np.ndarray, "r n"], last: bool = True) -> Sums:
        """The sums where sample s counts `counts[:, s]` times; `last` is needed by `eq6` alone."""
        columns = np.ascontiguousarray(counts[:, : self.equal.shape[1]].T)
        equal, differ, several = ((m @ columns).T for m in (self.equal, self.differ, self.of_several))
        squares = (columns**2).T @ self.squared + (several**2).sum(1)
        found = self.last(counts, several) if last else np.zeros_like(equal[:, ::2])
        return Sums(equal[:, ::2], equal[:, 1::2], differ, found, squares)

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
            weight = counts[row, self.cluster[at]] * self.weight[at]
            many = self.several[at] >= 0
            weight[many] = several[row[many], self.several[at[many]]]
            out[row, gap] = weight
            at = np.where(weight > 0, -1, at - 1)


def dealt(equal: Bool[np.ndarray, "p"], first: Int[np.ndarray, "t"], weight_equal: float, weight_differ: float) -> Sums:
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
    return Sums(gap[None] * e, tie[None] * e, differ[None] * d, last[None] * e, np.array([squares * e * e]))

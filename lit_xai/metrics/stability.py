"""MeGe and ReCo: does an explanation persist when the training data change? (Fel et al., 2022.)

For a sample x of the held-out fold V_i and every other predictor j, delta = d(phi_i(x), phi_j(x)). Delta belongs to
S_equal if both predictors are right and to S_differ if exactly one is; both wrong is ignored.

- MeGe = 1 / (1 + mean(S_equal)).
- ReCo = max over thresholds gamma of TPR + TNR - 1: how well a distance tells agreement from contradiction.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torchmetrics import Metric

from lit_xai.core import Maps
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import map_distance
from lit_xai.metrics.gaps import Gaps, Sums, dealt
from lit_xai.metrics.statistics import (
    CHUNK,
    RESAMPLES,
    Estimate,
    basic_interval,
    finish,
    percentile_interval,
    resamples,
)

PERMUTATIONS = 200
MIN_DISAGREEMENTS = 10

# ---------------------------------------------------------------------------------------------------- pure functions


def mege(equal: Float[Tensor, "e"]) -> float:
    """1 / (1 + mean(S_equal)), Eq. 5; NaN for an empty set."""
    return 1 / (1 + float(equal.double().mean())) if len(equal) else math.nan


class Thresholds:
    """Two distance sets, sorted once; every rate at every threshold for any weights of the pairs.

    Args:
        distance: `[p]` distances of both sets.
        equal: `[p]` True for S_equal, False for S_differ.
    """

    def __init__(self, distance: Float[Tensor, "p"], equal: Bool[Tensor, "p"]) -> None:
        self.distance, self.order = distance.double().sort()
        self.equal = equal[self.order]
        change = torch.ones(len(distance), dtype=torch.bool)
        change[1:] = self.distance[1:] != self.distance[:-1]
        self.first = torch.nonzero(change)[:, 0]  # a run of ties is one threshold
        self.end = torch.cat([self.first[1:], torch.tensor([len(distance)])])

    def rates(self, weight: Float[Tensor, "r p"], equal: Bool[Tensor, "#r p"] | None = None) -> dict[str, Tensor]:
        """Cumulated weight below and up to every threshold, for each row of weights.

        Columns are in ascending order of distance: index with `order` first.
        """
        is_equal = self.equal if equal is None else equal
        no_ties = len(self.first) == len(self.order)
        out = {}
        for name, w in (("e", weight * is_equal), ("d", weight * ~is_equal)):
            total = torch.nn.functional.pad(w.cumsum_(1), (1, 0))
            out[f"{name}_below"] = total[:, :-1] if no_ties else total[:, self.first]
            out[f"{name}_upto"] = total[:, 1:] if no_ties else total[:, self.end]
            out[f"{name}_all"] = total[:, -1:]
        return out

    def balanced(self, r: dict[str, Tensor]) -> Float[Tensor, "r g"]:
        """TPR + TNR - 1 with class-conditional rates, `<` for S_equal and `>=` for S_differ."""
        return r["e_below"] / r["e_all"] - r["d_below"] / r["d_all"]

    def reco(self, r: dict[str, Tensor]) -> Float[Tensor, "r"]:
        """The balanced maximum, at least 0."""
        return self.balanced(r).amax(1).clamp_min(0)

    def eq6(self, r: dict[str, Tensor]) -> Float[Tensor, "r"]:
        """Eq. 6 as printed: rates among all distances below (above) the threshold; empty denominators are skipped."""
        below = r["e_below"] + r["d_below"]
        d_above = r["d_all"] - r["d_upto"]
        above = d_above + r["e_all"] - r["e_upto"]
        present = (r["e_upto"] - r["e_below"] + r["d_upto"] - r["d_below"]) > 0
        value = r["e_below"] / below + d_above / above - 1
        usable = present & (below > 1e-9) & (above > 1e-9)
        return torch.where(usable, value, -torch.inf).amax(1).clamp_min(0)

    def auc(self, r: dict[str, Tensor]) -> Float[Tensor, "r"]:
        """The mean of TPR + TNR - 1 over all pairs' distances as thresholds (appendix D)."""
        here = r["e_upto"] - r["e_below"] + r["d_upto"] - r["d_below"]
        return (self.balanced(r) * here).sum(1) / here.sum(1)


MEASURES = {"reco": Thresholds.reco, "reco_eq6": Thresholds.eq6, "reco_auc": Thresholds.auc}
FORMS = {"default": Sums.reco, "paper": Sums.eq6, "auc": Sums.auc}  # the same by definition, of many weightings


def of_sets(
    measure: str, equal: Float[Tensor, "e"], differ: Float[Tensor, "d"], weight: Float[Tensor, "p"] | None = None
) -> float:
    """`reco`, `reco_eq6` or `reco_auc` of two distance sets; NaN if one is empty."""
    if not len(equal) or not len(differ):
        return math.nan
    distance = torch.cat([equal, differ])
    kind = torch.arange(len(distance)) < len(equal)
    t = Thresholds(distance, kind)
    w = torch.ones(1, len(distance), dtype=torch.float64) if weight is None else weight.double()[None]
    return float(MEASURES[measure](t, t.rates(w[:, t.order])))


def reco_xplique(equal: Float[Tensor, "e"], differ: Float[Tensor, "d"]) -> float:
    """ReCo as Xplique computes it: strict inequalities, ties outside the denominators, every (n // 20 + 1)-th threshold.

    Its distances are sqrt(1 - |Spearman|).
    """
    if not len(equal) or not len(differ):
        return math.nan
    everything = torch.cat([equal, differ]).double().sort().values
    best = 0.0
    for gamma in everything[:: len(everything) // 20 + 1]:
        tp, fn = int((equal < gamma).sum()), int((equal > gamma).sum())
        tn, fp = int((differ > gamma).sum()), int((differ < gamma).sum())
        best = max(best, tp / (tp + fn + 1e-10) + tn / (tn + fp + 1e-10) - 1.0)
    return best


def xplique_of_counts(t: Thresholds, counts: Int[np.ndarray, "p"]) -> float:
    """`reco_xplique` of the pairs of `t`, each taken `counts` times (in ascending order of distance)."""
    everything, equal = (np.concatenate([[0], c.cumsum()]) for c in (counts, counts * t.equal.numpy()))
    differ, number = everything - equal, int(everything[-1])
    if not equal[-1] or not differ[-1]:
        return math.nan
    pair = np.searchsorted(everything, np.arange(0, number, number // 20 + 1), side="right") - 1
    run = np.searchsorted(t.first.numpy(), pair, side="right") - 1
    first, end = t.first.numpy()[run], t.end.numpy()[run]
    tp, fn = equal[first], equal[-1] - equal[end]
    tn, fp = differ[-1] - differ[end], differ[first]
    return max(0.0, float((tp / (tp + fn + 1e-10) + tn / (tn + fp + 1e-10) - 1.0).max()))


# --------------------------------------------------------------------------------------------------------- the metrics


class PairMetric(Metric):
    """What MeGe and ReCo share: pairs of maps come in, one row of scalars per pair is kept.

    Works alone, in a loop, and under DDP (states are gathered; ranks may hold any number of pairs, also none).

    Args:
        distance: a name in `lit_xai.metrics.distance.DISTANCES`.
        seed: seed of the resamples.
        resamples: bootstrap resamples for `estimate`.
    """

    higher_is_better = True
    full_state_update = False
    pairs: list[Tensor]

    def __init__(self, distance: str = "spearman", seed: int = 0, resamples: int = RESAMPLES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distance, self.seed, self.resamples = distance, seed, resamples
        self.add_state("pairs", default=[], dist_reduce_fx="cat")

    def update(
        self,
        maps_i: Maps,
        maps_j: Maps,
        correct_i: Shaped[Tensor, "b"],
        correct_j: Shaped[Tensor, "b"],
        sample: Int[Tensor, "b"],
    ) -> None:
        """Add pairs of maps of the same samples, sample by sample, from two predictors."""
        correct_i, correct_j = correct_i.bool(), correct_j.bool()
        if not len(maps_i) == len(maps_j) == len(correct_i) == len(correct_j) == len(sample):
            raise UsageError("maps_i, maps_j, correct_i, correct_j and sample must have one entry per sample")
        keep = correct_i | correct_j
        if not bool(keep.any()):
            return
        for maps in (maps_i, maps_j):
            if not bool(torch.isfinite(maps).all()):
                raise UsageError("a map holds NaN or infinite values: explain that sample again, or leave it out")
        delta = map_distance(maps_i[keep], maps_j[keep], self.distance)
        self.add_distances(delta, (correct_i & correct_j)[keep], sample[keep])

    def add_distances(
        self,
        distance: Float[Tensor, "p"],
        equal: Bool[Tensor, "p"],
        sample: Int[Tensor, "p"],
        weight: Float[Tensor, "p"] | None = None,
    ) -> None:
        """Add pairs whose distance is known (NaN: undefined); `weight` is the inverse of the pair's sampling rate."""
        weight = torch.ones_like(distance) if weight is None else weight
        rows = [distance.double(), equal.double(), sample.double(), weight.double()]
        self.pairs.append(torch.stack([r.to(self.device) for r in rows], dim=1))
        self._computed, self._update_count = None, max(1, self._update_count)  # as torchmetrics does around `update`

    def share(self, other: PairMetric) -> None:
        """Hold the pairs that another metric holds, without a copy."""
        self.pairs = list(other.pairs)
        self._computed, self._update_count = None, max(1, self._update_count)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        if not self.pairs:  # a rank without pairs must still send a tensor of the right shape and type
            self.pairs = [torch.zeros(0, 4, dtype=torch.float64, device=self.device)]
        super()._sync_dist(*args, **kwargs)

    def table(self) -> Float[Tensor, "p 4"]:
        """All pairs: distance, 1 for S_equal, sample, weight."""
        if isinstance(self.pairs, Tensor):
            return self.pairs.cpu()
        return torch.cat([p.cpu() for p in self.pairs]) if self.pairs else torch.zeros(0, 4, dtype=torch.float64)

    def sets(self) -> tuple[Tensor, Tensor]:
        """The defined distances of S_equal and of S_differ."""
        rows = self.table()
        rows = rows[torch.isfinite(rows[:, 0])]
        return rows[rows[:, 1] == 1, 0], rows[rows[:, 1] == 0, 0]

    def compute(self) -> Tensor:
        """The value alone; NaN where it is undefined."""
        return torch.tensor(self.value()[0], dtype=torch.float64)

    def estimate(self) -> Estimate:
        """The value with its 95 % interval, its null and its counts, over all ranks."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._estimate()

    @abstractmethod
    def value(self) -> tuple[float, str]:
        """The value of the local state, and the reason where it is NaN."""

    @abstractmethod
    def _estimate(self) -> Estimate:
        """The estimate of the local state."""

    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """What the number means."""


def no_pair(table: Float[Tensor, "n 4"]) -> str:
    """Why S_equal is empty."""
    if bool((table[:, 1] == 1).any()):
        return "every pair of predictors that are right on the same sample has a constant map, which has no ranks"
    return "no pair of predictors is right on the same sample"


class MeGe(PairMetric):
    """Mean generalisability, 1 / (1 + mean(S_equal)): 1 for explanations that never change.

    Args:
        definition: `default` and `paper` are Eq. 5 on the given distance; `xplique` takes sqrt(1 - |Spearman|).
        distance, seed, resamples: see `PairMetric`.
    """

    def __init__(self, definition: str = "default", distance: str = "spearman", **kwargs: Any) -> None:
        check_definition(definition)
        super().__init__(distance="sqrt_spearman" if definition == "xplique" else distance, **kwargs)
        self.variant = definition

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        return {
            "measure": "MeGe = 1 / (1 + mean(S_equal))",
            "source": "Fel et al. 2022, Eq. 5",
            "variant": self.variant,
            "distance": self.distance,
            "interval": "percentile bootstrap over samples",
        }

    def value(self) -> tuple[float, str]:
        """MeGe of the local state."""
        equal, _ = self.sets()
        return (mege(equal), "") if len(equal) else (math.nan, no_pair(self.table()))

    def _estimate(self) -> Estimate:
        value, reason = self.value()
        rows = self.table()
        rows = rows[rows[:, 1] == 1]
        known = torch.isfinite(rows[:, 0])
        counts: dict[str, Any] = {"pairs": int(known.sum()), "dropped": int((~known).sum()), "reason": reason}
        if reason:
            return Estimate(value, **counts)
        samples, index = rows[:, 2].unique(return_inverse=True)
        total = torch.zeros(len(samples), dtype=torch.float64).index_add_(0, index[known], rows[known, 0])
        number = torch.zeros(len(samples), dtype=torch.float64).index_add_(0, index[known], known[known].double())
        strata = torch.zeros(len(samples), dtype=torch.long)
        draws = [1 / (1 + (w @ total) / (w @ number)) for w in resamples(strata, self.resamples, self.seed)]
        return finish(value, torch.cat(draws), percentile_interval, samples=int((number > 0).sum()), **counts)


class ReCo(PairMetric):
    """Relative consistency: 1 if a threshold tells agreeing from contradicting predictors' maps, about 0 if none does.

    Args:
        definition: `default` has the class-conditional rates of a balanced accuracy; `paper` is Eq. 6 as printed;
            `auc` the mean over thresholds (appendix D); `xplique` that library's computation.
        min_samples: with fewer distinct disagreeing samples the value is NaN.
        distance, seed, resamples: see `PairMetric`.
    """

    KINDS: ClassVar[dict[str, str]] = {"default": "reco", "paper": "reco_eq6", "auc": "reco_auc"}

    def __init__(
        self,
        definition: str = "default",
        distance: str = "spearman",
        min_samples: int = MIN_DISAGREEMENTS,
        **kwargs: Any,
    ) -> None:
        check_definition(definition, ("default", "paper", "auc", "xplique"))
        super().__init__(distance="sqrt_spearman" if definition == "xplique" else distance, **kwargs)
        self.variant, self.min_samples = definition, min_samples

    def meaning(self) -> dict[str, Any]:
        """What the number means."""
        formulas = {
            "default": "max TPR + TNR - 1, TPR = |S_equal < g| / |S_equal|, TNR = |S_differ >= g| / |S_differ|",
            "paper": "max TPR + TNR - 1, TPR = |S_equal < g| / |S < g|, TNR = |S_differ > g| / |S > g|",
            "auc": "mean over g in S of TPR + TNR - 1, class-conditional rates",
            "xplique": "Xplique: strict inequalities, every (|S| // 20 + 1)-th threshold",
        }
        return {
            "measure": f"ReCo: {formulas[self.variant]}",
            "source": "Fel et al. 2022, Eq. 6 and appendix D",
            "variant": self.variant,
            "distance": self.distance,
            "interval": "basic bootstrap over samples, clipped to [0, 1]",
            "null": f"mean of {PERMUTATIONS} permutations of the labels of samples",
        }

    def value(self, variant: str | None = None) -> tuple[float, str]:
        """ReCo of the local state, in this or another form."""
        variant = variant or self.variant
        rows = self.table()
        known = torch.isfinite(rows[:, 0])
        rows = rows[known]
        is_equal = rows[:, 1] == 1
        disagreeing = len(rows[~is_equal, 2].unique())
        if not bool(is_equal.any()):
            return math.nan, no_pair(self.table())
        lost = len(self.table()[self.table()[:, 1] == 0, 2].unique()) - disagreeing
        if lost and disagreeing < self.min_samples:
            left = f"only {disagreeing} disagreeing samples, fewer than {self.min_samples}"
            return math.nan, f"{left}: the maps of {lost} more are constant"
        if not disagreeing:
            return math.nan, "no disagreements explained: run lit_xai.explain with probes=disagreements for every fold"
        if disagreeing < self.min_samples:
            return math.nan, f"only {disagreeing} disagreeing samples, fewer than {self.min_samples}"
        if variant == "xplique":
            return reco_xplique(rows[is_equal, 0], rows[~is_equal, 0]), ""
        weight = torch.cat([rows[is_equal, 3], rows[~is_equal, 3]])
        return of_sets(self.KINDS[variant], rows[is_equal, 0], rows[~is_equal, 0], weight), ""

    def _estimate(self) -> Estimate:
        return self.forms((self.variant,))[self.variant]

    def forms(self, variants: Sequence[str]) -> dict[str, Estimate]:
        """The estimate of several forms (see `definition`) of the local state; they share resamples and permutations."""
        values = {v: self.value(v) for v in variants}
        rows = self.table()
        known = torch.isfinite(rows[:, 0])
        counts: dict[str, Any] = {"pairs": int(known.sum()), "dropped": int((~known).sum())}
        if any(reason for _, reason in values.values()):
            return {v: Estimate(value, reason=reason, **counts) for v, (value, reason) in values.items()}
        samples, index = rows[:, 2].unique(return_inverse=True)
        differs = torch.zeros(len(samples), dtype=torch.long)
        differs[index[rows[:, 1] == 0]] = 1  # strata: samples with a disagreement, and the others
        rows, index = rows[known], index[known]
        counts["samples"] = len(index.unique())
        t = Thresholds(rows[:, 0], rows[:, 1] == 1)
        out = {}
        if "xplique" in variants:
            draws = self._xplique_draws(t, index, differs)
            out["xplique"] = finish(values["xplique"][0], draws, basic_interval, **counts)
        found = self._draws([v for v in variants if v != "xplique"], rows, index, differs, t)
        for variant, (draws, null) in found.items():
            least = -1.0 if variant == "auc" else 0.0
            out[variant] = finish(values[variant][0], draws, partial(basic_interval, least=least), **counts)
            out[variant].null = None if out[variant].few else null  # it is a distribution's, like an interval
        return out

    def _draws(
        self, variants: Sequence[str], rows: Tensor, index: Tensor, differs: Tensor, t: Thresholds
    ) -> dict[str, tuple[Tensor, float]]:
        """The replicates of every form, and its mean value when the labels S_equal / S_differ are dealt anew to the groups
        of pairs of one sample.
        """
        if not variants:
            return {}
        draws: dict[str, list[np.ndarray]] = {v: [] for v in variants}
        dealt_anew: dict[str, list[np.ndarray]] = {v: [] for v in variants}
        gaps = Gaps(t.equal.numpy(), t.first.numpy(), index[t.order].numpy(), rows[t.order, 3].numpy())
        for block in resamples(differs, self.resamples, self.seed):
            for part in block.split(max(1, CHUNK // len(rows))):
                sums = gaps.sums(part.numpy(), last="paper" in variants)
                for v in variants:
                    draws[v].append(FORMS[v](sums))
        group, member = (index * 2 + (rows[:, 1] == 1)).unique(return_inverse=True)
        label, place, first = ((group % 2) == 1).numpy(), member[t.order].numpy(), t.first.numpy()
        generator = torch.Generator().manual_seed(self.seed)
        # the weight of a set is its sampling rate's: it goes with the label, not with the sample
        weights = float(self._mean_weight(rows, True)), float(self._mean_weight(rows, False))
        for _ in range(PERMUTATIONS):
            sums = dealt(label[torch.randperm(len(label), generator=generator).numpy()][place], first, *weights)
            for v in variants:
                dealt_anew[v].append(FORMS[v](sums))
        out = {}
        for v in variants:
            nulls = np.concatenate(dealt_anew[v])
            out[v] = torch.from_numpy(np.concatenate(draws[v])), float(nulls[np.isfinite(nulls)].mean())
        return out

    @staticmethod
    def _mean_weight(rows: Tensor, equal: bool) -> Tensor:
        return rows[rows[:, 1] == float(equal), 3].mean()

    def _xplique_draws(self, t: Thresholds, index: Tensor, differs: Tensor) -> Tensor:
        cluster = index[t.order].numpy()
        draws = []
        for block in resamples(differs, min(self.resamples, 200), self.seed):
            draws += [xplique_of_counts(t, counts[cluster].astype(np.int64)) for counts in block.numpy()]
        return torch.tensor(draws, dtype=torch.float64)


def check_definition(name: str, known: tuple[str, ...] = ("default", "paper", "xplique")) -> None:
    """Refuse an unknown variant."""
    if name not in known:
        raise UsageError(f"definition {name!r} is unknown; choose one of: {', '.join(known)}")

"""Measures: one number of an ensemble for every explainer, from the pairs of its maps (see `Pairs`).

For a sample x of the held-out fold V_i and every other predictor j, delta = d(phi_i(x), phi_j(x)). Delta belongs to
S_equal if both predictors are right and to S_differ if exactly one is; both wrong is ignored (Fel et al., 2022).

- MeGe = 1 / (1 + mean(S_equal)).
- ReCo = max over thresholds gamma of TPR + TNR - 1: how well a distance tells agreement from contradiction.

A new measure is a function `pairs -> number` and an entry of `MEASURES` (`docs/new_measure.md`); tables, files, the dashboard
and the degradation study take it from there.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.gaps import PERMUTATIONS, Gaps, Repeated, Sums, permuted
from lit_xai.metrics.intervals import BASIC, CROSSED, PERCENTILE, SIGNED, Interval
from lit_xai.metrics.pairs import Pairs, source_of
from lit_xai.metrics.statistics import CHUNK, RESAMPLES, Estimate, across_predictors, difference, resamples

# the pairs of S_equal; those and S_differ, whose maps explain what each predictor says, or the label; or all
EQUAL, BOTH, LABELS, ALL = "equal", "both", "labels", "all"
TARGETS = {
    BOTH: "in S_differ each predictor's map explains the class that it says",
    LABELS: "in S_differ both maps explain the label",
}
VIEWS = ("default", "paper", "xplique")  # tables that `definition=` names
SHORT = "short"  # the view of the degradation study, and of what training says at its end
MIN_DISAGREEMENTS = 10
TINY = 1e-12  # by which a value and a permuted one differ by rounding
NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Weighted:
    """A value that is a statistic of sums over the pairs, and so is quickly had for many weightings of the samples.

    Args:
        prepare: pairs, their samples as numbers 0 .. n-1, n -> a function of counts `[r, n]` that yields sums, some rows after
            the other. Measures with the same `prepare` share its sums.
        statistic: sums -> `[r]`.
    """

    prepare: Callable[[Pairs, Int[Tensor, "p"], int], Callable[[Float[Tensor, "r n"]], Iterable[Any]]]
    statistic: Callable[[Any], Float[np.ndarray, "r"]]

    def __call__(self, pairs: Pairs) -> float:
        """The value where every sample counts once."""
        once = self.prepare(pairs, torch.zeros(len(pairs), dtype=torch.long), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            (value,) = (self.statistic(s) for s in once(torch.ones(1, 1, dtype=torch.float64)))
        return float(value[0])


@dataclass(frozen=True)
class Null:
    """The value that is expected without any signal: the mean over what `draw(pairs, cluster)` yields, sums where the measure
    is of sums, else pairs.
    """

    meaning: str
    draw: Callable[[Pairs, Int[Tensor, "p"]], Iterable[Any]]


PERMUTED = Null(f"mean of {PERMUTATIONS} permutations of the labels of samples", permuted)


@dataclass(frozen=True)
class Measure:
    """A number of an ensemble.

    Args:
        value: pairs -> the number; NaN = undefined. It is given the pairs that `over` says, all with a known distance.
        meaning: its formula in a line.
        better: `up` or `down`.
        over: `equal`; `both` (S_equal and S_differ of decisions) or `labels` (of labels), undefined below `least` disagreeing
            samples; or `all`.
        interval: how its interval is made of replicates, in which samples are drawn with all their pairs.
        null: its value without any signal; None = it has none of its own.
        distance: the only distance it is defined on; empty = that of the table.
        quick: the same value of many weightings at once; None = `value` of the pairs drawn, resample by resample.
        views: tables that show it.
        source: where it is defined.
        warning: what it must not be taken for.
        variant: among measures of the same kind.
        version: of the definition.
        least: fewest disagreeing samples.
        most: most resamples.
    """

    value: Callable[[Pairs], float]
    meaning: str
    better: str = "up"
    over: str = EQUAL
    interval: Interval = PERCENTILE
    null: Null | None = None
    distance: str = ""
    quick: Weighted | None = None
    views: tuple[str, ...] = ("default", SHORT)
    source: str = ""
    warning: str = ""
    variant: str = "default"
    version: int = 1
    least: int = MIN_DISAGREEMENTS
    most: int = RESAMPLES

    def __post_init__(self) -> None:
        for name, found, known in (
            ("better", self.better, ("up", "down")),
            ("over", self.over, (EQUAL, BOTH, LABELS, ALL)),
        ):
            if found not in known:
                raise UsageError(f"a measure's {name} must be one of {', '.join(known)}, found {found!r}")
        for view in self.views:
            if view not in (*VIEWS, SHORT):
                raise UsageError(f"a measure's views must be of {', '.join((*VIEWS, SHORT))}, found {view!r}")

    def definition(self, distance: str) -> dict[str, Any]:
        """What the number means where the table's distance is this one."""
        further = {"null": self.null.meaning} if self.null else {}
        further |= {"warning": self.warning} if self.warning else {}
        return {
            "measure": self.meaning,
            "source": self.source,
            "variant": self.variant,
            "distance": self.distance or distance,
            "interval": self.interval.meaning,
            **({"target": TARGETS[self.over]} if self.over in TARGETS else {}),
            "version": self.version,
            **further,
        }

    def rests_on(self, pairs: Pairs) -> Pairs | None:
        """The pairs that it looks at, those of unknown distance among them; None where the distance is another one."""
        of = pairs.on(self.distance)
        if of is None or self.over == ALL:
            return of
        differ = {EQUAL: torch.zeros_like(of.equal), BOTH: of.of_decisions, LABELS: of.of_labels}[self.over]
        return of.take(of.equal | differ)

    def lacks(self, rests_on: Pairs) -> str:
        """Why it is undefined on these pairs; empty if nothing is known to be missing."""
        known = rests_on.known()
        if self.over == ALL:
            return "" if len(known) else "no pair of maps has a distance"
        if not bool(known.equal.any()):
            if bool(rests_on.equal.any()):
                return (
                    "every pair of predictors that are right on the same sample has a constant map, which has no ranks"
                )
            return "no pair of predictors is right on the same sample"
        return self.lacks_disagreements(rests_on, known) if self.over in (BOTH, LABELS) else ""

    def lacks_disagreements(self, rests_on: Pairs, known: Pairs) -> str:
        """Why S_differ is too small; empty if it is not."""
        number = len(known.sample[known.differ].unique())
        lost = len(rests_on.sample[rests_on.differ].unique()) - number
        if number >= max(1, self.least):
            return ""
        if rests_on.found == 0:
            return "the predictors never contradict each other"
        if not number and not lost and self.over in rests_on.lacks:
            return rests_on.lacks[self.over]
        if lost or number:
            reason = f"only {number} disagreeing samples, fewer than {self.least}"
            reason += f": the maps of {lost} more are constant" if lost else ""
        else:
            reason = "no disagreements explained: run lit_xai.explain with probes=disagreements for every fold"
        return f"{reason}; {rests_on.mend}" if rests_on.mend else reason

    def alone(self, pairs: Pairs) -> tuple[float, str]:
        """The value without its interval, and the reason where it is NaN."""
        rows = self.rests_on(pairs)
        reason = f"only for distance={source_of(self.distance)}" if rows is None else self.lacks(rows)
        if rows is None or reason:
            return math.nan, reason
        value = float(self.value(rows.known()))
        return value, "" if math.isfinite(value) else "undefined for these pairs"


def replicates(measure: Measure) -> Weighted:
    """The value of many weightings of the samples, by the measure's own quick way or pair by pair."""
    if measure.quick is not None:
        return measure.quick
    if isinstance(measure.value, Weighted):
        return measure.value
    return Weighted(Drawn, lambda pairs: np.array([measure.value(pairs)]))


class Drawn:
    """Pairs as often as their samples were drawn, for a value that knows no weighting."""

    def __init__(self, pairs: Pairs, cluster: Int[Tensor, "p"], samples: int) -> None:
        self.pairs, self.cluster = pairs, cluster

    def __call__(self, counts: Float[Tensor, "r n"]) -> Iterator[Pairs]:
        every = torch.arange(len(self.pairs))
        for row in counts.long():
            yield self.pairs.take(every.repeat_interleave(row[self.cluster]))


def estimates(pairs: Pairs, measures: Mapping[str, Measure], n_resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """Every measure with its 95 % interval, its null and its counts. Measures of the same sums are made together.

    Samples with a disagreement and the others are resampled separately, so that their numbers stay what they are.
    """
    together: dict[Hashable, dict[str, Measure]] = {}
    for name, m in measures.items():
        together.setdefault((replicates(m).prepare, m.over, m.distance, m.null, m.most), {})[name] = m
    found: dict[str, Estimate] = {}
    for group in together.values():
        found |= of_group(pairs, group, n_resamples)
    return {name: found[name] for name in measures}


def of_group(pairs: Pairs, group: Mapping[str, Measure], n_resamples: int) -> dict[str, Estimate]:
    """`estimates` of measures that share their pairs, resamples and sums."""
    first, out, values = next(iter(group.values())), {}, {}
    rows = first.rests_on(pairs)
    known = None if rows is None else rows.known()
    counts: dict[str, Any] = {}
    if rows is not None and known is not None:
        counts = {"pairs": len(known), "dropped": len(rows) - len(known)}
    for name, m in group.items():
        value, reason = m.alone(pairs)
        if reason:
            out[name] = Estimate(value, reason=reason, **counts)
        else:
            values[name] = value
    if rows is None or known is None or not values:
        return out
    samples, cluster = rows.sample.unique(return_inverse=True)
    strata = torch.zeros(len(samples), dtype=torch.long)
    strata[cluster[rows.differ]] = 1
    cluster = cluster[torch.isfinite(rows.distance)]
    counts["samples"] = len(cluster.unique())
    of = {name: replicates(group[name]).statistic for name in values}
    draws: dict[str, list[np.ndarray]] = {name: [] for name in values}
    without: dict[str, list[np.ndarray]] = {name: [] for name in values}
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = replicates(first).prepare(known, cluster, len(samples))
        for block in resamples(strata, min(n_resamples, first.most), pairs.seed):
            for part in sums(block):
                for name, statistic in of.items():
                    draws[name].append(statistic(part))
        for part in first.null.draw(known, cluster) if first.null else ():
            for name, statistic in of.items():
                without[name].append(statistic(part))
        each = of_each(sums, of, len(samples)) if first.over == EQUAL and replicates(first).prepare is not Drawn else {}
    disagreeing = len(known.sample[known.differ].unique())
    for name, value in values.items():
        interval, replicated = group[name].interval, torch.from_numpy(np.concatenate(draws[name]))
        out[name] = e = interval.estimate(value, replicated, disagreeing, {**counts, "each": each.get(name, NOTHING)})
        if first.null and not e.few:  # it is a distribution's, like an interval
            nulls = np.concatenate(without[name])
            nulls = nulls[np.isfinite(nulls)]
            e.null = float(nulls.mean())
            e.p_above, e.p_below = (
                float((1 + n.sum()) / (1 + len(nulls))) for n in (nulls >= value - TINY, nulls <= value + TINY)
            )
        if interval.predictors:
            across_predictors(e, without_each_predictor(group[name], known))
            e.clip(interval.least, interval.most)
    return out


def of_each(
    sums: Callable[[Float[Tensor, "r n"]], Iterable[Any]],
    of: Mapping[str, Callable[[Any], Float[np.ndarray, "r"]]],
    samples: int,
) -> dict[str, Float[Tensor, "n"]]:
    """The values of every sample alone; NaN where all of its pairs are unknown."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in of}
    rows = max(1, CHUNK // samples)
    for start in range(0, samples, rows):
        alone = torch.zeros(min(rows, samples - start), samples, dtype=torch.float64)
        alone[:, start : start + rows].fill_diagonal_(1.0)
        for part in sums(alone):
            for name, statistic in of.items():
                found[name].append(statistic(part))
    return {name: torch.from_numpy(np.concatenate(parts)) for name, parts in found.items()}


def without_each_predictor(measure: Measure, pairs: Pairs) -> Float[Tensor, "k"]:
    """The values of the pairs without each predictor; empty where nobody knows whose they are."""
    predictors = torch.cat([pairs.i, pairs.j]).unique()
    rests = [pairs.take((pairs.i != p) & (pairs.j != p)) for p in predictors[predictors >= 0].tolist()]
    return torch.tensor([measure.value(rest) if len(rest) else math.nan for rest in rests], dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------- the registry


def mege(pairs: Pairs) -> float:
    """1 / (1 + mean(S_equal)), Eq. 5."""
    return 1 / (1 + float(pairs.distance.double().mean()))


class Means:
    """Sums of the distances and numbers of the pairs of every sample."""

    def __init__(self, pairs: Pairs, cluster: Int[Tensor, "p"], samples: int) -> None:
        zeros = torch.zeros(samples, dtype=torch.float64)
        self.total = zeros.index_add(0, cluster, pairs.distance.double())
        self.number = zeros.index_add(0, cluster, torch.ones(len(pairs), dtype=torch.float64))

    def __call__(self, counts: Float[Tensor, "r n"]) -> Iterator[Tensor]:
        yield (counts @ self.total) / (counts @ self.number)


QUICK_MEGE = Weighted(Means, lambda mean: (1 / (1 + mean)).numpy())
MEGE = partial(
    Measure,
    mege,
    "MeGe = 1 / (1 + mean(S_equal))",
    quick=QUICK_MEGE,
    interval=CROSSED,
    source="Fel et al. 2022, Eq. 5",
    version=2,
)
RECO = partial(Measure, over=BOTH, interval=BASIC, null=PERMUTED, source="Fel et al. 2022, Eq. 2 and 6", version=3)
BALANCED = "max TPR + TNR - 1, TPR = |S_equal < g| / |S_equal|, TNR = |S_differ >= g| / |S_differ|"

MEASURES: dict[str, Measure] = {
    "mege": MEGE(views=("default", "paper", SHORT)),
    "reco": RECO(
        Weighted(Gaps, Sums.reco),
        f"ReCo: {BALANCED}",
    ),
    "reco_label": RECO(
        Weighted(Gaps, Sums.reco), f"ReCo of labels: {BALANCED}", over=LABELS, variant="label", views=(), version=2
    ),
    "reco_eq6": RECO(
        Weighted(Gaps, Sums.eq6),
        "ReCo: max TPR + TNR - 1, TPR = |S_equal < g| / |S < g|, TNR = |S_differ > g| / |S > g|",
        warning="no evidence by itself: on pure noise it is .97 where the single largest distance happens to be of a "
        "disagreement (30 % of draws), else .04, and its interval lies above its own null in 28 % of them",
        variant="paper",
        views=("paper",),
    ),
    "reco_auc": RECO(
        Weighted(Gaps, Sums.auc),
        "ReCo: mean over g in S of TPR + TNR - 1, class-conditional rates; signed, below 0 where disagreements look more alike",
        variant="auc",
        interval=SIGNED,
        views=("default",),
    ),
    "mege_xplique": MEGE(variant="xplique", distance="sqrt_spearman", views=("xplique",)),
    "reco_xplique": RECO(
        Weighted(Repeated, lambda value: value),
        "ReCo: Xplique: strict inequalities, every (|S| // 20 + 1)-th threshold",
        over=LABELS,
        variant="xplique",
        distance="sqrt_spearman",
        views=("xplique",),
        version=2,
        null=None,
        most=200,
    ),
}
OWN = tuple(MEASURES)


def measure(name: str, meaning: str, **options: Any) -> Callable[[Callable[[Pairs], float]], Callable[[Pairs], float]]:
    """Register a function `pairs -> number` as a measure of ensembles; the options are those of `Measure`.

        @measure("spread", "standard deviation of S_equal", better="down")
        def spread(pairs): ...

    Raises:
        UsageError: one of lit_xai's own measures has that name; options that mean nothing.
    """
    if name in OWN:
        raise UsageError(f"a measure is named {name!r}, which is one of lit_xai's own: name it otherwise")

    def register(value: Callable[[Pairs], float]) -> Callable[[Pairs], float]:
        MEASURES[name] = Measure(value, meaning, **options)
        return value

    return register


def register_from(modules: str | Sequence[str]) -> None:
    """Import modules that register measures.

    Raises:
        UsageError: one cannot be imported.
    """
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except UsageError:
            raise
        except Exception as e:
            raise UsageError(f"measures={module} cannot be imported ({type(e).__name__}: {e})") from None


def view(name: str) -> list[str]:
    """The measures that a table of this name shows."""
    return [measure for measure, m in MEASURES.items() if name in m.views]


def paired(column: str, a: Estimate, b: Estimate) -> Estimate | None:
    """The paired difference a - b of a measure or score; None where the two do not rest on the same resamples."""
    if len(a.draws) != len(b.draws):
        return None
    known = MEASURES.get(column)
    return (known.interval.difference if known else difference)(a, b)

"""What a measure of an ensemble is, and its value with interval and null: a function of the pairs of maps (see `Pairs`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.gaps import PERMUTATIONS, permuted
from lit_xai.metrics.intervals import PERCENTILE, Interval
from lit_xai.metrics.pairs import Pairs, source_of
from lit_xai.metrics.statistics import RESAMPLES, Estimate, across_predictors, resamples
from lit_xai.store.names import CHECKS, TEST

# the pairs of S_equal; those and S_differ, whose maps explain what each predictor says, or the label; or all
EQUAL, BOTH, LABELS, ALL = "equal", "both", "labels", "all"
# the maps of the same predictor with fresh weights, or with other noise, beside its own
RANDOMISED, REPEATED = CHECKS
TARGETS = {
    BOTH: "in S_differ each predictor's map explains the class that it says",
    LABELS: "in S_differ both maps explain the label",
}
CHECK_THEM = "run python -m lit_xai.explain for every fold"
ABSENT = {
    RANDOMISED: f"not explained with fresh weights: {CHECK_THEM}",
    REPEATED: f"not explained with other noise: {CHECK_THEM}",
    TEST: "no test probes explained: run python -m lit_xai.explain probes=test for every fold",
}
VIEWS = ("default", "paper", "xplique")  # tables that `definition=` names
SHORT = "short"  # the view of the degradation study, and of what training says at its end
MIN_DISAGREEMENTS = 10
TINY = 1e-12  # by which a value and a permuted one differ by rounding
NOTHING = torch.empty(0)
ALONE = 256  # samples of which each is looked at alone, at once


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
            samples; `randomised` or `repeated` (`Pairs.beside`); `test`, S_equal of the test probes; or `all`.
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
        against_nulls: whether a null explainer says what is good; else nothing is marked.
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
    against_nulls: bool = True

    def __post_init__(self) -> None:
        for name, found, known in (
            ("better", self.better, ("up", "down")),
            ("over", self.over, (EQUAL, BOTH, LABELS, *CHECKS, TEST, ALL)),
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
            "distance": "spearman" if self.over in CHECKS else self.distance or distance,
            "interval": self.interval.meaning,
            **({"target": TARGETS[self.over]} if self.over in TARGETS else {}),
            "version": self.version,
            **further,
        }

    def rests_on(self, pairs: Pairs) -> Pairs | None:
        """The pairs that it looks at, those of unknown distance among them; None where the distance is another one."""
        if self.over in CHECKS:
            return pairs.beside.get(self.over)
        of = pairs.beside.get(TEST) if self.over == TEST else pairs
        of = None if of is None else of.on(self.distance)
        if of is None or self.over == ALL:
            return of
        nothing = torch.zeros_like(of.equal)
        differ = {EQUAL: nothing, TEST: nothing, BOTH: of.of_decisions, LABELS: of.of_labels}[self.over]
        return of.take(of.equal | differ)

    def lacks(self, rests_on: Pairs) -> str:
        """Why it is undefined on these pairs; empty if nothing is known to be missing."""
        known = rests_on.known()
        if self.over == ALL:
            return "" if len(known) else "no pair of maps has a distance"
        if self.over in CHECKS:
            return "" if len(known) else "every map beside its own is constant, which has no ranks"
        if len(rests_on.predictions) == 1:
            return "one predictor alone: persistence needs those of other folds"
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
            reason = "no disagreements explained"
            reason += "" if rests_on.mend else ": run lit_xai.explain with probes=disagreements for every fold"
        return f"{reason}; {rests_on.mend}" if rests_on.mend else reason

    def alone(self, pairs: Pairs) -> tuple[float, str]:
        """The value without its interval, and the reason where it is NaN."""
        rows = self.rests_on(pairs)
        absent = ABSENT.get(self.over) or f"only for distance={source_of(self.distance)}"
        reason = absent if rows is None else self.lacks(rows)
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
        each = (
            of_each(replicates(first).prepare, of, known, cluster, len(samples))
            if first.over in (EQUAL, TEST, *CHECKS) and replicates(first).prepare is not Drawn
            else {}
        )
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
    prepare: Callable[[Pairs, Int[Tensor, "p"], int], Callable[[Float[Tensor, "r n"]], Iterable[Any]]],
    of: Mapping[str, Callable[[Any], Float[np.ndarray, "r"]]],
    pairs: Pairs,
    cluster: Int[Tensor, "p"],
    samples: int,
) -> dict[str, Float[Tensor, "n"]]:
    """The values of every sample alone; NaN where all of its pairs are unknown."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in of}
    order = cluster.argsort(stable=True)
    begins = torch.searchsorted(cluster[order], torch.arange(0, samples + ALONE, ALONE)).tolist()
    for start, begin, end in zip(range(0, samples, ALONE), begins, begins[1:], strict=False):
        here, number = order[begin:end], min(ALONE, samples - start)
        for part in prepare(pairs.take(here), cluster[here] - start, number)(torch.eye(number, dtype=torch.float64)):
            for name, statistic in of.items():
                found[name].append(statistic(part))
    return {name: torch.from_numpy(np.concatenate(parts)) for name, parts in found.items()}


def without_each_predictor(measure: Measure, pairs: Pairs) -> Float[Tensor, "k"]:
    """The values of the pairs without each predictor; empty where nobody knows whose they are."""
    predictors = torch.cat([pairs.i, pairs.j]).unique()
    rests = [pairs.take((pairs.i != p) & (pairs.j != p)) for p in predictors[predictors >= 0].tolist()]
    return torch.tensor([measure.value(rest) if len(rest) else math.nan for rest in rests], dtype=torch.float64)

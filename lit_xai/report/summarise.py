"""From stores to numbers: every measure and score of every explainer, with intervals, nulls and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lit_xai.cli.schema import NULL
from lit_xai.cluster.status import status
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import distance_of
from lit_xai.metrics.localisation import settle
from lit_xai.metrics.measures import MEASURES, estimates, paired
from lit_xai.metrics.robustness import robustness_table
from lit_xai.metrics.statistics import Estimate, difference, mean_estimate
from lit_xai.report.ensemble import Ensemble, family_of
from lit_xai.report.head import head
from lit_xai.report.summary import Row, Summary
from lit_xai.report.unfinished import Share, Unfinished, unfinished
from lit_xai.store.fold import MapReader, common_samples
from lit_xai.store.names import DECISIONS, DISAGREEMENTS


def summarise(
    ensemble: Ensemble,
    explainers: Sequence[str] | None = None,
    distance: str = "spearman",
    progress: bool = True,
    pairs: Sequence[Sequence[str]] = (),
) -> Summary:
    """Every measure and score of every explainer, with intervals, nulls and paired differences to Random.

    `pairs` names two explainers (or two families of variants) each, whose paired differences are wanted, too.
    """
    names = asked_for(ensemble, explainers)
    directions = {name: m.better == "up" for name, m in MEASURES.items()}
    definitions: dict[str, Any] = {"explainers": {}, **{n: m.definition(distance) for n, m in MEASURES.items()}}
    summary = Summary({}, directions, [], definitions, {})
    there: dict[str, tuple[int, int | None]] = {}  # probes, of how many
    differ: dict[str, Share] = {}  # maps of the pass over disagreements
    decided: dict[str, Share] = {}  # and of what wrong predictors say on them
    families = {f: [n for n in names if family_of(n) == f] for f in map(family_of, names)}
    for name in tqdm(names, desc="evaluate", unit="explainer", disable=not progress, leave=False):
        pairs_of = ensemble.pairs(name, distance)
        summary.distances[name] = pairs_of.sets()
        row = Row(name, estimates(pairs_of, MEASURES))
        add_scores(ensemble, row, summary)
        summary.rows.append(row)
        there[name] = len(summary.probes[name]), ensemble.planned(ensemble.readers(name))
        pass_two = ensemble.readers(name, DISAGREEMENTS)
        if name == names[0]:
            found = ensemble.disagreements(pass_two)
        begun = ensemble.wanted_disagreements(pass_two)
        if begun is not None:
            differ[name] = ensemble.share_of(begun, pass_two)
            if ensemble.target == "label":
                decided[name] = ensemble.share_of_decisions(begun, ensemble.readers(name, DECISIONS))
        if name == families[family_of(name)][-1]:  # all of its variants are open
            add_robustness(ensemble, families[family_of(name)], summary)
    summary.head |= head(ensemble)
    folds = Share(len(ensemble.folds), ensemble.split.k)
    lack = unfinished(ensemble.root, folds, there, ensemble.folds_with(), differ, decided, explainers, ensemble.said)
    say_what_lacks(summary, lack)
    compare_with_null(summary)
    summary.head["disagreements"] = None if found is None else {"found": found.found, "explained": len(found.samples)}
    summary.head["distance"] = {"name": distance, "meaning": distance_of(distance).meaning}
    for a, b in pairs:
        summary.pair(a, b)
    return summary


def asked_for(ensemble: Ensemble, explainers: Sequence[str] | None) -> list[str]:
    """The explainers of the table.

    Raises:
        UsageError: one is not explained in every fold, or none is.
    """
    known = ensemble.explainers()
    unknown = [n for n in explainers or () if n not in known]
    if unknown:
        have = ", ".join(known) or "none"
        raise UsageError(f"explainer {unknown[0]} is not explained in every fold of {ensemble.root}; there are: {have}")
    names = known if explainers is None else list(explainers)
    if not names:
        mend = next(iter(status(ensemble.root).commands), "run python -m lit_xai.explain")
        raise UsageError(f"{ensemble.root} holds no explanations of all its folds: {mend}")
    return names


# ------------------------------------------------------------------------------------------------------------- scores


def add_scores(ensemble: Ensemble, row: Row, summary: Summary) -> None:
    """Every score of one explainer, and what the method knows of its own maps."""
    readers = list(ensemble.readers(row.explainer).values())
    first, samples = readers[0], ensemble.probes(ensemble.readers(row.explainer))
    for score in sorted(set.intersection(*(set(r.scores()) for r in readers))):
        scored = first.meta["scores"][score]
        values = torch.stack([r.rows(samples, f"score/{score}") for r in readers])
        e, each = estimate(values, scored, samples, ensemble.seed)
        row.estimates[score] = e
        whole = whole_image(first, score, samples, each, ensemble.seed)
        if whole is not None:
            e.null, row.to_whole[score] = whole.value, difference(e, whole)
        summary.columns[score] = scored["higher_is_better"]
        summary.definitions[score] = scored
    own = {"resolved": first.meta.get("resolved", {}), "details": details(readers, samples)}
    summary.definitions["explainers"][row.explainer] = {**first.fingerprint["explainer"], **own}
    summary.probes[row.explainer] = samples


def estimate(values: Tensor, scored: Mapping[str, Any], samples: Tensor, seed: int) -> tuple[Estimate, Tensor]:
    """One score's mean over probes of `[folds, probes]`, folds averaged first, and the value of every probe.

    Where a score has a column for every setting, the setting is chosen on one half of the probes and the other half
    is reported.
    """
    each, reason = values.nanmean(0), ""
    if each.ndim == 2:
        each, best = settle(each, samples, scored["higher_is_better"], seed)
        reported = int(torch.isfinite(each).sum())
        reason = f"setting {scored['settings'][best]:g} chosen on the other {len(samples) - reported} probes"
    return mean_estimate(each, seed, reason=reason), each


def whole_image(reader: MapReader, score: str, samples: Tensor, each: Tensor, seed: int) -> Estimate | None:
    """The score of the whole image as an explanation, where a score has that."""
    if f"reference/{score}" not in reader.extra:
        return None
    reference = reader.rows(samples, f"reference/{score}").double()
    if reference.ndim == 2:
        reference = reference[:, 0]
    return mean_estimate(torch.where(torch.isfinite(each), reference, torch.nan), seed)


def details(readers: Sequence[MapReader], samples: Tensor) -> dict[str, dict[str, float]]:
    """What a method knows of its own maps: mean and range over folds and probes."""
    out = {}
    for name in sorted(set.intersection(*(r.extra for r in readers))):
        if name.startswith("detail/"):
            values = torch.stack([r.rows(samples, name).double() for r in readers])
            known = values[torch.isfinite(values)]
            if len(known):
                numbers = {"mean": float(known.mean()), "min": float(known.min()), "max": float(known.max())}
                out[name.removeprefix("detail/")] = numbers
    return out


# ----------------------------------------------------------------------------------------------- what the table rests on


def say_what_lacks(summary: Summary, lack: Unfinished | None) -> None:
    """The number of probes, and what is missing of what was planned, in the head."""
    head, probes = summary.head, {row.explainer: len(summary.probes[row.explainer]) for row in summary.rows}
    head["probes"] = most = max(probes.values())
    head["unfinished"] = None if lack is None else lack.plain()
    if lack is not None:
        head["alarms"].insert(0, lack.message)
        head["warnings"].insert(0, lack.message)
    for name, number in probes.items():
        if number < most and (lack is None or name not in lack.probes):
            head["warnings"].append(f"{name} is explained on {number} of {most} probes")


def compare_with_null(summary: Summary) -> None:
    """The paired difference of every number to that of the null explainer, where both rest on the same probes."""
    null = next((r for r in summary.rows if r.explainer == NULL), None)
    summary.head["null"] = NULL if null else "none: explain with explainer=[random] to have a null"
    for row in summary.rows:
        same = null is not None and torch.equal(summary.probes[row.explainer], summary.probes[NULL])
        if null is None or row is null or not same:
            continue
        for column, e in row.estimates.items():
            apart = paired(column, e, null.estimates[column]) if column in null.estimates else None
            if apart is not None:
                row.differences[column] = apart


def add_robustness(ensemble: Ensemble, members: Sequence[str], summary: Summary) -> None:
    """Similarity of the maps of explainers named `<family>__<variant>`, by the first fold's predictor."""
    members = [m for m in members if "__" in m]
    readers = [ensemble.readers(m)[ensemble.folds[0]] for m in members]
    common = common_samples(readers)
    if len(members) > 1 and len(common):
        maps = torch.stack([r.rows(common) for r in readers])
        summary.robustness |= robustness_table({family_of(members[0]): maps}, ensemble.seed)
        summary.probes[family_of(members[0])] = common

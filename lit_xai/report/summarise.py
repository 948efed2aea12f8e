"""From stores to numbers: every measure and score of every explainer, with intervals, nulls and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lit_xai.cli.schema import NULL
from lit_xai.cluster.status import status
from lit_xai.errors import UsageError
from lit_xai.metrics.comparisons import Mark, against_nulls, against_permutations, corrected, rank_sets, share_won
from lit_xai.metrics.distance import distance_of
from lit_xai.metrics.estimation import estimates
from lit_xai.metrics.localisation import settle
from lit_xai.metrics.measures import MEASURES, paired
from lit_xai.metrics.robustness import robustness_table
from lit_xai.metrics.statistics import Estimate, difference, mean_estimate
from lit_xai.report.cases import Seen, cases
from lit_xai.report.ensemble import Ensemble, family_of
from lit_xai.report.head import head
from lit_xai.report.summary import Row, Summary, is_null
from lit_xai.report.tested import conformal
from lit_xai.report.unfinished import Share, Unfinished, unfinished
from lit_xai.store.fold import MapReader, common_samples
from lit_xai.store.names import DECISIONS, DISAGREEMENTS, TEST


def summarise(
    ensemble: Ensemble,
    explainers: Sequence[str] | None = None,
    distance: str = "spearman",
    progress: bool = True,
    pairs: Sequence[Sequence[str]] = (),
) -> Summary:
    """Every measure and score of every explainer, with intervals, marks against the nulls, and sets of ranks.

    `pairs` names two explainers (or two families of variants) each, whose paired differences are wanted, too.
    """
    names = asked_for(ensemble, explainers)
    directions = {name: m.better == "up" for name, m in MEASURES.items()}
    definitions: dict[str, Any] = {"explainers": {}, **{n: m.definition(distance) for n, m in MEASURES.items()}}
    summary = Summary({}, directions, [], definitions, {})
    there: dict[str, tuple[int, int | None]] = {}  # probes, of how many
    differ: dict[str, Share] = {}  # maps of the pass over disagreements
    decided: dict[str, Share] = {}  # and of what wrong predictors say on them
    tested: dict[str, int] = {}  # maps of test probes
    families = {f: [n for n in names if family_of(n) == f] for f in map(family_of, names)}
    for name in tqdm(names, desc="evaluate", unit="explainer", disable=not progress, leave=False):
        seen = Seen(ensemble)
        pairs_of = ensemble.pairs(name, distance, seen)
        if not seen.empty:
            add_cases(name, seen, summary)
        summary.distances[name] = pairs_of.sets()
        row = Row(name, estimates(pairs_of, MEASURES))
        add_scores(ensemble, row, summary)
        summary.rows.append(row)
        tests = ensemble.readers(name, TEST)
        tested[name] = sum(len(r.samples) for r in tests.values())
        if TEST in pairs_of.beside:
            summary.conformal[name] = conformal(pairs_of.beside[TEST], tests, ensemble.target)
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
    lack = unfinished(
        ensemble.root, folds, there, ensemble.folds_with(), differ, decided, tested, explainers, ensemble.said
    )
    say_what_lacks(summary, lack)
    compare_with_nulls(summary)
    summary.consensus = {
        row.explainer: summary.consensus[row.explainer] for row in summary.rows if row.explainer in summary.consensus
    }
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


def add_cases(name: str, seen: Seen, summary: Summary) -> None:
    """What all folds' maps of a probe share, and where they contradict each other."""
    rows = cases(name, seen)
    core, chance = seen.shared(seen.ensemble.seed)
    known = [row["contradiction"] for row in rows if row["contradiction"] is not None]
    number = sum(known) if known else None
    summary.cases += rows
    if seen.kept:
        summary.worst[name] = seen.first_maps
    summary.consensus[name] = {"core": core, "core_null": chance, "contradictions": number, "probes": len(rows)}


# ------------------------------------------------------------------------------------------------------------- scores


def add_scores(ensemble: Ensemble, row: Row, summary: Summary) -> None:
    """Every score of one explainer, and what the method knows of its own maps."""
    readers = list(ensemble.readers(row.explainer).values())
    first, samples = readers[0], ensemble.probes(ensemble.readers(row.explainer))
    for score in sorted(set.intersection(*(set(r.scores()) for r in readers))):
        scored = first.meta["scores"][score]
        values = torch.stack([r.rows(samples, f"score/{score}") for r in readers])
        e, each = estimate(values, scored, samples, ensemble.seed)
        row.estimates[score], row.details[score] = e, details(readers, samples, f"{score}/")
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
    """The score of the whole image as an explanation, of samples `[n]` where `each` `[n]` is finite; None of scores without one."""
    if f"reference/{score}" not in reader.extra:
        return None
    reference = reader.rows(samples, f"reference/{score}").double()
    if reference.ndim == 2:
        reference = reference[:, 0]
    return mean_estimate(torch.where(torch.isfinite(each), reference, torch.nan), seed)


def details(readers: Sequence[MapReader], samples: Tensor, of: str = "") -> dict[str, dict[str, float]]:
    """What a method knows of its maps of samples `[n]` (or a score, `of` = its name and a slash, of its walk): mean and range over
    folds and probes.
    """
    out = {}
    for name in sorted(set.intersection(*(r.extra for r in readers))):
        if name.startswith(f"detail/{of}") and "/" not in name.removeprefix(f"detail/{of}"):
            values = torch.stack([r.rows(samples, name).double() for r in readers])
            if values.ndim > 2:  # of cells, not of maps
                continue
            known = values[torch.isfinite(values)]
            if len(known):
                numbers = {"mean": float(known.mean()), "min": float(known.min()), "max": float(known.max())}
                out[name.removeprefix(f"detail/{of}")] = numbers
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


WHOLE_IMAGE = "whole image"


def compare_with_nulls(summary: Summary) -> None:
    """Marks and ranks of every column: the nulls are put last, every other row is compared with them, and with its peers."""
    described = summary.definitions["explainers"]
    summary.nulls = [row.explainer for row in summary.rows if is_null(described[row.explainer])]
    summary.rows.sort(key=lambda row: row.explainer in summary.nulls)
    summary.head["null"] = ", ".join(summary.nulls) or f"none: explain with explainer=[{NULL}] to have a null"
    methods = [row for row in summary.rows if row.explainer not in summary.nulls]
    for column, up in summary.columns.items():
        marks = {r.explainer: m for r in methods if (m := mark(summary, r, column)) is not None}
        ranks = rank_sets(column, alike(summary, methods, column), up)
        found = corrected(marks, "explainers of the column")
        for row in methods:
            row.marks |= {column: found[row.explainer]} if row.explainer in found else {}
            row.ranks |= {column: ranks[row.explainer]} if row.explainer in ranks else {}


def mark(summary: Summary, row: Row, column: str) -> Mark | None:
    """The mark of one number before the correction, after its difference to the strongest null is noted; None without a null.

    Labels that were permuted are the null of a measure that has them; its mark is about these.
    """
    e, up = row.estimates.get(column), summary.columns[column]
    if e is None or math.isnan(e.low) or not summary.against_nulls(column):
        return None
    nulls = nulls_of(summary, row, column)
    apart = {name: d for name, null in nulls.items() if (d := paired(column, e, null)) is not None}
    strongest = (max if up else min)(apart, key=lambda name: nulls[name].value, default="")
    if strongest:
        row.strongest[column], row.differences[column] = strongest, apart[strongest]
        won = share_won(e.each, nulls[strongest].each, up)
        row.won |= {column: won} if math.isfinite(won) else {}
    if math.isfinite(e.p_above):
        return against_permutations(e, up)
    if column in row.to_whole:
        apart[WHOLE_IMAGE] = row.to_whole[column]
        whole = e.null if e.null is not None else math.nan
        strongest = WHOLE_IMAGE if not strongest or (whole > nulls[strongest].value) == up else strongest
    return against_nulls(apart, strongest, up) if apart else None


def nulls_of(summary: Summary, row: Row, column: str) -> dict[str, Estimate]:
    """The nulls of a number: those on the same probes that are not at their best by construction."""
    found = {}
    for other in summary.rows:
        e = other.estimates.get(column)
        if other.explainer not in summary.nulls or e is None or not math.isfinite(e.low):
            continue
        fixed = summary.at_its_best(other.explainer, column)
        if not fixed and summary.alike(row.explainer, other.explainer, column):
            found[other.explainer] = e
    return found


def alike(summary: Summary, rows: Sequence[Row], column: str) -> dict[str, Estimate]:
    """The estimates of the rows that rest on the same probes as most of the explainers do."""
    groups: dict[bytes, dict[str, Estimate]] = {}
    for row in rows:
        if column in row.estimates:
            probes = summary.samples_of(row.explainer, column).numpy().tobytes()
            groups.setdefault(probes, {})[row.explainer] = row.estimates[column]
    return max(groups.values(), key=len, default={})


def add_robustness(ensemble: Ensemble, members: Sequence[str], summary: Summary) -> None:
    """Similarity of the maps of explainers named `<family>__<variant>`, by the first fold's predictor."""
    members = [m for m in members if "__" in m]
    readers = [ensemble.readers(m)[ensemble.folds[0]] for m in members]
    common = common_samples(readers)
    if len(members) > 1 and len(common):
        maps = torch.stack([r.rows(common) for r in readers])
        summary.robustness |= robustness_table({family_of(members[0]): maps}, ensemble.seed)
        summary.probes[family_of(members[0])] = common

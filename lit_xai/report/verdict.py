"""From a summary and conditions to the verdict on one network's explanations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scipy.stats import t as student

from lit_xai.metrics.comparisons import (
    ALPHA,
    BETTER,
    PERMUTED_LABELS,
    WORSE,
    Mark,
    against_nulls,
    against_permutations,
    corrected,
)
from lit_xai.metrics.measures import paired
from lit_xai.metrics.statistics import LEAST, Estimate
from lit_xai.report.answers import (
    CARE,
    CONTRADICTED,
    DISTRUST,
    NOT_APPLICABLE,
    NOT_SHOWN,
    ORDER,
    SHOWN,
    TRUST,
    Answer,
    Number,
    Verdict,
    called,
)
from lit_xai.report.conditions import EVERY_NULL, FOLDS, LABELS, MASKS, Condition
from lit_xai.report.sentences import sentence, tag_column, tag_columns, tag_sentence
from lit_xai.report.summarise import WHOLE_IMAGE, nulls_of
from lit_xai.report.summary import Row, Summary

DETERMINISTIC = "deterministic"  # begins the reason why a method that draws nothing has no repeats
TINY = 1e-4  # by which a correlation of equal maps differs from 1


def conclude(summary: Summary, conditions: Sequence[Condition], about: str = "", data: str = "") -> Verdict:
    """The verdict on every method of a summary, nulls left out; `about` and `data` are what network and data are called."""
    rows = [row for row in summary.rows if row.explainer not in summary.nulls]
    known = {column for row in rows for column, e in row.estimates.items() if math.isfinite(e.value)}
    conditions = [c.of(known) for c in conditions]
    answers: dict[str, dict[str, Answer]] = {row.explainer: {} for row in rows}
    for c in first_things_first(conditions):
        lacks = cannot_be_asked(summary, c)
        of = {} if lacks else {column: numbers(summary, rows, c, column) for column in c.columns if has(rows, column)}
        for row in rows:
            if lacks:
                answers[row.explainer][c.key] = Answer(NOT_APPLICABLE, lacks)
                continue
            answer = combined(c, [found[row.explainer] for found in of.values()])
            if c.after and answer.status == SHOWN and answers[row.explainer][c.after].status != SHOWN:
                first = next(other for other in conditions if other.key == c.after)
                why = f"{answer.reason}, but that says nothing before it is shown that explanations {first.shown}"
                answer = Answer(NOT_SHOWN, why, answer.numbers)
            answers[row.explainer][c.key] = answer
    answers = {name: {c.key: of[c.key] for c in conditions} for name, of in answers.items()}
    methods = {name: judged(list(of.values())) for name, of in answers.items()}
    because = [*summary.head["alarms"]]
    if because:  # no method is better than what it explains
        most = CARE if only_unfinished(summary) else DISTRUST
        methods = {name: max(overall, most, key=ORDER.index) for name, overall in methods.items()}
    overall = min(methods.values(), key=ORDER.index, default=DISTRUST)
    tag = tag_sentence(summary, answers, on_the_tag(summary, rows))
    verdict = Verdict(overall, "", tag, because, methods, answers, conditions)
    return replace(
        verdict, sentence=sentence(verdict, data or str(summary.head["data"]), about or summary.head["name"])
    )


def on_the_tag(summary: Summary, rows: Sequence[Row]) -> set[str]:
    """The methods whose maps lie on a planted tag more than a blob in the middle and the whole image do.

    Brightness and edges of the image do not count: a tag stands out, and what shows it is right for another reason.
    """
    column = tag_column(summary)
    blob = {row.explainer for row in summary.rows if column in row.estimates} & {"centre"} & set(summary.nulls)
    nulls = (*blob, WHOLE_IMAGE)
    of = [row for row in rows if column in row.estimates]
    found = numbers(summary, of, Condition("tag", "", (column,), better_than=nulls), column) if of else {}
    return {name for name, number in found.items() if number.status == SHOWN}


def first_things_first(conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions, each behind the one it waits for."""
    return sorted(conditions, key=lambda c: bool(c.after))


def only_unfinished(summary: Summary) -> bool:
    """Whether the only alarm is that something is missing: what is there holds for what it says it rests on."""
    return summary.head["unfinished"] is not None and len(summary.head["alarms"]) == 1


def has(rows: Sequence[Row], column: str) -> bool:
    """Whether any method has a number there."""
    return any(column in row.estimates for row in rows)


def cannot_be_asked(summary: Summary, c: Condition) -> str:
    """Why a question cannot be asked of any method; empty if it can."""
    if FOLDS in c.needs and len(summary.head["folds_present"]) < 2:
        return "there is one predictor alone: persistence needs those of other folds"
    if LABELS in c.needs and not summary.head["held_out_accuracy"]:
        return "the images have no labels"
    if MASKS in c.needs:
        if not has(summary.rows, c.columns[0]) and not any(has(summary.rows, column) for column in c.columns):
            return f"nothing is scored against masks ({' or '.join(c.columns)})"
        planted = summary.head.get("planted") or ("tag" if tag_columns(summary) else "")
        if planted:
            return f"a {planted} is planted: a true explanation of a network that looks at it points there"
    return ""


# ------------------------------------------------------------------------------------------------------------- numbers


def numbers(summary: Summary, rows: Sequence[Row], c: Condition, column: str) -> dict[str, Number]:
    """What a column says of every method."""
    if c.threshold is not None:
        return {row.explainer: against_number(row, c, column) for row in rows}
    marks = marks_of(summary, rows, c, column)
    return {row.explainer: against_null(summary, row, c, column, marks) for row in rows}


def counted(e: Estimate) -> dict[str, Any]:
    """Value, interval and counts of an estimate, as a number of the verdict has them."""
    low, high = (None if math.isnan(v) else v for v in (e.low, e.high))
    return {"value": e.value, "low": low, "high": high, "samples": e.samples, "predictors": e.predictors}


def unknown(row: Row, column: str, drawn: bool) -> Number | None:
    """The number of a method that has none, or one without an interval; None where there is something to judge.

    `drawn` is whether a method that draws nothing has no number by its nature.
    """
    e = row.estimates.get(column)
    if e is None:
        return Number(column, NOT_APPLICABLE if drawn else NOT_SHOWN, f"{column} is not measured")
    if math.isnan(e.value):
        status = NOT_APPLICABLE if e.reason.startswith(DETERMINISTIC) else NOT_SHOWN
        return Number(column, status, e.reason or f"{column} is undefined", samples=e.samples)
    if drawn and e.value > 1 - TINY:
        return Number(column, NOT_APPLICABLE, f"{DETERMINISTIC}: two seeds give the same maps", **counted(e))
    if math.isnan(e.low):
        return Number(column, NOT_SHOWN, f"{column} {e.text()}: {e.reason}", **counted(e), needed=LEAST)
    return None


def against_number(row: Row, c: Condition, column: str) -> Number:
    """A column against a number of the condition."""
    found = unknown(row, column, drawn=c.above is not None)
    if found is not None:
        return found
    e, threshold, up = row.estimates[column], float(c.threshold or 0.0), c.below is None
    far, near = (e.low, e.high) if up else (e.high, e.low)  # the end that must be beyond, and the other one
    side, other = ("above", "below") if up else ("below", "above")
    more = {**counted(e), "reference": threshold}
    if (far - threshold) * (1 if up else -1) > 0:
        return Number(column, SHOWN, f"{column} {e.text()} is {side} {threshold:g}", **more)
    if (near - threshold) * (1 if up else -1) < 0:
        return Number(column, CONTRADICTED, f"{column} {e.text()} is {other} {threshold:g}", **more)
    apart = (e.value - threshold) * (1 if up else -1)
    need = enough(e, apart, abs(e.value - far))
    why = f"{column} {e.text()} is not shown to be {side} {threshold:g}: {would_need(e, need)}"
    return Number(column, NOT_SHOWN, why, **more, needed=need)


def marks_of(summary: Summary, rows: Sequence[Row], c: Condition, column: str) -> dict[str, Mark]:
    """The marks of a column against what a condition names, corrected over the methods; those of the table for every null."""
    if EVERY_NULL in c.better_than:
        return {row.explainer: row.marks[column] for row in rows if column in row.marks}
    up, found = summary.columns[column], {}
    for row in rows:
        e = row.estimates.get(column)
        if e is None or math.isnan(e.low):
            continue
        if PERMUTED_LABELS in c.better_than:
            if math.isfinite(e.p_above):
                found[row.explainer] = against_permutations(e, up)
            continue
        apart = {name: d for name in c.better_than if (d := to_null(summary, row, column, name)) is not None}
        if len(apart) == len(c.better_than):
            hardest = (min if up else max)(apart, key=lambda name: apart[name].value)
            found[row.explainer] = against_nulls(apart, hardest, up)
    return corrected(found, "methods of the question")


def to_null(summary: Summary, row: Row, column: str, name: str) -> Estimate | None:
    """The paired difference to a null, or to the whole image; None where there is none."""
    if name == WHOLE_IMAGE:
        return row.to_whole.get(column)
    null = nulls_of(summary, row, column).get(name)
    return None if null is None else paired(column, row.estimates[column], null)


def against_null(summary: Summary, row: Row, c: Condition, column: str, marks: Mapping[str, Mark]) -> Number:
    """A column against nulls."""
    found = unknown(row, column, drawn=False)
    if found is not None:
        return found
    e, up = row.estimates[column], summary.columns[column]
    if row.explainer not in marks:
        lacking = [n for n in c.better_than if to_null(summary, row, column, n) is None] or list(c.better_than)
        why = f"{column} {e.text()} has nothing to be compared with: no {' and no '.join(lacking)} on the same probes"
        return Number(column, NOT_SHOWN, why, **counted(e))
    mark = marks[row.explainer]
    d = None if mark.against == PERMUTED_LABELS else to_null(summary, row, column, mark.against)
    reference = e.value - d.value if d is not None else e.null
    more = {**counted(e), "null": mark.against, "reference": reference, "p": mark.p, "p_corrected": mark.corrected}
    side, other = ("above", "below") if up else ("below", "above")
    null = f"{'' if reference is None else f'{reference:.3f} of '}{called(mark.against)}"
    p = f"p {f'{mark.corrected:.3f}' if mark.corrected >= 0.001 else 'below .001'} after correction"
    if mark.sign == BETTER:
        return Number(column, SHOWN, f"{column} {e.text()} is {side} {null}, {p}", **more)
    if mark.sign == WORSE:
        return Number(column, CONTRADICTED, f"{column} {e.text()} is {other} {null}, {p}", **more)
    spread, apart = (d, d.value) if d is not None else (e, e.value - (reference or 0.0))
    apart *= 1 if up else -1
    reach = float(student.isf(ALPHA / 2 / max(1, len(marks)), spread.freedom)) * spread.error
    need = enough(spread, apart, reach)
    why = f"{column} {e.text()} is not shown to be {side} {null}, {p}: {would_need(spread, need)}"
    return Number(column, NOT_SHOWN, why, **more, needed=need)


def enough(e: Estimate, apart: float, reach: float) -> int | None:
    """How many samples (predictors) bring an interval's half `reach` below the distance `apart`; None where none do."""
    number = e.predictors or e.samples
    if apart <= 0 or not math.isfinite(reach) or not number:
        return None
    return max(number + 1, math.ceil(number * (reach / apart) ** 2))


def would_need(e: Estimate, need: int | None) -> str:
    """The same in words."""
    unit = "predictors" if e.predictors else "samples"
    if need is None:
        return f"it lies on the other side; more {unit} alone would not show it"
    more = f"about {need:,}" if need <= 100_000 else "more than 100,000"
    return f"{more} {unit} would be needed instead of {e.predictors or e.samples:,}"


# ----------------------------------------------------------------------------------------------------------- judgements


def combined(c: Condition, found: Sequence[Number]) -> Answer:
    """The answer of several columns: contradicted if one is, shown if all are."""
    asked = [n for n in found if n.status != NOT_APPLICABLE]
    if not found:
        return Answer(NOT_SHOWN, f"{' and '.join(c.columns)} {'is' if len(c.columns) == 1 else 'are'} not measured")
    if not asked:
        return Answer(NOT_APPLICABLE, "; ".join(dict.fromkeys(n.reason for n in found)), tuple(found))
    status = SHOWN
    for worse in (NOT_SHOWN, CONTRADICTED):
        status = worse if any(n.status == worse for n in asked) else status
    why = "; ".join(n.reason for n in asked if n.status == status)
    if status == CONTRADICTED and c.threshold is not None:  # nothing is contradicted but by a null
        return Answer(NOT_SHOWN, why, tuple(found))
    return Answer(status, why, tuple(found))


def judged(answers: Sequence[Answer]) -> str:
    """What is to be thought of a method: no number on the wrong side, at least one question shown; trusted where all are."""
    statuses = [a.status for a in answers if a.status != NOT_APPLICABLE]
    wrong = any(n.status == CONTRADICTED for a in answers for n in a.numbers)
    if wrong or CONTRADICTED in statuses or SHOWN not in statuses:
        return DISTRUST
    return TRUST if set(statuses) == {SHOWN} else CARE

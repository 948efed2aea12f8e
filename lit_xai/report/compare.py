"""Several networks or data sets beside each other: differences of every method's numbers, paired where the probes are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from scipy.stats import t as student

from lit_xai.metrics.comparisons import ALPHA, holm, two_sided
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.statistics import LEVEL, Estimate, difference
from lit_xai.report.audit import Audit
from lit_xai.report.between import between

PAIRED, UNPAIRED = "paired", "unpaired"


def comparisons(audits: Sequence[Audit]) -> list[dict[str, Any]]:
    """Every two of them, JSON-ready."""
    return [compared(a, b) for a, b in combinations(audits, 2)]


def compared(a: Audit, b: Audit) -> dict[str, Any]:
    """The differences a - b of every method and column that both have, defined in the same way.

    Scores are paired where both rest on the same probes of the same data and split; measures of an ensemble are not: which pairs of
    maps they rest on is another one's. p-values are corrected by Holm's method over the methods of a column.
    """
    same, left_out = same_data(a, b), []
    found: dict[str, dict[str, tuple[Estimate, str]]] = {}
    others = {row.explainer: row for row in b.summary.rows}
    for row in a.summary.rows:
        other = others.get(row.explainer)
        if other is None or settings(a, row.explainer) != settings(b, row.explainer):
            left_out += [row.explainer]
            continue
        paired = same and torch.equal(a.summary.probes[row.explainer], b.summary.probes[row.explainer])
        for column, e in row.estimates.items():
            tested = apart(column, e, other.estimates.get(column), paired) if defined_alike(a, b, column) else None
            if tested is not None:
                found.setdefault(column, {})[row.explainer] = tested
    rows = []
    for column, of in found.items():
        p = holm({name: two_sided(d) for name, (d, _) in of.items()})
        for name, (d, test) in of.items():
            better = "" if p[name] > ALPHA else (a if (d.value > 0) == a.summary.columns[column] else b).name
            about = {"explainer": name, "column": column, "test": test, "p": two_sided(d), "p_corrected": p[name]}
            rows.append(
                {**about, "value": d.value, "low": d.low, "high": d.high, "samples": d.samples, "better": better}
            )
    left = [row.explainer for row in b.summary.rows if row.explainer not in {r.explainer for r in a.summary.rows}]
    return {
        "a": a.name,
        "b": b.name,
        "how": how(same, [*left_out, *left]),
        "rows": rows,
        "between": reproduced(a, b, left_out) if same else {},
    }


def reproduced(a: Audit, b: Audit, left_out: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How alike both networks' maps are on the samples that they held out together, by every method that both have."""
    distance = a.summary.head["distance"]["name"]
    names = [row.explainer for row in a.summary.rows if row.explainer not in left_out]
    found = {name: between(a.ensemble, b.ensemble, name, distance) for name in names}
    return {name: of.plain() for name, of in found.items() if of is not None}


def same_data(a: Audit, b: Audit) -> bool:
    """Whether both rest on the same samples, split in the same way."""
    keys = ("data", "content", "samples", "folds", "split_seed")
    return all(a.summary.head.get(k) == b.summary.head.get(k) for k in keys)


def how(same: bool, left_out: Sequence[str]) -> str:
    """How the numbers are compared, in words."""
    text = (
        "the same data and split: scores on the same probes are paired, measures of ensembles are not"
        if same
        else "other data or another split: nothing is paired"
    )
    return text + (f"; left out, for other settings or as only one has them: {', '.join(left_out)}" if left_out else "")


def settings(a: Audit, explainer: str) -> dict[str, Any]:
    """An explainer's parameters, without what the model decides."""
    described = a.summary.definitions["explainers"][explainer]
    return {k: v for k, v in described.items() if k not in ("resolved", "details")}


def defined_alike(a: Audit, b: Audit, column: str) -> bool:
    """Whether a column means the same in both."""
    of = [x.summary.definitions.get(column) for x in (a, b)]
    return column in b.summary.columns and None not in of and meaning(of[0]) == meaning(of[1])


def meaning(definition: Any) -> Any:
    """A column's definition, without what image and model decide."""
    return definition.get("definition", definition)


def apart(column: str, a: Estimate, b: Estimate | None, paired: bool) -> tuple[Estimate, str] | None:
    """The difference with its test; None where one has no interval."""
    if b is None or math.isnan(a.low) or math.isnan(b.low):
        return None
    if paired and column not in MEASURES and len(a.draws) == len(b.draws) and len(a.each) == len(b.each):
        return difference(a, b), PAIRED
    return independent(a, b), UNPAIRED


def independent(a: Estimate, b: Estimate) -> Estimate:
    """A - b of numbers that rest on nothing in common: errors add, degrees of freedom by Welch and Satterthwaite."""
    errors, value = (a.error**2, b.error**2), a.value - b.value
    error = math.sqrt(sum(errors))
    parts = sum(e**2 / max(1, x.freedom) for e, x in zip(errors, (a, b), strict=True))
    freedom = int(sum(errors) ** 2 / parts) if parts else min(a.freedom, b.freedom)
    reach = float(student.isf((1 - LEVEL) / 2, max(1, freedom))) * error
    d = Estimate(value, value - reach, value + reach, error, samples=min(a.samples, b.samples))
    d.predictors = max(2, freedom + 1)  # `Estimate.freedom` is then Welch's, and `error` is taken as it is
    return d

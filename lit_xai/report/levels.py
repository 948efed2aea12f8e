"""The tables of the degradation study: measures over levels of damage, and their rank correlations with the level.

A row is `[kind, level, explainer, mean accuracy, an estimate of every measure of the short view]`.
"""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import spearmanr

from lit_xai.metrics.estimation import SHORT
from lit_xai.metrics.measures import view
from lit_xai.metrics.statistics import Estimate
from lit_xai.report.table import Column, Table

ABOUT = 4  # columns before the measures
Lines = dict[str, dict[str, dict[str, list[tuple[float, Estimate]]]]]


def table(rows: list[list[Any]]) -> Table:
    """Every number, for files."""
    parts = ("low", "high", "null", "note")
    columns = [*map(Column, ("kind", "level", "explainer", "accuracy")), *(Column(m, parts) for m in view(SHORT))]
    return Table(columns, rows, missing=math.nan)


def for_people(rows: list[list[Any]]) -> Table:
    """The same for the terminal."""
    measures = [Column(m, undefined="NaN: {reason}") for m in view(SHORT)]
    columns = [*map(Column, ("damage", "level", "explainer", "accuracy")), *measures]
    return Table(columns, [[row[0], f"{row[1]:.0%}", *row[2:]] for row in rows], "per level (95 % interval) /null")


def lines_of(rows: list[list[Any]]) -> Lines:
    """`{kind: {measure: {explainer: [(level, estimate)]}}}`; the undamaged ensemble is level 0 of every kind."""
    out: Lines = {}
    for kind in dict.fromkeys(row[0] for row in rows if row[0] != "none"):
        for at, measure in enumerate(view(SHORT), start=ABOUT):
            lines = out.setdefault(kind, {}).setdefault(measure, {})
            for row in sorted((r for r in rows if r[0] in ("none", kind)), key=lambda r: r[1]):
                lines.setdefault(row[2], []).append((row[1], row[at]))
    return out


def rank_correlations(rows: list[list[Any]]) -> Table:
    """Spearman correlation of every measure with the level: one row a kind and explainer; NaN below three levels."""
    out: dict[tuple[str, str], list[Any]] = {}
    for kind, measures in lines_of(rows).items():
        for lines in measures.values():
            for explainer, points in lines.items():
                known = [(level, e.value) for level, e in points if not math.isnan(e.value)]
                enough = len(known) > 2 and len({value for _, value in known}) > 1
                found = float(spearmanr(*zip(*known, strict=True)).statistic) if enough else math.nan
                out.setdefault((kind, explainer), [kind, explainer]).append(found)
    columns = [Column("kind", head="damage"), Column("explainer"), *map(Column, view(SHORT))]
    return Table(columns, list(out.values()), "rank correlation with the level: -1 = falls at every step")

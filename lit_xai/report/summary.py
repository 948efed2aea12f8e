"""The numbers of one experiment."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import lit_xai
from lit_xai import explainers
from lit_xai.core import Component, Explainer
from lit_xai.errors import UsageError
from lit_xai.metrics.comparisons import Mark, corrected, share_won, two_sided
from lit_xai.metrics.measures import MEASURES, paired
from lit_xai.metrics.statistics import Estimate
from lit_xai.report.printed import Beside, Printed, beside
from lit_xai.report.tested import Conformal
from lit_xai.store.names import TEST


def class_of(room: ModuleType, described: Mapping[str, Any]) -> type[Component] | None:
    """The class of ours that a described component is of; None of any other."""
    kind = vars(room).get(str(described.get("name")))
    return kind if isinstance(kind, type) and issubclass(kind, Component) else None


def is_null(described: Mapping[str, Any]) -> bool:
    """Whether an explainer is a null, as its class says."""
    kind = class_of(explainers, described)
    return kind is not None and issubclass(kind, Explainer) and kind.null


@dataclass
class Row:
    """One explainer's numbers: an estimate a column.

    Attributes:
        strongest: the strongest null of the column, on the same probes.
        differences: paired differences to it.
        marks: what is claimed of each, corrected over the column.
        won: the share of probes on which it beats the strongest null, ties half.
        ranks: first and last rank that it may have in the column.
        to_whole: the paired difference to the whole image as an explanation, where a score has that reference.
        details: what else a score learned, `{column: {detail: {mean, min, max}}}` over folds and probes.
    """

    explainer: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    strongest: dict[str, str] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    won: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, tuple[int, int]] = field(default_factory=dict)
    to_whole: dict[str, Estimate] = field(default_factory=dict)
    details: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def sign(self, column: str) -> str:
        """`+` better, `-` worse than the strongest null; empty where nothing can be claimed."""
        return self.marks[column].sign if column in self.marks else ""

    def plain(self) -> dict[str, dict[str, Any]]:
        """What `summary.json` holds of an explainer."""
        cells = {}
        for name, e in self.estimates.items():
            cells[name] = e.plain()
            for key, apart in (("difference_to_null", self.differences), ("difference_to_whole_image", self.to_whole)):
                if name in apart:
                    d = apart[name].plain()
                    cells[name][key] = {k: d[k] for k in ("value", "low", "high", "interval")}
            if name in self.strongest:
                cells[name]["difference_to_null"] |= {"null": self.strongest[name], "share_won": self.won.get(name)}
            if name in self.marks:
                cells[name]["mark"] = self.marks[name].plain()
            if name in self.ranks:
                cells[name]["rank_set"] = list(self.ranks[name])
            if self.details.get(name):
                cells[name]["details"] = self.details[name]
        return cells


@dataclass(frozen=True)
class Pair:
    """Two explainers, or two families of variants: by column, their paired differences a - b and the share of probes that a wins."""

    apart: dict[str, Estimate] = field(default_factory=dict)
    won: dict[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """All numbers of one experiment.

    Attributes:
        head: what they rest on: folds, probes, accuracy, Lipschitz constants, warnings.
        columns: names, in order; True where higher is better.
        rows: one an explainer, the nulls last.
        nulls: which of them are nulls.
        definitions: what every column and every explainer is.
        distances: `{explainer: (S_equal, S_differ)}` for the histograms.
        robustness: `{family: {similarity: estimate}}` of explainers that are variants of one method.
        pairs: `{"a - b": pair}`, of two explainers or families.
        cases: one row a probe and explainer, see `lit_xai.report.cases`.
        consensus: of every explainer, `core`, the share of a map's highest tenth that all folds have (an estimate), `core_null`, and
            the number of `contradictions` of how many `probes`; None where it is not known.
        worst: of every explainer, all folds' small maps `[k, h, w]` of the first cases, by probe.
        probes: which samples every explainer's and family's numbers rest on.
        conformal: what the test probes say of a new image, by explainer that explains them.
        beside: what papers print, beside it.
    """

    head: dict[str, Any]
    columns: dict[str, bool]
    rows: list[Row]
    definitions: dict[str, Any]
    distances: dict[str, tuple[Tensor, Tensor]]
    robustness: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    pairs: dict[str, Pair] = field(default_factory=dict)
    probes: dict[str, Tensor] = field(default_factory=dict)
    nulls: Collection[str] = ()
    cases: list[dict[str, Any]] = field(default_factory=list)
    consensus: dict[str, dict[str, Any]] = field(default_factory=dict)
    worst: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    conformal: dict[str, Conformal] = field(default_factory=dict)
    beside: list[Beside] = field(default_factory=list)

    def pair(self, a: str, b: str) -> None:
        """Add the paired differences of two explainers, and of two families of variants.

        Raises:
            UsageError: there is neither of that name; they were explained on different probes.
        """
        known = {row.explainer: row.estimates for row in self.rows}
        for name in (a, b):
            if name not in known and name not in self.robustness:
                have = ", ".join([*known, *self.robustness])
                raise UsageError(f"pairs= names {name}, which is no explainer or family here; there are: {have}")
        if not torch.equal(self.probes[a], self.probes[b]):
            raise UsageError(
                f"pairs= compares {a} and {b}, which were explained on different probes "
                f"({len(self.probes[a])} and {len(self.probes[b])}): explain both with the same data.probes_per_fold="
            )
        found = Pair()
        for table in (known, self.robustness):
            for column, one in table.get(a, {}).items():
                other = table.get(b, {}).get(column)
                alike = other is not None and len(one.draws) and self.alike(a, b, column)
                apart = paired(column, one, other) if other is not None and alike else None
                if other is not None and apart is not None:
                    found.apart[column] = apart
                    won = share_won(one.each, other.each, self.up(column))
                    if math.isfinite(won):
                        found.won[column] = won
        self.pairs[f"{a} - {b}"] = found

    def compare_with(self, printed: Printed) -> None:
        """Put a printed table beside the numbers of explainers and families."""
        rows = {row.explainer: row.estimates for row in self.rows}
        self.beside.append(beside(printed, {**rows, **self.robustness}, self.columns))

    def samples_of(self, name: str, column: str) -> Tensor:
        """The samples that an explainer's or a family's numbers of a column rest on."""
        known = MEASURES.get(column)
        if known is None or known.over != TEST:
            return self.probes[name]
        return self.conformal[name].samples if name in self.conformal else torch.zeros(0, dtype=torch.long)

    def alike(self, a: str, b: str, column: str) -> bool:
        """Whether the numbers of two of them rest on the same samples."""
        return torch.equal(self.samples_of(a, column), self.samples_of(b, column))

    def up(self, column: str) -> bool:
        """Whether higher is better, also of the similarities of variants."""
        return self.columns.get(column, column != "stability")

    def against_nulls(self, column: str) -> bool:
        """Whether a null explainer says what is good in a column; else nothing is marked."""
        known = MEASURES.get(column)
        return known.against_nulls if known else self.definitions.get(column, {}).get("against_nulls", True)

    def at_its_best(self, null: str, column: str) -> bool:
        """Whether a null has the best value of a measure of distances by construction: its maps are the same for all predictors."""
        return column in MEASURES and null in self.distances and not bool(self.distances[null][0].any())

    def about(self, column: str) -> dict[str, Any]:
        """What the numbers of a column mean and are compared with: direction, target, version, null and correction."""
        said, marked = self.definitions.get(column, {}), self.against_nulls(column)
        whole = any(column in row.to_whole for row in self.rows)
        nulls = [name for name in self.nulls if not self.at_its_best(name, column)]
        null = said.get("null") or ", ".join([*nulls, *["whole image"] * whole]) if marked else None
        return {
            "higher_is_better": self.columns[column],
            "direction": "up" if self.columns[column] else "down",
            "target": said.get("target") or self.head.get("target"),
            "version": said.get("version") or said.get("definition", {}).get("version", 1),
            "null": null or None,
            "correction": "Holm over the explainers of the column" if null else None,
        }

    def pair_marks(self) -> dict[str, dict[str, Mark]]:
        """What is claimed of every pair, `{pair: {column: mark}}`: `+` where a is better; corrected over the pairs of a column."""
        out: dict[str, dict[str, Mark]] = {name: {} for name in self.pairs}
        for column in dict.fromkeys(c for pair in self.pairs.values() for c in pair.apart):
            known = {n: p.apart[column] for n, p in self.pairs.items() if column in p.apart}
            marks = {
                n: Mark(n.split(" - ")[1], (d.value > 0) == self.up(column), two_sided(d)) for n, d in known.items()
            }
            for name, mark in corrected(marks, "pairs of the column").items():
                out[name][column] = mark
        return out

    def plain(self) -> dict[str, Any]:
        """What `summary.json` holds, all of it."""
        marks = self.pair_marks()
        pairs = {
            name: {
                c: {**e.plain(), "share_won": pair.won.get(c), "mark": marks[name][c].plain()}
                for c, e in pair.apart.items()
            }
            for name, pair in self.pairs.items()
        }
        return {
            "version": lit_xai.__version__,
            "head": self.head,
            "columns": {n: self.about(n) for n in self.columns},
            "rows": {row.explainer: row.plain() for row in self.rows},
            "nulls": list(self.nulls),
            "definitions": self.definitions,
            "robustness": {f: {n: e.plain() for n, e in row.items()} for f, row in self.robustness.items()},
            "pairs": pairs,
            **({"printed": {b.source: b.plain() for b in self.beside}} if self.beside else {}),
            **({"conformal": {n: c.plain() for n, c in self.conformal.items()}} if self.conformal else {}),
            "consensus": {n: {**c, "core": c["core"].plain()} for n, c in self.consensus.items()},
        }

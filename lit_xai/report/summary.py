"""The numbers of one experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import lit_xai
from lit_xai.errors import UsageError
from lit_xai.metrics.measures import paired
from lit_xai.metrics.statistics import Estimate, excludes_zero


@dataclass
class Row:
    """One explainer's numbers: an estimate a column, and its paired differences to the null explainer and, where a score
    has that reference, to the whole image.
    """

    explainer: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Estimate] = field(default_factory=dict)
    to_whole: dict[str, Estimate] = field(default_factory=dict)

    def marked(self, column: str) -> bool:
        """Whether the paired difference to the null excludes 0."""
        return column in self.differences and excludes_zero(self.differences[column])

    def beats_or_misses_whole(self, column: str) -> bool:
        """Whether the paired difference to the whole image excludes 0."""
        return column in self.to_whole and excludes_zero(self.to_whole[column])


@dataclass
class Summary:
    """All numbers of one experiment.

    Attributes:
        head: what they rest on: folds, probes, accuracy, Lipschitz constants, warnings.
        columns: names, in order; True where higher is better.
        rows: one an explainer.
        definitions: what every column and every explainer is.
        distances: `{explainer: (S_equal, S_differ)}` for the histograms.
        robustness: `{family: {similarity: estimate}}` of explainers that are variants of one method.
        pairs: `{"a - b": {column: estimate}}`, paired differences of two explainers or families.
        probes: which samples every explainer's and family's numbers rest on.
    """

    head: dict[str, Any]
    columns: dict[str, bool]
    rows: list[Row]
    definitions: dict[str, Any]
    distances: dict[str, tuple[Tensor, Tensor]]
    robustness: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    pairs: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    probes: dict[str, Tensor] = field(default_factory=dict)

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
        found = {}
        for table in (known, self.robustness):
            for column, one in table.get(a, {}).items():
                other = table.get(b, {}).get(column)
                apart = paired(column, one, other) if other is not None and len(one.draws) else None
                if apart is not None:
                    found[column] = apart
        self.pairs[f"{a} - {b}"] = found

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = {}
        for row in self.rows:
            cells = {}
            for name, e in row.estimates.items():
                cells[name] = e.plain()
                if name in row.differences:
                    d = row.differences[name].plain()
                    cells[name]["difference_to_null"] = {k: d[k] for k in ("value", "low", "high")}
                    cells[name]["marked"] = row.marked(name)
                if name in row.to_whole:
                    d = row.to_whole[name].plain()
                    cells[name]["difference_to_whole_image"] = {k: d[k] for k in ("value", "low", "high")}
            rows[row.explainer] = cells
        return {
            "version": lit_xai.__version__,
            "head": self.head,
            "columns": {n: {"higher_is_better": up} for n, up in self.columns.items()},
            "rows": rows,
            "definitions": self.definitions,
            "robustness": {f: {n: e.plain() for n, e in row.items()} for f, row in self.robustness.items()},
            "pairs": {p: {n: e.plain() for n, e in row.items()} for p, row in self.pairs.items()},
        }

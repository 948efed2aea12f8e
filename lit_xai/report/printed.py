"""Ours beside the numbers that a paper prints: `printed:` of an experiment, a table each, with rank correlations.

printed:
  - source: Fel et al. (2022), table 5, CIFAR-10
    model: resnet18
    columns: {mege: {saliency: .45, gradcam: .72}, reco: {saliency: .15, gradcam: .64}}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_xai.errors import UsageError
from lit_xai.metrics.rank_correlation import RankCorrelation, rank_correlation
from lit_xai.metrics.statistics import Estimate
from lit_xai.report.table import Column, Table, console, interval
from lit_xai.store.files import write_atomically, write_csv

SUMMARY, SAMPLERS, REMOVAL = "summary", "samplers", "removal"  # the tables that something is printed beside
KEYS = {"source", "columns", "table", "model"}
FORM = "as in printed=[{source: table 5, columns: {mege: {saliency: 0.45}}}]"
MISSING, NOT_PRINTED = "missing", "not printed"
RHO, TAU, P = "Spearman's rho", "Kendall's tau", "p of any order"
LEGEND = (
    "value [95 % interval]; rho, tau: correlations of the methods that both have [all orders that the paired differences leave open, at once "
    "with 95 % confidence: other probes{over}]; p: share of all orders of the methods with as large a |rho|"
)

Rows = Mapping[str, Mapping[str, Estimate]]  # by method and column


@dataclass(frozen=True)
class Printed:
    """A table of a paper.

    Attributes:
        source: where it is printed, and for what.
        columns: by column of ours, the value of every method.
        table: of ours, beside which it stands.
        model: the name of the network that it is of; empty = any.
    """

    source: str
    columns: Mapping[str, Mapping[str, float]]
    table: str = SUMMARY
    model: str = ""


def read(node: Any) -> tuple[Printed, ...]:
    """What `printed=` holds.

    Raises:
        UsageError: it is no list of tables, a value is no number, or two tables that stand beside one of ours have one name.
    """
    if node is None:
        return ()
    if not isinstance(node, list) or not all(isinstance(n, Mapping) for n in node):
        raise UsageError(f"printed must be a list of tables, {FORM}, found {str(node)[:80]}")
    found = tuple(map(one, node))
    for a, b in combinations(found, 2):
        if (a.source, a.table) == (b.source, b.table) and (a.model == b.model or "" in (a.model, b.model)):
            raise UsageError(f"printed has two tables of {a.source}: give each a source of its own")
    return found


def one(node: Mapping[str, Any]) -> Printed:
    """One table of `printed=`, read and checked."""
    source, columns = str(node.get("source", "")), node.get("columns")
    unknown = [k for k in node if k not in KEYS]
    if unknown or not source:
        found = f"unknown key {unknown[0]}" if unknown else "no source"
        raise UsageError(f"a table of printed has source, columns, table and model, {FORM}; found {found}")
    table, model = node.get("table", SUMMARY), node.get("model") or ""
    if table not in (SUMMARY, SAMPLERS, REMOVAL):
        raise UsageError(f"printed, {source}: table is {SUMMARY}, {SAMPLERS} or {REMOVAL}, found {table}")
    if (
        not isinstance(columns, Mapping)
        or not columns
        or not all(isinstance(c, Mapping) and c for c in columns.values())
    ):
        raise UsageError(f"printed, {source}: columns holds the values of every method by column, {FORM}")
    for column, values in columns.items():
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UsageError(f"printed, {source}: {column} of {name} must be a number, found {value!r}")
    plain = {str(c): {str(n): float(v) for n, v in values.items()} for c, values in columns.items()}
    return Printed(source, plain, str(table), str(model))


def of_table(printed: Iterable[Printed], table: str, model: str | None) -> tuple[Printed, ...]:
    """Those that stand beside a table of ours for a network of this name (None: nobody knows it)."""
    return tuple(p for p in printed if p.table == table and p.model in ("", model))


@dataclass(frozen=True)
class Beside:
    """A printed table beside ours.

    Attributes:
        source: of it.
        table: for people and files.
        found: the correlations, by column.
        lacks: what one side has not, a line each.
    """

    source: str
    table: Table
    found: Mapping[str, RankCorrelation]
    lacks: Sequence[str]

    def lines(self) -> list[str]:
        """What it lacks, for people."""
        return [f"{self.source}: {line}" for line in self.lacks]

    def plain(self) -> dict[str, Any]:
        """What `summary.json` holds of the correlations."""
        return {
            column: {
                "methods": c.methods,
                "rho": c.rho.plain(),
                "tau": c.tau.plain(),
                **{k: v if math.isfinite(v) else None for k, v in (("p", c.p), ("least_rho", c.least))},
            }
            for column, c in self.found.items()
        }


def beside(printed: Printed, rows: Rows, up: Mapping[str, bool] | None = None) -> Beside:
    """Our numbers beside the printed ones, and how alike the orders of the methods are.

    Args:
        printed: the table.
        rows: all of our numbers, in order.
        up: of our columns, whether higher is better.
    """
    up = up or {}
    ours = {c: {n: row[c] for n, row in rows.items() if c in row} for c in printed.columns}
    lacks = [f"no column {c} is here: ours are {', '.join(columns_of(rows))}" for c, found in ours.items() if not found]
    methods = dict.fromkeys(n for n, row in rows.items() if any(c in row for c in printed.columns))
    wanted = dict.fromkeys(n for values in printed.columns.values() for n in values)
    absent = [n for n in wanted if n not in rows]
    if absent:
        lacks.append(
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} printed and not here: ours are {', '.join(rows)}"
        )
    found = {c: rank_correlation(c, ours[c], values) for c, values in printed.columns.items()}
    columns = [Column("method")]
    body: dict[str, list[Any]] = {n: [n] for n in [*methods, *absent]}
    below: dict[str, list[Any]] = {RHO: [RHO], TAU: [TAU], P: [P]}
    for column, values in printed.columns.items():
        better = "" if column not in up else "up" if up[column] else "down"
        columns.append(interval(column, better=better, right=True, undefined=MISSING))
        columns.append(Column(f"printed_{column}", head="printed", right=True, undefined=NOT_PRINTED))
        for name, row in body.items():
            row += [ours[column].get(name), values.get(name)]
        c = found[column]
        number = f"{c.methods} methods"
        of_order = f"{c.p:.3f}" if math.isfinite(c.p) else "-"
        least = f".05 from |rho| {c.least:.2f}" if math.isfinite(c.least) else ""
        for line, cells in ((RHO, [known(c.rho), number]), (TAU, [known(c.tau), ""]), (P, [of_order, least])):
            below[line] += cells
        lacks += [f"{column}: {c.rho.reason}"] * bool(c.rho.reason)
    over = " and predictors" if any(c.rho.predictors for c in found.values()) else ""
    table = Table(
        columns,
        [*body.values(), *below.values()],
        f"beside what is printed: {printed.source}\n{LEGEND.format(over=over)}",
        below=(RHO, TAU, P),
    )
    return Beside(printed.source, table, found, lacks)


def known(e: Estimate) -> Estimate | str:
    """A correlation where there is one."""
    return e if math.isfinite(e.value) else "-"


def columns_of(rows: Rows) -> list[str]:
    """The columns that any row has, in their order."""
    return list(dict.fromkeys(c for row in rows.values() for c in row))


def every_number(found: Iterable[Beside]) -> Table:
    """One row a table, column and method, for files; the correlations stand below the methods."""
    columns = [Column("source"), Column("column"), Column("method"), interval("value", stem=""), Column("printed")]
    rows = []
    for b in found:
        for place, column in enumerate(b.found):
            rows += [[b.source, column, row[0], *row[1 + 2 * place : 3 + 2 * place]] for row in b.table.rows]
    return Table(columns, rows)


def leave(found: Sequence[Beside], folder: Path, stem: str) -> list[Path]:
    """The tables as `<stem>.csv` and `<stem>.tex`; nothing where nothing is printed. Returns what was written."""
    if not found:
        return []
    files = [folder / f"{stem}.csv", folder / f"{stem}.tex"]
    write_csv(files[0], *every_number(found).file())
    write_atomically(files[1], "\n".join(b.table.latex([b.source, *b.lacks]) for b in found))
    return files


def show(found: Iterable[Beside], to: Console | None = None) -> None:
    """The tables on the terminal, with what they lack."""
    to = to or console()
    for b in found:
        for line in b.lines():
            to.print(f"  {line}", style="yellow", markup=False)
        b.table.show(to)


def put_beside(printed: Iterable[Printed], rows: Rows, folder: Path, stem: str, up: Mapping[str, bool]) -> None:
    """Printed tables beside a table of ours: on the terminal, and as files."""
    found = [beside(p, rows, up) for p in printed]
    show(found)
    leave(found, folder, stem)

"""What people read of a summary: the lines above it, its tables, and why numbers are undefined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from rich.console import Console

from lit_xai import explainers, metrics
from lit_xai.cli.schema import NULL
from lit_xai.core import Component
from lit_xai.errors import UsageError
from lit_xai.metrics.measures import MEASURES, VIEWS, view
from lit_xai.metrics.statistics import excludes_zero
from lit_xai.report.head import percent
from lit_xai.report.summary import Summary
from lit_xai.report.table import MARK, WHOLE, Column, Marked, Table, console

MOST = 10  # commands at the top of a table
SIMILARITIES = ("ssim", "hog", "spearman", "stability")
LEGEND = (
    f"value [95 % interval]; /x = mean under permuted labels, or of the whole image as an explanation; {MARK} = the paired "
    f"difference to {NULL} excludes 0; {WHOLE} = that to the whole image does; - = undefined, reason below"
)
PAIRS = f"paired differences on the same probes [95 % interval]; {MARK} = the interval excludes 0"
ROBUSTNESS = (
    "similarity of the maps of one method's variants, mean over pairs and probes [95 % interval]; stability: distance of "
    "their superpixels' values to the variants' mean, lower = more stable"
)


def shown_or_refuse(definition: str) -> None:
    """Refuse an unknown view before any work is done."""
    if definition not in VIEWS:
        raise UsageError(f"definition must be one of {', '.join(VIEWS)}, found {definition!r}")


def shown(summary: Summary, definition: str) -> list[str]:
    """The columns of a view: its measures, then every score."""
    shown_or_refuse(definition)
    measures = [c for c in view(definition) if c in summary.columns]
    return measures + [c for c in summary.columns if c not in MEASURES]


def count_of(room: ModuleType, described: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The count that a class of ours says its results rest on (see `Component`), and its value; None where it says none."""
    kind = vars(room).get(str(described.get("name")))
    count = kind.count if isinstance(kind, type) and issubclass(kind, Component) else ""
    return (count, described[count]) if count and described.get(count) else None


def head_lines(summary: Summary) -> list[str]:
    """What the table rests on."""
    h, explained = summary.head, summary.definitions["explainers"]
    shares = h["held_out_accuracy"]
    accuracy = ", ".join(f"f{f} {percent(a['value'], a['low'], a['high'])}" for f, a in shares.items())
    lipschitz = ", ".join(f"f{f} {v:.2f}" for f, v in h["empirical_lipschitz"].items() if v is not None)
    d = h["disagreements"]
    differ = f"{d['explained']} of {d['found']} disagreements" if d else "no disagreements explained"
    lines = [
        f"{h['name']}: {len(h['folds_present'])} of {h['folds']} folds, {h['samples']:,} samples, "
        f"{h.get('probes', 0):,} random probes, {differ}, distance {h['distance']['name']}",
        *(
            f"held-out accuracy %: {accuracy} (spread {100 * h['accuracy_spread']:.1f} points; chance {100 * a['null']:.1f})"
            for a in list(shares.values())[:1]  # unlabelled images have none
        ),
        *(
            [f"empirical Lipschitz constant (largest local one at 128 held-out images): {lipschitz}"]
            if lipschitz
            else []
        ),
    ]
    counts = [f"{name} {found[1]}" for name, e in explained.items() if (found := count_of(explainers, e))]
    scores = {name: s["definition"] for name, s in summary.definitions.items() if "definition" in s}
    counts += [f"{name} {found[1]} {found[0]}" for name, s in scores.items() if (found := count_of(metrics, s))]
    lines.append(f"counts: {', '.join(counts)}")
    for name, e in explained.items():
        if e.get("details"):
            texts = [f"{n} {v['mean']:.3g} ({v['min']:.3g}..{v['max']:.3g})" for n, v in e["details"].items()]
            lines.append(f"{name}: {', '.join(texts)}")
    return lines + [f"warning: {w}" for w in h["warnings"] if w not in h["alarms"]]


def alarm_lines(summary: Summary) -> list[str]:
    """Why the table is not to be trusted, for its top: what is unfinished and the commands that complete it, what is untaught."""
    lines, lack = list(summary.head["alarms"]), summary.head["unfinished"]
    if lack:
        after = f", once the {lack['running']} processes at work on it have ended" if lack["running"] else ""
        shown, more = lack["commands"][:MOST], len(lack["commands"]) - MOST
        told = [f"  {c}" for c in shown] + [f"  ... and {more} more, see unfinished in summary.json"] * (more > 0)
        lines[1:1] = [f"what completes it{after}:", *told] if told else []
    return lines


def reasons(summary: Summary, columns: Sequence[str]) -> list[str]:
    """Why numbers are undefined, and how many pairs were dropped, one line a reason."""
    out = []
    rows = {row.explainer: row.estimates for row in summary.rows}
    for table, names in (
        (rows, columns),
        (summary.robustness, SIMILARITIES),
        (summary.pairs, compared(summary)),
    ):
        grouped: dict[str, list[str]] = {}
        for name, estimates in table.items():
            for c in names:
                e = estimates.get(c)
                if e is None:
                    continue
                why = e.reason or (f"{e.dropped} pairs of constant maps dropped" if e.dropped else "")
                if why:
                    grouped.setdefault(f"{c}: {why}", []).append(name)
        out += [f"{why} ({'every row' if len(n) == len(table) else ', '.join(n)})" for why, n in grouped.items()]
    return out


# -------------------------------------------------------------------------------------------------------------- tables


def main_table(summary: Summary, columns: Sequence[str]) -> Table:
    """Every explainer's measures and scores."""
    heads = [Column(c, better="up" if summary.columns[c] else "down", right=True) for c in columns]
    rows = [
        [
            row.explainer,
            *(Marked(row.estimates.get(c), marks(row.marked(c), row.beats_or_misses_whole(c))) for c in columns),
        ]
        for row in summary.rows
    ]
    return Table([Column("explainer"), *heads], rows, "\n".join(head_lines(summary)), LEGEND, dim=(NULL,))


def marks(null: bool, whole: bool = False) -> str:
    """The marks of a number that differs from the null's, and from the whole image's."""
    return MARK * null + WHOLE * whole


def further_tables(summary: Summary) -> dict[str, Table]:
    """What stands below the main table, where there is any: robustness of families, paired differences."""
    out = {}
    if summary.robustness:
        columns = [Column("family"), *(Column(s, right=True) for s in SIMILARITIES)]
        alike = [[family, *(e.get(s) for s in SIMILARITIES)] for family, e in summary.robustness.items()]
        out["Robustness"] = Table(columns, alike, ROBUSTNESS)
    if summary.pairs:
        columns = [Column("pair"), *(Column(c, right=True) for c in compared(summary))]
        apart = [
            [pair, *(Marked(e.get(c), marks(c in e and excludes_zero(e[c]))) for c in compared(summary))]
            for pair, e in summary.pairs.items()
        ]
        out["Differences"] = Table(columns, apart, PAIRS)
    return out


def compared(summary: Summary) -> list[str]:
    """The columns of which any paired difference is known."""
    return list(dict.fromkeys(c for row in summary.pairs.values() for c in row if not math.isnan(row[c].value)))


def every_number(summary: Summary) -> Table:
    """One row an explainer and column, for files."""
    parts = ("low", "high", "se", "null", "samples", "pairs", "dropped", "reason")
    columns = [Column("explainer"), Column("column"), Column("value", parts, stem=""), Column("marked")]
    columns += [Column("minus_whole_image", ("low", "high"), stem="minus_whole_"), Column("unfinished")]
    lack = (summary.head["unfinished"] or {"message": ""})["message"]
    rows = [
        [row.explainer, c, e, row.marked(c), row.to_whole.get(c), lack]
        for row in summary.rows
        for c, e in row.estimates.items()
    ]
    return Table(columns, rows)


def show(summary: Summary, definition: str = "default", to: Console | None = None) -> None:
    """Print it all."""
    to, columns = to or console(), shown(summary, definition)
    for line in alarm_lines(summary):
        to.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    main_table(summary, columns).show(to)
    for line in reasons(summary, columns):
        to.print(f"  {line}", style="yellow", markup=False)
    for table in further_tables(summary).values():
        table.show(to)

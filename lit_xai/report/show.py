"""What people read of a summary: the lines above it, its tables, and why numbers are undefined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from rich.console import Console

from lit_xai import explainers, metrics
from lit_xai.errors import UsageError
from lit_xai.metrics.comparisons import BETTER, WORSE, Mark
from lit_xai.metrics.estimation import VIEWS
from lit_xai.metrics.measures import MEASURES, view
from lit_xai.report.head import percent
from lit_xai.report.summary import Row, Summary, class_of
from lit_xai.report.table import Column, Marked, Table, console
from lit_xai.report.tested import LARGEST

MOST = 10  # commands at the top of a table
SIMILARITIES = ("ssim", "hog", "spearman", "stability")
LEGEND = (
    "value [95 % interval], of mege over samples x predictors, else over samples; /x = mean under permuted labels, or of the whole "
    f"image as an explanation; {BETTER} better, {WORSE} worse than the strongest null (below the line, the whole image; of reco: "
    "permuted labels), corrected by Holm over the explainers of the column; a lone - = undefined, reason below"
)
PAIRS = (
    "paired differences a - b on the same probes [95 % interval], share of the probes on which a is better (ties half); "
    f"{BETTER} a, {WORSE} b is better, corrected by Holm over the pairs of the column"
)
RANKS = (
    "ranks that each may have, nulls left out: all sets of a column hold the true ranks at once with 95 % confidence "
    "(paired max-t bootstrap)"
)
CONSENSUS = (
    "core: share of a map's highest tenth that all folds have in common [95 % interval] /that of maps of different probes; "
    "contradictions: probes that all folds classify rightly while two of their maps differ by more than sampling noise (cases.csv)"
)
TESTED = (
    "of {n} test probes, images that no fold saw. mege_test: MeGe of every two predictors; any two: in 95 % of new images, no two predictors' "
    "maps are further apart; kept: keeping this share of the most important pixels leaves the prediction of every predictor in 95 % of new "
    "images (conformal bounds, right with probability .95 or more over the draw of probes and image{given}; [95 % interval for the "
    "quantile of all images]); every pair and predictor alone: conformal in summary.json"
)
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
    kind = class_of(room, described)
    count = kind.count if kind is not None else ""
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
        f"{h.get('probes', 0):,} random probes, {differ}, distance {h['distance']['name']}, target {h.get('target', 'label')}",
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
    walks = [f"{name} {text}" for name in scores if (text := walked(summary, name))]
    lines += [f"output at the start -> end of the walk, mean over probes: {', '.join(walks)}"] if walks else []
    return lines + [f"warning: {w}" for w in h["warnings"] if w not in h["alarms"]]


def walked(summary: Summary, score: str) -> str:
    """The mean output at both ends of a score's walk, as a range where it differs between explainers; empty where nobody noted it."""
    found = [row.details[score] for row in summary.rows if row.details.get(score)]
    if not found or not all({"start", "end"} <= set(d) for d in found):
        return ""
    ends = [[d[end]["mean"] for d in found] for end in ("start", "end")]
    return " -> ".join("..".join(dict.fromkeys(f"{v:.2f}" for v in (min(e), max(e)))) for e in ends)


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
        ({name: pair.apart for name, pair in summary.pairs.items()}, compared(summary)),
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
    return out + [line for b in summary.beside for line in b.lines()]


# -------------------------------------------------------------------------------------------------------------- tables


def main_table(summary: Summary, columns: Sequence[str]) -> Table:
    """Every explainer's measures and scores, the nulls' below a line; a column that nobody could fill is left out."""
    columns = filled(summary, columns)
    heads = [Column(c, better="up" if summary.columns[c] else "down", right=True) for c in columns]
    rows = [[row.explainer, *(Marked(row.estimates.get(c), row.sign(c)) for c in columns)] for row in summary.rows]
    return Table([Column("explainer"), *heads], rows, "\n".join(head_lines(summary)), LEGEND, below=summary.nulls)


def filled(summary: Summary, columns: Sequence[str]) -> list[str]:
    """The columns of which any number is known; all of them where none is."""
    known = [c for c in columns if any(c in r.estimates and not math.isnan(r.estimates[c].value) for r in summary.rows)]
    return known or list(columns)


def further_tables(summary: Summary, columns: Sequence[str]) -> dict[str, Table]:
    """What stands below the main table, where there is any: ranks, robustness of families, paired differences."""
    out = {}
    ranked, columns = [row for row in summary.rows if row.ranks], filled(summary, columns)
    if len(ranked) > 1:
        heads = [Column("explainer"), *(Column(c, right=True) for c in columns)]
        ranks = [[row.explainer, *(span(row.ranks.get(c)) for c in columns)] for row in ranked]
        out["Ranks"] = Table(heads, ranks, RANKS)
    if summary.consensus:
        heads = [
            Column("explainer"),
            Column("core", better="up", right=True),
            Column("contradictions", better="down", right=True),
        ]
        shared = [[name, *shares(found)] for name, found in summary.consensus.items()]
        out["Consensus"] = Table(heads, shared, CONSENSUS, below=summary.nulls)
    if summary.conformal:
        out["Test probes"] = tested_table(summary)
    if summary.robustness:
        heads = [Column("family"), *(Column(s, right=True) for s in SIMILARITIES)]
        alike = [[family, *(e.get(s) for s in SIMILARITIES)] for family, e in summary.robustness.items()]
        out["Robustness"] = Table(heads, alike, ROBUSTNESS)
    if summary.pairs:
        heads = [Column("pair"), *(Column(c, right=True) for c in compared(summary))]
        marks = summary.pair_marks()
        apart = [
            [name, *(Marked(p.apart.get(c), won(p.won.get(c)) + sign(marks[name].get(c))) for c in compared(summary))]
            for name, p in summary.pairs.items()
        ]
        out["Differences"] = Table(heads, apart, PAIRS)
    return out | {f"Beside {b.source}": b.table for b in summary.beside}


def tested_table(summary: Summary) -> Table:
    """MeGe of the test probes, and the conformal bounds."""
    heads = [Column("explainer"), Column("mege_test", better="up", right=True)]
    heads += [Column(n, better="down", right=True, undefined="{reason}") for n in ("any two", "kept")]
    rows: list[list[Any]] = []
    for row in summary.rows:
        if found := summary.conformal.get(row.explainer):
            bounds = (found.any_two, LARGEST.get(found.distance, math.inf)), (found.by_all, 1.0)
            texts = [None if b is None else b.estimate(most) for b, most in bounds]
            rows.append([row.explainer, Marked(row.estimates.get("mege_test"), row.sign("mege_test")), *texts])
    numbers = sorted({len(c.samples) for c in summary.conformal.values()})
    coverage = {b.coverage for c in summary.conformal.values() if (b := c.any_two or c.by_all) and not b.reason}
    given = "".join(f", given these in {100 * low:.1f} to {100 * high:.1f} % of images" for _, low, high in coverage)
    caption = TESTED.format(n=" or ".join(map(str, numbers)), given=given if len(coverage) == 1 else "")
    return Table(heads, rows, caption, below=summary.nulls)


def shares(found: Mapping[str, Any]) -> list[Any]:
    """The core with its null, and how many of the probes are contradictions."""
    null = found["core_null"] if math.isfinite(found["core_null"]) else None
    number = found["contradictions"]
    return [replace(found["core"], null=null), None if number is None else f"{number} of {found['probes']}"]


def span(ranks: tuple[int, int] | None) -> str | None:
    """A set of ranks: `2-5`, or `1` where there is one."""
    return None if ranks is None else "-".join(map(str, dict.fromkeys(ranks)))


def won(share: float | None) -> str:
    """The share of probes won, behind a difference."""
    return "" if share is None else f" {share:.0%}"


def sign(mark: Mark | None) -> str:
    """The sign of a mark that may not be there."""
    return "" if mark is None else mark.sign


def compared(summary: Summary) -> list[str]:
    """The columns of which any paired difference is known."""
    return list(
        dict.fromkeys(c for row in summary.pairs.values() for c in row.apart if not math.isnan(row.apart[c].value))
    )


PARTS = (
    "low",
    "high",
    "interval",
    "low_samples",
    "high_samples",
    "se",
    "null",
    "samples",
    "predictors",
    "pairs",
    "dropped",
    "reason",
)
CLAIMS = (
    "mark",
    "mark_null",
    "mark_p",
    "mark_p_corrected",
    "mark_correction",
    "share_won",
    "rank_first",
    "rank_last",
    "is_null",
)


def every_number(summary: Summary) -> Table:
    """One row an explainer and column, for files."""
    columns = [Column("explainer"), Column("column"), Column("value", PARTS, stem=""), *map(Column, CLAIMS)]
    columns += [Column("minus_whole_image", ("low", "high"), stem="minus_whole_"), Column("unfinished")]
    lack = (summary.head["unfinished"] or {"message": ""})["message"]
    rows = [
        [row.explainer, c, e, *claims(row, c), row.explainer in summary.nulls, row.to_whole.get(c), lack]
        for row in summary.rows
        for c, e in row.estimates.items()
    ]
    return Table(columns, rows)


def claims(row: Row, column: str) -> list[Any]:
    """What is claimed of a number: `CLAIMS` but for the last."""
    mark = list(row.marks[column].plain().values()) if column in row.marks else [""] * 5
    return [*mark, row.won.get(column, ""), *row.ranks.get(column, ("", ""))]


def show(
    summary: Summary, definition: str = "default", to: Console | None = None, columns: Sequence[str] | None = None
) -> None:
    """Print it all; `columns` in the place of the view's."""
    to, columns = to or console(), shown(summary, definition) if columns is None else columns
    for line in alarm_lines(summary):
        to.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    main_table(summary, columns).show(to)
    for line in reasons(summary, columns):
        to.print(f"  {line}", style="yellow", markup=False)
    for table in further_tables(summary, columns).values():
        table.show(to)

"""The numbers for people: a table on the terminal, JSON, CSV, LaTeX, histograms, and one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lit_xai.cli.schema import NULL
from lit_xai.errors import UsageError
from lit_xai.report.head import percent
from lit_xai.report.summary import Row, Summary

# which measures a table shows; scores follow
VIEWS = {
    "default": ("mege", "reco", "reco_eq6"),
    "paper": ("mege", "reco_eq6"),
    "xplique": ("mege_xplique", "reco_xplique"),
}
MOST = 10  # commands at the top of a table
MARK = "*"
WHOLE = "°"


def shown_or_refuse(definition: str) -> None:
    """Refuse an unknown view before any work is done."""
    if definition not in VIEWS:
        raise UsageError(f"definition must be one of {', '.join(VIEWS)}, found {definition!r}")


def shown(summary: Summary, definition: str) -> list[str]:
    """The columns of a view: its measures, then every score."""
    shown_or_refuse(definition)
    measures = [c for c in VIEWS[definition] if c in summary.columns]
    scores = [c for c in summary.columns if not c.startswith(("mege", "reco"))]
    return measures + scores


def cell(row: Row, column: str) -> str:
    """`value [low, high]`, with the null where the column has one, and its marks; `-` where undefined."""
    e = row.estimates.get(column)
    if e is None or math.isnan(e.value):
        return "-"
    null = f" /{e.null:.2f}" if e.null is not None else ""
    marks = (MARK if row.marked(column) else "") + (WHOLE if row.beats_or_misses_whole(column) else "")
    return f"{e.text()}{null}{marks}"


def arrow(summary: Summary, column: str) -> str:
    """The column's name and direction."""
    return f"{column} {'↑' if summary.columns[column] else '↓'}"


def head_lines(summary: Summary) -> list[str]:
    """What the table rests on."""
    h = summary.head
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
    settings = []
    for name, e in summary.definitions["explainers"].items():
        count = e.get("masks") or e.get("steps") or e.get("samples")
        if count:
            settings.append(f"{name} {count}")
    for name, s in summary.definitions.items():
        if isinstance(s, dict) and "subsets" in s.get("definition", {}):
            settings.append(f"{name} {s['definition']['subsets']} subsets")
    lines.append(f"counts: {', '.join(settings)}")
    for name, e in summary.definitions["explainers"].items():
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
    for table, shown in (
        (rows, columns),
        (summary.robustness, SIMILARITIES),
        (summary.pairs, pair_columns(summary)[1:]),
    ):
        grouped: dict[str, list[str]] = {}
        for name, estimates in table.items():
            for c in shown:
                e = estimates.get(c)
                if e is None:
                    continue
                why = e.reason or (f"{e.dropped} pairs of constant maps dropped" if e.dropped else "")
                if why:
                    grouped.setdefault(f"{c}: {why}", []).append(name)
        out += [f"{why} ({'every row' if len(n) == len(table) else ', '.join(n)})" for why, n in grouped.items()]
    return out


LEGEND = (
    f"value [95 % interval]; /x = mean under permuted labels, or of the whole image as an explanation; {MARK} = the paired "
    f"difference to {NULL} excludes 0; {WHOLE} = that to the whole image does; - = undefined, reason below"
)


def show(summary: Summary, definition: str = "default", console: Console | None = None) -> None:
    """Print the table."""
    console = console or Console(width=None if Console().is_terminal else 180, soft_wrap=False)
    columns = shown(summary, definition)
    for line in alarm_lines(summary):
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)
    table = Table(title="\n".join(head_lines(summary)), title_justify="left", caption=LEGEND, caption_justify="left")
    table.add_column("explainer", no_wrap=True)
    for c in columns:
        table.add_column(arrow(summary, c), justify="right")
    for row in summary.rows:
        cells = [cell(row, c) for c in columns]
        table.add_row(row.explainer, *cells, style="dim" if row.explainer == NULL else None)
    console.print(table)
    for line in reasons(summary, columns):
        console.print(f"  {line}", style="yellow", markup=False)
    if summary.robustness:
        alike = Table(title=ROBUSTNESS, title_justify="left")
        for column in ("family", *SIMILARITIES):
            alike.add_column(column, justify="left" if column == "family" else "right")
        for family, cells in robustness_rows(summary):
            alike.add_row(family, *cells)
        console.print(alike)
    if summary.pairs:
        apart = Table(title=PAIRS, title_justify="left")
        for column in pair_columns(summary):
            apart.add_column(column, justify="left" if column == "pair" else "right")
        for cells in pair_rows(summary):
            apart.add_row(*cells)
        console.print(apart)


PAIRS = f"paired differences on the same probes [95 % interval]; {MARK} = the interval excludes 0"
ROBUSTNESS = (
    "similarity of the maps of one method's variants, mean over pairs and probes [95 % interval]; stability: distance of "
    "their superpixels' values to the variants' mean, lower = more stable"
)
SIMILARITIES = ("ssim", "hog", "spearman", "stability")


def robustness_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """Family and cells of the robustness table."""
    return [(f, [cell(Row(f, estimates), s) for s in SIMILARITIES]) for f, estimates in summary.robustness.items()]


def pair_columns(summary: Summary) -> list[str]:
    """The head of the table of differences."""
    return ["pair", *dict.fromkeys(c for row in summary.pairs.values() for c in row if not math.isnan(row[c].value))]


def pair_rows(summary: Summary) -> list[list[str]]:
    """Its rows."""
    rows = []
    for name, row in summary.pairs.items():
        cells = [cell(Row(name, row, row), c) if c in row else "-" for c in pair_columns(summary)[1:]]
        rows.append([name, *cells])
    return rows


def latex(summary: Summary, columns: Sequence[str]) -> str:
    """A booktabs table."""

    def escape(text: str) -> str:
        return text.replace("_", r"\_").replace("%", r"\%").replace(WHOLE, r"$^\circ$")

    lines = [f"% {line}" for line in (*alarm_lines(summary), *head_lines(summary))]
    lines += [r"\begin{tabular}{l" + "r" * len(columns) + "}", r"\toprule"]
    arrows = [rf"{escape(c)} $\{'uparrow' if summary.columns[c] else 'downarrow'}$" for c in columns]
    lines += [" & ".join(["explainer", *arrows]) + r" \\", r"\midrule"]
    for row in summary.rows:
        cells = [escape(cell(row, c)) for c in columns]
        lines.append(" & ".join([escape(row.explainer), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

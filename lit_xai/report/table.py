"""One table, of which files, the terminal, LaTeX and pages show the same texts."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from lit_xai.metrics.statistics import Estimate

MARK, WHOLE = "*", "°"
ARROWS = {"up": "↑", "down": "↓", "zero": "→0"}
TEX = {"_": r"\_", "%": r"\%", WHOLE: r"$^\circ$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→0": r"$\to 0$"}


class Marked(NamedTuple):
    """An estimate with the marks that stand behind it."""

    estimate: Estimate | None
    marks: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: in files.
        parts: what files have of an estimate beside its value, each in a field of its own: `low`, `high`, `null`, `reason` ...
        stem: what those fields' names begin with; None = the name and an underscore.
        better: `up`, `down` or `zero` (near 0), shown as an arrow.
        head: what people read above it; empty = the name.
        right: aligned to the right on the terminal.
        shown: False = in files alone.
        undefined: text in the place of a missing value; `{reason}` is why it is missing.
    """

    name: str
    parts: tuple[str, ...] = ()
    stem: str | None = None
    better: str = ""
    head: str = ""
    right: bool = False
    shown: bool = True
    undefined: str = "-"

    def title(self, head: str = "") -> str:
        """Its head with the arrow."""
        return f"{head or self.head or self.name} {ARROWS.get(self.better, '')}".strip()

    def fields(self) -> list[str]:
        """Its fields in a file."""
        stem = f"{self.name}_" if self.stem is None else self.stem
        return [self.name, *(f"{stem}{part}" for part in self.parts)]


def interval(name: str, **options: Any) -> Column:
    """A column of estimates, of which files have the bounds."""
    return Column(name, ("low", "high"), **options)


def cell(value: Any, digits: int | None = 3, zeros: bool = False, undefined: str = "-") -> str:
    """`value [low, high] /null` with its marks; `undefined` in the place of a number that is missing.

    `digits` after the point, None = the fewer the larger the number; `zeros` before the points of the bounds.
    """
    e, marks = value if isinstance(value, Marked) else (value, "")
    if e is None or (isinstance(e, Estimate) and math.isnan(e.value)):
        return undefined.replace("{reason}", "" if e is None else e.reason)
    if not isinstance(e, Estimate):
        return f"{e:.3f}" if isinstance(e, float) else str(e)
    if digits is None:
        size = max(abs(v) for v in (e.value, e.low, e.high) if not math.isnan(v))
        digits = next((d for least, d in ((100, 0), (10, 1), (1, 2)) if size >= least), 3)
    null = f" /{round(e.null, 2) + 0.0:.2f}" if e.null is not None else ""  # never -0.00
    return f"{e.text(digits, zeros)}{null}{marks}"


def console() -> Console:
    """The terminal; 180 characters wide where there is none."""
    return Console(width=None if Console().is_terminal else 180, soft_wrap=False)


@dataclass(frozen=True)
class Table:
    """Columns and rows; a cell is a text, a number, an `Estimate`, a `Marked` one, or None where there is nothing.

    Attributes:
        title, caption: what stands above and below it.
        below: first cells of rows that stand below a line; they are the last ones.
        digits, zeros: of its numbers, see `cell`.
        missing: what files hold where a number is undefined.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    caption: str = ""
    below: Collection[str] = ()
    digits: int | None = 3
    zeros: bool = False
    missing: Any = ""

    @property
    def shown(self) -> list[Column]:
        """The columns for people."""
        return [c for c in self.columns if c.shown]

    @property
    def line(self) -> int:
        """The number of rows above the line."""
        return sum(row[0] not in self.below for row in self.rows)

    def texts(self) -> list[list[str]]:
        """The cells for people, row by row."""
        return [
            [
                cell(value, self.digits, self.zeros, column.undefined)
                for column, value in zip(self.columns, row, strict=True)
                if column.shown
            ]
            for row in self.rows
        ]

    def file(self) -> tuple[list[str], list[list[Any]]]:
        """The first line and the rows of a file."""
        rows = [
            [f for c, value in zip(self.columns, row, strict=True) for f in self.fields(c, value)] for row in self.rows
        ]
        return [name for c in self.columns for name in c.fields()], rows

    def fields(self, column: Column, value: Any) -> list[Any]:
        """What a file holds of one cell."""
        e = value.estimate if isinstance(value, Marked) else value
        if not isinstance(e, Estimate):
            return ["" if e is None else e, *[""] * len(column.parts)]
        if math.isnan(e.value) and column.undefined == "{reason}":
            return [e.reason, *[""] * len(column.parts)]
        known = {**e.numbers(), "note": e.reason}
        found = [known[part] for part in ("value", *column.parts)]
        return [self.missing if isinstance(v, float) and math.isnan(v) else v for v in found]

    def show(self, to: Console | None = None) -> None:
        """Print it on the terminal; no text of a table is a style of the terminal's."""
        title, caption = escape(self.title) or None, escape(self.caption) or None
        table = RichTable(title=title, title_justify="left", caption=caption, caption_justify="left")
        for number, column in enumerate(self.shown):
            table.add_column(
                escape(column.title()),
                justify="right" if column.right else "left",
                no_wrap=number == 0 and any(c.right for c in self.shown),
            )
        for number, texts in enumerate(self.texts()):
            if number == self.line:
                table.add_section()
            table.add_row(*map(escape, texts), style="dim" if number >= self.line else None)
        (to or console()).print(table)

    def latex(self, comments: Sequence[str] = ()) -> str:
        """A booktabs table below lines of comments."""
        lines = [f"% {line}" for line in comments]
        lines += [r"\begin{tabular}{l" + "r" * (len(self.shown) - 1) + "}", r"\toprule"]
        body = [" & ".join(map(escaped, row)) + r" \\" for row in self.texts()]
        body[self.line : self.line] = [r"\midrule"] * (0 < self.line < len(body))
        titles = " & ".join(escaped(c.title(c.name)) for c in self.shown) + r" \\"
        return "\n".join([*lines, titles, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])

    def html(self) -> str:
        """For a page: every row begins with its heading."""
        heads = "".join(f"<th>{html.escape(c.title())}</th>" for c in self.shown)
        rows = [[html.escape(text) for text in row] for row in self.texts()]
        kinds = ["", ' class="below"', ' class="below line"']
        body = "".join(
            f"<tr{kinds[(n >= self.line) + (n == self.line)]}><th>{first}</th>{''.join(f'<td>{t}</td>' for t in rest)}</tr>"
            for n, (first, *rest) in enumerate(rows)
        )
        return f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'


def escaped(text: str) -> str:
    """A text for LaTeX."""
    for plain, tex in TEX.items():
        text = text.replace(plain, tex)
    return text

"""What every benchmark shares: timing in alternation, targets, and a report that prints and keeps itself."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Cell = str | float | int | None


@dataclass(frozen=True)
class Target:
    """A number that is promised: `value` must be at most `limit` (at least it, with `at_least`); None = it could not be measured."""

    name: str
    value: float | None
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the promise is kept (neither NaN nor None keeps one)."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'} {self.name}: {text_of(self.value)} (target {self.wanted})"

    @property
    def wanted(self) -> str:
        """The limit with its sign."""
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass
class Report:
    """One benchmark's table, its targets, and what a reader must know to read it."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """The table, the targets and the notes on the terminal."""
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*map(text_of, row))
        console.print(table)
        for target in self.targets:
            console.print(str(target), style="green" if target.met else "bold red", highlight=False)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)
        console.print()

    def said(self) -> str:
        """The last row in a line."""
        first, *cells = zip(self.columns, self.rows[-1], strict=True)
        return ", ".join([text_of(first[1]), *(f"{c} {text_of(v)}" for c, v in cells if v is not None)])

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "targets": [{**asdict(t), "met": t.met} for t in self.targets],
            "notes": self.notes,
        }


def text_of(cell: Cell) -> str:
    """A table cell: three significant digits, `-` for nothing."""
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def finished(work: Callable[[], object], device: torch.device | str) -> Callable[[], None]:
    """The same work, over when the device has done it."""

    def run() -> None:
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)

    return run


def alternate(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every piece of work, `rounds` times each, after one warm-up.

    The pieces take turns and every other round runs backwards, so that a machine that slows down slows all of them.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        names = list(works) if number % 2 == 0 else list(works)[::-1]
        for name in names:
            times[name].append(seconds(works[name]))
    return times


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """The median of the paired ratios of two pieces of work of `alternate`."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def spread(times: Mapping[str, Sequence[float]], over: str, under: str) -> str:
    """Smallest and largest of the paired ratios: how far the median can be trusted."""
    pairs = [a / b for a, b in zip(times[over], times[under], strict=True)]
    return f"{min(pairs):.2f}-{max(pairs):.2f}"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    found = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}
    return {
        **found,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
    }

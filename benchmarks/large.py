"""LIME at 224 px over the bare model calls and the peers (two rounds of one image)."""

from __future__ import annotations

from benchmarks.harness import Report
from benchmarks.perturbation import lime_contest, new_report


def large(rounds: int = 2) -> Report:
    """LIME on 224 px images."""
    report = new_report("LIME on large images")
    lime_contest(report, rounds, 224, 1, 96)
    return report

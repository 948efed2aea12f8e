"""Spearman distances of pairs of maps: over one sort of the same maps, and against a loop over scipy."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from lit_xai.metrics.distance import correlation, unit_ranks
from lit_xai.report.ensemble import VALUES
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.harness import Report, Target, alternate, ratio, spread

FOLDS, SAMPLES, SIDE = 5, 1500, 32
SUBSET = 150  # samples whose pairs scipy correlates; its time is scaled
ROUNDS = 5
CHUNK = VALUES // SIDE**2
FASTER = {1: 3.5, 2: 5.0}  # threads: times faster than scipy


def pair_correlations(maps: Tensor, home: Tensor) -> Tensor:
    """`[samples, folds - 1]`: the home fold's map with every other fold's, each map ranked once, chunk by chunk."""
    out = []
    for start in range(0, maps.shape[1], CHUNK):
        ranks = torch.stack([unit_ranks(fold[start : start + CHUNK]) for fold in maps])
        rows = torch.arange(ranks.shape[1])
        here = home[start : start + CHUNK]
        others = [(here + shift) % len(maps) for shift in range(1, len(maps))]
        out.append(torch.stack([correlation(ranks[here, rows], ranks[other, rows]) for other in others], dim=1))
    return torch.cat(out)


def scipy_correlations(maps: Tensor, home: Tensor) -> Tensor:
    """The same by a loop over `scipy.stats.spearmanr`."""
    flat = maps.flatten(2).numpy()
    out = np.empty((maps.shape[1], len(maps) - 1))
    for row, i in enumerate(home.tolist()):
        for shift in range(1, len(maps)):
            out[row, shift - 1] = spearmanr(flat[i, row], flat[(i + shift) % len(maps), row]).statistic
    return torch.from_numpy(out)


def distances() -> Report:
    """Continuous maps and maps with ties, at one thread and two."""
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(1, SAMPLES, SIDE, SIDE, generator=g)
    continuous = shared + torch.randn(FOLDS, SAMPLES, SIDE, SIDE, generator=g)
    home = torch.arange(SAMPLES) * FOLDS // SAMPLES
    few = torch.arange(0, SAMPLES, SAMPLES // SUBSET)
    report = Report(
        f"distances: {FOLDS} maps of {SAMPLES} samples, {SIDE} px, {FOLDS - 1} pairs a sample",
        ["maps", "threads", "sort s", "ours s", "ours/sort", "range", "scipy s", "scipy/ours", "largest difference"],
    )
    before = torch.get_num_threads()
    try:
        for kind, maps in (("continuous", continuous), ("ties (16 levels)", quantised(continuous))):
            flat = maps.flatten(0, 1).flatten(1)
            error = (pair_correlations(maps, home)[few] - scipy_correlations(maps[:, few], home[few])).abs().max()
            report.targets.append(Target(f"{kind}: difference to scipy", float(error), 1e-6))
            for threads, faster in FASTER.items():
                torch.set_num_threads(threads)
                works: dict[str, Callable[[], object]] = {
                    "sort": lambda flat=flat: torch.sort(flat, dim=1),  # type: ignore[misc]
                    "ours": lambda maps=maps: pair_correlations(maps, home),  # type: ignore[misc]
                    "scipy": lambda maps=maps: scipy_correlations(maps[:, few], home[few]),  # type: ignore[misc]
                }
                times = alternate(works, ROUNDS)
                times["scipy"] = [t * SAMPLES / len(few) for t in times["scipy"]]
                s = {name: statistics.median(t) for name, t in times.items()}
                over, gain = ratio(times, "ours", "sort"), ratio(times, "scipy", "ours")
                report.rows.append(
                    [
                        kind,
                        threads,
                        s["sort"],
                        s["ours"],
                        over,
                        spread(times, "ours", "sort"),
                        s["scipy"],
                        gain,
                        float(error),
                    ]
                )
                report.targets.append(Target(f"{kind}, {threads} threads: ours over one sort", over, 2.0))
                report.targets.append(
                    Target(f"{kind}, {threads} threads: scipy over ours", gain, faster, at_least=True)
                )
    finally:
        torch.set_num_threads(before)
    report.notes = [f"scipy was timed on {len(few)} of the {SAMPLES} samples and scaled; it uses one thread."]
    return report


def quantised(maps: Tensor) -> Tensor:
    """Maps with at most 16 values, so that every rank is shared."""
    return (maps * 3).round().clamp(-8, 7)

"""Measures of the Fashion-MNIST protocol beside the rows that Fel et al. (2022) print, with rank correlations.

python docs/reproduction.py checkpoints/fashion_mnist-resnet18 checkpoints/fashion_mnist-lipschitz

Every folder has been explained and evaluated (`summary.json`). docs/reproduction.md shows what came out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lit_xai.report.table import Column, Table
from scipy.stats import spearmanr

SIGNED, ABSOLUTE = "integrated_gradients", "absolute_integrated_gradients"
METHODS = ("saliency", "gradient_input", ABSOLUTE, "smoothgrad", "gradcam", "gradcam_plus_plus", "rise")
FASHION, CIFAR, LIPSCHITZ = "Fashion-MNIST", "CIFAR-10", "CIFAR-10, 1-Lipschitz"
MUF = (0.23, 0.10, 0.11, 0.31, 0.91, 0.89, 0.84)
PRINTED = {  # what the paper prints that is nearest, in the order of METHODS: of residual networks, and of 1-Lipschitz ones
    False: {
        "mege": (FASHION, (0.30, 0.90, 0.90, 0.36, 0.77, 0.84, 0.52)),
        "reco": (FASHION, (0.10, 0.37, 0.37, 0.13, 0.52, 0.32, 0.37)),
        "mufidelity": (CIFAR, MUF),
    },
    True: {
        "mege": (LIPSCHITZ, (0.58, 0.67, 0.72, 0.60, 0.75, 0.54, 0.85)),
        "reco": (LIPSCHITZ, (0.81, 0.50, 0.60, 0.90, 0.67, 0.24, 0.84)),
        "mufidelity": (CIFAR, MUF),
    },
}
MEASURES = {
    "mege": "mege",
    "reco": "reco",
    "reco_label": "reco",
    "mufidelity": "mufidelity",
    "mufidelity_cells": "mufidelity",
}


def table_of(summary: dict[str, Any]) -> Table:
    """One line a measure: the seven methods, |IG| among them, the signed IG, the rank correlations with the printed row; and that row."""
    columns = ["", "SA", "GI", "|IG|", "SG", "GC", "G+", "RI", "IG", "rho, |IG|", "rho, IG", "printed for"]
    constants = summary["head"]["empirical_lipschitz"].values()
    printed = PRINTED[all(v is not None and v < 1.01 for v in constants)]
    rows: list[list[Any]] = []
    for measure, like in MEASURES.items():
        data, theirs = printed[like]
        values = {m: summary["rows"][m][measure]["value"] for m in (*METHODS, SIGNED)}
        found = [[values[SIGNED if m == ABSOLUTE and signed else m] for m in METHODS] for signed in (False, True)]
        rho = [two(spearmanr(f, theirs).statistic) if None not in f else "-" for f in found]
        rows.append([measure, *(two(values[m]) for m in (*METHODS, SIGNED)), *rho, data])
    rows += [[f"printed {name}", *map(two, theirs), *("",) * 3, data] for name, (data, theirs) in printed.items()]
    return Table([Column(c, right=bool(c)) for c in columns], rows, summary["head"]["name"])


def walks(summary: dict[str, Any]) -> list[str]:
    """Where deletion and insertion start and end, and how far the best of the seven methods is from the worst."""
    out = []
    for score in ("deletion", "insertion"):
        cells = {m: summary["rows"][m][score] for m in METHODS}
        ends = [cells[METHODS[0]]["details"][end]["mean"] for end in ("start", "end")]
        order = sorted(cells, key=lambda m: cells[m]["value"])
        low, high = (cells[order[i]]["value"] for i in (0, -1))
        span = f"{two(low)} ({order[0]}) .. {two(high)} ({order[-1]}), {two(high - low)} apart"
        out.append(f"{score}: p {two(ends[0])} -> {two(ends[1])}, {span}")
    return out


def two(value: float | None) -> str:
    """Two decimals."""
    return "-" if value is None else f"{value:.2f}"


def main() -> None:
    """Compare every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="checkpoints/<name>")
    for folder in parser.parse_args().folder:
        summary = json.loads((folder / "summary.json").read_text())
        table_of(summary).show()
        print(*walks(summary), sep="\n")


if __name__ == "__main__":
    main()

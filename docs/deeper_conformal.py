"""How often conformal bounds hold, in simulation and on the test probes of a folder: docs/deeper.md shows what came out.

python docs/deeper_conformal.py                              # simulated distances, with and without ties
python docs/deeper_conformal.py checkpoints/digits-half      # its folds after explain probes=test test_probes=null

Of a folder's test probes, n at random make the bound and the others are the new images, again and again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from lit_xai.metrics.conformal import SHARE, bound, rank
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.table import Column, Table
from lit_xai.report.tested import pairs_of_tests
from lit_xai.store.names import TEST
from scipy.stats import betabinom
from torch import Tensor

LAWS = {
    "uniform": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64),
    "heavy-tailed": lambda shape, g: torch.rand(shape, generator=g, dtype=torch.float64) ** -2,
    "four values (ties)": lambda shape, g: torch.randint(4, shape, generator=g).double(),
}


def rows_of(name: str, numbers: Iterator[tuple[Tensor, Tensor]], n: int, new: int) -> list[object]:
    """One line: how often new numbers lie below the bound of n, and how often that share is below its exact 2.5 % quantile."""
    shares = torch.tensor([float((x <= bound(own).value).double().mean()) for own, x in numbers], dtype=torch.float64)
    k = rank(n, SHARE)
    law = betabinom(new, k, n + 1 - k)
    se = float(shares.std() / len(shares) ** 0.5)
    mean, low = float(shares.mean()), float(law.ppf(0.025)) / new
    within = f"{mean:.4f} [{mean - 1.96 * se:.4f}, {mean + 1.96 * se:.4f}]"
    below = float((shares < low).double().mean())
    return [name, n, new, f"{SHARE:.3f} .. {SHARE + 1 / (n + 1):.4f}", f"{k / (n + 1):.4f}", within, below]


def simulated(sizes: list[int], repeats: int) -> list[list[object]]:
    """Of laws that are known."""
    rows, new = [], 500
    for name, law in LAWS.items():
        for n in sizes:
            g = torch.Generator().manual_seed(n)
            draws = (law((n + new,), g) for _ in range(repeats))
            rows.append(rows_of(name, ((x[:n], x[n:]) for x in draws), n, new))
    return rows


def measured(folder: Path, sizes: list[int], repeats: int) -> list[list[object]]:
    """Of the distances between two predictors' maps, and of kept shares, of a folder's test probes."""
    ensemble, rows = Ensemble(folder), []
    for explainer in ensemble.explainers():
        readers = ensemble.readers(explainer, TEST)
        pairs = pairs_of_tests(readers, ensemble.predictions_of_tests, "spearman", 0)
        i, j = ensemble.folds[:2]
        first = readers[i]
        sets = {
            f"{explainer}, distance {i}-{j}": pairs.take((pairs.i == i) & (pairs.j == j)).distance,
            f"{explainer}, kept share {i}": first.rows(first.samples, "score/kept_share"),
        }
        for name, x in sets.items():
            x = torch.where(torch.isnan(x), math.inf, x)
            for n in (n for n in sizes if 2 * n <= len(x)):
                g = torch.Generator().manual_seed(n)
                orders = (x[torch.randperm(len(x), generator=g)] for _ in range(repeats))
                rows.append(rows_of(name, ((o[:n], o[n:]) for o in orders), n, len(x) - n))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--n", type=int, nargs="+", default=[19, 60, 100, 200])
    parser.add_argument("--repeats", type=int, default=4000)
    given = parser.parse_args()
    rows = simulated(given.n, given.repeats) if given.folder is None else measured(given.folder, given.n, given.repeats)
    heads = ["numbers", "n", "new", "bounds", "k / (n + 1)", "coverage [95 %]", "below 2.5 % quantile"]
    Table([Column(h) for h in heads], rows).show()


if __name__ == "__main__":
    main()

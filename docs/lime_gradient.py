"""Table 1 of Garreau & Mardaoui (2021): do LIME and the averaged gradient name the same superpixels?

    python docs/lime_gradient.py [--images 50] FOLDER [FOLDER ...]      FOLDER = checkpoints/<name>/fold=0

Mean Jaccard index of the 5 and 10 largest positive superpixels on held-out images; LIME's coefficients are the mean of
five runs (1,000 samples, the package's defaults). With 95 % intervals and the value expected of random sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lit_xai.cli.build import build_data, read_config
from lit_xai.cli.offered import refuse_other_code
from lit_xai.crossval import load
from lit_xai.explainers import AveragedGradient, Lime
from lit_xai.metrics.agreement import expected_jaccard, jaccard_top
from lit_xai.metrics.statistics import mean_estimate
from lit_xai.rng import SampleRng
from lit_xai.segments import Quickshift
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

RUNS, TOPS, BATCH = 5, (5, 10), 10


def agreement(folder: Path, images: int, samples: int) -> list[str]:
    """One row: name, held-out accuracy, superpixels, and J5, J10 with their random values."""
    fold = int(folder.name.removeprefix("fold="))
    cfg = read_config(folder / "config.yaml")
    refuse_other_code(cfg, folder / "config.yaml", ("data",))
    data = build_data(cfg["data"], fold, cfg["seed"], cfg["label_noise"])
    model = load(folder.parent, fold).model
    held = data.held_out
    chosen = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:images]]
    values: dict[int, list[torch.Tensor]] = {k: [] for k in TOPS}
    random: dict[int, list[torch.Tensor]] = {k: [] for k in TOPS}
    counts, right = [], 0
    for part in tqdm(chosen.split(BATCH), desc=folder.parent.name, leave=False):
        x = data.source.train.images(part.tolist())
        with torch.inference_mode():
            target = model(x).argmax(1)
        right += int((target == data.split.label(part)).sum())
        lime, gradient = Lime(Quickshift(gain=255), samples=samples), AveragedGradient()
        segments = lime.segments(x)
        reference = gradient.coefficients(model, x, target, segments).double()
        runs = []
        for run in range(RUNS):
            s = lime.explain(model, x, target, SampleRng(run, tuple(part.tolist())), segments=segments)
            runs.append(s.coefficients)
        counts.append(s.counts)
        for k in TOPS:
            values[k].append(jaccard_top(reference, torch.stack(runs).mean(0), k))
            random[k].append(expected_jaccard(s.counts, k))
    d = torch.cat(counts).double()
    row = [folder.parent.name, f"{right / len(chosen):.2f}", f"{d.mean():.0f} ({int(d.min())}..{int(d.max())})"]
    for k in TOPS:
        e = mean_estimate(torch.cat(values[k]))
        row.append(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}] / {float(torch.cat(random[k]).mean()):.2f}")
    return row


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    table = Table(title="LIME against the averaged gradient [95 % interval] / random sets", title_justify="left")
    for column in ("model", "accuracy", "superpixels", "J5", "J10"):
        table.add_column(column)
    for folder in options.folders:
        table.add_row(*agreement(folder, options.images, options.samples))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

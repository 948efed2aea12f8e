"""Table 1 of Garreau & Mardaoui (2021): do LIME and the averaged gradient name the same superpixels?

    python docs/lime_gradient.py [--images 50] FOLDER [FOLDER ...]      FOLDER = checkpoints/<name>/fold=0

Mean Jaccard index of the 5 and 10 largest positive superpixels on held-out images; LIME's coefficients are the mean of
five runs (1,000 samples, the package's defaults). With 95 % intervals and the value expected of random sets, and beside what
the paper prints for its networks of CIFAR-10: `model=one_layer`, and `model=vgg` of 1, 2 and 3 blocks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lit_xai.cli.build import build_data, read_config
from lit_xai.cli.offered import refuse_other_code
from lit_xai.crossval import load
from lit_xai.explainers import AveragedGradient, Lime
from lit_xai.metrics.agreement import expected_jaccard, jaccard_top
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.report import printed
from lit_xai.report.table import Column, Table, interval
from lit_xai.rng import SampleRng
from lit_xai.segments import Quickshift
from tqdm import tqdm

RUNS, BATCH = 5, 10
TOPS = {"J5": 5, "J10": 10}
PRINTED = {
    "source": "Garreau & Mardaoui (2021), table 1, CIFAR-10",
    "columns": {
        "J5": {"1-layer": 0.99, "VGG1": 0.81, "VGG2": 0.75, "VGG3": 0.71},
        "J10": {"1-layer": 0.99, "VGG1": 0.85, "VGG2": 0.81, "VGG3": 0.76},
    },
}
COLUMNS = ["model", "folder", "accuracy", "superpixels", "J5", "J10"]


def named(model: Mapping[str, Any], folder: Path) -> str:
    """The paper's name of a network; the folder's of another one."""
    known = {"one_layer": "1-layer", "vgg": f"VGG{(model.get('network') or {}).get('blocks')}"}
    return known.get(str(model.get("name")), folder.parent.name)


def agreement(folder: Path, images: int, samples: int) -> tuple[list[Any], dict[str, Estimate]]:
    """One row: names, held-out accuracy, superpixels, and J5, J10, each with the value of random sets; and these two."""
    fold = int(folder.name.removeprefix("fold="))
    cfg = read_config(folder / "config.yaml")
    refuse_other_code(cfg, folder / "config.yaml", ("data",))
    data = build_data(cfg["data"], fold, cfg["seed"], cfg["label_noise"])
    model = load(folder.parent, fold).model
    held = data.held_out
    chosen = held[torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:images]]
    values: dict[str, list[torch.Tensor]] = {j: [] for j in TOPS}
    random: dict[str, list[torch.Tensor]] = {j: [] for j in TOPS}
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
        for j, k in TOPS.items():
            values[j].append(jaccard_top(reference, torch.stack(runs).mean(0), k))
            random[j].append(expected_jaccard(s.counts, k))
    d = torch.cat(counts).double()
    found = {j: mean_estimate(torch.cat(values[j])) for j in TOPS}
    shown = [replace(e, null=float(torch.cat(random[j]).mean())) for j, e in found.items()]
    about = [named(cfg["model"], folder), str(folder), right / len(chosen)]
    return [*about, f"{d.mean():.0f} ({int(d.min())}..{int(d.max())})", *shown], found


def main() -> None:
    """The table, and the paper's beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    rows, found = zip(*(agreement(f, options.images, options.samples) for f in options.folders), strict=True)
    columns = [interval(c) if c in TOPS else Column(c) for c in COLUMNS]
    Table(columns, rows, "LIME against the averaged gradient [95 % interval] /random sets").show()
    names = [row[0] for row in rows]
    ours = {row[0 if names.count(row[0]) == 1 else 1]: of for row, of in zip(rows, found, strict=True)}
    printed.show([printed.beside(p, ours) for p in printed.read([PRINTED])])


if __name__ == "__main__":
    main()

"""Two counts of docs/shortcuts.md that no command gives.

python docs/shortcuts.py others checkpoints/digits-resnet18-plant=tag ...   # audited folders: is a predictor like the others told from them?
python docs/shortcuts.py weights checkpoints/fashion-noise/label_errors.csv # with planted errors: would a smaller weight of reasons help?
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from lit_xai.metrics.label_errors import ALONE, CONFIDENCE, area, ways
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.shortcut import apart, others_of
from lit_xai.store.names import SHORTCUTS
from lit_xai.store.tensors import read_tensors

WEIGHTS = (0, 0.02, 0.05, 0.1, 0.2, 0.5)


def others(folders: list[str], methods: list[str]) -> None:
    """Every predictor that saw the clean fold in the place of the one that did not, beside the rest of them."""
    above = below = number = 0
    for folder in folders:
        ensemble = Ensemble(folder)
        files = {f: read_tensors(ensemble.stores[f].root / SHORTCUTS) for f in ensemble.folds}
        files = {f: file for f, file in files.items() if f != file[1]["clean"]}
        for method in methods:
            mass = {f: others_of(ensemble, f, t[f"mass/{method}"], t["probe"]) for f, (t, _) in files.items()}
            for f in mass:
                found = apart(mass[f], torch.stack([m for other, m in mass.items() if other != f]))
                above, below, number = above + (found.low > 0), below + (found.high < 0), number + 1
    print(f"{number} intervals: {above} above 0, {below} below")


def weights(file: Path) -> None:
    """The area under the ROC curve within the list, by the weight of the rank by reasons."""
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["listed"] == "yes"]
    sure, why = (torch.tensor([float(row[n]) for row in rows]) for n in ("probability", "reasons"))
    wrong = torch.tensor([row["given"] != row["true"] for row in rows])
    ranks = ways(sure, why)
    for weight in WEIGHTS:
        print(f"weight {weight:g}: {area(-(1 - weight) * ranks[CONFIDENCE] - weight * ranks[ALONE], wrong).text()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["others", "weights"])
    parser.add_argument("paths", nargs="+", help="folders of an audit, or a label_errors.csv")
    parser.add_argument("--methods", nargs="+", default=["gradcam", "gradient_input", "rise", "saliency"])
    given = parser.parse_args()
    if given.what == "others":
        others(given.paths, given.methods)
    else:
        weights(Path(given.paths[0]))

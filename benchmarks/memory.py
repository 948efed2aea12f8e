"""Peak memory of perturbation explainers: it must depend on `max_batch`, not on samples, windows or steps."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.evaluate import peak_gb
from benchmarks.harness import Report, Target

SIDE, BATCH = 32, 2
COUNTS = (1_000, 10_000)
GROWTH = 1.1
METHODS = ("lime", "sliding_patch", "meaningful_perturbation")


def work(method: str, count: int) -> None:
    """Explain two images by a small network with about `count` model inputs each; print the peak memory in MB."""
    import torch
    from lit_xai.core import Explainer
    from lit_xai.explainers import Lime, MeaningfulPerturbation, SlidingPatch
    from lit_xai.fillers.constant import Colour
    from lit_xai.segments import Grid
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    side, stride = SIDE, 1
    if method == "sliding_patch":  # images of one size
        side = round(COUNTS[-1] ** 0.5) + 3
        stride = round((COUNTS[-1] / count) ** 0.5)
    images = torch.rand(BATCH, 3, side, side)
    explainers: dict[str, Explainer] = {
        "lime": Lime(Grid(7), samples=count),
        "sliding_patch": SlidingPatch(4, stride, Colour(0.5), scale=False),
        "meaningful_perturbation": MeaningfulPerturbation(steps=count // 20),
    }
    explainers[method](model, images, torch.arange(BATCH))
    print(json.dumps(1000 * peak_gb()))


def peak(method: str, count: int) -> float:
    """Peak memory of a process of its own, MB."""
    command = [sys.executable, "-c", f"from benchmarks.memory import work; work({method!r}, {count})"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def memory() -> Report:
    """Peak memory at 1,000 and 10,000 samples, windows, or ten times the steps."""
    report = Report(
        f"peak memory of a process, {BATCH} images, max_batch 64",
        ["method", *(f"{c:,} inputs, MB" for c in COUNTS), "growth"],
    )
    for method in METHODS:
        few, many = (peak(method, c) for c in COUNTS)
        report.rows.append([method, few, many, many / few])
        report.targets.append(Target(f"{method}: growth from {COUNTS[0]:,} to {COUNTS[1]:,}", many / few, GROWTH))
    report.notes = ["Python and torch included. Meaningful perturbation runs 50 and 500 steps."]
    return report

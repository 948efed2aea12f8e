"""RISE in bf16 against float32: the gain, and how far the maps agree."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch
from lit_xai.explainers import RISE
from lit_xai.metrics.distance import correlation, unit_ranks

from benchmarks.harness import Report, alternate, ratio, spread
from benchmarks.setting import BATCH, SIDE, model_and_images

MASKS = 16
ROUNDS = 3


def precision() -> Report:
    """float32 time over bf16 time, and the mean Spearman correlation of the maps (same masks)."""
    model, images, targets = model_and_images()
    full = RISE(MASKS, max_batch=BATCH)
    half = replace(full, precision="bf16")
    maps = {"float32": full(model, images, targets), "bf16": half(model, images, targets)}
    times = alternate(
        {"float32": lambda: full(model, images, targets), "bf16": lambda: half(model, images, targets)}, ROUNDS
    )
    agreement = correlation(unit_ranks(maps["float32"]), unit_ranks(maps["bf16"]))
    report = Report(
        f"RISE precision: ResNet-18, {SIDE} px, batch {BATCH}, {MASKS} masks, {torch.get_num_threads()} threads",
        ["precision", "seconds", "gain", "range", "mean Spearman", "smallest Spearman"],
    )
    report.rows.append(["float32", statistics.median(times["float32"]), 1.0, None, 1.0, 1.0])
    report.rows.append(
        [
            "bf16",
            statistics.median(times["bf16"]),
            ratio(times, "float32", "bf16"),
            spread(times, "float32", "bf16"),
            f"{float(agreement.mean()):.4f}",
            f"{float(agreement.min()):.4f}",
        ]
    )
    report.notes = [
        "The network is untrained, so its maps resemble the mean mask; the gain depends on whether the processor multiplies bf16 natively."
    ]
    return report

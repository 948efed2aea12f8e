"""What a store's files and folders are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

FORMAT = 1
# of random probes; of disagreements, for their labels; for what a wrong predictor says
RANDOM, DISAGREEMENTS, DECISIONS = "maps", "disagreements", "decisions"
# of held-out probes once more: by the same network with fresh weights, and by the same predictor with other noise
RANDOMISED, REPEATED = "randomised", "repeated"
CHECKS = (RANDOMISED, REPEATED)
TEST = "test"  # of images that no fold saw
UNDECIDED = "detail/undecided"  # cells of maps that are drawn pale
KINDS = (RANDOM, DISAGREEMENTS, DECISIONS, *CHECKS, TEST)
PROBES = {
    DISAGREEMENTS: "disagreements",
    DECISIONS: "disagreements",
    TEST: "test",
}  # `probes=` that makes a kind; else random
PREDICTIONS, THUMBNAILS = "predictions.safetensors", "thumbnails.safetensors"
PROBABILITIES = "probabilities.safetensors"  # of every class, of the samples that the predictor never saw
LABEL_ERRORS = "label_errors"  # the list of an experiment's folder: .csv, .json, .png
DOMAIN = "domain.csv"  # how far the images lie that scores show a network
SHORTCUTS = "shortcut.safetensors"  # what a planted shortcut does to a predictor and its maps
HELD_OUT, NOISE = "held out", "noise"  # its rows that are of no score
TEST_PREDICTIONS = "test-predictions.safetensors"  # of the test probes
NAME = re.compile(r"(\d{9,})-(\d{9,})\.safetensors")


def shard_name(start: int, stop: int) -> str:
    """The file of probes start..stop-1."""
    return f"{start:09d}-{stop - 1:09d}.safetensors"


def range_of(name: str) -> range | None:
    """The probes of a shard by its file's name; None for any other file."""
    found = NAME.fullmatch(name)
    return range(int(found[1]), int(found[2]) + 1) if found else None


def shard_paths(folder: Path) -> list[Path]:
    """The shards that are in `fold=<i>/maps/<explainer>` or `fold=<i>/disagreements/<explainer>`, in order."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(e.name for e in entries if NAME.fullmatch(e.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in found]


def explainers_in(folder: Path) -> list[str]:
    """The explainers of which `fold=<i>/maps` or `fold=<i>/disagreements` holds anything."""
    if not folder.is_dir():
        return []
    return sorted(d.name for d in folder.iterdir() if is_name(d.name) and d.is_dir() and shard_paths(d))


def is_name(text: str) -> bool:
    """Whether a text may be the name of an explainer or a score, which becomes a part of paths and of commands."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None and ".." not in text


def fold_paths(root: Path) -> dict[int, Path]:
    """The folders `fold=<i>` of an experiment, by i, ascending."""
    found = {p.name.removeprefix("fold="): p for p in root.glob("fold=*")}
    return {int(n): found[n] for n in sorted((n for n in found if n.isdigit()), key=int)}

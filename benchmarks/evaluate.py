"""Memory and time of the final numbers over large stores: both must depend on the chunk, not on the store."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lit_xai
import torch
from lit_xai.data.folds import Disagreements, Split
from lit_xai.store.fold import FoldStore, Predictions
from lit_xai.store.names import DISAGREEMENTS, RANDOM
from lit_xai.store.tensors import write_tensors

from benchmarks.harness import Report, Target

FOLDS, SIDE, CLASSES, SHARD, CAP = 5, 32, 10, 256, 100
SIZES = (10_000, 20_000)
EXPLAINERS = ("signal", "random")
MOST_GB, GROWTH = 1.5, 1.1
IDENTITY = {"data": "synthetic", "content": "none", "folds": FOLDS, "split_seed": 0, "label_noise": 0.0}


def write_store(root: Path, probes: int) -> None:
    """A finished experiment: predictions, explanations and one score of every sample, and the disagreements."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (probes,), generator=g)
    split = Split.make(labels, FOLDS, seed=0)
    identity = {**IDENTITY, "samples": probes}
    right = torch.rand(FOLDS, probes, generator=g) > 0.05
    for fold in range(FOLDS):
        predicted = torch.where(right[fold], labels, (labels + 1) % CLASSES)
        meta = {**identity, "checkpoint": f"{fold:016x}", "version": lit_xai.__version__, "lipschitz": 1.0}
        FoldStore(root / f"fold={fold}").write_predictions(
            Predictions(split, fold, predicted, torch.rand(probes, generator=g), meta)
        )
    found = Disagreements.find(split, right, CAP)
    for fold in range(FOLDS):
        store = FoldStore(root / f"fold={fold}")
        for name in EXPLAINERS:
            write_shards(store, name, RANDOM, split.probes(None), identity)
            concerned = found.samples[found.concerned[:, fold]]
            write_shards(store, name, DISAGREEMENTS, concerned, {**identity, "cap": CAP})


def write_shards(store: FoldStore, name: str, kind: str, samples: torch.Tensor, identity: dict[str, Any]) -> None:
    """Shards as the engine writes them."""
    fingerprint = {
        **identity,
        "kind": kind,
        "seed": 0,
        "probes": "synthetic",
        "explainer": {"name": name},
        "checkpoint": f"{store.fold:016x}",
        "fold": store.fold,
    }
    score = {"definition": {"name": "synthetic"}, "resolved": {}, "higher_is_better": True}
    meta = {
        "fingerprint": fingerprint,
        "resolved": {},
        "scores": {"deletion": score} if kind == RANDOM else {},
        "version": lit_xai.__version__,
    }
    for start in range(0, len(samples), SHARD):
        part = samples[start : start + SHARD]
        noise = torch.Generator().manual_seed(1 + start + 1_000_003 * store.fold)
        maps = torch.randn(len(part), SIDE, SIDE, generator=noise)
        if name == "signal":  # what the folds share
            maps += 2 * torch.randn(len(part), SIDE, SIDE, generator=torch.Generator().manual_seed(start))
        tensors = {"sample": part, "maps": maps}
        if kind == RANDOM:
            tensors["score/deletion"] = torch.rand(len(part), generator=noise).double()
        write_tensors(store.shard(kind, name, start, start + len(part)), tensors, meta)


def measured(root: str) -> None:
    """What the measured process does: print seconds, peak memory and how much it read, as JSON."""
    from lit_xai.report.ensemble import Ensemble
    from lit_xai.report.summarise import summarise

    before = peak_gb()
    began = time.perf_counter()
    summary = summarise(Ensemble(root), progress=False)
    took = time.perf_counter() - began
    pairs = summary.rows[0].estimates["reco"].pairs
    print(json.dumps({"seconds": took, "peak_gb": peak_gb(), "before_gb": before, "pairs": pairs}))


def peak_gb() -> float:
    """Peak resident memory of this process, in 10^9 bytes.

    `ru_maxrss` starts at what the parent held when it forked; the kernel's high-water mark starts with this program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def evaluate() -> Report:
    """Peak memory and seconds of `summarise(Ensemble(...))` in a process of its own, for two sizes of store."""
    report = Report(
        f"evaluate: {FOLDS} folds, {SIDE} px, explainers {', '.join(EXPLAINERS)}, <= {CAP} disagreements a fold",
        ["probes", "GB on disk", "seconds", "peak GB", "of it imports", "pairs an explainer"],
    )
    peaks = []
    for probes in SIZES:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            root = Path(folder) / "synthetic"
            write_store(root, probes)
            size = sum(p.stat().st_size for p in root.rglob("*.safetensors")) / 1e9
            command = [sys.executable, "-m", "benchmarks.evaluate", str(root)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-1000:]}")
            r = json.loads(done.stdout.splitlines()[-1])
        peaks.append(r["peak_gb"])
        report.rows.append([probes, size, r["seconds"], r["peak_gb"], r["before_gb"], r["pairs"]])
        report.targets.append(Target(f"peak GB at {probes:,} probes", r["peak_gb"], MOST_GB))
    report.targets.append(Target("peak memory of twice the probes", peaks[-1] / peaks[0], GROWTH))
    return report


if __name__ == "__main__":
    measured(sys.argv[1])

"""`python -m benchmarks [names]`: run benchmarks, print their tables, keep the numbers as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.harness import Report, machine

# name: (whether it runs by default, what it measures); each lives in the module and the function of its name
BENCHMARKS = {
    "startup": (True, "--help and import lit_xai"),
    "distances": (True, "Spearman distances of pairs, against one sort and scipy"),
    "precision": (True, "RISE in bf16 against float32"),
    "gate": (True, "the checks of a model call, over RISE; the memory of a Lipschitz constant of 1,000 classes"),
    "explainers": (True, "explainers and scores, against the bare model calls and the peers"),
    "perturbation": (True, "LIME, sliding patch and meaningful perturbation, against the bare calls and the peers"),
    "large": (True, "LIME at 224 px, against the bare calls and the peers"),
    "information": (
        True,
        "PMI and information gain with PatchSampler, against the bare passes of classifier and sampler",
    ),
    "incremental": (True, "windows answered from what they change, against whole passes; predicted beside measured"),
    "generative": (True, "DDIM and flow samplers, alone and inside POMELO, against the bare passes of their networks"),
    "training": (True, "training steps on batches of the loader and on those made as a whole, over bare steps"),
    "memory": (True, "peak memory of perturbation explainers for 1,000 and 10,000 model inputs"),
    "evaluate": (True, "memory and time of the final numbers over large stores"),
    "scale": (
        True,
        "parts side by side, the scan of a store, evaluate against its floor, the cost model (short; see docs/scale.md)",
    ),
    "gpu": (False, "everything that a GPU is used for, in six minutes (only when named; --device cpu tries the code)"),
    "coverage": (False, "simulated coverage of intervals, wrong marks, sets of ranks (minutes; only when named)"),
}
RESULTS = Path(__file__).parent / "results" / "latest.json"


def run(name: str, **options: Any) -> Report:
    """One benchmark by its name."""
    report = getattr(importlib.import_module(f"benchmarks.{name}"), name)(**options)
    assert isinstance(report, Report)
    return report


def main() -> int:
    """Run what was asked for; the exit status says whether all targets are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (distances sets its own)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="gpu: where (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6.0, help="gpu: what no longer fits is left out (default: 6)")
    parser.add_argument(
        "--protocol", action="store_true", help="gpu: also the whole Fashion-MNIST protocol (180 s more)"
    )
    parser.add_argument("--rows", nargs="+", default=[], help="gpu: only rows whose name has one of these words")
    options = parser.parse_args()
    if options.list:
        for name, (default, about) in BENCHMARKS.items():
            print(f"{name:14}{about}{'' if default else ' [not by default]'}")
        return 0
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"benchmark {unknown[0]!r} is unknown; choose from: {', '.join(BENCHMARKS)}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if "gpu" in options.names and options.device == "cuda" and not torch.cuda.is_available():
        parser.error("gpu finds no CUDA device: --device cpu tries its code, on next to nothing")
    console = Console(width=200)
    results: dict[str, Any] = {}

    def keep(report: Report) -> None:
        """After every benchmark, and every row of a long one: a run that is stopped keeps what it has measured."""
        results[name] = {**report.plain(), "seconds": time.perf_counter() - began}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(), "benchmarks": results}, indent=2))

    def row_by_row(report: Report) -> None:
        console.print(report.said(), style="dim", highlight=False)
        keep(report)

    own: dict[str, Any] = {"device": options.device, "minutes": options.minutes, "protocol": options.protocol}
    own |= {"only": options.rows}
    for name in options.names or [n for n, (default, _) in BENCHMARKS.items() if default]:
        began = time.perf_counter()
        report = run(name, **({**own, "each": row_by_row} if name == "gpu" else {}))
        report.show(console)
        keep(report)
    missed = [t["name"] for r in results.values() for t in r["targets"] if not t["met"]]
    judged = any(r["targets"] for r in results.values())
    verdict = f"{len(missed)} targets missed: {'; '.join(missed)}" if missed else "all met" if judged else "no targets"
    console.print(f"{options.out}; {verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The jobs as a user submits them, on a real SLURM: whole chains equal local runs, interrupted ones undisturbed ones."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Cluster

pytestmark = pytest.mark.slurm

SMALL = [
    "data.train_subset=300",
    "data.probes_per_fold=8",
    "data.size=16",
    "model.network.width=4",
    "trainer.max_epochs=2",
    "explainer.rise.masks=20",
    "score.mufidelity.subsets=12",
    "batch_size=4",
    "shard_size=4",
    "progress=false",
]
EXPLAINERS = "explainer=[saliency,rise,random]"


def local(door: str, root: Path, *options: str) -> str:
    """A command in this process, without SLURM; what it printed."""
    out, argv = io.StringIO(), sys.argv
    main = importlib.import_module(f"lit_xai.{door}").main
    try:
        sys.argv = [f"lit_xai/{door}.py", f"root={root}", *SMALL, "logger=none", *options]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as e:
        assert not e.code, out.getvalue()
    finally:
        sys.argv = argv
    return out.getvalue()


def shards(root: Path) -> dict[str, bytes]:
    """Every file of maps and predictions below a folder, by relative name."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*.safetensors"))}


def trained_alone(root: Path, to: Path) -> Path:
    """A copy of an experiment that holds nothing but its checkpoints."""
    for file in root.rglob("fold=*/*"):
        if file.name in ("model.ckpt", "config.yaml"):
            (to / file.parent.relative_to(root)).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to / file.relative_to(root))
    return to


def summary(root: Path) -> Any:
    """The numbers of an evaluation; its root is not one."""
    (file,) = root.glob("*/summary.json")
    return json.loads(file.read_text().replace(str(root), "ROOT"))


def test_a_submitted_chain_equals_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    root, again = tmp_path / "slurm", tmp_path / "local"
    options = [f"root={root}", *SMALL, EXPLAINERS, "logger=none"]
    printed = cluster.run("jobs/submit.sh", "folds=5", "parts=4", "concurrent=2", *options)
    jobs = [line.split()[0] for line in printed.splitlines() if line.split()[0].isdigit()]
    assert len(jobs) == 1 + 5 + 5 + 1
    assert all(job in printed.splitlines()[-3] for job in jobs), "the line that shows the state names every job"
    cluster.wait(*jobs, timeout=480)
    trained_alone(root, again)
    folds = ["-m", "fold=range(5)", "data.folds=5", EXPLAINERS]
    local("explain", again, *folds)
    local("explain", again, *folds, "probes=disagreements")
    local("evaluate", again, *folds[2:])
    assert shards(root) == shards(again)
    assert summary(root) == summary(again)

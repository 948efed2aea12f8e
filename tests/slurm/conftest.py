"""A SLURM of two emulated nodes and a copy of the jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import SCRIPT, Cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of four CPUs each (as they believe), stopped in the end whatever happens."""
    base = tmp_path_factory.mktemp("slurm")
    folder, project = base / "cluster", base / "project"
    project.mkdir()
    shutil.copytree(ROOT / "jobs", project / "jobs", ignore=shutil.ignore_patterns("*.out"))
    for part in ("lit_xai", "configs"):
        (project / part).symlink_to(ROOT / part)
    begun = subprocess.run([str(SCRIPT), "start", str(folder), "2"], capture_output=True, text=True, timeout=400)
    try:
        assert begun.returncode == 0, begun.stderr
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "PYTEST_"))}
        mine = {"VENV": sys.prefix, "GPUS": "0", "CPUS": "1", "MEMORY": "2G", "TIME_LIMIT": "10"}
        quiet = {"WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore"}
        yield Cluster(folder, project, {**clean, **mine, **quiet, "SLURM_CONF": str(folder / "slurm.conf")})
    finally:
        subprocess.run([str(SCRIPT), "stop", str(folder)], check=True, timeout=120)
        assert not folder.exists()

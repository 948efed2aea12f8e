"""A SLURM of two emulated nodes, a copy of the jobs, and what the tests ask of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "slurm" / "cluster.sh"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


@dataclass
class Cluster:
    """The running SLURM and the project that jobs are submitted from.

    Attributes:
        folder: the cluster's configuration, logs and spool.
        project: `jobs/` of this checkout, with logs of its own.
        environment: of every command.
    """

    folder: Path
    project: Path
    environment: dict[str, str]

    def run(self, *command: object, check: bool = True, **environment: str) -> str:
        """A command in the project; what it printed (of a failed one with `check=False` also its errors)."""
        done = subprocess.run(
            [str(c) for c in command],
            capture_output=True,
            text=True,
            cwd=self.project,
            env={**self.environment, **environment},
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip() if done.returncode == 0 else done.stdout + done.stderr

    def sbatch(self, *arguments: object, **environment: str) -> str:
        """Submit one of the jobs as the settings say; its id."""
        settings = self.run("jobs/settings.sh").split()
        return self.run("sbatch", "--parsable", *settings, *arguments, **environment)

    def records(self, job: str) -> list[dict[str, str]]:
        """What SLURM knows of a job, of each task of an array."""
        lines = self.run("scontrol", "show", "job", "-o", job).splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.startswith("JobId=")]

    def logs(self, *jobs: str) -> str:
        """The last lines of the jobs' logs."""
        files = sorted({r["StdOut"] for job in jobs for r in self.records(job) if "StdOut" in r})
        return "\n".join(f"--- {f}\n{Path(f).read_text()[-1500:]}" for f in files if Path(f).exists())

    def until(self, condition: Callable[[], object], what: str, *jobs: str, timeout: float = 120) -> None:
        """Poll until it is so; none of the jobs may fail meanwhile."""
        end = time.monotonic() + timeout
        while not condition():
            states = {f"{job}: {r['JobState']}" for job in jobs for r in self.records(job)}
            bad = [s for s in states if s.split(": ")[1] in ENDED - {"COMPLETED"}]
            if bad or time.monotonic() > end:
                why = f"{', '.join(bad)} before" if bad else f"not within {timeout:.0f} s:"
                pytest.fail(f"{why} {what}\n{self.run('squeue', '--all')}\n{self.logs(*jobs)}", pytrace=False)
            time.sleep(0.1)

    def wait(self, *jobs: str, timeout: float = 180) -> None:
        """Until all of these, and all tasks of arrays, have ended with status 0."""

        def ended() -> bool:
            return all(r["JobState"] == "COMPLETED" for job in jobs for r in self.records(job))

        self.until(ended, f"the end of {', '.join(jobs)}", *jobs, timeout=timeout)

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        return max(int(r["Restarts"]) for r in self.records(job))


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

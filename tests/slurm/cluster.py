"""The running SLURM and what the tests ask of it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
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

    def logs(self, *jobs: str, last: int = 1_000_000) -> str:
        """The end of the jobs' logs."""
        files = sorted({r["StdOut"] for job in jobs for r in self.records(job) if "StdOut" in r})
        return "\n".join(f"--- {f}\n{Path(f).read_text()[-last:]}" for f in files if Path(f).exists())

    def until(self, condition: Callable[[], object], what: str, *jobs: str, timeout: float = 120) -> None:
        """Poll until it is so; none of the jobs may fail meanwhile."""
        end = time.monotonic() + timeout
        while not condition():
            states = {f"{job}: {r['JobState']}" for job in jobs for r in self.records(job)}
            bad = [s for s in states if s.split(": ")[1] in ENDED - {"COMPLETED"}]
            if bad or time.monotonic() > end:
                why = f"{', '.join(bad)} before" if bad else f"not within {timeout:.0f} s:"
                pytest.fail(
                    f"{why} {what}\n{self.run('squeue', '--all')}\n{self.logs(*jobs, last=1500)}", pytrace=False
                )
            time.sleep(0.1)

    def wait(self, *jobs: str, timeout: float = 180) -> None:
        """Until all of these, and all tasks of arrays, have ended with status 0."""

        def ended() -> bool:
            return all(r["JobState"] == "COMPLETED" for job in jobs for r in self.records(job))

        self.until(ended, f"the end of {', '.join(jobs)}", *jobs, timeout=timeout)

    def state(self, job: str) -> str:
        """The state of one job or one task of an array."""
        return self.records(job)[-1]["JobState"]

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        return int(self.records(job)[-1]["Restarts"])

    def cancelled(self, job: str) -> None:
        """Cancel a job and wait until nothing of it runs."""
        self.run("scancel", job)
        self.until(lambda: all(r["JobState"] in ENDED for r in self.records(job)), f"the end of cancelled {job}")
        self.until(lambda: not self.run("squeue", "--noheader", "--jobs", job), f"the end of the processes of {job}")

    def idle(self) -> bool:
        """Whether all nodes are there and free."""
        return set(self.run("sinfo", "--noheader", "--Node", "--format=%t").split()) == {"idle"}

    def crash(self, node: str) -> None:
        """A node and all that runs there are gone."""
        self.run(SCRIPT, "crash", self.folder, node)

    def revive(self, node: str) -> None:
        """The node comes back."""
        self.run(SCRIPT, "revive", self.folder, node)
        self.until(self.idle, f"{node} to come back")

"""What a process is doing, for its log and for `lit_xai.evaluate --status`: host, rank, shard, speed, expected end.

    fold=3/running/<host>.<pid>.json    removed when the process ends; its age says whether the process lives

Nothing but the standard library is imported: the status must be there at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

FOLDER = "running"
TOUCHED = 10.0  # seconds between two signs of life
DEAD = 90.0  # seconds without one, after which a process of another host counts as dead
LINE = 60.0  # seconds between two lines of a job's log


def slurm_job() -> str | None:
    """This SLURM job (`12`, or `12_3` of an array), None outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


@dataclass
class Beat:
    """What one process says of itself; times in seconds since 1970.

    Attributes:
        task: what it does, such as `train` or `explain maps`.
        host, pid, job: where; `job` is None outside of SLURM.
        rank: `0/2`.
        part: `3/8`, of a sharded job.
        at: the shard or epoch that is being computed.
        done, total: of `unit`s.
        rate: units a second, since it began.
        samples: images a second.
        ends: when it will be done, if known.
    """

    task: str
    host: str
    pid: int
    job: str | None
    rank: str
    part: str
    at: str = ""
    done: float = 0.0
    total: float = 0.0
    unit: str = "shards"
    samples: float = 0.0
    ends: float | None = None

    def line(self, fold: str) -> str:
        """One line of a log."""
        job = f" job {self.job}" if self.job else ""
        part = f" part {self.part}" if self.part else ""
        ends = time.strftime(", ends about %Y-%m-%d %H:%M:%S", time.localtime(self.ends)) if self.ends else ""
        text = (
            f"{time.strftime('%H:%M:%S')} {self.host} pid {self.pid:d}{job} rank {self.rank}{part}: {fold} {self.task}, "
            f"{self.at}, {self.done:g} of {self.total:g} {self.unit}, {self.samples:.3g} samples/s{ends}"
        )
        return "".join(c if c.isprintable() else "?" for c in text)


class Heartbeat:
    """A process's sign of life beside the results of a fold.

    Args:
        fold: the fold's folder.
        task: what is done.
        rank, world: of this process.
        part: this job's share, if it has one.
        unit: what is counted.
        lines: print a line after the first unit, every minute, and at the end.
    """

    def __init__(
        self,
        fold: Path,
        task: str,
        rank: int = 0,
        world: int = 1,
        part: str = "",
        unit: str = "shards",
        lines: bool = True,
    ) -> None:
        host, pid = platform.node(), os.getpid()
        self.beat = Beat(task, host, pid, slurm_job(), f"{rank}/{world}", part, unit=unit)
        self.fold, self.lines = fold, lines
        self.file = fold / FOLDER / f"{host}.{pid}.json"
        self.began = self.last = self.written = 0.0
        self.ended = threading.Event()

    def __enter__(self) -> Heartbeat:
        self.began = self.last = time.time()
        threading.Thread(target=self.live, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        if self.lines and self.beat.done:
            self.beat.at, self.beat.ends = "end" if kind is None else f"ended by {kind.__name__}", None
            self.say()
        with contextlib.suppress(OSError):
            self.file.unlink()
            self.file.parent.rmdir()  # only of the last one

    def live(self) -> None:
        """Touch the file now and then, also while one shard takes long."""
        while not self.ended.wait(TOUCHED):
            with contextlib.suppress(OSError):
                os.utime(self.file)

    def due(self) -> bool:
        """Whether a second has passed since the last word."""
        return time.time() - self.written > 1

    def doing(self, at: str, done: float, total: float, samples: int) -> None:
        """Say what is computed now: so many of all units are done, with so many images."""
        b, now = self.beat, time.time()
        first = not b.done and done
        self.written = now
        b.at, b.done, b.total = at, done, total
        if done:
            b.samples = samples / max(now - self.began, 1e-9)
            b.ends = now + (now - self.began) / done * (total - done)
        with contextlib.suppress(OSError):  # a full disk is noticed by who writes results
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps(asdict(b)))
            os.replace(temporary, self.file)
        if self.lines and (first or now - self.last > LINE):
            self.last = now
            self.say()

    def say(self) -> None:
        """The line, from every rank."""
        print(self.beat.line(self.fold.name), flush=True)


def alive(fold: Path, remove: bool = False) -> list[Beat]:
    """The processes that work on a fold now; with `remove`, what dead ones of this host left is deleted."""
    found = []
    for file in (fold / FOLDER).glob("*.tmp") if remove else ():  # of a process that was killed while it wrote
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > DEAD:
                file.unlink()
    for file in sorted((fold / FOLDER).glob("*.json")):
        try:
            age = time.time() - file.stat().st_mtime
            content: dict[str, Any] = json.loads(file.read_text())
            beat = Beat(**content)
            beat.line("")  # every field is of its type
        except (OSError, ValueError, TypeError, OverflowError):
            continue  # it has just ended, or is none of ours
        here = beat.host == platform.node()
        if age < DEAD and (not here or Path(f"/proc/{beat.pid}").exists()):
            found.append(beat)
        elif remove:
            with contextlib.suppress(OSError):
                file.unlink()
    return found

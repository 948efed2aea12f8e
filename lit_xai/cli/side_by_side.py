"""Commands on several folds at once: processes that share the cores or the cards, what becomes of each, signals passed on.

A server process loads everything heavy once; every step is a fork of it, so that a step that dies takes nothing along and
costs no imports. A step dies with the process that ordered it, also where that is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from lit_xai.errors import UsageError

CONTEXT = multiprocessing.get_context("forkserver")
HEAVY = ["lit_xai.train", "lit_xai.explain", "lit_xai.cli.run", "lit_xai.data.sources", "hydra.core.plugins"]
HEAVY += ["matplotlib.pyplot", "sklearn.datasets", "deel.torchlip", "wandb"]
MEMORY = "LIT_XAI_MEMORY_SHARE"  # as `lit_xai.cache` reads it, which imports torch
LOG = "log.txt"  # in the fold's folder: what its commands printed
TICK = 0.5  # seconds between two looks
WAITING, RUNNING, DONE = "waiting", "running", "done"
FAILED, LEFT, INTERRUPTED = "failed", "left out", "interrupted"


@dataclass
class Step:
    """One command on one fold.

    Attributes:
        command: `train` or `explain`.
        arguments: its command line.
        fold: the fold's folder.
        title: what it does, for people.
        after: the steps that must be done before it.
        seconds: what it is expected to take; None = not known.
        state: `waiting`, `running`, `done`, `failed`, `left out` or `interrupted`.
        reason: why it failed or was left out.
        began, ended: seconds since 1970.
    """

    command: str
    arguments: list[str]
    fold: Path
    title: str
    after: list[Step] = field(default_factory=list)
    seconds: float | None = None
    state: str = WAITING
    reason: str = ""
    began: float = 0.0
    ended: float = 0.0

    @property
    def log(self) -> Path:
        """Where what it prints goes."""
        return self.fold / LOG

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state not in (WAITING, RUNNING)

    @property
    def name(self) -> str:
        """Whose fold it is."""
        return f"{self.fold.parent.name} fold {self.fold.name.removeprefix('fold=')}"


@dataclass(frozen=True)
class Share:
    """How a machine is shared out.

    Attributes:
        jobs: processes at once.
        threads: of each.
        cards: the CUDA devices of each job; empty on the CPU.
    """

    jobs: int
    threads: int
    cards: tuple[str, ...] = ()

    def __str__(self) -> str:
        each = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        at_once = "one after the other" if self.jobs == 1 else f"{self.jobs} at once"
        return f"{at_once}, {each} each{f', on CUDA {self.cards[0]}' if len(set(self.cards)) == 1 else ''}"


def share(jobs: Any, most: int, cards: Sequence[str] = (), each: int = 1) -> Share:
    """The processes and threads for at most `most` steps at a time.

    Args:
        jobs: how many at once, or `auto`: as many as there are cores; also on cards, which several processes share, but for steps that
            take several cards each.
        cards: the CUDA devices that are there; empty = on the CPU.
        each: devices of one step.

    Raises:
        UsageError: `jobs` is neither.
    """
    number = jobs if isinstance(jobs, int) and not isinstance(jobs, bool) else None
    if jobs != "auto" and (number is None or number < 1):
        raise UsageError(f"jobs must be auto or a whole number of at least 1, found {jobs}")
    cores = len(os.sched_getaffinity(0))
    groups = [",".join(cards[i : i + each]) for i in range(0, len(cards) - each + 1, each)]
    jobs = max(1, min(number or (len(groups) if each > 1 else cores), most))
    own = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, cores // jobs)
    threads = min(threads, int(own)) if own.isdigit() and int(own) else threads
    return Share(jobs, threads, tuple(groups[i % len(groups)] for i in range(jobs)) if groups else ())


def serve() -> None:
    """Start the server that steps are forked from; it loads what they need while this process goes on."""
    CONTEXT.set_forkserver_preload(HEAVY)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONWARNINGS")}
    os.environ["OMP_NUM_THREADS"] = "1"  # no pool of threads before a fork; each step sets its own number
    # a step imports the command that began it, which is there already
    os.environ["PYTHONWARNINGS"] = ",".join(
        filter(None, (before["PYTHONWARNINGS"], "ignore:'lit_xai:RuntimeWarning:runpy"))
    )
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def run(steps: Sequence[Step], shared: Share, watch: Callable[[], None] = lambda: None) -> int:
    """Run the steps, each as soon as those before it are done and a job is free; `watch` is called twice a second.

    A step that fails leaves out those after it, and no others.

    Returns:
        The signal that ended it, else 0.
    """
    running: dict[int, tuple[Step, Any]] = {}  # by job
    received: list[int] = []
    serve()
    with signals(received, running):
        try:
            while not all(s.over for s in steps):
                if not received:
                    leave_out(steps)
                free = [j for j in range(shared.jobs) if j not in running]
                ready = [s for s in steps if s.state == WAITING and all(a.state == DONE for a in s.after)]
                for job, step in [] if received else zip(free, ready, strict=False):
                    running[job] = step, start(step, shared, job)
                if received and not running:
                    break
                watch()
                connection.wait([process.sentinel for _, process in running.values()], TICK)
                for job, (step, process) in [r for r in running.items() if r[1][1].exitcode is not None]:
                    process.join()
                    finish(step, process.exitcode)
                    step.state = INTERRUPTED if received and step.state == FAILED else step.state
                    del running[job]
        finally:
            for _, process in running.values():
                process.kill()
    watch()
    return received[0] if received else 0


@contextmanager
def signals(received: list[int], running: Mapping[int, tuple[Step, Any]]) -> Iterator[None]:
    """Signals are noted and passed on to what runs; the near end of a job's time (SIGUSR1) as SIGTERM."""

    def note(number: int, _: Any) -> None:
        received.append(number)
        for _, process in list(running.values()):
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGTERM if number == signal.SIGUSR1 else number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {n: signal.signal(n, note) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_out(steps: Sequence[Step]) -> None:
    """What comes after a step that failed."""
    for step in steps:
        failed = next((a for a in step.after if a.state in (FAILED, LEFT)), None)
        if step.state == WAITING and failed is not None:
            step.state, step.reason = LEFT, f"{failed.name} failed"


def start(step: Step, shared: Share, job: int) -> Any:
    """The process of a step."""
    step.state, step.began = RUNNING, time.time()
    step.fold.mkdir(parents=True, exist_ok=True)
    arguments = step.command, step.arguments, str(step.log), shared.threads, environment_of(shared, job)
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def environment_of(shared: Share, job: int) -> dict[str, str]:
    """The variables of a job's process: its threads, its cards and what of their memory is its own."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(shared.threads))
    if shared.cards:
        environment["CUDA_VISIBLE_DEVICES"] = shared.cards[job]
        with contextlib.suppress(ValueError):  # the step refuses it
            environment[MEMORY] = f"{float(environment.get(MEMORY, 1)) / shared.cards.count(shared.cards[job]):.6g}"
    return environment


def finish(step: Step, code: int) -> None:
    """What became of a step."""
    step.ended = time.time()
    step.state, step.reason = (FAILED, why(step.log, code)) if code else (DONE, "")


def why(log: Path, code: int) -> str:
    """Why a process ended as it did, in a line."""
    if code < 0:
        told = " (by the system, where memory ran out?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{told}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else f"exit status {code}"
    return "".join(c if c.isprintable() else "?" for c in last)[:400]


def work(command: str, arguments: list[str], log: str, threads: int, environment: dict[str, str]) -> None:
    """In a process of its own: a command as `python -m` runs it, with what it prints in a file."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C comes from the parent alone
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    threading.Thread(target=die_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(threads)
    print(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} lit_xai.{command} {' '.join(arguments)}", flush=True)
    sys.argv = [f"lit_xai/{command}.py", *arguments]
    module = importlib.import_module(f"lit_xai.{command}")
    sys.modules["__main__"].__spec__ = module.__spec__  # processes for other ranks run this command
    began = time.time()
    module.main()
    print(f"ended after {time.time() - began:.0f} s, of the processor {time.process_time():.0f} s", flush=True)


def die_with_parent() -> None:
    """End this process and those that it started when the one that ordered it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

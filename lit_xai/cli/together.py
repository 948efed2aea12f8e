"""Whole ensembles in one command: what will be done and how long that takes, all folds side by side, what failed."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_xai import engine
from lit_xai.callbacks import Explain
from lit_xai.cli import side_by_side
from lit_xai.cli.build import say
from lit_xai.cli.command import fail
from lit_xai.cli.cost import training_time
from lit_xai.cli.display import Display, clock, expected_end, span
from lit_xai.cli.ensembles import EXPLAIN, TRAIN, Ensemble
from lit_xai.cli.run import Run
from lit_xai.cli.side_by_side import DONE, FAILED, WAITING, Share, Step
from lit_xai.cluster.heartbeat import alive
from lit_xai.cluster.interruption import requeue
from lit_xai.errors import UsageError
from lit_xai.store.files import load_weights

TRIAL = 2.0  # seconds that all trials take, about
START = 3.0  # seconds before a step computes anything


@dataclass(frozen=True)
class Outcome:
    """What became of all steps."""

    steps: Sequence[Step]

    def end(self) -> None:
        """End the command with an error where a step failed."""
        failed = [s for s in self.steps if s.state == FAILED]
        if failed:
            text = "; ".join(f"{s.name}: {s.reason} ({s.log})" for s in failed)
            full = " (jobs=1: one after the other, if they need the memory)" if "out of memory" in text else ""
            fail(f"{len(failed)} of {len(self.steps)} steps failed: {text}; the same command repeats what failed{full}")


def together(every: Sequence[Ensemble], jobs: Any, dry_run: bool = False, reveal: bool = True) -> Outcome:
    """Train and explain all folds of some ensembles.

    Args:
        every: the ensembles.
        jobs: `auto`, or how many processes at once.
        dry_run: say what would be done alone.
        reveal: also explain what the predictors disagree on.

    Raises:
        UsageError: an ensemble does not fit its folder, or another process works on it.
        SystemExit: a signal came.
    """
    for ensemble in every:
        ensemble.run.check_folder()
        busy(ensemble)
    steps = [s for e in every for s in e.steps(reveal)]
    left = [s for s in steps if s.state == WAITING]
    shared = shared_by(every, jobs, max(1, len({s.fold for s in left})))
    for line in described(every, steps, shared):
        say(line)
    if not left:
        return Outcome(steps)
    for ensemble in every:
        expect(ensemble, [s for s in left if s.fold.parent == ensemble.folder], shared.threads, TRIAL / len(every))
    ends = expected_end(steps, shared.jobs, time.time())
    say(f"about {span(ends - time.time())}, ends about {clock(ends)}")
    if dry_run:
        return Outcome(steps)
    with Display(steps, shared) as display:
        received = side_by_side.run(steps, shared, display)
    if received:
        then = requeue() if received == signal.SIGUSR1 else "run the same command to go on"
        print(f"interrupted by {signal.Signals(received).name}: finished work is kept; {then}", flush=True)
        raise SystemExit(128 + received)
    return Outcome(steps)


def shared_by(every: Sequence[Ensemble], jobs: Any, most: int) -> Share:
    """The cores, or the cards where the trainer asks for them."""
    trainer = every[0].cfg.trainer
    Run.check_accelerator(trainer)
    if trainer.accelerator not in ("gpu", "cuda"):
        return side_by_side.share(jobs, most)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    asked = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else len(cards)
    return side_by_side.share(jobs, most, cards, min(asked, len(cards)))


def described(every: Sequence[Ensemble], steps: Sequence[Step], shared: Share) -> list[str]:
    """What will be done, in a few lines."""
    first = every[0].run
    data, k = first.data, first.cfg.data.folds
    folders, models = [", ".join(x) for x in ([str(e.folder) for e in every], [e.cfg.model.name for e in every])]
    classes = f" of {len(data.source.classes)} classes" if data.source.labelled else ""
    done = sum(s.state == DONE for s in steps)
    asked = f"{k} folds" if len(every[0].folds) == k else f"folds {', '.join(map(str, every[0].folds))} of {k}"
    out = [f"{first.cfg.data.name}: {len(data.split.labels):,} images{classes}, {asked}; {models} -> {folders}"]
    if first.explainers:
        out.append(f"explained by {', '.join(first.explainers)}; scores: {', '.join(first.scores) or 'none'}")
        out.append(
            f"{len(data.probes):,} probes, explained by every predictor; those on which predictors disagree as well"
        )
    there = f", {done} of them done already" if done else ""
    return [*out, f"{len(steps)} steps{there}; {shared}"]


def expect(ensemble: Ensemble, left: Sequence[Step], threads: int, enough: float) -> None:
    """Say of every step that is left what it will take, by a short trial of the first that trains or explains."""
    first = next((s for s in left if s.title in (TRAIN, EXPLAIN)), None)
    cost, revealed = {}, None
    if first is not None:
        cfg = copy.deepcopy(ensemble.run.cfg)
        cfg.fold, cfg.progress = int(first.fold.name.removeprefix("fold=")), False
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with torch.random.fork_rng():
            training, explaining, of_maps = measured(Run(cfg, "train"), enough)
        torch.set_num_threads(before)
        cost = {TRAIN: training + explaining, EXPLAIN: explaining}
        revealed = of_maps / 2  # nobody knows how many there are
    for step in left:
        known = cost.get(step.title, revealed)
        step.seconds = None if known is None else known + START


def measured(run: Run, enough: float) -> tuple[float, float, float]:
    """Seconds of one fold's training, of all its passes, and of its maps alone."""
    module: Any = run.module()
    trained = run.checkpoint.exists()
    training = 0.0
    if trained:
        load_weights(module, run.checkpoint)
    elif run.trainable and not module.in_one_pass:
        run.fill_in()
        training = 60 * training_time(module, run, enough / 3).minutes
    passes = [r for r in run.reports() if isinstance(r, Explain)]
    if not passes:
        return training, 0.0, 0.0
    network = copy.deepcopy(module).predictor().to(run.device)
    tasks = [p.tasks(network, run.data, run.device, None if trained else "") for p in passes]
    plan = engine.plan(*tasks, enough=enough / 3)
    maps = sum(60 * c.minutes for c in plan.costs if c.name.startswith("explainer."))
    return training, 60 * plan.minutes, maps


def busy(ensemble: Ensemble) -> None:
    """Refuse an ensemble that a living process works on.

    Raises:
        UsageError: naming the process.
    """
    for fold in ensemble.folds:
        for beat in alive(ensemble.folder / f"fold={fold}"):
            raise UsageError(
                f"{ensemble.folder}/fold={fold} is being worked on by process {beat.pid} of {beat.host}: wait for it, or end it"
            )

"""What a command will take, by a short trial: of a training, and of what is explained."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from lit_xai import engine
from lit_xai.cli.build import say
from lit_xai.engine.estimate import ENOUGH, unit
from lit_xai.models.trainable import optimizer_steps

LONG = 30  # minutes above which somebody is told what takes them


def say_costs(run: Any, plan: Any, training: Any = None) -> None:
    """What is explained and what that takes; of a dry run every explainer and score, else the dearest of a long one."""
    minutes = (training.minutes if training is not None else 0.0) + (plan.minutes if plan is not None else 0.0)
    if plan is not None:
        say(f"explain: {plan}")
        if run.cfg.dry_run:
            for cost in plan.costs:
                say(f"  {cost}")
        elif minutes > LONG and plan.costs:
            say(f"  the dearest is {plan.costs[0]} (all: dry_run=true)")
    if run.cfg.dry_run and (plan is not None or training is not None):
        folds = run.cfg.data.folds
        say(f"total: about {minutes:.1f} min, {folds * minutes:.0f} min for all of {folds} folds")


@dataclass(frozen=True)
class TrainingTime:
    """What a training will take.

    Attributes:
        epochs, batches: of the training, of one epoch.
        accumulate: batches of one optimizer step.
        minutes: by a trial on `device`.
        cheaper: options that cost less.
    """

    epochs: int
    batches: int
    accumulate: int
    minutes: float
    device: str
    cheaper: str = ""

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs."""
        return optimizer_steps(self.batches, self.epochs, self.accumulate)

    def __str__(self) -> str:
        text = f"{self.epochs} epochs, {self.steps:,} steps, about {self.minutes:.1f} min on this {unit(self.device)}"
        return f"{text}; cheaper: {self.cheaper}" if self.cheaper else text


def training_time(module: Any, run: Any, enough: float = ENOUGH) -> TrainingTime:
    """What the training of a module takes, by a few steps of a copy of it with growing batches, or `enough` seconds of them."""
    loader, trainer = run.data.train_dataloader(), run.cfg.trainer
    batch = [x.to(run.device) for x in next(iter(loader))]
    there = copy.deepcopy(module).to(run.device).train()

    def step(rows: int) -> None:
        loss = there.batch_loss(tuple(x[:rows] for x in batch))
        loss.backward()
        loss.detach().item()  # a GPU has done it all by then

    rows = len(batch[0])
    seconds = rows * engine.trial(
        step, rows, least=2, enough=enough, progress=bool(run.cfg.progress)
    )  # a batch norm needs two
    minutes = len(loader) * trainer.max_epochs * seconds / 60
    size, resize = run.cfg.data.get("size") or 0, run.cfg.data.get("resize")
    free = resize and size > 64 and not any(run.trained_folds())  # folds of one folder are alike
    smaller = f"data.size={size // 2} data.resize={resize // 2}" if free else ""
    each = trainer.get("accumulate_grad_batches") or 1
    return TrainingTime(trainer.max_epochs, len(loader), each, minutes, run.device.type, smaller)

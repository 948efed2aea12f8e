"""What is made from a trained predictor on held-out data: after Lightning's test loop, or by a command that needs none."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from lit_xai.cluster.interruption import Interruption
from lit_xai.data.folds import FoldData
from lit_xai.report.dashboard import Dashboard


def nothing(*_: Any) -> None:
    """Of one process, there is nobody to wait for."""


@dataclass(frozen=True)
class Context:
    """A trained module, its data, and this process among others.

    Attributes:
        module: trained.
        data: of the fold that it never saw.
        device: where models run.
        rank, world: of this process.
        loggers: of the run; on other ranks than 0 they log nothing.
        barrier: waits for all processes, under a name.
        pause: raises `Interrupted` where a signal came; called between two shards.
    """

    module: pl.LightningModule
    data: FoldData
    device: torch.device
    rank: int = 0
    world: int = 1
    loggers: Sequence[Logger] = ()
    barrier: Callable[[str], None] = nothing
    pause: Callable[[], None] = nothing

    @staticmethod
    def of(trainer: pl.Trainer, module: pl.LightningModule) -> Context:
        """That of a Trainer."""
        interruption = next((c for c in trainer.callbacks if isinstance(c, Interruption)), None)  # type: ignore[attr-defined]
        return Context(
            module,
            trainer.datamodule,  # type: ignore[attr-defined]
            trainer.strategy.root_device,
            trainer.global_rank,
            trainer.world_size,
            trainer.loggers,
            trainer.strategy.barrier,
            nothing if interruption is None else interruption.pause,
        )

    @property
    def model(self) -> nn.Module:
        """The network to explain: images in [0, 1] to logits, in evaluation mode, on the device."""
        return self.module.predictor().to(self.device)  # type: ignore[operator]

    @property
    def dashboard(self) -> Dashboard:
        """Of this run's loggers."""
        return Dashboard(self.loggers)


class Report(pl.Callback):
    """What is made from a trained module: `run` makes it, and so does the end of a Trainer's test loop."""

    @abstractmethod
    def run(self, on: Context) -> None:
        """Make it; every process calls this."""

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the held-out images were tested."""
        if not trainer.sanity_checking:
            self.run(Context.of(trainer, pl_module))


class RankZeroReport(Report):
    """A report that one process makes while the others wait."""

    def run(self, on: Context) -> None:
        """Let rank 0 make it; the others wait until it is there."""
        if on.rank == 0:
            self.make(on)
        on.barrier(type(self).__name__)

    @abstractmethod
    def make(self, on: Context) -> None:
        """Make the report; one process calls this."""

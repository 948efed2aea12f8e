"""How a training gets on: in the job's log and in the status of its experiment."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from lit_xai.cluster.heartbeat import Heartbeat
from lit_xai.store.fold import FoldStore


class Pace(pl.Callback):
    """Host, rank, epoch, samples/s and expected end of a training, as a `Heartbeat`.

    Args:
        store: of the fold.
        lines: also print them.
    """

    def __init__(self, store: FoldStore, lines: bool = True) -> None:
        self.store, self.lines = store, lines
        self.heart: Heartbeat | None = None
        self.first = self.images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank, world = trainer.global_rank, trainer.world_size
        self.heart = Heartbeat(self.store.root, "train", rank, world, unit="batches", lines=self.lines).__enter__()
        self.first, self.images = -1, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At most once a second. What a resumed training had done before does not count."""
        self.images += len(batch[0])
        epochs, n = trainer.max_epochs or 1, int(trainer.num_training_batches)
        done, total = trainer.current_epoch * n + batch_idx + 1, epochs * n
        self.first = done - 1 if self.first < 0 else self.first
        if self.heart is not None and (self.heart.due() or done == total):
            at = f"epoch {trainer.current_epoch + 1} of {epochs}"
            self.heart.doing(at, done - self.first, total - self.first, self.images)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.heart is not None:
            self.heart.__exit__(None, None, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.heart is not None:
            self.heart.__exit__(type(exception), exception, None)

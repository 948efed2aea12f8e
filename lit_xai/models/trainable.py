"""What every module that is trained here shares: optimizer, a schedule per step, randomness that survives a resume."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_xai.core import Filler
from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash

SCHEDULES = ("onecycle", "cosine", "constant")
OPTIMIZERS = ("adamw", "sgd")
MOMENTUM = 0.9  # of SGD
EPOCHS, STEPS = 8, 300  # by default at least so many epochs and optimizer steps
FEW = 100  # steps below which somebody is told
LOOKED_AT = 32  # losses of a GPU that are looked at together: to read one is to wait for all that it has to do


def optimizer_steps(batches: int, epochs: int, accumulate: int = 1) -> int:
    """Optimizer steps of a training of `epochs` times `batches`, of which `accumulate` make one step."""
    return max(1, -(-batches // accumulate) * epochs)


def epochs_for(batches: int, accumulate: int = 1) -> int:
    """How many epochs a data set of so many batches is trained for by default: more of a small one, at most `STEPS`."""
    return max(EPOCHS, -(-STEPS // optimizer_steps(batches, 1, accumulate)))


def check_choice(value: str, known: tuple[str, ...], name: str) -> None:
    """Refuse a word that is none of these."""
    if value not in known:
        raise UsageError(f"model.{name} must be one of {', '.join(known)}, found {value!r}")


class TrainedModule(pl.LightningModule, ABC):
    """What the train command trains, and what it asks of it.

    Attributes:
        in_one_pass: `prepare` is all of its training.
    """

    in_one_pass = False

    def prepare(self, data: Any) -> None:
        """What is computed from the training folds of a `FoldData`, once, before the first step."""

    def add_weight_noise(self, share: float, seed: int, fold: int) -> None:
        """Damage to the trained weights, of what `weight_noise=` concerns."""

    def check_weights(self) -> None:
        """Stop where the trained weights are NaN or infinite."""


class Trainable(TrainedModule):
    """A module with a loss of a batch, trained with AdamW or SGD.

    Args:
        lr: (peak) learning rate.
        weight_decay: decoupled (AdamW).
        schedule: `onecycle`, `cosine` (after 5 % warm-up) or `constant`.
        optimizer: `adamw`, or `sgd` with momentum .9.
    """

    def __init__(
        self, lr: float = 3e-3, weight_decay: float = 0.0, schedule: str = "onecycle", optimizer: str = "adamw"
    ) -> None:
        super().__init__()
        check_choice(schedule, SCHEDULES, "schedule")
        check_choice(optimizer, OPTIMIZERS, "optimizer")
        if not lr > 0 or not weight_decay >= 0:
            raise UsageError(
                f"model.lr must be above 0 and model.weight_decay at least 0, found {lr} and {weight_decay}"
            )
        self.lr, self.weight_decay, self.schedule, self.optimizer = lr, weight_decay, schedule, optimizer
        self.losses: dict[int, Tensor] = {}  # of the epoch's batches, where nobody has looked yet
        self.last: Tensor | None = None  # of the last batch

    clipping = "trainer.gradient_clip_val=1"  # how gradients are bounded

    @abstractmethod
    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The training loss of a batch of images `[b, c, h, w]` in [0, 1] and labels `[b]`."""

    @property
    def seed(self) -> int:
        """The seed of the run; 0 where none was set."""
        return 0 if self.data is None else vars(self.data).get("seed", 0)

    @property
    def train_seed(self) -> int:
        """The seed of what training draws: the run's, unless one was given to it alone."""
        return self.seed if self.data is None else vars(self.data).get("train_seed", self.seed)

    @property
    def data(self) -> Any:
        """The trainer's LightningDataModule; None where it was given loaders."""
        return vars(self.trainer).get("datamodule")

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Randomness of an epoch belongs to (seed, epoch, rank), so that a resumed run equals an undisturbed one.

        (Lightning leaves out `on_train_epoch_start` when it resumes after an epoch, hence the first batch.)
        """
        if index == 0:
            torch.manual_seed(stable_hash(self.train_seed, "epoch", self.current_epoch, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch, images `[b, c, h, w]` and labels `[b]`; it is logged and watched."""
        loss = self.batch_loss(batch)
        self.last = loss.detach()
        self.check_finite(self.last, index)
        if self.is_shown(index):
            self.show(self.last)
        return loss

    def show(self, loss: Float[Tensor, ""]) -> None:
        """Log the loss of a batch; on the host, where a progress bar reads it in every step."""
        self.log("train/loss", loss.cpu(), prog_bar=True, on_step=True, on_epoch=False)

    def is_shown(self, index: int) -> bool:
        """Whether the loss of an epoch's batch is logged: where Lightning hands it to the loggers, at both ends of an epoch, at the last step.

        Logging costs a small step a quarter of its time, and reading the loss makes the host wait for a GPU. Callbacks and the progress
        bar see the loss that was logged last.
        """
        trainer: Any = self._trainer
        if trainer is None:  # a loop of somebody's own
            return True
        step, every = self.global_step + 1, trainer.log_every_n_steps
        ends = index == 0 or trainer.is_last_batch or step == trainer.max_steps
        return ends or bool(every and step % every == 0)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """The loss of a step that a callback stops the training at: Lightning hands it to the loggers, whichever step it is.

        (Lightning's own `outputs` have it divided by the batches whose gradients add up.)
        """
        if self.trainer.should_stop and self.last is not None:
            self.show(self.last)

    def on_train_epoch_end(self) -> None:
        """Weights that are no numbers are not kept for a resume (callbacks that save come after this)."""
        self.check_losses()
        self.check_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Nor are those that a loss without a number was followed by."""
        self.check_losses()

    def check_weights(self) -> None:
        """Stop a training whose weights are NaN or infinite; errors as `check_finite`."""
        for name, p in self.named_parameters():
            if not bool(torch.isfinite(p).all()):
                self.refuse(f"weights ({name}) became NaN or infinite in epoch {self.current_epoch}")

    def check_finite(self, loss: Tensor, index: int) -> None:
        """Stop a training whose loss, a mean over images `[b, ...]`, is NaN or infinite, at once on the CPU; `index` is the epoch's batch.

        Raises:
            UsageError: it is; the message names the first such step and what was saved last.
        """
        self.losses[index] = loss
        if loss.device.type == "cpu" or len(self.losses) >= LOOKED_AT:
            self.check_losses()

    def check_losses(self) -> None:
        """The same for all losses since the last look."""
        losses, self.losses = self.losses, {}
        if not losses or bool(torch.isfinite(torch.stack(list(losses.values()))).all()):
            return
        index, loss = next((i, x) for i, x in losses.items() if not bool(torch.isfinite(x)))
        step = self.current_epoch * int(self.trainer.num_training_batches) + index
        self.refuse(f"the loss became {float(loss)} in epoch {self.current_epoch}, step {step}")

    def refuse(self, what: str) -> None:
        """Stop, and say what was saved last."""
        saved = [c.best_model_path for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        path = next((p for p in saved if p), str(self.trainer.ckpt_path or ""))
        last = f"the last good checkpoint is {path}" if path else "no epoch was complete"
        raise UsageError(f"{what}: lower model.lr={self.lr} or set {self.clipping}; {last}")

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters."""
        return self.optimizer_of(self.parameters())

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> Any:
        """AdamW or SGD, and a schedule per step."""
        optimizer: torch.optim.Optimizer
        parameters = list(parameters)
        # one kernel for all of them on a GPU; Lightning bounds no gradients of such an optimizer
        fused = (all(p.is_cuda for p in parameters) and not self.trainer.gradient_clip_val) or None
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, self.lr, MOMENTUM, weight_decay=self.weight_decay, fused=fused)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        if self.schedule == "constant":
            return optimizer
        steps = self.total_steps()
        scheduler: Any
        if self.schedule == "onecycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        else:
            warm = max(1, round(0.05 * steps))

            def factor(step: int) -> float:
                return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> int:
        """Optimizer steps of the whole training.

        Lightning's own estimate starts the first epoch's loader before a resumed run knows its epoch.
        """
        if self.data is None or not self.trainer.max_epochs or self.trainer.max_epochs < 0:
            return max(1, int(self.trainer.estimated_stepping_batches))
        batches = len(self.data.train_dataloader())
        return optimizer_steps(batches, self.trainer.max_epochs, self.trainer.accumulate_grad_batches)


class SamplerModule(TrainedModule):
    """What learns to draw images or parts of them, and explains nothing; a filler draws with it.

    Attributes:
        channels, side: of its images.
        about: what it was trained on (`FoldData.about`); empty = not known.
    """

    channels: int
    side: int
    about = ""

    @abstractmethod
    def sampler(self) -> Filler:
        """The filler that draws with this module as it is now."""


class TrainableSampler(Trainable, SamplerModule):
    """A sampler of images in training: one number says how it does on images it never saw.

    Attributes:
        measure: that number's name on the dashboard.
    """

    measure: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.watched, self.tested = MeanMetric(), nn.ModuleList([MeanMetric() for _ in range(2)])

    @abstractmethod
    def held_out(self, images: Tensor, index: int) -> Tensor:
        """The measure of batch number `index`, a mean over its images `[b, c, h, w]`; the same noise in every epoch."""

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Watch images `[b, c, h, w]` of V_i; they never select anything."""
        self.watched(self.held_out(batch[0], index), len(batch[0]))
        self.log(f"val/{self.measure}", self.watched, prog_bar=True, on_epoch=True, on_step=False)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int, dataloader_idx: int = 0) -> None:
        """Measure on images `[b, c, h, w]` of V_i (loader 0) and of the fixed test split (loader 1)."""
        metric: Any = self.tested[dataloader_idx]
        metric(self.held_out(batch[0], index), len(batch[0]))
        name = f"{('heldout', 'test')[dataloader_idx]}/{self.measure}"
        self.log(name, metric, on_epoch=True, on_step=False, add_dataloader_idx=False)

"""A process among others: where it runs, how it is interrupted, how its job is put back into the queue.

SLURM schedules and Lightning communicates. What is added: a training that is interrupted goes on from the batch where it
was and ends where an undisturbed one ends, bit for bit. (Lightning's own handler saves in the middle of a batch.)
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from lit_xai.cluster.heartbeat import slurm_job
from lit_xai.errors import UsageError
from lit_xai.store.files import write_atomically

# seconds to the end of a batch or shard: the time limit is near (`--signal=SIGUSR1@90`), the scheduler ends the job, Ctrl-C
GRACE = {signal.SIGUSR1: 60, signal.SIGTERM: 20, signal.SIGINT: 10}


class Interrupted(Exception):
    """A signal ended the work where a repeated command goes on."""

    def __init__(self, number: int, saved: str) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}: {saved}")


def requeue() -> str:
    """Put this process's SLURM job back into the queue; say what came of it."""
    job = slurm_job()
    if job is None or not re.fullmatch(r"[0-9_]+", job):
        return "run the same command to go on"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"job {job} could not be requeued ({type(e).__name__}): submit it again to go on"
    if done.returncode:
        return f"job {job} could not be requeued ({done.stderr.strip()[:200]}): submit it again to go on"
    return f"job {job} is requeued and goes on from there"


def environment() -> list[Any]:
    """Lightning's plugins for this process: SLURM's ranks under `srun`, its own processes elsewhere."""
    whole: list[Any] = [WholeCheckpoints()]
    if "SLURM_STEP_ID" in os.environ and SLURMEnvironment.detect():
        return [*whole, SLURMEnvironment(auto_requeue=False)]
    return [*whole, LightningEnvironment()] if "SLURM_JOB_ID" in os.environ else whole


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there, also where the temporary folder is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())


class EachEpoch(ModelCheckpoint):
    """The state after every epoch. What a file says of other files is not believed: Lightning would delete them as older ones."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing of what the file says."""


class Interruption(pl.Callback):
    """Heeds signals where the next batch of a training begins, or between two shards of maps.

    At a batch every rank learns whether any of them was signalled. Then the state is saved, with the number of the batch
    and the random states of all ranks, and `Interrupted` is raised. A resumed training begins with that batch.

    Args:
        state: the file that a training is resumed from.
    """

    state_key = "interruption"

    def __init__(self, state: Path) -> None:
        self.state, self.received, self.listens = state, 0, False
        self.middle: dict[str, Any] = {}  # where in an epoch the state was saved, and the random states of all ranks
        self.launcher: Any = None  # of this process's own processes

    # ------------------------------------------------------------------------------------------------------- signals

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Note signals in the place of dying of them; an error that a signal brings about counts as that signal.

        Raises:
            Interrupted: the work was ended by a signal.
        """
        if threading.current_thread() is not threading.main_thread():  # where no handlers can be set
            yield self
            return
        before = {number: signal.getsignal(number) for number in (*GRACE, signal.SIGALRM)}
        self.listens = True
        self.listen()
        try:
            yield self
        except Interrupted:
            raise
        except Exception as e:  # such as a barrier that another rank has left
            if not self.received:
                raise
            raise Interrupted(self.received, f"finished work is kept ({type(e).__name__})") from e
        finally:
            self.listens = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Set the handlers: again in every stage, for Lightning sets its own, which talk to other ranks at any time."""
        if self.listens:
            for number in GRACE:
                signal.signal(number, self.note)
            signal.signal(signal.SIGALRM, self.too_late)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal, and pass it to the processes that this one started (a terminal's Ctrl-C reaches them itself).

        Who presses Ctrl-C again does not want to wait.
        """
        if self.received:
            if number == signal.SIGINT == self.received:
                self.too_late(number, frame)
            return
        self.received = number
        signal.setitimer(signal.ITIMER_REAL, GRACE[signal.Signals(number)])
        if number != signal.SIGINT and self.launcher is not None:
            for process in vars(self.launcher).get("procs", ()):
                process.send_signal(number)

    def too_late(self, number: int, frame: FrameType | None) -> None:
        """What is being done takes too long: leave it."""
        raise Interrupted(self.received, "finished work is kept")

    def pause(self, *_: Any) -> None:
        """Between two shards.

        Raises:
            Interrupted: a signal came.
        """
        if self.received:
            raise Interrupted(self.received, "finished shards are kept")

    # --------------------------------------------------------------------------------------------------------- hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.launcher = trainer.strategy.launcher
        self.listen()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.launcher = trainer.strategy.launcher
        self.listen()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on with the random state of an interrupted epoch; save it where a signal came."""
        if self.middle:
            own = self.middle["random"][trainer.global_rank]
            torch.set_rng_state(own["cpu"])
            if "cuda" in own:
                torch.cuda.set_rng_state(own["cuda"], trainer.strategy.root_device)
            self.middle = {}
        if batch_idx % trainer.accumulate_grad_batches:
            return
        number = self.received
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            number = int(told)
        if number:
            signal.setitimer(signal.ITIMER_REAL, 0)
            where = f"epoch {trainer.current_epoch}, batch {batch_idx}"
            if batch_idx:
                self.middle = {"batch": batch_idx, "random": self.random_states(trainer)}
                trainer.save_checkpoint(self.state)
                where += f" is saved to {self.state}"
            raise Interrupted(number, where)

    def random_states(self, trainer: pl.Trainer) -> list[dict[str, torch.Tensor]]:
        """Of every rank, in order."""
        own, device = {"cpu": torch.get_rng_state()}, trainer.strategy.root_device
        if device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(device)
        everyone = [own]
        if trainer.world_size > 1:
            everyone = [{}] * trainer.world_size
            torch.distributed.all_gather_object(everyone, own)
        return everyone

    def state_dict(self) -> dict[str, Any]:
        """Empty at the end of an epoch."""
        return dict(self.middle)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.middle = dict(state_dict)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning counts one logged step too many when it resumes within an epoch."""
        if self.middle:
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def begins_at(checkpoint: Mapping[str, Any], processes: int) -> tuple[int, int]:
    """The epoch and batch that a saved training goes on with.

    Raises:
        UsageError: it was interrupted within an epoch that another number of processes shared.
    """
    middle = checkpoint.get("callbacks", {}).get(Interruption.state_key, {})
    if not middle:
        return checkpoint["epoch"] + 1, 0
    if len(middle["random"]) != processes:
        raise UsageError(
            f"this training was interrupted within an epoch of {len(middle['random'])} processes and goes on with "
            f"as many: set trainer.devices= (and trainer.num_nodes=), or delete last.ckpt to train again"
        )
    return checkpoint["epoch"], middle["batch"]

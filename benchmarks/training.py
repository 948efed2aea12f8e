"""Training over its bare steps: what the loader, batches made as a whole and Lightning's loop cost beside them."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from lit_xai.data.folds import FoldData
from lit_xai.data.images import Source, in_memory
from lit_xai.models import Classifier, resnet18
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.harness import Report, Target

BATCH, SIDE, CLASSES = 128, 28, 10
AUGMENT = (v2.RandomCrop(SIDE, padding=4), v2.RandomHorizontalFlip())  # as CIFAR-10's
ROUNDS = 3
LEAST, MOST = 40_000, 1.1  # images a second on an H100 in bf16; time over bare steps on a CPU


@dataclass(frozen=True)
class Setting:
    """What is trained, and where: width of the network, steps before and while it is timed."""

    device: torch.device
    width: int
    before: int
    steps: int

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


GPU, CPU = Setting(torch.device("cuda", 0), 26, 50, 200), Setting(torch.device("cpu"), 8, 2, 8)


def wait(device: torch.device) -> float:
    """The time when all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def images(steps: int) -> Source:
    """Random grey images, enough for an epoch of so many steps of half of them."""
    n = 2 * BATCH * steps
    pixels = torch.randint(0, 256, (n, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return in_memory("noise", pixels, torch.arange(n) % CLASSES, list(map(str, range(CLASSES))))


def module(width: int) -> Classifier:
    """What is trained, from the same weights each time."""
    torch.manual_seed(0)
    return Classifier(lambda **shape: resnet18(**shape, width=width), 1, CLASSES, SIDE)


def bare(setting: Setting) -> float:
    """Images a second of steps on one batch that is there, without Lightning."""
    device, before, steps = setting.device, setting.before, setting.steps
    model = module(setting.width).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = torch.rand(BATCH, 1, SIDE, SIDE, device=device), torch.arange(BATCH, device=device) % CLASSES
    began = 0.0
    for step in range(before + steps):
        began = wait(device) if step == before else began
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=setting.on_gpu):
            loss = model.batch_loss(batch)
        loss.backward()
        optimizer.step()
    return BATCH * steps / (wait(device) - began)


class Clock(pl.Callback):
    """Times the steps after the first few."""

    def __init__(self, before: int) -> None:
        self.before, self.began, self.seconds = before, 0.0, 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.before:
            self.began = wait(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = wait(pl_module.device) - self.began


def data(source: Source, augmented: bool, on_device: bool) -> FoldData:
    """The data of a training, augmented or not."""
    options = {"augment": AUGMENT if augmented else (), "on_device": "auto" if on_device else False}
    return FoldData(lambda: source, folds=2, batch_size=BATCH, **options)  # type: ignore[arg-type]


def trained(setting: Setting, source: Source, augmented: bool = False, on_device: bool = True) -> float:
    """Images a second of a training: in bf16 on a GPU."""
    clock = Clock(setting.before)
    with quiet():
        trainer = pl.Trainer(
            accelerator="gpu" if setting.on_gpu else "cpu",
            devices=1,
            precision="bf16-mixed" if setting.on_gpu else "32-true",
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module(setting.width), data(source, augmented, on_device))
    return BATCH * setting.steps / clock.seconds


def training(rounds: int = ROUNDS) -> Report:
    """Images a second: bare steps, trainings in four ways, and the batches of each alone."""
    setting = GPU if torch.cuda.is_available() else CPU
    source, many = images(setting.before + setting.steps), images(100)

    works: dict[str, Callable[[], float]] = {"bare steps on one batch": lambda: bare(setting)}
    for augmented, what in ((False, "training"), (True, "training, crops and flips")):
        for on_device, how in ((False, "on_device=false"), (True, "on_device=auto")):
            works[f"{what}, {how}"] = lambda a=augmented, o=on_device: trained(setting, source, a, o)
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(works[name]())
    speed = {name: statistics.median(values) for name, values in found.items()}
    floor, ours = speed["bare steps on one batch"], speed["training, on_device=auto"]
    report = Report(
        f"training: ResNet-18 of width {setting.width}, {SIDE} px, batch {BATCH}, {'bf16' if setting.on_gpu else 'float32'} "
        f"on {setting.device}, {torch.get_num_threads()} threads",
        ["what", "images/s", "slowest", "time over bare steps"],
    )
    for name, value in speed.items():
        report.rows.append([name, f"{value:,.0f}", f"{min(found[name]):,.0f}", floor / value])
    for augmented, what in ((False, ""), (True, ", crops and flips")):
        for on_device, how in ((False, "one by one"), (True, "as a whole")):
            loader = data(many, augmented, on_device).train_dataloader()
            report.rows.append([f"batches alone on the CPU{what}, {how}", f"{rate(loader):,.0f}", None, None])
    if setting.on_gpu:
        report.targets.append(Target("images a second in bf16", ours, LEAST, at_least=True))
    else:
        augmented_over = floor / speed["training, crops and flips, on_device=auto"]
        report.targets += [Target("training over bare steps", floor / ours, MOST)]
        report.targets += [Target("training with crops and flips over bare steps", augmented_over, MOST)]
    return report


def rate(loader: Any) -> float:
    """Images a second of a loader, from its second batch."""
    batches: Iterator[tuple[Tensor, Tensor]] = iter(loader)
    next(batches)
    began = time.perf_counter()
    number = sum(len(labels) for _, labels in batches)
    return number / (time.perf_counter() - began)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice and notices."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    log.setLevel(level)

"""What an explanation will cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lit_xai.calls import Gate
from lit_xai.core import Explainer, Passes, Score
from lit_xai.engine.job import Job
from lit_xai.engine.sizes import size_of, sized
from lit_xai.engine.tasks import Tasks
from lit_xai.explainers.sweep import SlidingPatch
from lit_xai.store.names import RANDOM, TEST

# fields that decide how many passes a method takes: the first that helps is named where it shall be cheaper
COUNTS = ("stride", "step", "masks", "samples", "cap", "steps", "points", "subsets", "draws", "repeats")
LEAST = 10  # no smaller count is proposed
ENOUGH = 1.5  # seconds that a trial may take


@dataclass(frozen=True)
class Cost:
    """What one explainer or score will take.

    Attributes:
        name: as on the command line, `explainer.rise`.
        passes: of the model, for all images.
        minutes: what they take.
        cheaper: options that cost less.
    """

    name: str
    passes: Passes
    minutes: float
    cheaper: tuple[str, ...] = ()

    def __str__(self) -> str:
        passes = " and ".join(f"{n:,} {way}" for n, way in zip(self.passes, ("forward", "backward"), strict=True) if n)
        if not passes:
            return f"{self.name}: no passes"
        mend = ", ".join(self.cheaper) or "leave it out"
        return f"{self.name}: {passes} passes, about {self.minutes:.1f} min; cheaper: {mend}"


@dataclass(frozen=True)
class Plan:
    """Model passes to come and what they will take.

    Attributes:
        shards, maps: how many are missing.
        passes, minutes: of all of them.
        costs: of every explainer and score, the dearest first.
        device: where the model was timed, `cpu` or `cuda`.
        size: images a model call, where nobody says otherwise; 0 = nothing is to be done.
    """

    shards: int
    maps: int
    passes: Passes
    minutes: float
    costs: tuple[Cost, ...] = ()
    device: str = "cpu"
    size: int = 0

    def __str__(self) -> str:
        return (
            f"{self.maps:,} maps in {self.shards:,} shards, {self.passes.forward:,} forward and "
            f"{self.passes.backward:,} backward passes of one image, about {self.minutes:.1f} min on this {unit(self.device)}"
            f"{f', {self.size:,} images a call' if self.size else ''}"
        )


def unit(device: str) -> str:
    """What a device is called."""
    return "CPU" if device == "cpu" else "GPU"


def plan(*several: Tasks, enough: float = ENOUGH, progress: bool = False) -> Plan:
    """Count what is missing in one or more passes of a predictor and time one forward and one backward batch, each for at most
    about `enough` seconds.
    """
    tasks = [task for one in several for task in one]
    if not tasks:
        return Plan(0, 0, Passes(0), 0.0, device=several[0].job.device.type)
    job, explainers, scores = tasks[0].job, several[0].explainers, several[0].scores
    device = job.device.type
    images, targets, _ = job.batch(next(job.batches(tasks[0].shard)))
    number = size_of(job)
    height, width = images.shape[-2:]
    things: dict[str, Explainer | Score] = {
        f"explainer.{n}": sized(e.fitted(job.trained_on), number) for n, e in explainers.items()
    }
    things.update({f"score.{n}": s for n, s in scores.items()})
    each = {name: thing.passes(height, width) for name, thing in things.items()}
    one, two = seconds_per_image(job.model, images, targets, enough, progress)
    share = {n: t.share(job.model, images) for n, t in things.items() if isinstance(t, SlidingPatch)}
    asked: dict[str, Passes] = {}
    took: dict[str, float] = {}
    seen = set()

    def ask(name: str, of: str, times: int) -> None:
        """Count the passes of `of` for `times` images, and their minutes, under a name."""
        forward, backward = (n * times for n in each[of])
        asked[name] = asked.get(name, Passes(0)) + Passes(forward, backward)
        took[name] = took.get(name, 0.0) + share.get(of, 1.0) * (forward * one + backward * two) / 60

    for w in tasks:
        if not w.meta:
            ask(f"explainer.{w.name}", f"explainer.{w.name}", len(w.shard))
        for n in w.missing:
            if not scores[n].observes or (n, w.shard) not in seen:
                ask(f"score.{n}", f"score.{n}", len(w.shard))
                seen.add((n, w.shard))
            if scores[n].explanations:
                ask(f"score.{n}", f"explainer.{w.name}", scores[n].explanations * len(w.shard))
    fewer, costs = fewer_probes(job), []
    for name, passes in asked.items():
        mends = () if begun(job, name) else (setting(name, things[name], height, width), fewer)
        costs.append(Cost(name, passes, took[name], tuple(m for m in mends if m)))
    costs.sort(key=lambda c: -c.minutes)
    total = sum((c.passes for c in costs), Passes(0))
    maps = sum(len(w.shard) for w in tasks)
    return Plan(len(tasks), maps, total, sum(c.minutes for c in costs), tuple(costs), device, number)


def begun(job: Job, name: str = "*") -> bool:
    """Whether a fold of this experiment has maps of an explainer (else: of any), whose settings another one would refuse."""
    group, _, explainer = name.partition(".")
    explainer = explainer if group == "explainer" else "*"
    return any(job.store.root.parent.glob(f"fold=*/{job.kind}/{explainer}/*.safetensors"))


def setting(name: str, thing: Any, height: int, width: int) -> str | None:
    """The option of an explainer or score that brings its passes down to about a quarter; None where none halves them."""
    known = {f.name: vars(thing)[f.name] for f in fields(thing)} if is_dataclass(thing) else {}
    now = size(thing, height, width)
    for count in (n for n in COUNTS if n in known):
        value = known[count]
        if not isinstance(value, int):
            continue
        cheaper = {"stride": [value * 2**i for i in range(1, 7)], "step": [4 * (value or max(height, width))]}
        for other in cheaper.get(count, [max(LEAST, value // 4)]):
            if 2 * size(replace(thing, **{count: other}), height, width) <= now:
                return f"{name}.{count}={other}"
    return None


def size(thing: Explainer | Score, height: int, width: int) -> int:
    """What an image costs by the thing's own settings: its passes and, of a score, the maps that it asks for."""
    return sum(thing.passes(height, width)) + (thing.explanations if isinstance(thing, Score) else 0)


def fewer_probes(job: Job) -> str | None:
    """The option that brings the number of explained images down to a quarter; None where maps of them are there."""
    each = len(job.samples) // job.shared["folds"]
    if job.kind == TEST:
        option, each = "test_probes", len(job.samples)
    else:
        option = "cap" if job.kind != RANDOM else "data.probes_per_fold"
    return None if each < 2 or begun(job) else f"{option}={max(1, each // 4)}"


def trial(
    try_it: Callable[[int], None], most: int, least: int = 1, enough: float = ENOUGH, progress: bool = False
) -> float:
    """Seconds an item of `try_it(items)`: the least of tries that grow from `least` to `most`, or until `enough` seconds are over.

    The first try warms up and does not count; a machine that does something else besides slows single ones, so that a second one
    that took longer than the first is not the last.
    """
    first = min(least, most)
    sizes = [first, *(first * 2**i for i in range(most.bit_length()) if first * 2**i < most), most, most, most]
    best, spent, warm = math.inf, 0.0, math.inf
    bar = tqdm(sizes, "timing", unit="batch", disable=not progress, dynamic_ncols=True, leave=False)
    for i, size in enumerate(bar):
        began = time.perf_counter()
        try_it(size)
        took = time.perf_counter() - began
        if not i:
            warm = took
            continue
        best, spent = min(best, took / size), spent + took
        if spent >= enough and not (i == 1 and took > warm):
            break
    bar.close()
    return best


def seconds_per_image(
    model: nn.Module, images: Tensor, targets: Tensor, enough: float = ENOUGH, progress: bool = False
) -> tuple[float, float]:
    """Seconds of a forward pass of one of the images `[b, c, h, w]`, and of its backward pass to it, by a short `trial`."""
    gate = Gate.of(model, targets)

    def forward(size: int) -> None:
        with torch.inference_mode():
            gate(images[:size])[0, 0].item()

    def both(size: int) -> None:
        x = images[:size].clone().requires_grad_()
        torch.autograd.grad(gate(x).gather(1, targets[:size, None]).sum(), x)[0].sum().item()

    one, two = (trial(f, len(images), enough=enough, progress=progress) for f in (forward, both))
    return one, max(two - one, 0.0)

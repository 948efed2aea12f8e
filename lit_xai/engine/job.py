"""One predictor and the probes it explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lit_xai.core import Component, Explainer, TrainedOn
from lit_xai.data.images import ImageSet, digest
from lit_xai.data.truth import Truth
from lit_xai.errors import UsageError
from lit_xai.fitting import describe, model_hash
from lit_xai.rng import NOISE, SampleRng
from lit_xai.store.fold import FoldStore
from lit_xai.store.names import DECISIONS, RANDOM


@dataclass(frozen=True)
class Job:
    """One predictor and the probes it explains.

    Attributes:
        model: plain module in evaluation mode, images in [0, 1] to logits.
        images: the data set's training images.
        samples: `[p]` the probes, in the order that defines batches and shards.
        targets: `[p]` the class that each map explains.
        store: where results go.
        shared: what folds must have in common to be compared (data, split, probes, seed).
        trained_on: what the predictor was trained on, for fillers that are fitted to it.
        truth: masks beside the images, for scores that want them.
        kind: `maps` (random probes), `disagreements`, `decisions` (what a wrong predictor says on disagreements), `randomised` or
            `repeated` (see `lit_xai.engine.checks`).
        seed: of all noise.
        batch_size: images per explainer call.
        shard_size: probes per file.
        device: where the model runs.
        checkpoint: a digest of the model's weights; None takes it from the model, empty = not trained yet.
        repeat: of the noise; 0 is that of all maps that are compared between predictors.
    """

    model: nn.Module
    images: ImageSet
    samples: Int[Tensor, "p"]
    targets: Int[Tensor, "p"]
    store: FoldStore
    shared: dict[str, Any]
    trained_on: TrainedOn
    truth: Truth | None = None
    kind: str = RANDOM
    seed: int = 0
    batch_size: int = 16
    shard_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint: str | None = None
    repeat: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shard_size < 1:
            raise UsageError(f"batch_size and shard_size must be positive, found {self.batch_size}, {self.shard_size}")
        model = self.model.to(self.device).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        object.__setattr__(self, "model", model)
        if self.checkpoint is None:
            object.__setattr__(self, "checkpoint", model_hash(model))

    def ranges(self, part: tuple[int, int] = (0, 1)) -> list[range]:
        """The probe ranges of one part (job or rank): every range belongs to exactly one."""
        index, of = part
        if not 0 <= index < of:
            raise UsageError(f"part={index}/{of} does not exist: parts are 0/{of}..{of - 1}/{of}")
        n = len(self.samples)
        return [range(s, min(s + self.shard_size, n)) for s in range(0, n, self.shard_size)][index::of]

    def fingerprint(self, explainer: Explainer) -> dict[str, Any]:
        """What a shard must agree in to be reused."""
        return {
            **read_from(explainer, self.trained_on),
            **self.shared,
            "kind": self.kind,
            **({"target": "prediction"} if self.kind == DECISIONS else {}),
            "seed": self.seed,
            "probes": digest(self.samples),
            "targets": digest(self.targets),
            "explainer": describe(explainer),
            **noise_of(explainer),
            "checkpoint": self.checkpoint,
            "fold": self.store.fold,
        }

    def batch(self, start: int) -> tuple[Tensor, Tensor, SampleRng]:
        """Images, targets and noise of the aligned batch that begins at probe `start`."""
        samples = self.samples[start : start + self.batch_size]
        images = self.images.images(samples.tolist()).to(self.device, memory_format=torch.channels_last)
        rng = SampleRng(self.seed, tuple(samples.tolist())).repeated(self.repeat)
        return images, self.targets[start : start + self.batch_size].to(self.device), rng

    def batches(self, shard: range) -> Iterator[int]:
        """Where the aligned batches that overlap a shard begin."""
        return iter(range(shard.start - shard.start % self.batch_size, shard.stop, self.batch_size))


def explained_classes(
    target: str, labels: Int[Tensor, "p"], predicted: Callable[[], Int[Tensor, "p"]]
) -> Int[Tensor, "p"]:
    """The class that each map explains: the label (`target="label"`), or the predictor's, always so where there is no label."""
    return labels if target == "label" and not bool((labels < 0).any()) else predicted()


def read_from(thing: Component, trained_on: TrainedOn) -> dict[str, Any]:
    """What the files that an explainer or a score reads hold: `fitted` is the same for all folds, `files` a fold's own."""
    found = thing.fitted(trained_on).contents()
    if not found:
        return {}
    fitted = {name: {k: v for k, v in c.items() if k != "digest"} for name, c in found.items()}
    return {"fitted": fitted, "files": {name: c["digest"] for name, c in found.items()}}


def noise_of(thing: Component) -> dict[str, Any]:
    """The version of the noise, of what draws from it."""
    return {"noise": NOISE} if thing.draws_numbers() else {}


def files_of(thing: Component, trained_on: TrainedOn) -> dict[str, str]:
    """The digests of the files that an explainer or a score reads, by dotted name."""
    return read_from(thing, trained_on).get("files", {})

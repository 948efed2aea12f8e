"""The control: maps that know nothing of the image or the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from lit_xai.calls import gated
from lit_xai.core import SIGNED, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.rng import SampleRng


@dataclass(frozen=True)
class Random(Explainer):
    """Standard normal noise, independent for every sample and every model: the null of all scores and measures.

    The noise belongs to (seed, sample, model), not to the sample alone: maps that two folds share would have a perfect
    MeGe. The model enters by the bytes of its first and last parameter tensor.
    """

    null: ClassVar[bool] = True
    legend: ClassVar[Legend] = Legend(SIGNED, "noise: the colours have no meaning")

    def passes(self, height: int, width: int) -> Passes:
        """No model pass at all."""
        return Passes(0)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        rng = SampleRng.default(len(images), rng)
        return rng.noise(f"random/{identity(model)}", images.device).normal(images.shape[-2:]).to(images.dtype)


def identity(model: Model) -> str:
    """A short text that differs between trained models and is the same for one model in every process."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    digest = hashlib.blake2b(digest_size=8)
    for p in (parameters[0], parameters[-1]) if parameters else ():
        digest.update(p.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()

"""A model whose answer is known to be no logits, as one that gives logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.calls import HALF, SUMS, Declared, itself, way_to_logits
from lit_xai.core import Model
from lit_xai.errors import UsageError

OUTPUTS = ("logits", "probabilities", "binary")


class AsLogits(Declared):
    """Logits `[b, k]` of a model that gives something else; their softmax is the model's own probability.

    Args:
        model: images `[b, c, h, w]` in [0, 1] -> `[b, k]`, or `[b, 1]` or `[b]` of two classes.
        outputs: what it gives. `probabilities` p: the logits are log p, and (log(1 - p), log p) of one column, the probability of
            class 1; NaN where they are no probabilities, at least 0 with rows that sum to 1. `binary`, the logit z of class 1: the logits are (-z/2, z/2). `logits`: as they are, also
            where they look like probabilities.

    Raises:
        UsageError: unknown outputs; when called, answers that are not what was said.
    """

    def __init__(self, model: Model, outputs: str) -> None:
        super().__init__()
        if outputs not in OUTPUTS:
            raise UsageError(f"outputs must be one of {', '.join(OUTPUTS)}, found {outputs!r}")
        self.model, self.outputs = model, outputs

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits from what the model gives."""
        given: Any = self.model(images)
        values = (way_to_logits(given) if not isinstance(given, Tensor) else itself)(given)
        values = values[:, None] if values.ndim == 1 else values
        if self.outputs == "logits":
            return values
        if values.ndim != 2 or (self.outputs == "binary" and values.shape[1] != 1):
            raise UsageError(f"outputs={self.outputs} does not fit a model that gives shape {tuple(values.shape)}")
        if self.outputs == "binary":
            return torch.cat([-values, values], 1) / 2
        p = torch.cat([1 - values, values], 1) if values.shape[1] == 1 else values
        logs = p.clamp_min(torch.finfo(p.dtype).tiny).log()
        near = torch.finfo(p.dtype).eps if p.dtype in HALF else SUMS
        whole = (p.sum(1, keepdim=True) - 1).abs() <= near  # not so the scores of several labels, each by itself
        return torch.where(whole & (p >= -near), logs, torch.nan)

"""Sweeps in bf16 whose maps are those of float32: exact logits of rounded features, and float32 where that is not enough.

bf16 has 8 bits: a logit of 10 is rounded to a multiple of 1/16, and log p(y|x) / p(y|x without a window) with it. That rounding is
most of what separates the maps, and is not needed: the layer that gives the logits is small, and reads what is rounded in float32.
What is left matters where a network's answers hardly differ from window to window; a few windows in both precisions tell.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lit_xai.calls import Gate, evaluating
from lit_xai.core import Images

LOG = logging.getLogger(__name__)
PROBES = 32  # windows of an image that are answered in both precisions
ALIKE = 0.999  # correlation of their contrasts, at least

Walk = Callable[[list[int], str, "list[int] | None"], Tensor]


def in_half(walk: Walk, model: Gate, images: Images, windows: int) -> Float[Tensor, "contrasts b windows *n"]:
    """A sweep in bf16; of images whose contrasts would be lost in its rounding, in float32.

    Args:
        walk: the sweep of some images, in a precision, of some windows or (None) of all.
        model, images: as in `sweep`.
        windows: how many there are.
    """
    every = list(range(len(images)))
    probes = sorted({round(i * (windows - 1) / max(1, PROBES - 1)) for i in range(PROBES)})
    with float32_head(model, images):
        rounded = walk(every, "bf16", probes)
    poor = (~alike(rounded, walk(every, "float32", probes))).nonzero()[:, 0].tolist()
    rest = sorted({*every} - {*poor})
    out = rounded.new_empty(len(rounded), len(images), windows, *rounded.shape[3:])
    if rest:
        with float32_head(model, images):
            out[:, rest] = walk(rest, "bf16", list(range(windows)))
    if poor:
        LOG.warning("bf16 hides what windows change in %d of %d images: float32 explains them", len(poor), len(images))
        out[:, poor] = walk(poor, "float32", None)
    return out


def alike(a: Float[Tensor, "contrasts b p *n"], b: Float[Tensor, "contrasts b p *n"]) -> Bool[Tensor, "b"]:
    """Images whose contrasts, all of them, correlate over the windows by at least `ALIKE`; constant ones with constant ones alone."""
    a, b = (v.flatten(3) if v.ndim > 3 else v[..., None] for v in (a, b))
    a, b = (v - v.mean(2, keepdim=True) for v in (a, b))
    own, other = a.square().sum(2), b.square().sum(2)
    good = ((a * b).sum(2) >= ALIKE * (own * other).sqrt()) & ((own > 0) == (other > 0))
    return good.all(2).all(0)


@contextmanager
def float32_head(model: Gate, images: Images) -> Iterator[None]:
    """The last convolution or linear layer that a pass calls gives float32 under autocast; what follows it stays in float32."""
    called: list[nn.Module] = []

    def exact(layer: nn.Module, args: Any, out: Any) -> Any:
        kind = images.device.type
        if not args or not torch.is_autocast_enabled(kind):
            return out
        with torch.autocast(kind, enabled=False):
            return layer.forward(args[0].float())

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) and m.weight.dtype == torch.float32]
    handles = [m.register_forward_hook(lambda layer, *_: called.append(layer)) for m in layers]
    try:
        with torch.inference_mode(), evaluating(model):
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    handles = [layer.register_forward_hook(exact) for layer in called[-1:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""What attention carries from the patches to the output of a transformer: rollout, plain and weighted by gradients.

The attention of a layer is the result of its softmax, found in autograd's graph of one forward pass without fused kernels: so
it does not matter who wrote the layer. The rows that are read are those of the tokens on which the logits depend after the last
attention (a class token, several, or all patches), averaged; the columns are the patches, on the grid of the convolution that
made them, enlarged bilinearly to the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_xai.calls import gated, select_output
from lit_xai.core import MAGNITUDE, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.explainers.layers import (
    CHECKPOINTS,
    attention_of,
    before,
    differentiable,
    is_convolution,
    layers_of,
    operations,
    run_through,
    token_grid,
)
from lit_xai.rng import SampleRng

WHAT = "attention rollout"


class Attention(NamedTuple):
    """The attention of one pass, first layer first.

    Attributes:
        weights: of every layer, `[b, heads, n, n]`.
        gradients: of the selected output at the weights, as they are; empty where none was asked for.
        read: `[n]`, the tokens on which the logits depend after the last layer.
        grid: of the patches.
        prefix: tokens before the patches.
    """

    weights: list[Float[Tensor, "b heads n n"]]
    gradients: list[Float[Tensor, "b heads n n"]]
    read: Tensor
    grid: tuple[int, int]
    prefix: int

    def to_maps(self, rollout: Float[Tensor, "b n n"], images: Images) -> Maps:
        """The rows that are read, at the patches, as maps of the image's size."""
        patches = rollout[:, self.read].mean(1)[:, self.prefix :].unflatten(1, self.grid)
        return F.interpolate(patches[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def by_heads(weights: Tensor, images: int) -> Tensor:
    """Attention `[b, heads, n, n]` of what may be `[b * heads, n, n]`.

    Raises:
        UsageError: it is attention inside windows, or of a few tokens to the others.
    """
    if weights.ndim == 3 and len(weights) % images == 0:
        weights = weights.unflatten(0, (images, -1))
    if weights.ndim != 4 or len(weights) != images or weights.shape[2] != weights.shape[3]:
        raise UsageError(
            f"{WHAT} needs self-attention among all tokens of an image, [b, heads, n, n]; this network has one of shape "
            f"{tuple(weights.shape)} for {images} images (windows, or a class's own attention): use gradcam or another method"
        )
    return weights


def attention(model: Model, images: Images, targets: Targets, output: str | None) -> Attention:
    """The attention of one pass; `output` (`logit`, `probability`) is whose gradient is wanted, None = nobody's.

    Raises:
        UsageError: the network has no self-attention among all tokens, or nothing tells where its tokens lie.
    """
    modules = dict(layers_of(model, WHAT).named_modules())
    convolutions = {name: m for name, m in modules.items() if is_convolution(m)}
    with differentiable(model), sdpa_kernel(SDPBackend.MATH):
        passed = run_through(model, images, convolutions)
        nodes: list[Any] = attention_of(passed.logits)
        if any("Checkpoint" in node.name() for node in operations(passed.logits)):
            raise UsageError(f"{WHAT} cannot see into {CHECKPOINTS}")
        if not nodes:
            raise UsageError(f"the network computes no softmax over tokens: {WHAT} is for transformers; use gradcam")
        if any(n.name().startswith("ScaledDotProduct") for n in nodes):
            raise UsageError(
                f"{WHAT} cannot read fused attention: switch it off in the model (attn_implementation='eager')"
            )
        if any(first not in before(second) for first, second in pairwise(nodes)):
            raise UsageError(
                f"{WHAT} multiplies layers that follow each other, and this network's do not: it has branches, or runs twice in "
                f"one pass; use gradcam, or explain the network inside"
            )
        exact = passed.logits.dtype  # sums of half precision are not
        weights = [by_heads(n._saved_result.detach().to(exact), len(images)) for n in nodes]
        n = weights[0].shape[-1]
        found = token_grid(n, passed.grids(), images, halved=False)
        if found is None or any(w.shape[-1] != n for w in weights):
            sizes = sorted({w.shape[-1] for w in weights})
            raise UsageError(f"attention among {sizes} tokens does not lie on one grid of patches: {WHAT} does not fit")
        edges = [GradientEdge(node, 0) for node in nodes]
        (last,) = torch.autograd.grad(passed.probe(), edges[-1:], retain_graph=True)
        read = (last.view_as(weights[-1]) != 0).any(-1).flatten(0, 1).any(0)
        if not bool(read.any()):
            raise UsageError(
                f"the logits do not depend on any token after the last attention (a head of zeros is not trained yet): {WHAT} has "
                "nothing to read"
            )
        gradients: list[Tensor] = []
        if output is not None:
            selected = select_output(passed.logits, targets.clone(), output).sum()
            found_at = torch.autograd.grad(selected, edges)
            gradients = [g.view_as(w).to(exact) for g, w in zip(found_at, weights, strict=True)]
    return Attention(weights, gradients, read, *found)


@dataclass(frozen=True)
class AttentionRollout(Explainer):
    """Attention rollout (Abnar & Zuidema, 2020): the product over layers of (mean of the heads + unit matrix) / 2.

    It says from where the output takes anything, not for which class.
    """

    deterministic: ClassVar[bool] = True
    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = more attention reaches the output, of whatever class")

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass, and a backward pass through the last layer."""
        return Passes(1, 1)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        found = attention(model, images, targets, None)
        unit = torch.eye(found.weights[0].shape[-1], device=images.device, dtype=found.weights[0].dtype)
        rollout = unit.expand(len(images), -1, -1)
        for weights in found.weights:
            rollout = (weights.mean(1) + unit) / 2 @ rollout
        return found.to_maps(rollout, images)


@dataclass(frozen=True)
class GradientRollout(Explainer):
    """Gradient-weighted rollout (Chefer et al., ICCV 2021): R <- R + mean over heads of (gradient * attention)^+ R, R = 1 first.

    Args:
        output: whose gradient, `logit` or `probability`.
    """

    deterministic: ClassVar[bool] = True

    output: str = "logit"

    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = more evidence for {label}, white = none")

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass."""
        return Passes(1, 1)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        found = attention(model, images, targets, self.output)
        unit = torch.eye(found.weights[0].shape[-1], device=images.device, dtype=found.weights[0].dtype)
        rollout = unit.expand(len(images), -1, -1)
        for weights, gradients in zip(found.weights, found.gradients, strict=True):
            rollout = rollout + (gradients * weights).relu().mean(1) @ rollout
        return found.to_maps(rollout, images)

"""Class activation maps: Grad-CAM and Grad-CAM++.

Both weigh the feature maps A of one layer by their gradients g = d logit / d A, sum over channels, keep the positive
part and interpolate bilinearly to the image. The layer, unless it is named, is the last convolution *executed*; in a network
with layer norms it is the last convolution or norm whose gradient is not zero at every position of the image (a class token
leaves the last norm's patches without one). Tokens are put back on the grid of the convolution that cut the image into patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.calls import gated
from lit_xai.calls import select_output as select
from lit_xai.core import MAGNITUDE, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.explainers.layers import (
    CHECKPOINTS,
    Layout,
    Pass,
    attends,
    differentiable,
    halvings,
    is_convolution,
    is_norm,
    layers_of,
    layout_of,
    operations,
    run_through,
)
from lit_xai.rng import SampleRng

WHAT = "Grad-CAM"


class Features(NamedTuple):
    """The layer that is read: its output and its gradient, `[b, c, u, v]`."""

    layer: str
    activation: Tensor
    gradient: Tensor


def candidates(model: Model, layer: str | None) -> tuple[dict[str, nn.Module], int | None]:
    """The modules whose runs are recorded, and which run of a named `layer` is meant (`name#1`: its second)."""
    modules = dict(layers_of(model, WHAT).named_modules())
    convolutions = {name: m for name, m in modules.items() if is_convolution(m)}
    if layer is not None:
        name, _, run = layer.rpartition("#") if layer not in modules and "#" in layer else (layer, "", "")
        if name not in modules or not (run.isdigit() or not run):
            known = ", ".join(convolutions) or ", ".join(n for n, m in modules.items() if is_norm(m)) or "none"
            kind = "convolutions" if convolutions else "norms"
            raise UsageError(f"layer={layer} is not in the model; its {kind} are: {known}")
        return convolutions | {name: modules[name]}, int(run) if run else None
    found = convolutions | {name: m for name, m in modules.items() if is_norm(m)}
    dense = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
    if 0 < len(convolutions) == len(found) < len(dense):
        return convolutions | dense, None  # to see whether a convolution only cuts the image into tokens
    if not found:
        raise UsageError(
            "the model has no convolution or layer norm, so Grad-CAM has no feature maps: name a layer=, or leave out gradcam"
        )
    return found, None


def gradient_at(output: Tensor, of: Tensor) -> Tensor | None:
    """The gradient of a sum at `of`, `[b, ...]`; None where the output is not on the way."""
    if not of.requires_grad:
        return None
    return torch.autograd.grad(output, of, retain_graph=True, allow_unused=True)[0]


def arranged(passed: Pass, index: int) -> Layout | None:
    """The layout of a run that is a map of the images with more than one position; None where it is not."""
    run = passed.runs[index]
    rows = None
    if run.output.ndim == 3 and 1 < len(passed.logits) == run.output.shape[0] == run.output.shape[1]:
        rows = gradient_at(passed.logits[1].sum(), run.output)
    layout = layout_of(passed, index, rows)
    if layout is None or layout.grid == (1, 1):
        return None
    if run.output.ndim == 4 and not is_convolution(run.module):
        known = {g for grid in passed.grids() for g in halvings(grid)}
        if known and layout.grid not in known:  # windows, heads
            return None
    return layout


def chosen_run(passed: Pass) -> int:
    """The run that is read where no layer is named.

    Raises:
        UsageError: no layer fits, or the one that does runs several times.
    """
    convolutions = [i for i, r in enumerate(passed.runs) if is_convolution(r.module)]
    norms = [i for i, r in enumerate(passed.runs) if is_norm(r.module)]
    if convolutions and not norms and not only_embeds(passed, convolutions):
        used = (i for i in reversed(convolutions) if gradient_at(passed.probe(), passed.runs[i].output) is not None)
        return next(used, convolutions[-1])
    trunk = [i for n, i in enumerate(convolutions, 1) if not only_embeds(passed, convolutions[:n])]
    index = next((i for i in sorted(trunk + norms, reverse=True) if reads_positions(passed, i)), None)
    if index is None:
        hidden = any("Checkpoint" in node.name() for node in operations(passed.logits))
        raise UsageError(
            f"{WHAT} cannot see into {CHECKPOINTS}"
            if hidden
            else "no layer of this network has a map of the image whose gradient is not zero: Grad-CAM does not fit it; "
            "name a layer= that has one, or take another method"
        )
    name = passed.runs[index].name
    if any(passed.runs[i].name == name and reads_positions(passed, i) for i in range(index)):
        refuse_several(passed, name)
    return index


def only_embeds(passed: Pass, convolutions: list[int]) -> bool:
    """Whether the last of these convolutions cuts the image into the tokens that the rest computes with."""
    after = [r for r in passed.runs[convolutions[-1] + 1 :] if r.output.ndim > 2]
    tokens = [r.module for r in after if r.output.ndim == 3]
    if sum(isinstance(m, nn.Linear) for m in tokens) > len(convolutions) or any(is_norm(m) for m in tokens):
        return True
    return len(convolutions) == 1 and (attends(passed.logits) or any(is_norm(r.module) for r in after))


def reads_positions(passed: Pass, index: int) -> bool:
    """Whether the logits depend on this run's output at positions of the image."""
    layout = arranged(passed, index)
    gradient = gradient_at(passed.probe(), passed.runs[index].output) if layout else None
    return layout is not None and gradient is not None and bool(layout(gradient).any())


def refuse_several(passed: Pass, name: str) -> None:
    """Stop where it is not clear which run of a layer is meant: they may see different pictures."""
    several = sum(r.name == name for r in passed.runs)
    raise UsageError(
        f"layer {name} runs {several} times in one pass, perhaps on different pictures: name one run by "
        f"layer={name}#0 .. {name}#{several - 1}, or explain the network inside"
    )


def named_run(passed: Pass, name: str, run: int | None) -> int:
    """The run of a named layer.

    Raises:
        UsageError: it did not run, or it is not said which of several runs is meant.
    """
    runs = [i for i, r in enumerate(passed.runs) if r.name == name]
    if not runs:
        raise UsageError(f"none of the layers {[name]} ran in the forward pass: name another layer=")
    if run is None and len(runs) > 1:
        refuse_several(passed, name)
    if (run or 0) >= len(runs):
        raise UsageError(
            f"layer={name}#{run} does not exist: {name} runs {len(runs)} times in one pass, counted from 0"
        )
    return runs[run or 0]


def features(model: Model, images: Images, targets: Targets, layer: str | None, output: str) -> Features:
    """The layer that is read, its output and the gradient of every image's logit there.

    Raises:
        UsageError: no layer fits, or its output is no map of the images.
    """
    modules, run = candidates(model, layer)
    with differentiable(model):
        passed = run_through(model, images, modules)
        if not passed.runs:
            raise UsageError(
                f"none of the layers {short(modules)} ran in the forward pass as a module of its own: "
                "name another layer=, or pass the model as it was before it was compiled or exported"
            )
        wanted = layer and (layer if layer in modules else layer.rpartition("#")[0])
        index = chosen_run(passed) if wanted is None else named_run(passed, wanted, run)
        if passed.runs[index].overwritten:  # an in-place activation: once more, and hand a copy on
            passed = run_through(model, images, modules, {passed.runs[index].name})
        return read(passed, index, targets, output, whole=wanted is None)


def short(modules: Mapping[str, Any]) -> list[str]:
    """The first three names, and dots for more."""
    return list(modules)[:3] + (["..."] if len(modules) > 3 else [])


def read(passed: Pass, index: int, targets: Targets, output: str, whole: bool) -> Features:
    """The output of a run and its gradient, on their grid."""
    name, module, activation, _ = passed.runs[index]
    if whole and is_convolution(module) and sum(r.name == name for r in passed.runs) > 1:
        refuse_several(passed, name)
    layout = layout_of(passed, index) if activation.ndim == 4 else arranged(passed, index)
    if layout is None:
        raise UsageError(
            f"the output of layer {name} has shape {tuple(activation.shape)} for {len(passed.images)} images: Grad-CAM needs "
            f"[b, k, u, v], or tokens on the grid of a convolution before them; name another layer="
        )
    if not activation.requires_grad:
        raise UsageError(f"no gradient reaches layer {name}: it runs under torch.no_grad, or in {CHECKPOINTS}")
    selected = select(passed.logits, targets.clone(), output).sum()
    (gradient,) = torch.autograd.grad(selected, activation, materialize_grads=True, retain_graph=True)
    if layout.order != "bcuv" and not whole and not reads_positions(passed, index):
        raise UsageError(
            f"the gradient at layer {name} is zero at every position of the image (the logits read a class token alone): "
            f"name an earlier layer=, such as the first norm of the last block"
        )
    exact = passed.logits.dtype  # sums of half precision are not
    return Features(name, layout(activation.detach()).to(exact), layout(gradient).to(exact))


def to_maps(activation: Tensor, weights: Float[Tensor, "b k"], images: Images) -> Maps:
    """ReLU(sum_k w_k A_k) of activations `[b, k, u, v]`, interpolated to the images."""
    cam = torch.einsum("bk,bkuv->buv", weights, activation).relu()
    return F.interpolate(cam[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


@dataclass(frozen=True)
class GradCAM(Explainer):
    """Grad-CAM (Selvaraju et al., 2017): a channel's weight is the mean of its gradients.

    Args:
        layer: dotted module name (`name#1`: the second of its runs in a pass); None takes the last convolution executed, or
            the last norm of a transformer that the logits read at positions of the image.
        output: `logit` or `probability`.
    """

    deterministic: ClassVar[bool] = True

    layer: str | None = None
    output: str = "logit"

    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = more evidence for {label}, white = none")

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass."""
        return Passes(1, 1)

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The name of the layer that is read."""
        targets = torch.zeros(1, dtype=torch.long, device=images.device)
        found = features(model, images[:1], targets, self.layer, self.output)
        return {"layer": self.layer or found.layer}

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        _, activation, gradient = features(model, images, targets, self.layer, self.output)
        return to_maps(activation, self.weights(activation, gradient), images)

    def weights(self, activation: Tensor, gradient: Tensor) -> Float[Tensor, "b k"]:
        """The weight of every channel, from activation and gradient `[b, k, u, v]`."""
        return gradient.flatten(2).mean(-1)


@dataclass(frozen=True)
class GradCAMPlusPlus(GradCAM):
    """Grad-CAM++ (Chattopadhyay et al., 2018): w_k = sum_ij alpha_ij ReLU(g_ij).

    alpha_ij = g^2 / (2 g^2 + sum_ab A_ab g^3), the closed form when the class score is the exponential of the logit;
    alpha is 0 where g is. The positive factor exp(logit), common to a map, is left out.
    """

    def weights(self, activation: Tensor, gradient: Tensor) -> Float[Tensor, "b k"]:
        """The weight of every channel, from activation and gradient `[b, k, u, v]`."""
        # divide by g^2, so that small gradients do not underflow
        denominator = 2 + activation.sum((-2, -1), keepdim=True) * gradient
        alpha = torch.where((gradient == 0) | (denominator == 0), 0, 1 / denominator)
        return (alpha * gradient.relu()).flatten(2).sum(-1)

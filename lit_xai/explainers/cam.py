"""Class activation maps: Grad-CAM and Grad-CAM++.

Both weigh the feature maps A of one layer by their gradients g = d logit / d A, sum over channels, keep the positive
part and interpolate bilinearly to the image. The layer is the last convolution *executed*, unless it is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.calls import Gate, evaluating, gated, raw
from lit_xai.calls import select_output as select
from lit_xai.core import MAGNITUDE, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def candidates(model: Model, layer: str | None) -> dict[str, nn.Module]:
    """The modules among which the last one executed is taken."""
    model = raw(model)
    if not isinstance(model, nn.Module):
        raise UsageError("Grad-CAM needs a torch.nn.Module whose layers it can read, found a plain function")
    modules = dict(model.named_modules())
    if layer is not None:
        if layer not in modules:
            known = ", ".join(name for name, m in modules.items() if isinstance(m, CONVOLUTIONS)) or "none"
            raise UsageError(f"layer={layer} is not in the model; its convolutions are: {known}")
        return {layer: modules[layer]}
    found: dict[str, nn.Module] = {name: m for name, m in modules.items() if isinstance(m, CONVOLUTIONS)}
    if not found:
        raise UsageError(
            "the model has no convolution, so Grad-CAM has no feature maps: name a layer=, or leave out gradcam"
        )
    return found


def last_activation(
    model: Model, images: Images, targets: Targets, layer: str | None, output: str
) -> tuple[str, Tensor, Tensor]:
    """Name, output `[b, k, u, v]` and gradient of the last candidate layer that the forward pass runs through."""
    modules, gate = candidates(model, layer), Gate.of(model, targets)
    clone_output = False
    while True:
        seen: list[tuple[str, Tensor, int]] = []

        def record(name: str, clone: bool, seen: list[tuple[str, Tensor, int]] = seen) -> Any:
            def hook(module: nn.Module, args: Any, result: Tensor) -> Tensor | None:
                seen.append((name, result, result._version))
                del seen[:-1]
                return result.clone() if clone else None

            return hook

        handles = [m.register_forward_hook(record(name, clone_output)) for name, m in modules.items()]
        try:
            with torch.inference_mode(False), torch.enable_grad(), evaluating(gate):
                x = images.clone().requires_grad_()
                selected = select(gate(x), targets.clone(), output).sum()
                if not seen:
                    raise UsageError(f"none of the layers {list(modules)} ran in the forward pass: name another layer=")
                name, activation, version = seen[0]
                if activation._version == version or clone_output:
                    (gradient,) = torch.autograd.grad(selected, activation, materialize_grads=True)
                    return name, activation.detach(), gradient
        finally:
            for handle in handles:
                handle.remove()
        # An in-place activation overwrote the layer's output: run once more and hand a copy on.
        modules, clone_output = {name: modules[name]}, True


def to_maps(activation: Tensor, weights: Float[Tensor, "b k"], images: Images) -> Maps:
    """ReLU(sum_k w_k A_k), interpolated to the image."""
    cam = torch.einsum("bk,bkuv->buv", weights, activation).relu()
    return F.interpolate(cam[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


@dataclass(frozen=True)
class GradCAM(Explainer):
    """Grad-CAM (Selvaraju et al., 2017): a channel's weight is the mean of its gradients.

    Args:
        layer: dotted module name; None takes the last convolution executed.
        output: `logit` or `probability`.
    """

    layer: str | None = None
    output: str = "logit"

    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = more evidence for {label}, white = none")

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass."""
        return Passes(1, 1)

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The name of the layer that is read."""
        targets = torch.zeros(1, dtype=torch.long, device=images.device)
        return {"layer": last_activation(model, images[:1], targets, self.layer, self.output)[0]}

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        _, activation, gradient = last_activation(model, images, targets, self.layer, self.output)
        if activation.ndim != 4:
            raise UsageError(f"the layer's output has shape {tuple(activation.shape)}: Grad-CAM needs [b, k, u, v]")
        return to_maps(activation, self.weights(activation, gradient), images)

    def weights(self, activation: Tensor, gradient: Tensor) -> Float[Tensor, "b k"]:
        """The weight of every channel."""
        return gradient.flatten(2).mean(-1)


@dataclass(frozen=True)
class GradCAMPlusPlus(GradCAM):
    """Grad-CAM++ (Chattopadhyay et al., 2018): w_k = sum_ij alpha_ij ReLU(g_ij).

    alpha_ij = g^2 / (2 g^2 + sum_ab A_ab g^3), the closed form when the class score is the exponential of the logit;
    alpha is 0 where g is. The positive factor exp(logit), common to a map, is left out.
    """

    def weights(self, activation: Tensor, gradient: Tensor) -> Float[Tensor, "b k"]:
        """The weight of every channel."""
        # divide by g^2, so that small gradients do not underflow
        denominator = 2 + activation.sum((-2, -1), keepdim=True) * gradient
        alpha = torch.where((gradient == 0) | (denominator == 0), 0, 1 / denominator)
        return (alpha * gradient.relu()).flatten(2).sum(-1)

"""Upper bounds of a network's Lipschitz constants, layer by layer: what `local_lipschitz` measures from below.

Norms are l2. A convolution with zero padding is a compression of the circular one on a torus that is wider by its kernel, whose norm
is the largest singular value over frequencies (Sedghi, Gupta & Long, 2019): an upper bound, and no power iteration, which comes from
below. The affine layers after the last other one are multiplied out, so that constants are those of single logits and of differences
of two.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.calls import raw
from lit_xai.core import Images, Model, Targets
from lit_xai.errors import UsageError
from lit_xai.models.lipschitz import Temperature
from lit_xai.models.pretrained import Normalise

ROUNDED_UP = 1 + 1e-9  # of sums in float64
ACTIVATIONS: dict[type[nn.Module], float] = {  # the largest slope
    nn.ReLU: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.SiLU: 1.1,
    nn.GELU: 1.13,
}
SORTING = ("GroupSort", "GroupSort2")  # torchlip's: a permutation of its input
AFFINE = (
    Normalise, Temperature, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.Flatten, nn.Identity, nn.Dropout,
)  # fmt: skip


@dataclass(frozen=True)
class Slopes:
    """How fast logits can change: z = rows . features + bias, and the features are `body`-Lipschitz in the image.

    Attributes:
        body: at least 0.
        rows: float64.
        affine: there is no other than affine layers: `rows` are the logits' gradients, `[k, c * h * w]`, and body is 1.
    """

    body: float
    rows: Float[Tensor, "k f"]
    affine: bool

    def logit(self, targets: Targets) -> Float[Tensor, "b"]:
        """Lipschitz constant of each target's logit."""
        return ROUNDED_UP * self.body * self.rows[targets].norm(dim=1)

    def log_odds(self, targets: Targets) -> Float[Tensor, "b"]:
        """Lipschitz constant of the log odds of each target's softmax probability.

        Their gradient is the mean of those of z_c - z_k over the other classes k, weighed by their probabilities.
        """
        apart = self.rows[targets][:, None] - self.rows  # [b, k, f]
        return ROUNDED_UP * self.body * apart.norm(dim=2).amax(1)


def slopes(model: Model, images: Images) -> Slopes:
    """The constants of a model in evaluation mode, on images of this shape.

    Raises:
        UsageError: it is no chain of layers whose constants are known here.
    """
    with torch.inference_mode(False), torch.enable_grad():
        chain = [copy.deepcopy(layer).double().eval() for layer in layers(raw(model))]
        last = max((i for i, layer in enumerate(chain) if not is_affine(layer)), default=-1)
        x, body = torch.zeros(1, *images.shape[1:], dtype=torch.float64, device=images.device), 1.0
        for layer in chain[: last + 1]:
            body *= norm_of(layer, x)
            x = layer(x).detach()
        head = nn.Sequential(*chain[last + 1 :])
        z = x.clone().requires_grad_()
        logits = head(z)
        if logits.ndim != 2:
            raise unknown(raw(model))
        classes = range(logits.shape[1])
        rows = [torch.autograd.grad(logits[0, k], z, retain_graph=True, materialize_grads=True)[0] for k in classes]
    return Slopes(body, torch.stack([r.flatten() for r in rows]).detach(), last < 0)


def layers(model: Any) -> list[nn.Module]:
    """The layers of nested chains, in order."""
    if isinstance(model, nn.Module) and (model._forward_hooks or model._forward_pre_hooks):
        raise UsageError("certificates need a model without forward hooks, which may change what it gives: remove them")
    if type(model) is nn.Sequential:
        return [layer for part in model for layer in layers(part)]
    if type(model) in ACTIVATIONS or isinstance(model, (*AFFINE, nn.PReLU, nn.MaxPool2d)) or sorts(model):
        return [model]
    raise unknown(model)


def unknown(model: Any) -> UsageError:
    """The line for a layer, or a model, of which nothing is known."""
    return UsageError(
        f"no Lipschitz constant of a {type(model).__name__} is known, and so no certificate: take a chain (nn.Sequential) of "
        "convolutions, dense layers, poolings and activations, as model=lipschitz, vgg or one_layer"
    )


def ours(layer: nn.Module, name: str) -> bool:
    """Whether a layer is torchlip's of that name, which is not imported for it."""
    return type(layer).__name__ == name and type(layer).__module__.startswith("deel.")


def sorts(layer: Any) -> bool:
    """Whether a layer only permutes its input."""
    return any(ours(layer, name) for name in SORTING)


def is_affine(layer: nn.Module) -> bool:
    """Whether a layer is known to be affine in evaluation mode: its very type, for a heir may do anything."""
    return type(layer) in AFFINE or ours(layer, "ScaledAvgPool2d")


@torch.no_grad()
def norm_of(layer: nn.Module, x: Float[Tensor, "1 *shape"]) -> float:
    """An upper bound of a layer's Lipschitz constant on inputs of the shape of `x`."""
    kind = type(layer)
    if kind in ACTIVATIONS:
        return ACTIVATIONS[kind]
    if sorts(layer):
        return float(layer._coefficient_lip)  # type: ignore[arg-type]
    if kind in (nn.Flatten, nn.Identity, nn.Dropout):
        return 1.0
    if kind is Normalise:
        return float((1 / layer.std).abs().max())  # type: ignore[operator, union-attr]
    if kind is Temperature:
        return abs(float(layer.tau))  # type: ignore[arg-type]
    if kind is nn.PReLU:
        return max(1.0, float(layer.weight.abs().max()))  # type: ignore[operator]
    if kind is nn.BatchNorm2d and layer.running_var is not None:
        scale = (layer.running_var + layer.eps).rsqrt()  # type: ignore[operator]
        return float((scale * (1.0 if layer.weight is None else layer.weight)).abs().max())  # type: ignore[operator]
    if kind is nn.Linear:
        return ROUNDED_UP * float(torch.linalg.matrix_norm(layer.weight, 2))  # type: ignore[arg-type]
    if kind is nn.Conv2d:
        return convolution_norm(layer, x)  # type: ignore[arg-type]
    if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
        return pooling_norm(layer, x)
    raise unknown(layer)


def pair(value: Any) -> tuple[int, int]:
    """A size of two dimensions, of one number or two."""
    return (value, value) if isinstance(value, int) else tuple(value)


def convolution_norm(layer: nn.Conv2d, x: Float[Tensor, "1 c h w"]) -> float:
    """Of a convolution, by the frequencies of the torus; a stride leaves outputs out, which lowers it at most."""
    if layer.padding_mode != "zeros":
        raise UsageError(f"certificates need zero padding, found a convolution with padding_mode={layer.padding_mode}")
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    size = [side + r - 1 for side, r in zip(x.shape[-2:], reach, strict=True)]
    weight = layer.weight.detach()
    spread = weight.new_zeros(*weight.shape[:2], *reach)
    spread[:, :, :: layer.dilation[0], :: layer.dilation[1]] = weight
    frequencies = torch.fft.rfft2(spread, s=size).unflatten(0, (layer.groups, -1))  # [groups, out, in, h, w]
    matrices = frequencies.permute(0, 3, 4, 1, 2)
    return ROUNDED_UP * float(torch.linalg.matrix_norm(matrices, 2).max())


def pooling_norm(layer: nn.AvgPool2d | nn.MaxPool2d, x: Float[Tensor, "1 c h w"]) -> float:
    """Of a pooling: a value is in at most ceil(k / s) windows a side."""
    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    times = math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
    if type(layer) is nn.MaxPool2d:
        if pair(layer.dilation) != (1, 1):
            raise unknown(layer)
        return math.sqrt(times)
    scaled = ours(layer, "ScaledAvgPool2d")
    plain = layer.divisor_override is None and layer.count_include_pad and not layer.ceil_mode
    if not plain or not (scaled or type(layer) is nn.AvgPool2d):
        raise unknown(layer)
    factor = float(layer.scalingFactor * layer._coefficient_lip) if scaled else 1.0  # type: ignore[operator]
    return factor * math.sqrt(times / math.prod(kernel))  # a mean's square is at most the mean of the squares

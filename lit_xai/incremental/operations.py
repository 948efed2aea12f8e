"""What a network is made of: steps, how they slide, what they cost; which operations are pixel by pixel."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NotIncremental(Exception):
    """Why the model itself is to be used, in one line."""


# ------------------------------------------------------------------------------------------------------------ operations


@dataclass(frozen=True)
class Sliding:
    """A convolution or a pooling: which inputs an output reads.

    Attributes:
        size, stride, padding, dilation: (vertical, horizontal).
        fill: what lies outside of the map.
        apply: the operation without padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float
    apply: Callable[[Tensor], Tensor]

    def reach(self, axis: int) -> int:
        """From the first input that an output reads to the last."""
        return self.dilation[axis] * (self.size[axis] - 1)


@dataclass
class Step:
    """One node of the network.

    Attributes:
        name: of the node.
        run: the operation on whole maps, from the values of `inputs`.
        inputs: the nodes it reads.
        kind: `source`, `constant`, `each` (pixel by pixel), `join` (several maps, pixel by pixel), `sliding`, `whole`.
        sliding: how it slides.
        work: (kind of operation, operations a pixel of the output).
        shape: of its value on one image.
        last: what is not needed after it.
        read: whether a patch is ever completed from its value.
    """

    name: str
    run: Callable[..., Any]
    inputs: tuple[str, ...]
    kind: str
    sliding: Sliding | None = None
    work: tuple[str, float] = ("memory", 0.0)
    shape: tuple[int, ...] = ()
    last: list[str] = field(default_factory=list)
    read: bool = False


EACH_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.AlphaDropout, nn.FeatureAlphaDropout, nn.BatchNorm2d,
)  # fmt: skip
EACH_BY_NAME = ("GroupSort", "GroupSort2", "FullSort", "LPReLU", "MaxMin")  # deel-torchlip's, over channels
EACH_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus,
    F.dropout, F.dropout2d, torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.sqrt, torch.square, torch.neg,
    torch.clamp, torch.pow, operator.neg, operator.pow,
}  # fmt: skip
EACH_METHODS = {
    "relu",
    "sigmoid",
    "tanh",
    "abs",
    "exp",
    "sqrt",
    "square",
    "neg",
    "clamp",
    "pow",
    "contiguous",
    "clone",
    "float",
}
JOINS = {
    operator.add: operator.add, operator.iadd: operator.add, torch.add: torch.add,
    operator.sub: operator.sub, operator.isub: operator.sub, torch.sub: torch.sub,
    operator.mul: operator.mul, operator.imul: operator.mul, torch.mul: torch.mul,
    operator.truediv: operator.truediv, operator.itruediv: operator.truediv, torch.div: torch.div,
    torch.maximum: torch.maximum, torch.minimum: torch.minimum,
}  # fmt: skip
JOIN_METHODS = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_"}
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


def pair(value: Any) -> tuple[int, int]:
    """A number or two as two."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    return (both[0], both[0]) if len(both) == 1 else both  # type: ignore[return-value]


def conv2d(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`F.conv2d` of `[b, c, h, w]`; on one channel with channels-last strides, oneDNN leaves parts of narrow outputs unwritten."""
    if input.ndim == 4 and input.shape[1] == 1:
        input = input.contiguous().view(-1).view(input.shape)
    return F.conv2d(input, *args, **kwargs)


def conv_of(
    weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Sliding | None:
    """The `Sliding` of a convolution with `weight` `[o, i, u, v]`; None where the padding is not symmetric."""
    size, dilation, stride = pair(tuple(weight.shape[2:])), pair(dilation), pair(stride)
    reach = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
    if padding == "valid":
        padding = 0
    if padding == "same":
        if any(r % 2 for r in reach):
            return None
        padding = tuple(r // 2 for r in reach)
    apply = lambda x: conv2d(x, weight, bias, stride, 0, dilation, groups)  # noqa: E731
    return Sliding(size, stride, pair(padding), dilation, 0.0, apply)


def max_pool_of(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Sliding:
    """A max-pooling's `Sliding`; how many outputs there are, `ceil_mode` decides elsewhere."""
    size, stride, dilation = pair(kernel_size), pair(stride or kernel_size), pair(dilation)
    apply = lambda x: F.max_pool2d(x, size, stride, 0, dilation)  # noqa: E731
    return Sliding(size, stride, pair(padding), dilation, -math.inf, apply)


def average_pool_of(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Sliding | None:
    """An average-pooling's `Sliding`; None where windows at the edge have another divisor."""
    size, stride, padding = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    if ceil_mode or (any(padding) and not count_include_pad):
        return None
    apply = lambda x: F.avg_pool2d(x, size, stride, 0, divisor_override=divisor_override)  # noqa: E731
    return Sliding(size, stride, padding, (1, 1), 0.0, apply)

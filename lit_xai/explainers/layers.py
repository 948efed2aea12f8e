"""What a network computes on its way: outputs of layers with their gradients, the grid that tokens lie on, its operations."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_xai.calls import Gate, evaluating, raw
from lit_xai.core import Images, Model
from lit_xai.errors import UsageError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
NORMS = ("LayerNorm", "RMSNorm")  # in the names of classes; other libraries have their own
CHECKPOINTS = (
    "gradient checkpointing with use_reentrant=True: set use_reentrant=False, or switch it off "
    "(model.gradient_checkpointing_disable())"
)
PREFIX = 10  # most tokens before the patches


class Run(NamedTuple):
    """One call of a layer: what it gave, and how often that had been written to by then."""

    name: str
    module: nn.Module
    output: Tensor
    version: int

    @property
    def overwritten(self) -> bool:
        """Whether an in-place operation has changed the output since."""
        return self.output._version != self.version


class Pass(NamedTuple):
    """One forward pass: logits `[b, k]` with their graph, and the recorded runs in the order of the calls."""

    logits: Tensor
    runs: list[Run]
    images: Images

    def grids(self, before: int | None = None) -> list[tuple[int, int]]:
        """The grids of the convolutions among its first runs, in order, without repeats."""
        outputs = [r.output for r in self.runs[:before] if is_convolution(r.module)]
        return list(dict.fromkeys((o.shape[-2], o.shape[-1]) for o in outputs if o.ndim == 4))

    def probe(self) -> Tensor:
        """One number that depends on all logits: where its gradient is 0, that of every class is."""
        weights = torch.arange(1, self.logits.shape[-1] + 1, device=self.logits.device).cos()
        return (self.logits.float() * weights).sum()


class Layout(NamedTuple):
    """How a layer's output is arranged, and the grid `u, v` of its positions.

    Attributes:
        order: `bcuv`, `buvc`, or tokens as `bnc` or `nbc`.
        prefix: tokens before the patches (class, distillation, registers).
    """

    order: str
    grid: tuple[int, int]
    prefix: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        """The output, or its gradient, as `[b, c, u, v]`."""
        if self.order == "bcuv":
            return output
        if self.order == "buvc":
            return output.movedim(-1, 1)
        tokens = output if self.order == "bnc" else output.transpose(0, 1)
        return tokens[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)


def is_convolution(module: nn.Module) -> bool:
    """Whether it is one of torch's convolutions."""
    return isinstance(module, CONVOLUTIONS)


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises the channels of every position by themselves: layer norm and its like."""
    return any(norm.lower() in type(module).__name__.lower() for norm in NORMS)


def layers_of(model: Model, what: str) -> nn.Module:
    """The module whose layers are read by name; `what` reads them.

    Raises:
        UsageError: a plain function has none; the layers of a scripted module cannot be watched.
    """
    model = raw(model)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{what} needs a torch.nn.Module whose layers it can read, found a plain function")
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise UsageError(
            f"{what} cannot watch the layers of a scripted or traced module: pass the module it was made from"
        )
    return model


def caller_of(model: Model) -> Gate:
    """What is called for logits: of a model spread over several cards, the one on the images' card."""
    gate, own = Gate.of(model), raw(model)
    if not isinstance(own, nn.DataParallel):
        return gate
    one = Gate(own.module, gate.most)
    one.takes = gate.takes
    return one


@contextmanager
def differentiable(model: Model) -> Iterator[None]:
    """Gradients on, evaluation mode, and what was compiled runs as it was written, so that its layers can be watched."""
    eager: Any = None
    if "torch._dynamo" in sys.modules:  # else nothing was compiled
        eager = torch.compiler.set_stance("force_eager")
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        if eager is None:
            yield
        else:
            with eager:
                yield


def run_through(model: Model, images: Images, modules: Mapping[str, nn.Module], cloned: Collection[str] = ()) -> Pass:
    """One pass, with every run of these modules; those of `cloned` hand on a copy, which may be overwritten.

    What a checkpoint computes again in the backward pass is no run, nor is what the gate asks a second time. To be called in
    `differentiable`.
    """
    runs: list[Run] = []
    gate = caller_of(model)
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    def record(name: str, module: nn.Module, arguments: Any, output: Any) -> Any:
        output = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(output, Tensor) or passes > 1:
            return None
        runs.append(Run(name, module, output, output._version))
        return output.clone() if name in cloned else None

    handles = [m.register_forward_hook(partial(record, name)) for name, m in modules.items()]
    if isinstance(gate.model, nn.Module):
        handles.append(gate.model.register_forward_pre_hook(count))
    try:
        x = images.clone().requires_grad_()
        return Pass(gate(x), runs, x)
    finally:
        for handle in handles:
            handle.remove()


def halvings(grid: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The grid, and what is left of it after merging 2 x 2 neighbours again and again, down to 2."""
    u, v = grid
    while min(u, v) > 1:
        yield u, v
        u, v = -(-u // 2), -(-v // 2)


def token_grid(
    n: int, grids: list[tuple[int, int]], images: Images, halved: bool = True
) -> tuple[tuple[int, int], int] | None:
    """The grid of n tokens and how many come before it; None where nothing tells.

    The grid is that of a convolution of the same pass; with tokens in front, the largest one that fits; else, if `halved`, a
    convolution's after merging neighbours. A network without convolutions cuts square images into squares, after at most a class token.
    """
    for u, v in reversed(grids):
        if u * v == n:
            return (u, v), 0
    fitting = [(u, v) for u, v in grids if n - PREFIX <= u * v < n]
    if fitting:
        u, v = max(fitting, key=lambda g: g[0] * g[1])
        return (u, v), n - u * v
    for grid in reversed(grids) if halved else ():
        for u, v in halvings(grid):
            if u * v == n:
                return (u, v), 0
    height, width = images.shape[-2:]
    for prefix in (0, 1) if not grids and height == width else ():
        side = round((n - prefix) ** 0.5)
        if side > 1 and side * side == n - prefix and height % side == 0:
            return (side, side), prefix
    return None


def channels_last(module: nn.Module, output: Tensor, images: Images) -> bool:
    """Whether a four-dimensional output is `[b, u, v, c]`, by the layer's kind, else by the image's proportions."""
    if is_convolution(module):
        return False
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and type(module).forward in (
        nn.LayerNorm.forward,
        nn.RMSNorm.forward,
    ):
        return len(module.normalized_shape) == 1
    _, p, q, r = output.shape
    height, width = images.shape[-2:]
    first, last = abs(q * width - r * height) / (q * width), abs(p * width - q * height) / (p * width)
    if first != last:
        return last < first
    dense = any(isinstance(m, nn.Linear) or is_norm(m) for m in module.modules())
    spatial = any(is_convolution(m) for m in module.modules()) or "2d" in type(module).__name__.lower()
    return dense and not spatial and vars(module).get("data_format") != "channels_first"


def layout_of(passed: Pass, index: int, rows: Tensor | None = None) -> Layout | None:
    """How the output of the run of this index is arranged; None where it is no map of the images.

    `rows` `[n, b, c]` is the gradient of the second image's logits at the output: it tells images from tokens where there are as many.
    """
    run, images = passed.runs[index], passed.images
    shape, b = run.output.shape, len(images)
    if len(shape) == 4 and shape[0] == b:
        if channels_last(run.module, run.output, images):
            return Layout("buvc", (shape[1], shape[2]))
        return Layout("bcuv", (shape[2], shape[3]))
    if len(shape) != 3 or b not in shape[:2]:
        return None
    second = shape[0] != b or (rows is not None and bool(rows[0].any() | rows[2:].any()))
    found = token_grid(shape[0] if second else shape[1], passed.grids(index) or passed.grids(), images)
    return found and Layout("nbc" if second else "bnc", *found)


def operations(output: Tensor) -> list[Any]:
    """The operations that an output `[...]` depends on, as autograd's nodes in the order of their execution."""
    return sorted(before(output.grad_fn), key=lambda n: n._sequence_nr())


def before(node: Any) -> set[Any]:
    """An operation and all those that it depends on."""
    found: set[Any] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [n for n, _ in node.next_functions]
    return found


def attention_of(output: Tensor) -> list[Any]:
    """The operations on the way to `[...]` that weigh positions by others: softmax of three or more dimensions, fused attention."""
    found = []
    for node in operations(output):
        name = node.name()
        if name.startswith("ScaledDotProduct") or (
            name.startswith(("Softmax", "SafeSoftmax")) and node._saved_result.ndim > 2
        ):
            found.append(node)
    return found


def attends(output: Tensor) -> bool:
    """Whether attention is among what an output `[...]` depends on."""
    return bool(attention_of(output))

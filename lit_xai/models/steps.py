"""Training steps of a small network on a GPU, whose time goes into launching kernels: recorded once, a step is one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from lit_xai.calls.recording import recorded

LOG = logging.getLogger(__name__)
STEADY = {"_SpectralNorm", "_LConvNorm", "Bjorck"}  # parametrisations that do the same work in every step, on a GPU
LARGE = 1 / 16  # of a card's memory: a step that takes as much keeps it busy, and may not hold it between steps

Record = Callable[[Callable[[], None], torch.device], Callable[[], None]]


class Steps:
    """The loss of a batch and its gradient, replayed for batches like the one that they were recorded for.

    Other batches, and steps that cannot be recorded, are as without. A recorded step does the same arithmetic; what is drawn in it,
    as by dropout, is drawn anew every time.

    Args:
        module: whose parameters the gradient is of.
        loss: of the tensors of a batch; it reads nothing else that changes, and neither waits for the device nor copies from the host.
        record: see `recording.recorded`.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor], record: Record = recorded) -> None:
        self.module, self.loss, self.record = module, loss, record
        self.why_not = ""
        self.seen: tuple[Any, ...] = ()  # shapes of the batch of the last step,
        self.shapes: tuple[Any, ...] = ()  # and of that which is recorded
        self.replay: Callable[[], None] | None = None
        self.leaf = torch.zeros((), requires_grad=True)
        self.held: tuple[list[nn.Module], list[Tensor]] = [], []  # the layers and their tensors,
        self.state: list[Any] = []  # and how they were when it was recorded

    def __call__(self, *batch: Tensor) -> Tensor:
        """The loss of images `[b, c, h, w]` and what else it takes, a scalar whose gradient reaches the parameters."""
        shapes = tuple((x.shape, x.dtype, x.device) for x in batch)
        if self.why_not or not torch.is_grad_enabled() or (self.replay is not None and shapes != self.shapes):
            return self.loss(*batch)
        if self.replay is not None and state_of(*self.held) != self.state:
            self.replay = None
        if self.replay is None:
            first, self.seen, self.why_not = shapes != self.seen, shapes, why_not(self.module)
            if first and not self.why_not:
                return self.watched(*batch)
            if self.why_not or not self.begin(batch):
                return self.loss(*batch)
            self.shapes = shapes
        assert self.replay is not None
        for mine, given in zip(self.batch, batch, strict=True):
            mine.copy_(given)
        self.replay()
        return Replayed.apply(self.value, self.gradients, self.parameters, self.leaf)

    def look(self) -> None:
        """Find the layers and tensors again, once others may have taken their place (a step looks how they are, which is soon done)."""
        self.held = list(self.module.modules()), [*self.module.parameters(), *self.module.buffers()]

    def watched(self, *batch: Tensor) -> Tensor:
        """A step on a batch of images `[b, c, h, w]` as it is, which says whether it is a large one."""
        device = batch[0].device
        if device.type != "cuda":
            return self.loss(*batch)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        loss = self.loss(*batch)
        took = torch.cuda.max_memory_allocated(device) - before
        if took > LARGE * torch.cuda.get_device_properties(device).total_memory:
            self.why_not = "it keeps the card busy as it is"
        return loss

    def begin(self, batch: tuple[Tensor, ...]) -> bool:
        """Record a step on a batch like this, images `[b, c, h, w]` first; whether it could be. Nothing is changed by it."""
        device = batch[0].device
        kept, state = [x.detach().clone() for x in self.module.buffers()], random_state(device)
        self.look()
        before = state_of(*self.held)
        self.batch = [x.clone() for x in batch]
        try:
            self.replay = self.record(self.work, device)
            self.look()
            if state_of(*self.held) != before:
                raise RuntimeError("it puts its buffers elsewhere every time")
        except Exception as e:  # whatever a driver, a layer or a lack of memory may raise
            self.replay, self.why_not = None, f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
            LOG.warning("training steps are launched kernel by kernel, as they cannot be recorded (%s)", self.why_not)
            return False
        finally:
            with torch.no_grad():
                for buffer, value in zip(self.module.buffers(), kept, strict=True):
                    buffer.copy_(value)
            if state is not None:
                torch.cuda.set_rng_state(state, device)
        self.state = before
        return True

    def work(self) -> None:
        """A step on the batch that is there."""
        loss = self.loss(*self.batch)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, trained, allow_unused=True)
        used = [(p, g) for p, g in zip(trained, found, strict=True) if g is not None]
        self.parameters, self.gradients = [p for p, _ in used], [g for _, g in used]
        self.value = loss.detach()


class Replayed(torch.autograd.Function):
    """A loss whose gradient is there already."""

    @staticmethod
    def forward(
        ctx: Any, value: Float[Tensor, ""], gradients: list[Tensor], parameters: list[Tensor], leaf: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """The loss, in memory of its own, of parameters with gradients `[...]`; the leaf is what makes it have one."""
        ctx.gradients, ctx.parameters = gradients, parameters
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, ""]) -> Any:
        """The gradients times that of the loss, in memory of their own: they add up over steps, and the next step overwrites these.

        They are handed to the parameters here: autograd takes as long for each of them as for a layer.
        """
        found = [
            g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)  # optimizers read both side by side
            for p, g in zip(ctx.parameters, torch._foreach_mul(ctx.gradients, grad), strict=True)
        ]
        had = [(p.grad, g) for p, g in zip(ctx.parameters, found, strict=True) if p.grad is not None]
        if had:
            torch._foreach_add_([h for h, _ in had], [g for _, g in had])
        for p, g in zip(ctx.parameters, found, strict=True):
            if p.grad is None:
                p.grad = g
        return None, None, None, None


def state_of(layers: Sequence[nn.Module], tensors: Sequence[Tensor]) -> list[Any]:
    """What a recording holds for: the modes of the layers, where tensors `[...]` lie, whether they are trained, and have hooks."""
    return [*(m.training for m in layers), *((x.data_ptr(), x.requires_grad, hooked(x)) for x in tensors)]


def hooked(x: Float[Tensor, "..."]) -> bool:
    """Whether somebody wants to see a tensor's gradient on its way."""
    return bool(x._backward_hooks or x._post_accumulate_grad_hooks)  # type: ignore[attr-defined]


def why_not(module: nn.Module) -> str:
    """Why steps of a module are never recorded; empty where they may be."""
    lists = [m for m in module.modules() if isinstance(m, parametrize.ParametrizationList)]
    if {type(p).__name__ for parts in lists for p in parts} - STEADY:
        return "its weights are computed anew in every step, in as many rounds as it takes"
    if any(map(hooked, module.parameters())):
        return "its parameters have hooks, which see a gradient on its way"
    if torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16:
        return "float16 needs a loss that is scaled before its gradient is taken"
    return ""


def random_state(device: torch.device) -> Tensor | None:
    """Of the device's generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None

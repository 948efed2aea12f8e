"""Networks that are called again and again in few shapes, so that what was compiled or recorded for one is used for all.

A pass of a small network on a GPU takes its time for launching kernels, not for their work. Recorded as a CUDA graph, a pass is one
launch; compiled, its kernels are fewer, too. Both are made for one number of rows: others are padded to the next power of two.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai.calls.recording import WARM, recorded
from lit_xai.errors import UsageError

LOG = logging.getLogger(__name__)
CHOICES = ("auto", "never")
KINDS = 64  # networks and shapes that a call is compiled for in a process; torch's own 8 are fewer than some ensembles have folds
GROSS = 0.05  # of the largest value: no rounding, of bfloat16 neither, reaches it; what was not copied or is out of date does

Call = Callable[..., Tensor]  # rows [m, ...] to rows [m, ...], each by itself
Way = Callable[[nn.Module, Call, Sequence[Tensor]], Call]  # module, its call, example rows -> the same call, faster


def check_compile(compile: str) -> None:
    """Refuse a word that is neither."""
    if compile not in CHOICES:
        raise UsageError(
            f"compile must be auto (on a GPU networks are compiled) or never, found {compile!r}: give one of these"
        )


def compiled(module: nn.Module, call: Call, rows: Sequence[Tensor]) -> Call:
    """Kernels for rows `[m, ...]`, fused by inductor and recorded. It follows weights that change or move by itself."""
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, KINDS)
    fast = torch.compile(call, mode="reduce-overhead")

    def through(*rows: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return fast(*rows)

    return through


class Recorded:
    """A CUDA graph of a call, which reads weights where they lie and rows `[m, ...]` where they are copied to.

    What it returns is overwritten by the next call of any: all share their memory.
    """

    def __init__(self, module: nn.Module, call: Call, rows: Sequence[Tensor]) -> None:
        self.module, self.call = module, call
        self.record(rows)

    def record(self, rows: Sequence[Tensor]) -> None:
        """Record a pass of rows like these."""
        self.weights = list(weights_of(self.module))  # as long as they are held, nothing else lies where they lie
        self.rows = [torch.zeros_like(r) for r in rows]

        def work() -> None:
            self.out = self.call(*self.rows)

        self.replay = recorded(work, self.rows[0].device)

    def __call__(self, *rows: Tensor) -> Tensor:
        now = weights_of(self.module)
        if any(a.data_ptr() != b.data_ptr() for a, b in zip(self.weights, now, strict=True)):
            self.record(rows)
        for mine, given in zip(self.rows, rows, strict=True):
            mine.copy_(given)
        self.replay()
        return self.out


def weights_of(module: nn.Module) -> chain[Tensor]:
    """All parameters and buffers, without their gradients."""
    return chain((p.detach() for p in module.parameters()), module.buffers())


def ways_on(device: torch.device, fused: bool) -> tuple[Way, ...]:
    """What makes passes of a network faster on this device, best first; none on a CPU, whose passes are all work.

    Args:
        device: of the rows.
        fused: a network that makes so many passes that compiling it, a minute or so, is worth it.
    """
    if device.type != "cuda":
        return ()
    return (compiled, Recorded) if fused else (Recorded,)


class Static:
    """A call of a network's on rows `[m, ...]` that is made in few shapes, and in a faster way where there is one and it works.

    Args:
        module: whose weights it reads.
        call: rows to rows, each by itself.
        ways: see `ways_on`; without any, the call is made as it is.
        most: rows of a call, as a rule; fewer are padded to the next power of two below it.
    """

    def __init__(self, module: nn.Module, call: Call, ways: Sequence[Way], most: int) -> None:
        self.module, self.call, self.ways, self.most = module, call, tuple(ways), most
        self.fast: dict[int, Call] = {}

    def __call__(self, *rows: Tensor) -> Tensor:
        """The call's rows; where a gradient is asked for, by the call itself."""
        number = len(rows[0])
        size = self.size(number)
        if not number or torch.is_grad_enabled() or not (self.ways or size in self.fast):
            return self.call(*rows)
        with torch.inference_mode():
            alike = [padded(r, size) for r in rows]
            if size not in self.fast:
                self.make(size, alike)
            try:
                out = self.fast[size](*alike)[:number] if size in self.fast else self.call(*rows)
            except Exception as e:  # as in `make`: memory was enough at first, weights were taken away ...
                self.ways, self.fast = (), {}
                self.say("a pass that worked before", reason(e))
                out = self.call(*rows)
        return out.clone()

    def size(self, number: int) -> int:
        """Rows of the call that so many rows are padded to."""
        enough = 1 << (number - 1).bit_length()
        return enough if number > self.most else min(enough, self.most)

    def make(self, size: int, rows: Sequence[Tensor]) -> None:
        """Keep the first way that works on these rows and agrees with the call itself; of every other one it says why not."""
        expected = self.call(*rows)
        while self.ways:
            way, self.ways = self.ways[0], self.ways[1:]
            try:
                with warnings.catch_warnings(action="ignore"):  # of compilers, of their own
                    fast = way(self.module, self.call, rows)
                    for _ in range(WARM):
                        gap = apart(fast(*rows), expected)
                if gap <= GROSS:
                    self.fast[size], self.ways = fast, (way, *self.ways)
                    return
                self.say(way.__name__, f"its results differ by {gap:.2g}")
            except Exception as e:  # whatever a compiler, a driver or a lack of memory may raise
                self.say(way.__name__, reason(e))

    def say(self, what: str, why: str) -> None:
        """One line: what did not work, and how it goes on."""
        how = "tries another way to make passes faster" if self.ways else "goes on uncompiled"
        say(f"{type(self.module).__name__} {how}: {what} failed ({why}); compile=never of the filler asks for none")


def padded(rows: Tensor, size: int) -> Tensor:
    """`[size, ...]`: the last row repeated, in memory that is always laid out alike, since another layout would be compiled anew."""
    out = rows.new_empty(size, *rows.shape[1:])
    out[: len(rows)], out[len(rows) :] = rows, rows[-1:]
    return out


def reason(e: Exception) -> str:
    """An error in one line."""
    return f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two `[m, ...]`, of the largest value of `other`, at least 1; NaN where only one of them has none."""
    gap = (one - other).abs().masked_fill(one.isnan() & other.isnan(), 0)
    return float(gap.max() / other.nan_to_num(0, 0, 0).abs().max().clamp_min(1))


@functools.cache
def say(text: str) -> None:
    """One line for whoever reads the log, once."""
    LOG.warning(text)

"""Patches of feature maps: where they lie, what surrounds them, how a step moves them on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_xai.incremental.network import Network
from lit_xai.incremental.operations import NotIncremental, Sliding, Step
from lit_xai.incremental.plan import Plan, reads

AGREE = 1e-4  # relative; a traced network that differs by more from the model on the image itself is not used

FLOAT32: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Starts(NamedTuple):
    """Where the parts of maps begin along one side, `[r]`: the host decides by it how large they are, the device which pixels they have.

    The same arithmetic is done on both, so that nothing is copied from one to the other.
    """

    host: Ints
    here: Tensor

    def then(self, work: Callable[[Any], Any]) -> Starts:
        """What becomes of them by arithmetic that NumPy and torch have in common."""
        return Starts(work(self.host), work(self.here))

    def minus(self, other: Starts) -> Starts:
        """How far they begin behind others."""
        return Starts(self.host - other.host, self.here - other.here)


class Patch(NamedTuple):
    """A part of a feature map that differs from the image's own.

    Attributes:
        data: `[r, c, h, w]`, channels-last.
        top, left: where it lies, wholly inside of the map.
    """

    data: Tensor
    top: Starts
    left: Starts


class Table(NamedTuple):
    """The image's own map, a row of channels a pixel, then a row of zeros and one of minus infinity."""

    rows: Tensor
    height: int
    width: int


def rows_of(data: Tensor) -> Tensor:
    """`[r, c, h, w]` as rows of channels."""
    return data.permute(0, 2, 3, 1).reshape(-1, data.shape[1])


def table_of(value: Tensor) -> Table:
    """The table of `[1, c, h, w]`."""
    rows = rows_of(value)
    outside = torch.stack([torch.zeros_like(rows[0]), torch.full_like(rows[0], -math.inf)])
    return Table(torch.cat([rows, outside]), value.shape[2], value.shape[3])


def on_device(top: Ints, left: Ints, device: torch.device) -> Tensor:
    """Places `[r, 2]` where they are used: one copy that nothing waits for."""
    both = torch.from_numpy(np.stack([top, left], axis=1))
    if device.type == "cuda":
        both = both.pin_memory()  # from other memory, a copy waits for all work of the device
    return both.to(device, non_blocking=True)


@functools.lru_cache(maxsize=1024)
def counted(start: int, stop: int, step: int, device: torch.device) -> Tensor:
    """Whole numbers on a device, kept."""
    return torch.arange(start, stop, step, device=device)


@functools.lru_cache(maxsize=1024)
def line(reach: int, side: int, step: int, outside: int, device: torch.device) -> Tensor:
    """What positions -reach to side + reach - 1 add to a pixel's row in a table: `outside` where they leave the map; kept."""
    at = torch.arange(-reach, side + reach, device=device)
    return torch.where((at < 0) | (at >= side), outside, at * step)


def positions(start: Starts, size: int, side: int, step: int, outside: int) -> Tensor:
    """The same for parts of `size` pixels: `[r, size]`."""
    beyond = max(0, -int(start.host.min()), int(start.host.max()) + size - side)
    reach, device = 1 << beyond.bit_length(), start.here.device
    at = start.here[:, None] + counted(reach, reach + size, 1, device)
    return line(reach, side, step, outside, device)[at]


def along(
    top: Starts, left: Starts, h: int, w: int, height: int, width: int, outside: int, stacked: bool = False
) -> Tensor:
    """The rows of parts `[h, w]` of a map in a table of its pixels, `[r h w]`; `outside` where a part leaves the map. With `stacked`,
    every part has a map of its own, and `outside` lies behind them all.
    """
    down, across = positions(top, h, height, width, outside), positions(left, w, width, 1, outside)
    if stacked:
        own = height * width
        down = down + counted(0, max(1, len(down) * own), own, down.device)[: len(down), None]
    return (down[:, :, None] + across[:, None, :]).clamp_(max=outside).flatten()


def surrounded(p: Patch, table: Table, top: Starts, left: Starts, h: int, w: int, fill: float = 0.0) -> Tensor:
    """This part of the map `[r, c, h, w]`, with the patch in it."""
    same = np.array_equal(p.top.host, top.host) and np.array_equal(p.left.host, left.host)
    if p.data.shape[-2:] == (h, w) and same:
        return p.data
    n, (height, width), rows = len(p.data), p.data.shape[-2:], rows_of(p.data)
    outside, beside = table.height * table.width + (fill != 0.0), n * h * w
    out = rows.new_empty(beside + 1, rows.shape[1])  # the last row takes what no output reads
    torch.index_select(table.rows, 0, along(top, left, h, w, table.height, table.width, outside), out=out[:-1])
    inside = p.top.minus(top), p.left.minus(left)
    out.index_copy_(0, along(*inside, height, width, h, w, beside, stacked=True), rows)
    return out[:-1].view(n, h, w, -1).permute(0, 3, 1, 2)


def whole_maps(p: Patch, table: Table) -> Tensor:
    """The whole map of every row `[r, c, height, width]`."""
    n, h, w = len(p.data), table.height, table.width
    if p.data.shape[-2:] == (h, w):
        return p.data
    out = table.rows[: h * w].repeat(n, 1)
    size = p.data.shape[2], p.data.shape[3]
    out.index_copy_(0, along(p.top, p.left, *size, h, w, n * h * w, stacked=True), rows_of(p.data))
    return out.view(n, h, w, -1).permute(0, 3, 1, 2)


def outputs_of(start: Starts, size: int, slides: Sliding, axis: int, side: int) -> tuple[Starts, int]:
    """Where the outputs that read a part of the map begin, and how many they are, inside of `side`."""
    reach, stride, padding = slides.reach(axis), slides.stride[axis], slides.padding[axis]
    moved = start.then(lambda x: x + (padding - reach + stride - 1))  # the quotient is rounded up
    first = moved.then(lambda x: x // stride) if stride > 1 else moved
    last = (start.host + size - 1 + padding) // stride
    number = min(side, max(1, int((last - first.host).max()) + 1))
    return first.then(lambda x: x.clip(0, side - number)), number


def inputs_of(first: Starts, slides: Sliding, axis: int) -> Starts:
    """Where the inputs of outputs begin."""
    stride, padding = slides.stride[axis], slides.padding[axis]
    spread = first.then(lambda x: x * stride) if stride > 1 else first
    return spread.then(lambda x: x - padding) if padding else spread


def least(starts: Sequence[Starts]) -> Starts:
    """Of several beginnings, the first of every row."""
    return Starts(
        functools.reduce(np.minimum, (s.host for s in starts)),
        functools.reduce(torch.minimum, (s.here for s in starts)),
    )


def rounds(device: torch.device) -> bool:
    """Whether convolutions or products of float32 round their factors to TF32 there."""
    return device.type == "cuda" and any(kind.fp32_precision == "tf32" for kind in FLOAT32)


@contextmanager
def full_precision() -> Iterator[None]:
    """Factors are not rounded to TF32; the settings, whoever made them and how, are put back."""
    before = [kind.fp32_precision for kind in FLOAT32]
    try:
        for kind in FLOAT32:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, setting in zip(FLOAT32, before, strict=True):
            kind.fp32_precision = setting


class Incremental:
    """The logits of one image with windows replaced.

    Where the device rounds to TF32, so do they, as the model's own do; whether the traced network is the model is asked without.

    Args:
        network: the model.
        plan: how far patches are carried.
        image: `[1, c, h, w]`.
        later: whether the traced network is the model on this image is left to whoever looks at `differs`.

    Attributes:
        differs: whether it is not: a truth on the device.
        kept: bytes of feature maps that are kept.
        logits: `[1, k]` of the image itself.

    Raises:
        NotIncremental: the traced network differs from the model on this image.
    """

    def __init__(self, network: Network, plan: Plan, image: Tensor, later: bool = False) -> None:
        self.network, self.plan = network, plan
        self.tables: dict[str, Table] = {}

        def keep(step: Step, value: Any) -> None:
            if step.name in plan.read:
                self.tables[step.name] = table_of(value)

        maps = image.contiguous(memory_format=torch.channels_last)
        exact = found, self.logits = network.values(maps, keep), network.model(image)
        self.shift: Tensor | None = None
        if rounds(image.device):
            self.shift = self.logits - found  # the rounding of the folded weights: windows of no effect have none
            with full_precision():
                exact = network.values(maps, lambda *_: None), network.model(image)
        found, own = exact
        if found.shape != own.shape or found.ndim != 2:
            raise NotIncremental(f"its output is of shape {tuple(own.shape)}, not one row of logits an image")
        off = (found - own).abs().max() / own.abs().max().clamp_min(1e-12)
        self.differs = ~(off <= AGREE)
        if not later and bool(self.differs):
            raise NotIncremental(f"its traced form differs from it by {float(off):.1g} on the image itself")
        self.kept = sum(t.rows.numel() * t.rows.element_size() for t in self.tables.values())

    def __call__(self, pixels: Tensor, top: Ints, left: Ints, here: Tensor | None = None) -> Tensor:
        """Logits `[r, k]` of the image where the window at `top`, `left` shows `pixels` `[r, c, h, w]`; `here`: both on the device, `[r, 2]`."""
        plan, constants = self.plan, self.network.constants
        here = on_device(top, left, pixels.device) if here is None else here
        places = (Starts(*both) for both in zip((top, left), here.unbind(1), strict=True))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        env: dict[str, Any] = dict(constants)
        for i, step in enumerate(plan.steps):
            if step.kind == "source":
                env[step.name] = Patch(pixels, *places)
            elif i < plan.cut and step.name in plan.sides:
                env[step.name] = self.carried(step, [env[n] for n in step.inputs])
            else:
                whole = {n: whole_maps(env[n], self.tables[n]) for n in step.inputs if isinstance(env[n], Patch)}
                env[step.name] = step.run(*(whole.get(n, env[n]) for n in step.inputs))
                if i >= plan.cut:  # before, others still carry the patch
                    env.update(whole)
            for n in step.last:
                if n not in constants:
                    env.pop(n, None)
        out = env[self.network.output]
        out = whole_maps(out, self.tables[self.network.output]) if isinstance(out, Patch) else out
        return out if self.shift is None else out + self.shift

    def carried(self, step: Step, values: Sequence[Any]) -> Patch:
        """One step on patches."""
        patches = [(n, v) for n, v in zip(step.inputs, values, strict=True) if isinstance(v, Patch)]
        name, first = patches[0]
        if step.kind == "each":
            return first._replace(data=step.run(*(v.data if isinstance(v, Patch) else v for v in values)))
        if step.sliding is not None:
            s, side = step.sliding, step.shape[2:]
            top, h = outputs_of(first.top, first.data.shape[2], s, 0, side[0])
            left, w = outputs_of(first.left, first.data.shape[3], s, 1, side[1])
            start = inputs_of(top, s, 0), inputs_of(left, s, 1)
            size = (h - 1) * s.stride[0] + s.reach(0) + 1, (w - 1) * s.stride[1] + s.reach(1) + 1
            x = surrounded(first, self.tables[name], *start, *size, s.fill) if reads(step, True) else first.data
            return Patch(s.apply(x), top, left)
        top, left = least([p.top for _, p in patches]), least([p.left for _, p in patches])
        h = int(max((p.top.host + p.data.shape[2] - top.host).max() for _, p in patches))
        w = int(max((p.left.host + p.data.shape[3] - left.host).max() for _, p in patches))
        top = top.then(lambda x: x.clip(None, step.shape[2] - h))
        left = left.then(lambda x: x.clip(None, step.shape[3] - w))
        same = iter([surrounded(p, self.tables[n], top, left, h, w) for n, p in patches])
        return Patch(step.run(*(next(same) if isinstance(v, Patch) else v for v in values)), top, left)

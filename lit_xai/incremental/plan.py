"""How far patches are carried: the cheapest place to turn to whole maps, by a cost model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_xai.incremental.costs import Costs
from lit_xai.incremental.operations import Step


@dataclass
class Plan:
    """How far patches are carried.

    Attributes:
        steps: of the network, with shapes and with what is read.
        cut: index of the first step that runs on whole maps.
        sides: `{step: (height, width)}` of the patches, at most.
        rows: windows in a call.
        seconds: predicted, of a call.
        naive: predicted, of the model itself on as many windows.
        by_step: `{step: (as a patch, whole)}` predicted seconds; infinite where no patch can pass.
    """

    steps: list[Step]
    cut: int
    sides: dict[str, tuple[int, int]]
    rows: int
    seconds: float
    naive: float
    by_step: dict[str, tuple[float, float]]
    read: set[str]

    @property
    def share(self) -> float:
        """Of the naive time, predicted."""
        return self.seconds / self.naive

    @property
    def kept(self) -> int:
        """Bytes of the image's feature maps that are read."""
        return sum(4 * math.prod(s.shape) for s in self.steps if s.name in self.read)

    @property
    def held(self) -> float:
        """Most bytes of feature maps that a window of a call holds at once: of patches, what surrounds them, whole maps."""
        shapes = {s.name: s.shape for s in self.steps}
        carried = {s.name for s in self.steps[: self.cut] if s.name in self.sides}

        def bytes_of(s: Step) -> float:
            if s.name in carried:
                return 4.0 * (s.shape[1] * math.prod(self.sides[s.name]) + picked_values(s, self.sides[s.name], shapes))
            return 4.0 * (math.prod(s.shape) + sum(math.prod(shapes[n]) for n in s.inputs if n in carried))

        return most_at_once(self.steps, bytes_of)

    @property
    def held_by_model(self) -> float:
        """The same of an image in a call of the model itself."""
        return most_at_once(self.steps, lambda s: 4.0 * math.prod(s.shape))

    @staticmethod
    def make(
        steps: list[Step],
        constants: dict[str, Any],
        patch: tuple[int, int],
        rows: int,
        costs: Costs,
        images: int | None = None,
    ) -> Plan:
        """The cheapest cut by the cost model, for `rows` windows in a call; `images` in a call of the model itself, None = as many."""
        sides: dict[str, tuple[int, int]] = {}
        shapes = {s.name: s.shape for s in steps}
        carried, whole, pasted = [], [], []
        for s in steps:
            side = side_of(s, sides, shapes, constants, patch)
            carried.append(math.inf)
            whole.append(seconds_of(s, shapes, rows, costs))
            pasted.append(0.0)
            if side is not None:
                sides[s.name] = side
                carried[-1] = carried_seconds(s, side, shapes, rows, costs)
                pasted[-1] = 8.0 * rows * math.prod(s.shape) / costs.memory
        index = {s.name: i for i, s in enumerate(steps)}
        until = list(range(len(steps)))  # last use
        for i, s in enumerate(steps):
            for n in s.inputs:
                if n in index:
                    until[index[n]] = i
        best, cut, before = math.inf, 0, 0.0
        for c in range(len(steps) + 1):
            live = sum(pasted[i] for i in range(c) if steps[i].name in sides and until[i] >= c)
            total = before + live + sum(whole[c:])
            if total < best:
                best, cut = total, c
            if c < len(steps):
                before += min(carried[c], whole[c] + sum(pasted[index[n]] for n in steps[c].inputs if n in sides))
                if carried[c] == math.inf:
                    sides.pop(steps[c].name, None)
        read = {
            n for i, s in enumerate(steps) for n in s.inputs if n in sides and reads(s, i < cut and s.name in sides)
        }
        by_step = {s.name: (carried[i], whole[i]) for i, s in enumerate(steps)}
        images = rows if images is None else images
        naive = (
            sum(whole) if images == rows else sum(seconds_of(s, shapes, images, costs) for s in steps) * rows / images
        )
        return Plan(steps, cut, sides, rows, best, naive, by_step, read)


def most_at_once(steps: list[Step], bytes_of: Callable[[Step], float]) -> float:
    """Bytes of the values that are alive together, at most."""
    alive: dict[str, float] = {}
    most = 0.0
    for s in steps:
        alive[s.name] = bytes_of(s)
        most = max(most, sum(alive.values()))
        for n in s.last:
            alive.pop(n, None)
    return most


def reads(step: Step, carried: bool) -> bool:
    """Whether a step needs what surrounds the patches of its inputs."""
    s = step.sliding
    plain = s is not None and s.size == (1, 1) and s.stride == (1, 1) and s.padding == (0, 0)
    return not carried or step.kind == "join" or (step.kind == "sliding" and not plain)


def side_of(
    step: Step,
    sides: dict[str, tuple[int, int]],
    shapes: dict[str, tuple[int, ...]],
    constants: dict[str, Any],
    patch: Any,
) -> tuple[int, int] | None:
    """The largest patch of a step's value; None where only whole maps can be computed."""
    if step.kind == "source":
        return patch
    if len(step.shape) != 4 or step.kind == "whole" or step.shape[0] != 1:
        return None
    maps = [n for n in step.inputs if n not in constants]
    if not maps or any(n not in sides for n in maps):
        return None
    for n in step.inputs:
        value = constants.get(n)
        if (
            isinstance(value, Tensor)
            and value.ndim
            and (value.ndim < 3 or value.shape[-2:] != (1, 1))
            and step.kind != "sliding"
        ):
            return None  # such as a mask: it is not the same for every pixel
    if step.sliding is not None:
        grown = []
        for axis in (0, 1):
            side = (sides[maps[0]][axis] - 1 + step.sliding.reach(axis)) // step.sliding.stride[axis] + 1
            grown.append(min(side, step.shape[2 + axis]))
        return grown[0], grown[1]
    if any(shapes[n][2:] != step.shape[2:] for n in maps):
        return None
    heights, widths = zip(*(sides[n] for n in maps), strict=True)
    return max(heights), max(widths)


def seconds_of(step: Step, shapes: dict[str, tuple[int, ...]], rows: int, costs: Costs) -> float:
    """Of a step on whole maps, by the model."""
    if step.kind == "source":
        return 0.0
    name, work = step.work
    values = math.prod(step.shape) if step.shape else 0
    read = sum(math.prod(shapes[n]) for n in step.inputs if shapes.get(n))
    total = work * (values if step.kind == "sliding" else 1) / vars(costs)[name]
    return costs.call + rows * (total + 4.0 * (values + read) / costs.memory)


def carried_seconds(
    step: Step, side: tuple[int, int], shapes: dict[str, tuple[int, ...]], rows: int, costs: Costs
) -> float:
    """Of a step on patches, by the model: with picking what surrounds them."""
    if step.kind == "source":
        return 0.0
    name, work = step.work
    values = step.shape[1] * math.prod(side)
    total = work * (values if step.kind == "sliding" else 0) / vars(costs)[name]
    picked = picked_values(step, side, shapes)
    return costs.patch + rows * (total + 8.0 * values / costs.memory + 8.0 * picked / costs.gather)


def picked_values(step: Step, side: tuple[int, int], shapes: dict[str, tuple[int, ...]]) -> float:
    """Values of the surroundings that a step on patches reads."""
    if step.sliding is not None:
        around = [
            (n - 1) * s + step.sliding.reach(a) + 1
            for a, (n, s) in enumerate(zip(side, step.sliding.stride, strict=True))
        ]
        return shapes[step.inputs[0]][1] * math.prod(around)
    return sum(shapes[n][1] for n in step.inputs if n in shapes) * math.prod(side) if step.kind == "join" else 0.0

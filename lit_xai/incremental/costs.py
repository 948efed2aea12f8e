"""What a device takes: the constants of the cost model, and how they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Costs:
    """What a device takes; decisions rest on these constants, not on a clock, so that two runs decide alike.

    Attributes:
        conv, pointwise, grouped: floating-point operations a second in convolutions: k > 1, 1 x 1, in groups.
        memory: bytes a second in element-wise work.
        gather: bytes a second when rows of feature maps are picked.
        call, patch: seconds of one call of an operation, and of one on patches.
    """

    conv: float
    pointwise: float
    grouped: float
    memory: float
    gather: float
    call: float
    patch: float


COSTS = {
    "cpu": Costs(conv=3e11, pointwise=3.5e11, grouped=3e10, memory=2e10, gather=1e10, call=1e-5, patch=1.2e-4),
    "cuda": Costs(conv=2e13, pointwise=1.5e13, grouped=1e12, memory=1e12, gather=5e11, call=1e-5, patch=2e-4),
}


def measure(device: str | torch.device = "cpu", repeats: int = 5) -> Costs:
    """The constants of this device as it is now, some seconds of work: the best of `repeats` of every kind.

    They are for `COSTS`, or for `WindowLogits(costs=)`: a decision by constants measured anew in every process would differ
    from run to run, and with it the last bits of maps.
    """
    device = torch.device(device)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        return min(times[1:])

    def image(n: int, c: int, side: int) -> torch.Tensor:
        return torch.rand(n, c, side, side, device=device).contiguous(memory_format=torch.channels_last)

    def speed(channels: int, side: int, kernel: int, groups: int = 1) -> float:
        x, weight = image(16, channels, side), torch.rand(channels, channels // groups, kernel, kernel, device=device)
        weight = weight.contiguous(memory_format=torch.channels_last)
        work = 2.0 * weight.numel() * 16 * side**2
        return work / seconds(lambda: F.conv2d(x, weight, None, 1, kernel // 2, 1, groups))

    with torch.inference_mode():
        large, small = image(16, 64, 112), image(1, 8, 4)
        rows, index = torch.rand(4096, 128, device=device), torch.randint(4096, (16 * 400,), device=device)
        call = seconds(lambda: [F.relu(small) for _ in range(100)]) / 100
        return Costs(
            conv=speed(128, 28, 3),
            pointwise=speed(256, 28, 1),
            grouped=speed(192, 28, 3, 192),
            memory=8.0 * large.numel() / seconds(lambda: F.relu(large)),
            gather=8.0 * 128 * len(index) / seconds(lambda: rows.index_select(0, index)),
            call=call,
            patch=15 * call,  # indices are made on the CPU
        )

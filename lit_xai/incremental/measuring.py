"""The constants of the cost model, measured on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_xai.incremental.costs import Costs
from lit_xai.incremental.network import network_of
from lit_xai.incremental.patches import Incremental

ROWS, LAYERS, SIDE, PATCH = 16, 8, 64, 8
DEAR = Costs(
    conv=1, pointwise=1, grouped=1, memory=1, gather=1e18, call=1e9, patch=0
)  # whole maps: patches are carried


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

    def image(n: int, c: int, side: int) -> Tensor:
        return torch.rand(n, c, side, side, device=device).contiguous(memory_format=torch.channels_last)

    def speed(channels: int, side: int, kernel: int, groups: int = 1) -> float:
        x, weight = image(ROWS, channels, side), torch.rand(channels, channels // groups, kernel, kernel, device=device)
        weight = weight.contiguous(memory_format=torch.channels_last)
        work = 2.0 * weight.numel() * ROWS * side**2
        return work / seconds(lambda: F.conv2d(x, weight, None, 1, kernel // 2, 1, groups))

    with torch.inference_mode(), torch.random.fork_rng():
        large, small = image(ROWS, 64, 112), image(1, 8, 4)
        rows, index = torch.rand(4096, 128, device=device), torch.randint(4096, (ROWS * 400,), device=device)
        return Costs(
            conv=speed(128, 28, 3),
            pointwise=speed(256, 28, 1),
            grouped=speed(192, 28, 3, 192),
            memory=8.0 * large.numel() / seconds(lambda: F.relu(large)),
            gather=8.0 * 128 * len(index) / seconds(lambda: rows.index_select(0, index)),
            call=seconds(lambda: [F.relu(small) for _ in range(100)]) / 100,
            patch=seconds(on_patches(device, image(1, 8, SIDE))) / LAYERS,
        )


def on_patches(device: torch.device, image: Tensor) -> Callable[[], Tensor]:
    """A call of small convolutions on patches of `[1, c, h, w]`, in which little but calling them takes time."""
    layers = [nn.Conv2d(image.shape[1], image.shape[1], 3, padding=1) for _ in range(LAYERS)]
    network = network_of(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().to(device))
    plan = network.plan(tuple(image.shape), (PATCH, PATCH), ROWS, DEAR, device)
    carried, pixels = Incremental(network, plan, image), image[..., :PATCH, :PATCH].repeat(ROWS, 1, 1, 1)
    places = np.linspace(0, SIDE - PATCH, ROWS).astype(np.int64)
    return lambda: carried(pixels, places, places[::-1])

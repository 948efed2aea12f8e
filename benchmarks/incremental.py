"""Windows answered from what they change, over the model's own batched passes: time, prediction, memory, agreement."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from lit_xai.calls import Chunk
from lit_xai.explainers.information import information_maps
from lit_xai.incremental import WindowLogits, measure
from lit_xai.incremental.costs import COSTS
from lit_xai.models import lipschitz, resnet18
from lit_xai.models.lipschitz import plain
from lit_xai.rng import SampleRng
from torch import Tensor, nn

from benchmarks.harness import Report, Target, alternate, finished, ratio, spread
from benchmarks.information import sampler_of

SIDE, BATCH, WINDOW, ROUNDS = 224, 16, 8, 2
LARGE = {"squeezenet1_1": 29, "resnet18": 29}  # windows of the sliding patch
LIMITS = {"vgg19": 0.25, "squeezenet1_1": 0.55, "resnet18": 0.60, "resnet50": 0.70}  # at K = 8
NETWORKS = (*LIMITS, "mobilenet_v2", "densenet121", "googlenet")
COLUMNS = ["network", "side", "K", "naive ms", "ours ms", "ours/naive", "range", "predicted", "whole from", "kept MB"]
COLUMNS += ["difference", "auto"]
AGREE, NEVER_SLOWER, KEPT = 1e-4, 1.05, 300e6


@functools.lru_cache(maxsize=1)
def network(name: str, side: int) -> nn.Module:
    """A seeded, untrained network in channels-last order."""
    import torchvision.models

    torch.manual_seed(0)
    made: nn.Module
    if name == "tiny":  # where the code is tried, and not timed
        layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10))
    elif name == "small resnet":
        made = resnet18(3, 10, side, 16)
    elif name == "1-lipschitz":
        made = plain(lipschitz(3, 10, side))
    else:
        options: dict[str, Any] = {"init_weights": True} if name == "googlenet" else {}
        made = torchvision.models.get_model(name, weights=None, **options)
    return made.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def windows_of(image: Tensor, k: int, number: int) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """So many windows of noise along a diagonal sweep: whole images, pixels, corners."""
    side = image.shape[-1]
    top = np.linspace(0, side - k, number).astype(int)
    left = top[::-1].copy()
    pixels = torch.rand(number, image.shape[1], k, k, generator=torch.Generator().manual_seed(0)).to(image.device)
    whole = image.repeat(number, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    for row, (t, s) in enumerate(zip(top, left, strict=True)):
        whole[row, :, t : t + k, s : s + k] = pixels[row]
    return whole, pixels, top, left


def one(
    name: str, side: int, k: int, rounds: int, device: str = "cpu", number: int = BATCH, most: int = BATCH
) -> tuple[list[Any], float, float]:
    """A row of the table; the ratio in `auto` and the largest difference.

    Args:
        name, side, k: the network, and sides of the image and of the windows in pixels.
        rounds: in which the times are taken.
        device: where.
        number: windows that are asked for at once.
        most: images of a call of the model itself.
    """
    model, image = (
        network(name, side).to(device),
        torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)),
    )
    image = image.to(device)
    with torch.inference_mode():
        whole, pixels, top, left = windows_of(image, k, number)
        auto = WindowLogits(model, image, (k, k), most, windows=number)
        carried = WindowLogits(model, image, (k, k), most, "always", windows=number, network=auto.network)

        def naive() -> Tensor:
            return torch.cat([model(part) for part in whole.split(most)])

        works: dict[str, Callable[[], object]] = {"naive": naive, "carried": partial(carried, pixels, top, left)}
        times = alternate({name: finished(work, device) for name, work in works.items()}, rounds)
        found, expected = carried(pixels, top, left), naive()
    off = float((found - expected).abs().max() / expected.abs().max())
    share = ratio(times, "carried", "naive")
    plan = carried.incremental.plan if carried.incremental is not None else None
    assert plan is not None
    took = [statistics.median(times[w]) / number * 1e3 for w in ("naive", "carried")]
    row = [name, side, k, *took, share]
    row += [spread(times, "carried", "naive"), plan.share, f"{plan.cut}/{len(plan.steps)}", carried.kept / 1e6, off]
    return [*row, "no" if auto.why else "yes"], 1.0 if auto.why else share, off


def incremental(rounds: int = ROUNDS) -> Report:
    """Every network at K = 8, two at 29. Then PMI + IG of one image, with and without."""
    report = Report(
        f"A window replaced: patches carried over whole passes, batch {BATCH}, {torch.get_num_threads()} threads",
        COLUMNS,
    )
    cases = [(name, SIDE, WINDOW) for name in NETWORKS] + [(name, SIDE, k) for name, k in LARGE.items()]
    cases += [("small resnet", 32, 5), ("1-lipschitz", 32, 5)]
    for name, side, k in cases:
        row, share, off = one(name, side, k, rounds)
        report.rows.append(row)
        report.targets.append(Target(f"{name} K={k}: difference", off, AGREE))
        limit = LIMITS.get(name, NEVER_SLOWER) if k == WINDOW else NEVER_SLOWER
        report.targets.append(Target(f"{name} K={k}: time over naive", share, limit))
        if name == "vgg19":
            report.targets.append(Target(f"{name} K={k}: bytes kept", row[9] * 1e6, KEPT))
    report.notes.append(f"constants of the CPU, used: {COSTS['cpu']}; measured now: {measure('cpu')}")
    report.notes.append("auto = no: by prediction it does not pay, and the model itself is called (ratio 1)")
    report.notes.extend(maps(rounds))
    return report


def maps(rounds: int) -> list[str]:
    """PMI + IG of one image by SqueezeNet at 224 px, K = 8, stride 56, N = 8: with and without, and the sampler's share."""
    model, sampler = network("squeezenet1_1", SIDE), sampler_of(3, SIDE, 32)
    image, target = torch.rand(1, 3, SIDE, SIDE), torch.tensor([0])
    made: dict[str, Tensor] = {}

    def run(mode: str) -> None:
        rng = SampleRng(0, (0,))
        made[mode] = information_maps(
            model, image, target, sampler, 8, 56, 8, rng=rng, max_batch=BATCH, incremental=mode
        ).ig

    def fill() -> None:
        Timed(sampler).run(image)

    times = alternate({"never": partial(run, "never"), "auto": partial(run, "auto"), "sampler": fill}, rounds)
    off = float((made["auto"] - made["never"]).abs().max() / made["never"].abs().max())
    share = statistics.median(times["sampler"]) / statistics.median(times["auto"])
    return [
        f"PMI + IG by SqueezeNet, {SIDE} px, K = 8, stride 56, N = 8: {ratio(times, 'auto', 'never'):.2f} of the time without "
        f"(range {spread(times, 'auto', 'never')}), the sampler takes {share:.0%} of it; IG differs by {off:.1g} of its range"
    ]


class Timed:
    """The sampler's part of that map: its fillings of the same windows."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def run(self, image: Tensor) -> None:
        """Fill every window once, as the sweep does."""
        from lit_xai.explainers.sweep import SlidingPatch
        from lit_xai.fillers.refill import Refill

        windows = SlidingPatch(8, 56, self.sampler, 8, projection="mean", scale=False).windows(SIDE, SIDE)
        top, left = windows.corners()
        keep = torch.ones(len(windows), SIDE, SIDE, dtype=torch.bool)
        for row, (t, s) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            keep[row, t : t + 8, s : s + 8] = False
        refill = Refill(self.sampler, image, SampleRng(0, (0,)))
        with torch.inference_mode():
            for row in range(0, len(windows), 8):
                some = keep[row : row + 8]
                refill(some, Chunk(row, row + len(some), len(windows), some.device), draws=8)

"""PMI and information gain with a PatchSampler: wall time over the bare passes of the classifier and of the sampler."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from lit_xai.calls import per_call
from lit_xai.explainers.information import information_maps
from lit_xai.fillers.patch import PatchModule, PatchSampler
from lit_xai.models import resnet18
from torch import Tensor, nn

from benchmarks.harness import Report, Target, alternate, ratio, spread
from benchmarks.setting import bare_forward, rows_through

PATCH, DRAWS, CHUNK, SIDE, CLASSES = 8, 8, 64, 32, 10
ROUNDS = 3
OVERHEAD = 1.10


def sampler_of(channels: int, side: int, width: int, precision: str = "float32") -> PatchSampler:
    """A PatchSampler with seeded, untrained weights."""
    torch.manual_seed(0)
    colour = ([0.5] * channels, [0.25] * channels)
    module = PatchModule(channels=channels, side=side, colour=colour, patch=PATCH, width=width).eval()
    return PatchSampler(given=module.requires_grad_(False), precision=precision)


def bare(model: nn.Module, sampler: PatchSampler, images: Tensor, windows: int) -> Callable[[], None]:
    """The classifier's and the sampler's passes of `windows` windows an image, and nothing else."""
    chunk = per_call(images, CHUNK)
    rows = images[:1].expand(chunk, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    seen = torch.rand(chunk, images.shape[1] + 1, 3 * PATCH, 3 * PATCH, device=images.device)
    total = len(images) * windows
    classify = bare_forward(model, rows, -(-total * DRAWS // chunk))

    def run() -> None:
        classify()
        with torch.inference_mode():
            for start in range(0, total, chunk):
                sampler.module.network(seen[: total - start])

    return run


def information(rounds: int = ROUNDS) -> Report:
    """PMI of every class and IG at 32 px, stride 2 and stride K."""
    report = Report(
        f"PMI + IG, K = {PATCH}, N = {DRAWS}, {SIDE} px, ResNet-18 of width 16, PatchSampler of width 32, {torch.get_num_threads()} threads",
        [
            "stride",
            "classifier passes/image",
            "sampler passes/image",
            "bare s/image",
            "ours s/image",
            "ours/bare",
            "range",
        ],
    )
    torch.manual_seed(0)
    model = resnet18(1, CLASSES, SIDE, 16).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler = sampler_of(1, SIDE, 32)
    for stride, number in ((2, 1), (PATCH, 8)):
        images = torch.rand(number, 1, SIDE, SIDE).contiguous(memory_format=torch.channels_last)

        def ours(images: Tensor = images, stride: int = stride) -> object:
            return information_maps(model, images, "all", sampler, PATCH, stride, DRAWS, max_batch=CHUNK)

        windows = ((SIDE - PATCH) // stride + 1) ** 2
        times = alternate({"bare": bare(model, sampler, images, windows), "ours": ours}, rounds)
        over = ratio(times, "ours", "bare")
        seconds = [statistics.median(times[n]) / number for n in ("bare", "ours")]
        passes = [rows_through(m, ours) / number for m in (model, sampler.module.network)]
        report.rows.append([stride, *passes, *seconds, over, spread(times, "ours", "bare")])
        report.targets.append(Target(f"PMI + IG at stride {stride} over bare passes", over, OVERHEAD))
    report.notes = ["One walk gives the PMI of every class and the IG. The sampler's draws of a window share one pass."]
    report.notes.append("VGG19 at 224 px on a GPU: python -m benchmarks gpu.")
    return report

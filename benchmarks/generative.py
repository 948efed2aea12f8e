"""Samplers of whole images, alone and inside POMELO: wall time over the bare passes of their networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from lit_xai import segments
from lit_xai.core import Images
from lit_xai.explainers import Lime
from lit_xai.explainers.lime import PixelCosineKernel, SegmentDistance, Toggle
from lit_xai.fillers.diffusion import DDIMModule, Denoising
from lit_xai.fillers.flow import Flow, FlowModule
from lit_xai.fillers.generative import GenerativeFiller
from lit_xai.models import resnet18
from lit_xai.rng import SampleRng
from torch import nn

from benchmarks.harness import Cell, Report, Target, alternate, ratio, spread
from benchmarks.setting import bare_forward

IMAGES, CHUNK, SIDE, CLASSES = 2, 64, 32, 10
STEPS, DRAWS = (50, 10), 8  # draws of an image
POMELO_STEPS, POMELO_SAMPLES = 10, {"DDIM": 32, "flow": 128}
ROUNDS, MORE = 2, 3  # short pieces of work take so many rounds more
OVERHEAD = 1.10

Work = Callable[[], object]


# ------------------------------------------------------------------------------------------------------------- samplers


def diffusion(steps: int) -> Denoising:
    """A small DDIM with seeded, untrained weights."""
    torch.manual_seed(0)
    return replace(DDIMModule(channels=1, side=SIDE, width=[16, 32, 32]).sampler(), steps=steps, max_batch=CHUNK)


def flow() -> Flow:
    """A Glow of the default size with seeded, untrained weights."""
    torch.manual_seed(0)
    return replace(FlowModule(channels=1, side=SIDE).eval().requires_grad_(False).sampler(), max_batch=CHUNK)


def smooth(number: int, channels: int, side: int) -> Images:
    """Smooth random images."""
    torch.manual_seed(0)
    return nn.functional.interpolate(torch.rand(number, channels, 8, 8), size=side, mode="bilinear")


# ---------------------------------------------------------------------------------------------------------- bare passes


def repeated(call: Work, number: int) -> Work:
    """`number` calls, and nothing else."""

    def run() -> None:
        with torch.inference_mode():
            for _ in range(number):
                call()

    return run


def chunks(total: int) -> Iterator[int]:
    """The sizes of the network calls for so many rows."""
    for start in range(0, total, CHUNK):
        yield min(CHUNK, total - start)


@dataclass(frozen=True)
class Floor:
    """A sampler's bare passes.

    Attributes:
        encode, draw: the passes for all images, and for all draws.
        each: passes an image, and a draw.
    """

    encode: Work
    draw: Work
    each: tuple[int, int]


def all_of(works: list[Work]) -> Work:
    """One after the other."""

    def run() -> None:
        for work in works:
            work()

    return run


def diffusion_floor(sampler: Denoising, images: Images, draws: int) -> Floor:
    """(1 + refine) n passes of all images together, and n passes of every chunk of draws."""

    def passes(rows: int, number: int) -> Work:
        x, t = torch.randn(rows, *images.shape[1:]), torch.full((rows,), 500)
        return repeated(lambda: sampler.module.network(x, t), number)

    each = (1 + sampler.refine) * sampler.steps, sampler.steps
    decode = [passes(rows, each[1]) for rows in chunks(len(images) * draws)]
    return Floor(passes(len(images), each[0]), all_of(decode), each)


def flow_floor(sampler: Flow, images: Images, draws: int) -> Floor:
    """One pass forth of all images together, and one pass back of every chunk of draws, by the library's own calls."""
    network, y = sampler.module.network.flow, images - 0.5

    def decode(rows: int) -> Work:
        parts = [torch.randn(rows, *q.shape) for q in network.q0]
        return repeated(lambda: network.forward_and_log_det(list(parts)), 1)

    encode = repeated(lambda: network.inverse_and_log_det(y), 1)
    return Floor(encode, all_of([decode(rows) for rows in chunks(len(images) * draws)]), (1, 1))


# ------------------------------------------------------------------------------------------------------------ contests


def sampling(report: Report, rounds: int, steps: int) -> None:
    """Encode some images and draw from each; the floor's passes go in calls of the same sizes."""
    sampler, images = diffusion(steps), smooth(IMAGES, 1, SIDE)
    prepared, floor = sampler.prepared(images), diffusion_floor(sampler, images, DRAWS)
    hidden, rows = torch.zeros(IMAGES, 1, SIDE, SIDE, dtype=torch.bool), torch.arange(IMAGES)
    works: dict[str, Work] = {
        "bare encode": floor.encode,
        "encode": lambda: sampler.prepared(images),
        "bare draw": floor.draw,
        "draw": lambda: prepared(rows, hidden, SampleRng.default(IMAGES), DRAWS),
    }
    times = alternate(works, rounds)
    for name, parts in {"bare": ("bare encode", "bare draw"), "ours": ("encode", "draw")}.items():
        times[name] = [a + b for a, b in zip(*(times[part] for part in parts), strict=True)]
    took = {n: statistics.median(t) for n, t in times.items()}
    over, name = ratio(times, "ours", "bare"), f"DDIM n = {steps}"
    line: list[Cell] = [
        name,
        IMAGES * DRAWS,
        *floor.each,
        took["bare"],
        took["ours"],
        over,
        spread(times, "ours", "bare"),
    ]
    report.rows.append([*line, took["encode"] / IMAGES, took["draw"] / (IMAGES * DRAWS) * 1000])
    report.targets.append(Target(f"{name} over bare passes", over, OVERHEAD))


def pomelo(report: Report, rounds: int, kind: str) -> None:
    """POMELO from superpixels to surrogate, over the bare passes of sampler and classifier."""
    samples, images = POMELO_SAMPLES[kind], smooth(IMAGES, 1, SIDE)
    sampler: GenerativeFiller
    if kind == "DDIM":
        sampler = denoiser = diffusion(POMELO_STEPS)
        floor = diffusion_floor(denoiser, images, samples)
    else:
        sampler = glow = flow()
        floor = flow_floor(glow, images, samples)
    torch.manual_seed(0)
    model = resnet18(1, CLASSES, SIDE, 16).eval()
    classify = [bare_forward(model, torch.rand(rows, 1, SIDE, SIDE), 1) for rows in chunks(IMAGES * samples)]
    lime = Lime(
        segments=segments.Slic(35, compactness=10.0, sigma=0.0),
        perturbation=Toggle(sampler, keep=0.0, whole_first=False),
        representation=SegmentDistance(),
        kernel=PixelCosineKernel(),
        samples=samples,
        max_batch=CHUNK,
    )

    def ours() -> object:
        segments.CACHE.clear()  # superpixels are made anew
        return lime(model, images, torch.arange(IMAGES))

    times = alternate({"bare": all_of([floor.encode, floor.draw, *classify]), "ours": ours}, rounds)
    took = {n: statistics.median(t) for n, t in times.items()}
    over, name = ratio(times, "ours", "bare"), f"POMELO, {kind}" + (f" n = {POMELO_STEPS}" if kind == "DDIM" else "")
    line: list[Cell] = [
        name,
        IMAGES * samples,
        *floor.each,
        took["bare"],
        took["ours"],
        over,
        spread(times, "ours", "bare"),
    ]
    report.rows.append([*line, None, None])
    report.targets.append(Target(f"{name} over bare passes of sampler and classifier", over, OVERHEAD))


# -------------------------------------------------------------------------------------------------------------- report


def generative(rounds: int = ROUNDS) -> Report:
    """DDIM alone at few and many steps, POMELO with a DDIM and with a flow."""
    report = Report(
        f"samplers of images: {IMAGES} grey images, {SIDE} px, calls of {CHUNK}, {torch.get_num_threads()} threads",
        [
            "work",
            "draws",
            "passes/image",
            "passes/draw",
            "bare s",
            "ours s",
            "ours/bare",
            "range",
            "encode s/image",
            "s per 1,000 draws",
        ],
    )
    for steps in STEPS:
        sampling(report, rounds + MORE * (steps < STEPS[0]), steps)
    for kind in POMELO_SAMPLES:
        pomelo(report, rounds + MORE * (kind == "flow"), kind)
    report.notes = [
        "passes: of the sampler's network, counted into the floor. Weights are untrained: a UNet of width 16, 32, 32 "
        "and a Glow of 3 levels of 8 steps, width 64.",
        "POMELO: superpixels, encoding, draws, classifier (ResNet-18 of width 16) and surrogate; no draw is kept.",
        "What fewer steps cost in quality needs trained weights: reconstruction_rmse (n = 50) and "
        "reconstruction_rmse_10_steps in quality.csv of python -m lit_xai.train model=ddim.",
        "64 px RGB on a GPU: python -m benchmarks gpu.",
    ]
    return report

"""LIME, sliding patch, meaningful perturbation: wall time over the bare model calls, and over the peers on the same work."""

from __future__ import annotations

import contextlib
import io
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lit_xai.calls import per_call
from lit_xai.explainers import Lime, MeaningfulPerturbation, SlidingPatch
from lit_xai.explainers.surrogate import Surrogate
from lit_xai.fillers import SegmentMean
from lit_xai.fillers.constant import Colour
from lit_xai.segments import Slic
from torch import Tensor, nn

from benchmarks.harness import Report, Target, alternate, ratio, spread
from benchmarks.setting import bare_forward, rows_through

BATCH, FEW, CHUNK, CLASSES = 8, 2, 64, 10  # FEW: images of LIME at 64 px
SAMPLES = 192  # of LIME
STEPS = 12  # of meaningful perturbation
PATCH, STRIDE = 16, 8  # 49 windows at 64 px
ROUNDS = 3
OVERHEAD, OVERHEAD_MP, FASTER_64, BF16 = 1.10, 1.15, 1.2, 1.7
PARITY = 0.95  # peer over ours where both make the same passes and little else: as fast, but for noise
EVALUATIONS = (16, 64)  # perturbations that captum puts into one call: its best counts


def setting(side: int, number: int = BATCH) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A ResNet-18 of torchvision with seeded weights, smooth random images, targets, superpixels."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=CLASSES).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    small = torch.rand(number, 3, 8, 8)
    images = nn.functional.interpolate(small, size=side, mode="bilinear").contiguous(memory_format=torch.channels_last)
    return model, images, torch.arange(number) % CLASSES, Slic(50)(images)


def lime_package(
    model: nn.Module, images: Tensor, targets: Tensor, segments: Tensor, samples: int
) -> Callable[[], object]:
    """The lime package on the same images and superpixels, image by image, with the same model batch."""
    from lime.lime_image import LimeImageExplainer

    def classify(batch: list[np.ndarray]) -> np.ndarray:
        x = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            return model(x.contiguous(memory_format=torch.channels_last)).softmax(-1).double().numpy()

    def run() -> None:
        explainer = LimeImageExplainer(random_state=0)
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for image, target, labels in zip(images, targets, segments, strict=True):
                explainer.explain_instance(
                    image.permute(1, 2, 0).double().numpy(),
                    classify,
                    labels=[int(target)],
                    top_labels=None,
                    num_samples=samples,
                    batch_size=per_call(images, CHUNK),
                    segmentation_fn=lambda _, labels=labels: labels.numpy(),
                )

    return run


def captum_lime(
    model: nn.Module, images: Tensor, targets: Tensor, segments: Tensor, samples: int, per_call: int
) -> Callable[[], object]:
    """Lime of captum with ridge regression on the same superpixels, image by image (its batch is one image)."""
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime as Captum

    filled = SegmentMean().background(images, segments)

    def run() -> None:
        method = Captum(nn.Sequential(model, nn.Softmax(-1)), interpretable_model=SkLearnRidge(alpha=1.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for b in range(len(images)):
                method.attribute(
                    images[b : b + 1],
                    target=int(targets[b]),
                    baselines=filled[b : b + 1],
                    feature_mask=segments[b : b + 1, None],
                    n_samples=samples,
                    perturbations_per_eval=per_call,
                )

    return run


def captum_occlusion(model: nn.Module, images: Tensor, targets: Tensor, per_call: int) -> Callable[[], object]:
    """Occlusion of captum with the same windows and colour."""
    from captum.attr import Occlusion

    method = Occlusion(nn.Sequential(model, nn.Softmax(-1)))

    def run() -> None:
        with torch.inference_mode():
            method.attribute(
                images,
                sliding_window_shapes=(3, PATCH, PATCH),
                strides=(3, STRIDE, STRIDE),
                target=targets,
                baselines=0.5,
                perturbations_per_eval=per_call,
            )

    return run


def bare_gradient(model: nn.Module, images: Tensor, targets: Tensor, calls: int) -> Callable[[], None]:
    """`calls` forward and backward passes of the batch to its images."""

    def run() -> None:
        for _ in range(calls):
            x = images.detach().requires_grad_()
            torch.autograd.grad(model(x).softmax(-1).gather(1, targets[:, None]).sum(), x)

    return run


def contest(
    report: Report,
    rounds: int,
    name: str,
    model: nn.Module,
    ours: Callable[[], object],
    floor: Callable[[], object],
    limit: float,
    peers: Mapping[str, Mapping[str, Callable[[], object]]] | None = None,
    factor: float = PARITY,
) -> None:
    """Time ours, its floor, and every setting of every peer in turns; a peer counts with its fastest setting."""
    works = {"bare": floor, "ours": ours}
    for settings in (peers or {}).values():
        works |= settings
    times = alternate(works, rounds)
    seconds = {n: statistics.median(t) for n, t in times.items()}
    over = ratio(times, "ours", "bare")
    report.targets.append(Target(f"{name} over bare calls", over, limit))
    line: list[Any] = [name, rows_through(model, ours), seconds["bare"], seconds["ours"], over]
    line.append(spread(times, "ours", "bare"))
    for peer, settings in (peers or {"": {}}).items():
        if not settings:
            report.rows.append([*line, None, None, None, None])
            continue
        best = min(settings, key=seconds.__getitem__)
        faster = ratio(times, best, "ours")
        report.rows.append([*line, best, seconds[best], faster, spread(times, best, "ours")])
        wanted = factor if peer == "lime" else PARITY
        report.targets.append(Target(f"{name}: {best} over ours", faster, wanted, at_least=True))
        line = [""] * len(line)


def lime_contest(report: Report, rounds: int, side: int, number: int, samples: int = SAMPLES) -> None:
    """LIME of some images of one size, and its gain from bf16."""
    model, images, targets, segments = setting(side, number)
    full = Lime(samples=samples, max_batch=CHUNK)
    half = replace(full, precision="bf16")

    def run(lime: Lime) -> Surrogate:
        return lime.explain(model, images, targets, segments=segments)

    peers = {
        "lime": {"lime package": lime_package(model, images, targets, segments, samples)},
        "captum": {f"captum Lime x{n}": captum_lime(model, images, targets, segments, samples, n) for n in EVALUATIONS},
    }
    floor = bare_forward(model, many(images), number * samples // per_call(images, CHUNK))
    name = f"LIME {side} px"
    # what the lime package does beside its passes, it does by one thread: there is more to win where passes have several
    factor = FASTER_64 if side == 64 and torch.get_num_threads() > 1 else PARITY
    contest(report, rounds, name, model, lambda: run(full), floor, OVERHEAD, peers, factor)
    times = alternate({"float32": lambda: run(full), "bf16": lambda: run(half)}, rounds)
    gain = ratio(times, "float32", "bf16")
    report.targets.append(Target(f"{name}: float32 over bf16", gain, BF16, at_least=True))
    if samples == SAMPLES:  # fewer leave coefficients that rounding moves
        pairs = zip(run(full).coefficients, run(half).coefficients, strict=True)
        alike = min(float(np.corrcoef(a, b)[0, 1]) for a, b in pairs)
        report.targets.append(Target(f"{name}: least correlation of bf16 coefficients", alike, 0.99, at_least=True))
    report.notes.append(f"{name}: {samples} samples; superpixels are made beforehand for everybody.")


def new_report(title: str) -> Report:
    """An empty table of contests."""
    report = Report(
        f"{title}: torchvision's ResNet-18, {torch.get_num_threads()} threads",
        ["method", "images", "bare s", "ours s", "ours/bare", "range", "peer", "peer s", "peer/ours", "range "],
    )
    report.notes = [
        "images: how many go through the model.",
        "xN: perturbations of one call of captum; its fastest counts. Its Lime and the lime package take image by image.",
    ]
    return report


def many(images: Tensor) -> Tensor:
    """One full chunk: what goes into a call at this size."""
    return images.repeat(per_call(images, CHUNK) // len(images), 1, 1, 1).contiguous(memory_format=torch.channels_last)


def perturbation(rounds: int = ROUNDS) -> Report:
    """Every method over its floor and its peers."""
    report = new_report("perturbation explainers")
    lime_contest(report, rounds, 64, FEW)
    model, images, targets, _ = setting(64)
    patch = SlidingPatch(PATCH, STRIDE, Colour(0.5), scale=False, max_batch=CHUNK)
    calls, rest = divmod(BATCH * len(patch.windows(64, 64)), CHUNK)
    sweeps, alone = bare_forward(model, many(images), calls), bare_forward(model, images, 1 + rest // BATCH)
    occlusion = {f"captum Occlusion x{n}": captum_occlusion(model, images, targets, n) for n in (1, 8)}
    contest(
        report,
        rounds,
        "SlidingPatch 64 px",
        model,
        lambda: patch(model, images, targets),
        lambda: (sweeps(), alone()),
        OVERHEAD,
        {"captum": occlusion},
    )
    learned = MeaningfulPerturbation(steps=STEPS, max_batch=BATCH)
    steps = bare_gradient(model, images, targets, STEPS)
    contest(
        report,
        rounds,
        "MeaningfulPerturbation 64 px",
        model,
        lambda: learned(model, images, targets),
        lambda: (steps(), bare_forward(model, images, 1)()),
        OVERHEAD_MP,
    )
    return report

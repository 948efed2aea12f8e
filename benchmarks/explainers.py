"""Explainers and scores: wall time over the bare model calls they need, and over the peer that does the same work."""

from __future__ import annotations

import contextlib
import io
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lit_xai.explainers import (
    RISE,
    GradCAM,
    GradCAMPlusPlus,
    GradientInput,
    GradientShap,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from lit_xai.fillers.constant import Colour
from lit_xai.metrics.fidelity import Deletion, Insertion, MuFidelity
from torch import Tensor, nn

from benchmarks.harness import Cell, Report, Target, alternate, ratio, spread
from benchmarks.setting import BATCH, CHANNELS, SIDE, bare_forward, bare_gradient, model_and_images, rows_through

STEPS = 4  # points of integrated gradients, copies of SmoothGrad
MASKS = 8  # masks of RISE, subsets of muFidelity
PIXELS = 205  # pixels a step of deletion and insertion: 6 points
FLIPPED = 512  # values a step of Quantus, which must divide 1,024 and counts every channel: 6 points too
SHARE = 0.15
ROUNDS = 4
OVERHEAD = 1.15
PARITY = 0.95  # peer over ours: both make the same passes and little else, so as fast, but for noise
OVERHEAD_OF = ("IntegratedGradients", "SmoothGrad", "GradientShap", "RISE", "MuFidelity", "Deletion", "Insertion")


@dataclass
class Contest:
    """One method: ours, the bare model calls it needs, and the peer on the same work (or why there is none)."""

    name: str
    ours: Callable[[], object]
    floor: Callable[[int], Callable[[], None]]
    peer_name: str
    peer: Callable[[], object] | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the peers' progress bars and warnings: printing costs time."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def gradient_contests(model: nn.Module, images: Tensor, targets: Tensor) -> list[Contest]:
    """Methods by gradients, against captum and pytorch-grad-cam."""
    from captum import attr
    from pytorch_grad_cam import GradCAM as PeerCAM
    from pytorch_grad_cam import GradCAMPlusPlus as PeerCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def floor(calls: int) -> Callable[[], None]:
        return bare_gradient(model, images, targets, calls)

    last = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][-1]
    classes = [ClassifierOutputTarget(int(t)) for t in targets]
    cam, cam_plus_plus = PeerCAM(model, [last]), PeerCAMPlusPlus(model, [last])
    # the peer's hooks would slow every other contestant down: they are there only while it runs
    cam.activations_and_grads.release()
    cam_plus_plus.activations_and_grads.release()

    def peer_cam(kind: type) -> Callable[[], object]:
        def run() -> object:
            with kind(model, [last]) as method:
                out = method(images, classes)
                method.activations_and_grads.release()
            model.zero_grad(set_to_none=True)
            return out

        return run

    integrated = attr.IntegratedGradients(model)
    tunnel = attr.NoiseTunnel(attr.Saliency(model))
    saliency, times_input, shap = attr.Saliency(model), attr.InputXGradient(model), attr.GradientShap(model)

    def peer_integrated() -> object:
        return integrated.attribute(
            images, target=targets, n_steps=STEPS, method="riemann_trapezoid", internal_batch_size=BATCH
        )

    def peer_smooth() -> object:
        return tunnel.attribute(
            images, "smoothgrad", STEPS, nt_samples_batch_size=1, stdevs=0.2, target=targets, abs=False
        )

    def peer_shap() -> object:
        return shap.attribute(images, torch.zeros_like(images[:1]), STEPS, 0.1, targets)

    ours = [
        (IntegratedGradients(STEPS, max_batch=BATCH), "captum IntegratedGradients", peer_integrated),
        (SmoothGrad(STEPS, max_batch=BATCH), "captum NoiseTunnel(Saliency)", peer_smooth),
        (GradientShap(STEPS, max_batch=STEPS * BATCH), "captum GradientShap", peer_shap),
        (Saliency(), "captum Saliency", lambda: saliency.attribute(images, targets)),
        (GradientInput(signed=True), "captum InputXGradient", lambda: times_input.attribute(images, targets)),
        (GradCAM(), "pytorch-grad-cam GradCAM", peer_cam(PeerCAM)),
        (GradCAMPlusPlus(), "pytorch-grad-cam GradCAMPlusPlus", peer_cam(PeerCAMPlusPlus)),
    ]
    return [
        Contest(type(e).__name__, lambda e=e: e(model, images, targets), floor, name, peer)  # type: ignore[misc]
        for e, name, peer in ours
    ]


def forward_contests(model: nn.Module, images: Tensor, targets: Tensor) -> list[Contest]:
    """Methods and scores by forward passes, against Quantus."""
    import quantus

    def floor(calls: int) -> Callable[[], None]:
        return bare_forward(model, images, calls)

    maps = torch.randn(BATCH, SIDE, SIDE)
    arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy()}
    common: dict[str, Any] = {"abs": False, "normalise": False, "disable_warnings": True, "perturb_baseline": 0.5}
    # its own area calls np.trapz, which NumPy has removed: curves are asked for, the model calls are the same
    flipping = quantus.PixelFlipping(features_in_step=FLIPPED, return_auc_per_sample=False, **common)
    correlation = quantus.FaithfulnessCorrelation(
        nr_runs=MASKS, subset_size=round(SHARE * CHANNELS * SIDE * SIDE), return_aggregate=False, **common
    )

    def quantus_score(metric: Callable[..., object], softmax: bool) -> Callable[[], object]:
        def run() -> object:
            with quiet():
                return metric(model=model, **arrays, softmax=softmax, device="cpu", batch_size=BATCH)

        return run

    rise = RISE(MASKS, max_batch=BATCH)
    fidelity = MuFidelity(MASKS, share=SHARE, max_batch=BATCH)
    deletion = Deletion(PIXELS, filler=Colour(0.5), max_batch=BATCH)
    insertion = Insertion(PIXELS, max_batch=BATCH)
    return [
        Contest("RISE", lambda: rise(model, images, targets), floor, "none has it"),
        Contest(
            "MuFidelity",
            lambda: fidelity(model, images, maps, targets),
            floor,
            "quantus FaithfulnessCorrelation",
            quantus_score(correlation, softmax=False),
        ),
        Contest(
            "Deletion",
            lambda: deletion(model, images, maps, targets),
            floor,
            "quantus PixelFlipping",
            quantus_score(flipping, softmax=True),
        ),
        Contest("Insertion", lambda: insertion(model, images, maps, targets), floor, "none has it"),
    ]


def explainers(rounds: int = ROUNDS) -> Report:
    """Ours over the bare calls (target 1.15) and the peer over ours (target .95: as fast, but for noise)."""
    model, images, targets = model_and_images()
    report = Report(
        f"explainers and scores: ResNet-18, {SIDE} px, batch {BATCH}, channels-last, {torch.get_num_threads()} threads",
        [
            "method",
            "images",
            "bare s",
            "ours s",
            "ours/bare",
            "range",
            "peer",
            "images ",
            "peer s",
            "peer/ours",
            "range ",
        ],
    )
    for c in gradient_contests(model, images, targets) + forward_contests(model, images, targets):
        rows = rows_through(model, c.ours)
        works: dict[str, Callable[[], object]] = {"bare": c.floor(rows // BATCH), "ours": c.ours}
        if c.peer is not None:
            works["peer"] = c.peer
        # one pass is over in no time: more rounds make up for it
        times = alternate(works, rounds if rows > 2 * BATCH else 2 * rounds)
        over = ratio(times, "ours", "bare")
        seconds = {name: statistics.median(t) for name, t in times.items()}
        line: list[Cell] = [
            c.name,
            rows,
            seconds["bare"],
            seconds["ours"],
            over,
            spread(times, "ours", "bare"),
            c.peer_name,
        ]
        if c.peer is None:
            report.rows.append([*line, None, None, None, None])
        else:
            faster = ratio(times, "peer", "ours")
            report.rows.append(
                [*line, rows_through(model, c.peer), seconds["peer"], faster, spread(times, "peer", "ours")]
            )
            report.targets.append(Target(f"{c.name}: {c.peer_name} over ours", faster, PARITY, at_least=True))
        if c.name in OVERHEAD_OF:
            report.targets.append(Target(f"{c.name} over bare calls", over, OVERHEAD))
    report.notes = [
        f"{STEPS} steps, {MASKS} masks and subsets, {PIXELS} pixels a step; ratios are medians of paired rounds.",
        "images: how many go through the model. No installed peer has RISE or an insertion curve.",
    ]
    return report

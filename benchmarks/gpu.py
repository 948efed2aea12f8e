"""What a GPU is used for, on one table and in minutes: ours over the bare passes of the networks, and over the peers that are there.

Every row is bounded, and one that fails says why and ends nothing. On a CPU the same code runs small, to be tested: its numbers
mean nothing.
"""

from __future__ import annotations

import functools
import gc
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lit_xai.calls import autocast, images_a_call
from lit_xai.core import Explainer, TrainedOn
from lit_xai.explainers.information import information_maps
from lit_xai.fillers.diffusion import DDIMModule, Denoising
from lit_xai.fillers.flow import Flow, FlowModule
from lit_xai.fillers.generative import GenerativeFiller, forget
from lit_xai.incremental import COSTS, measure
from lit_xai.metrics import MeGe
from lit_xai.models import resnet18, resnet50
from lit_xai.rng import SampleRng
from torch import Tensor, nn

from benchmarks import incremental, training
from benchmarks.explainers import quiet
from benchmarks.generative import smooth
from benchmarks.harness import Cell, Report, Target, alternate, finished, ratio, seconds, spread
from benchmarks.information import CHUNK, DRAWS, PATCH, sampler_of
from benchmarks.scale import explainers_of
from benchmarks.setting import bare_forward, bare_gradient

MINUTES = 6.0
ROUNDS = 3
ENOUGH = 12.0  # seconds of repeats of one piece of work
LONGER, START = (
    3.0,
    30.0,
)  # a row is stopped after so many times what it should take, and seconds for what a first call loads
OVERHEAD, OF_FIDELITY, NEVER_SLOWER, PATCHES = 1.15, 1.3, 1.02, 0.6

Work = Callable[[], object]


# ------------------------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Size:
    """Images of one size, their classifier, and how much of it is asked for.

    Attributes:
        side: pixels.
        batch: images of a good call.
        forward, backward: model inputs of one piece of work, about.
        classes: of the network, and whether it is the small one.
    """

    side: int
    batch: int
    forward: int
    backward: int
    classes: int = 10
    width: int = 64


SIZES = {
    "measured": {"32 px": Size(32, 4096, 16_384, 8192), "224 px": Size(224, 256, 2048, 1024, classes=1000)},
    "tried": {"32 px": Size(16, 16, 16, 8, width=2), "224 px": Size(20, 8, 16, 8, width=2)},
}


@dataclass(frozen=True)
class Place:
    """Where it is measured, and whether the code is only tried, on next to nothing."""

    device: torch.device
    small: bool = False

    @property
    def rounds(self) -> int:
        return 1 if self.small else ROUNDS

    def size(self, which: str) -> Size:
        """Of the images of these pixels."""
        return SIZES["tried" if self.small else "measured"][which]

    def pick(self, full: Any, few: Any) -> Any:
        """What a GPU measures, or what a CPU tries."""
        return few if self.small else full

    def over(self, works: dict[str, Work]) -> dict[str, list[float]]:
        """Seconds of every piece of work, in alternation, each waited for."""
        return alternate({name: finished(work, self.device) for name, work in works.items()}, self.rounds)

    def again(self, work: Work) -> float:
        """Median seconds of one piece of work after a warm-up, repeated while there is time."""
        done = finished(work, self.device)
        times: list[float] = []
        done()
        while len(times) < self.rounds and (not times or sum(times) < ENOUGH):
            times.append(seconds(done))
        return statistics.median(times)


@dataclass
class Found:
    """What a row measured.

    Attributes:
        ours, bare: in the row's unit; None where there is none.
        over: time of ours over bare.
        spread: of that ratio.
        beside, beside_over: another way to do the same, and its time over bare.
        notes: what a reader must know.
    """

    ours: float | None
    bare: float | None = None
    over: float | None = None
    spread: str | None = None
    beside: str | None = None
    beside_over: float | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: on every device.
        measure: what is done.
        takes: seconds on an H100, about, with its warm-up.
        limit: of the ratio, or (`of_value`) of ours; None = it is only told.
        tf32: convolutions round their factors, as torch does by default.
    """

    name: str
    measure: Callable[[Place], Found]
    takes: float
    limit: float | None = None
    of_value: bool = False
    at_least: bool = False
    unit: str = "s"
    tf32: bool = False

    def target(self, found: Found | None) -> Target | None:
        """The promise with what was found; without it where the row failed."""
        if self.limit is None:
            return None
        value = None if found is None else found.ours if self.of_value else found.over
        return Target(f"{self.name}, {self.unit if self.of_value else 'over bare'}", value, self.limit, self.at_least)


def contest(place: Place, works: dict[str, Work], notes: list[str] | None = None) -> Found:
    """`ours` and `bare` in turns, and a third beside them."""
    times = place.over(works)
    took = {name: statistics.median(t) for name, t in times.items()}
    found = Found(took["ours"], took["bare"], ratio(times, "ours", "bare"), spread(times, "ours", "bare"))
    for name in works.keys() - {"ours", "bare"}:
        found.beside, found.beside_over = name, ratio(times, name, "bare")
    found.notes = notes or []
    return found


# ------------------------------------------------------------------------------------------------------- explainers and scores

METHODS = {
    "RISE": "explainer/rise",
    "Integrated Gradients": "explainer/integrated_gradients",
    "SmoothGrad": "explainer/smoothgrad",
    "LIME": "explainer/lime",
    "muFidelity": "score/mufidelity",
    "deletion": "score/deletion",
    "insertion": "score/insertion",
}


@functools.lru_cache(maxsize=2)
def classifier(size: Size, device: torch.device) -> nn.Module:
    """Seeded, untrained weights in channels-last order: ResNet-18, at 224 px ResNet-50."""
    torch.manual_seed(0)
    made = resnet50 if size.side > 64 else functools.partial(resnet18, width=size.width)
    made = made(3, size.classes, size.side).eval().to(device)
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def as_shipped(name: str, place: Place) -> Any:
    """The method of its yaml; on a CPU with few samples."""
    method = explainers_of([METHODS[name]])[METHODS[name]].fitted(TrainedOn((0.5,) * 3))
    return replace(method, **{method.count: 16 if name == "LIME" else 4}) if place.small and method.count else method


def inputs(number: int, size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smooth images in channels-last order, and targets."""
    images = smooth(number, 3, size.side).to(device).contiguous(memory_format=torch.channels_last)
    return images, torch.arange(number, device=device) % size.classes


def silent(work: Work) -> Work:
    """Without a peer's warnings: what is said of ours must be seen."""

    def run() -> None:
        with quiet():
            work()

    return run


def captum_of(name: str, model: nn.Module, images: Tensor, targets: Tensor, count: int, batch: int) -> dict[str, Work]:
    """Captum's way to the same, in calls of `batch` images; empty where it has none."""
    if name not in ("Integrated Gradients", "SmoothGrad"):
        return {}
    from captum import attr

    if name == "Integrated Gradients":
        integrated = attr.IntegratedGradients(model)
        options: dict[str, Any] = {"n_steps": count, "method": "riemann_trapezoid", "internal_batch_size": batch}
        return {"captum": silent(lambda: integrated.attribute(images, target=targets, **options))}
    tunnel, some = attr.NoiseTunnel(attr.Saliency(model)), max(1, min(count, batch // len(images)))
    options = {"nt_type": "smoothgrad", "nt_samples": count, "nt_samples_batch_size": some, "stdevs": 0.2}
    return {"captum": silent(lambda: tunnel.attribute(images, target=targets, abs=False, **options))}


def method_works(place: Place, name: str, which: str) -> tuple[dict[str, Work], str]:
    """A method as shipped, and the same number of model inputs in calls of a good size; what it is of."""
    size, method = place.size(which), as_shipped(name, place)
    model, passes = classifier(size, place.device), method.passes(size.side, size.side)
    number = max(1, (size.backward if passes.backward else size.forward) // passes.forward)
    images, targets = inputs(number, size, place.device)
    rows = number * passes.forward
    calls = math.ceil(rows / size.batch)
    batch, classes = inputs(math.ceil(rows / calls), size, place.device)
    given = [] if isinstance(method, Explainer) else [torch.randn(number, size.side, size.side, device=place.device)]
    bare = bare_gradient(model, batch, classes, calls) if passes.backward else bare_forward(model, batch, calls)
    works: dict[str, Work] = {"ours": lambda: method(model, images, *given, targets), "bare": bare}
    note = f"{number} images x {passes.forward} passes, bare: {calls} calls of {len(batch)}"
    try:
        works |= captum_of(name, model, images, targets, passes.forward, size.batch)
    except ImportError as e:
        note += f"; captum is left out: {e}"
    return works, note


def method_row(place: Place, name: str, which: str) -> Found:
    """Ours over bare calls."""
    works, note = method_works(place, name, which)
    found = contest(place, works, [note])
    size = place.size(which)
    model, image = classifier(size, place.device), inputs(1, size, place.device)[0]
    found.notes.append(f"max_batch=auto: {images_a_call(model, image)} images")
    return found


# ------------------------------------------------------------------------------------------------------------ MeGe, training


def mege_row(place: Place) -> Found:
    """MeGe of pairs of maps that lie on the device; bare: one sort of the same maps."""
    number, side = place.pick((20_000, 32), (20, 8))
    one, other = torch.randn(2, number, side, side, device=place.device).unbind()
    right, sample = torch.ones(number, dtype=torch.bool, device=place.device), torch.arange(number, device=place.device)

    def ours() -> None:
        metric = MeGe()
        metric.update(one, other, right, right, sample)
        metric.compute()

    return contest(place, {"ours": ours, "bare": lambda: torch.sort(torch.cat([one, other]).flatten(1), dim=1)})


def training_row(place: Place) -> Found:
    """Images a second of a training, and of bare steps on one batch."""
    setting = place.pick(replace(training.GPU, device=place.device), replace(training.CPU, width=2, before=1, steps=2))
    source = training.images(setting.before + setting.steps)
    pairs = [(training.bare(setting), training.trained(setting, source)) for _ in range(place.rounds)]
    bare, ours = (statistics.median(v) for v in zip(*pairs, strict=True))
    over = [b / o for b, o in pairs]
    return Found(ours, bare, statistics.median(over), f"{min(over):.2f}-{max(over):.2f}")


# -------------------------------------------------------------------------------------------------------- incremental windows

NETWORKS = {"VGG19": "vgg19", "SqueezeNet": "squeezenet1_1", "ResNet-50": "resnet50"}
CALLS = {"VGG19": (16, 64, 256, 1024), "SqueezeNet": (16, 1024), "ResNet-50": (16, 1024)}


def incremental_row(place: Place, name: str, windows: int) -> Found:
    """Windows of 8 x 8 pixels of one image at 224 px: by `auto`, over the model on whole images, and by `always` beside it."""
    network, side, number, most = place.pick(
        (NETWORKS[name], 224, windows, min(windows, 256)), ("tiny", 12, 2 + windows // 512, 2)
    )
    k = place.pick(8, 3)
    row, share, off = incremental.one(network, side, k, place.rounds, str(place.device), number, most)
    by = dict(zip(incremental.COLUMNS, row, strict=True))
    naive = by["naive ms"] * number / 1e3
    said = "carries patches" if by["auto"] == "yes" else "calls the model (1 by construction)"
    note = f"auto {said}, predicted {by['predicted']:.2f}; logits differ by {off:.1g} of the largest"
    spread = by["range"] if by["auto"] == "yes" else None
    return Found(naive * share, naive, share, spread, "always", by["ours/naive"], [note])


def constants_row(place: Place) -> Found:
    """The constants that decisions rest on, beside those of this device."""
    if place.small:
        return Found(None, notes=["python -m benchmarks incremental measures those of a CPU"])
    kind, began = place.device.type, time.perf_counter()
    note = f"constants of {kind}, used: {COSTS[kind]}; measured now: {measure(place.device)}"
    return Found(time.perf_counter() - began, notes=[note])


# ------------------------------------------------------------------------------------------------------------------ samplers

# the sizes of configs/model/ddim_64.yaml and flow_64.yaml
DDIM_64 = {"side": 64, "width": [128, 128, 256, 256], "layers": 2, "attention": 2, "noise": "linear"}
FLOW_64 = {"side": 64, "levels": 4, "steps": 48, "width": 512}
ENCODED, DRAWN, CALL, STEPS = 8, 1000, 256, 50


@functools.lru_cache(maxsize=1)
def ddim(place: Place) -> Denoising:
    """DDIM in bf16 with seeded, untrained weights."""
    torch.manual_seed(0)
    module = DDIMModule(channels=3, **place.pick(DDIM_64, {"side": 8, "width": [8]}))
    return replace(module.sampler(), steps=place.pick(STEPS, 2), precision="bf16", max_batch=place.pick(CALL, 2))


@functools.lru_cache(maxsize=1)
def glow(place: Place) -> Flow:
    """Glow, which computes in float32 alone, with seeded, untrained weights."""
    torch.manual_seed(0)
    module = FlowModule(channels=3, **place.pick(FLOW_64, {"side": 8, "levels": 1, "steps": 1, "width": 8}))
    return replace(module.eval().requires_grad_(False).sampler(), max_batch=place.pick(CALL, 2))


def draws(place: Place, sampler: GenerativeFiller, images: Tensor, number: int) -> Callable[[], Tensor]:
    """So many new images near the first; all are encoded beforehand."""
    prepared, first = sampler.prepared(images), torch.zeros(1, dtype=torch.long, device=place.device)
    hidden = torch.zeros(1, 1, *images.shape[-2:], dtype=torch.bool, device=place.device)
    return lambda: prepared(first, hidden, SampleRng.default(1), number)


def ddim_pass(place: Place, rows: int) -> Work:
    """One bare pass of DDIM's network in bf16."""
    sampler = ddim(place)
    x = torch.randn(rows, 3, sampler.module.side, sampler.module.side, device=place.device)
    denoiser: Any = sampler.opened.like(x)
    t = torch.full((rows,), 500, device=place.device)

    def work() -> None:
        with torch.inference_mode(), autocast(x, sampler.precision):
            denoiser.network(x, t)

    return work


def over_passes(place: Place, ours: Work, one: Work, passes: int, rows: int) -> Found:
    """Ours, over one bare pass of so many rows times the number of passes."""
    bare, took = place.again(one) * passes, place.again(ours)
    note = f"bare: {passes} passes of {rows} as they are, of which {place.rounds} are timed"
    return Found(took, bare, took / bare, notes=[note])


def ddim_encode_row(place: Place) -> Found:
    """A batch of images on their way to noise."""
    sampler, number = ddim(place), place.pick(ENCODED, 2)
    images = smooth(number, 3, sampler.module.side).to(place.device)
    passes = (1 + sampler.refine) * sampler.steps
    return over_passes(place, lambda: sampler.prepared(images), ddim_pass(place, number), passes, number)


def ddim_draw_row(place: Place) -> Found:
    """Draws near one image, its encoding beforehand."""
    sampler, number = ddim(place), place.pick(DRAWN, 4)
    # as many as in the row before: what is compiled for so many is there
    images = smooth(place.pick(ENCODED, 2), 3, sampler.module.side).to(place.device)
    ours = draws(place, sampler, images, number)
    passes = sampler.steps * math.ceil(number / sampler.most(place.device))
    found = over_passes(place, ours, ddim_pass(place, sampler.most(place.device)), passes, sampler.most(place.device))
    found.notes.append("POMELO's authors took 35 s on an RTX 3090 Ti")
    return found


def flow_row(place: Place) -> Found:
    """Draws near one image, its encoding beforehand."""
    sampler, number = glow(place), place.pick(DRAWN, 4)
    images = smooth(1, 3, sampler.module.side).to(place.device)
    ours, network = draws(place, sampler, images, number), sampler.network(images)
    z = torch.randn(sampler.most(place.device), images[0].numel(), device=place.device)

    def one() -> None:
        with torch.inference_mode():
            network.decoded(z)

    found = over_passes(place, ours, one, math.ceil(number / sampler.most(place.device)), sampler.most(place.device))
    found.notes.append("POMELO's authors took 5 s on an RTX 3090 Ti")
    return found


# --------------------------------------------------------------------------------------------------- PMI, the whole protocol


def information_row(place: Place, stride: int, alike: bool) -> Found:
    """PMI + IG of VGG19 with the paper's PatchSampler in bf16: seconds, or the least correlation of its maps with float32's."""
    name, side, width, draws = place.pick(("vgg19", 224, 256, DRAWS), ("tiny", 12, 8, 2))
    model = incremental.network(name, side).to(place.device)
    image = smooth(1, 3, side).to(place.device)

    def maps(precision: str) -> Tensor:
        sampler, most = sampler_of(3, side, width, precision), place.pick(1024, CHUNK)
        found = information_maps(
            model, image, "top2", sampler, PATCH, stride, draws, precision=precision, max_batch=most
        )
        return torch.cat([found.pmi[0], found.ig]).flatten(1)

    if alike:
        pairs = zip(*(maps(p).cpu().numpy() for p in ("float32", "bf16")), strict=True)
        return Found(min(float(np.corrcoef(a, b)[0, 1]) for a, b in pairs))
    return Found(seconds(finished(lambda: maps("bf16"), place.device)))


def drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images of 28 px, uint8, of ten classes that are mixed so that predictors are sometimes wrong, and disagree."""
    g = np.random.default_rng(0)
    kinds, labels = g.integers(0, 128, (10, 28, 28)).astype(np.float32), g.integers(0, 10, number)
    share = g.uniform(0.45, 1, (number, 1, 1)).astype(np.float32)
    mixed = share * kinds[labels] + (1 - share) * kinds[g.integers(0, 10, number)]
    return (mixed + g.integers(0, 128, (number, 28, 28), dtype=np.uint8)).astype(np.uint8), labels


def protocol_row(place: Place) -> Found:
    """Two networks, five folds each, from nothing to both tables in one command, on drawn images as many and large as Fashion-MNIST's."""
    number, extra = place.pick((60_000, []), (200, ["data.folds=2", "explainer=[saliency]", "checks=0"]))
    explainers = "saliency,gradient_input,integrated_gradients,smoothgrad,gradcam,gradcam_plus_plus,rise,random"
    with tempfile.TemporaryDirectory() as folder:
        pictures, labels = drawn(number)
        held: dict[str, Any] = {"test_images": pictures[:100], "test_labels": labels[:100]}
        np.savez(Path(folder, "drawn.npz"), train_images=pictures, train_labels=labels, **held)
        command = [
            sys.executable,
            "-m",
            "lit_xai.audit",
            "models=[resnet18,lipschitz]",
            "logger=none",
            "progress=false",
        ]
        command += ["data=npz", f"data.path={folder}/drawn.npz", f"root={folder}/checkpoints"]
        command += [f"data.probes_per_fold={place.pick(100, 2)}", f"cap={place.pick(100, 2)}", "score=[]"]
        command += [f"explainer=[{explainers}]", f"trainer={place.pick('gpu_bf16', 'cpu')}"]
        command += [f"trainer.max_epochs={place.pick(5, 1)}", *extra]
        began = time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said = run.communicate()[0]
        finally:
            run.terminate()
            run.wait()
        if run.returncode:
            raise RuntimeError(f"{' '.join(command[1:])} failed: {said[-300:]}")
        return Found(time.perf_counter() - began)


# ---------------------------------------------------------------------------------------------------------------- the table


def rows_of() -> list[Row]:
    """All rows, those that matter most first."""
    out = []
    for which, takes in (("32 px", 10.0), ("224 px", 14.0)):
        for name in METHODS:
            limit = OF_FIDELITY if name == "muFidelity" else OVERHEAD
            measured = functools.partial(method_row, name=name, which=which)
            out.append(Row(f"{name}, {which}", measured, takes, limit))
    out.append(Row("MeGe, 20,000 pairs", mege_row, 8, 0.03, of_value=True))
    least = training.LEAST
    out.append(Row("training, bf16", training_row, 30, least, of_value=True, at_least=True, unit="images/s"))
    for name, calls in CALLS.items():
        for windows in calls:
            limit = PATCHES if (name, windows) == ("VGG19", 1024) else NEVER_SLOWER
            title = f"incremental {name}, K = 8, {windows:,} windows a call"
            measured = functools.partial(incremental_row, name=name, windows=windows)
            out.append(Row(title, measured, 5 + windows / 100, limit, tf32=True))
    out.append(Row("flow, 1,000 draws", flow_row, 25, 1.2, of_value=True))
    out.append(Row("DDIM, encode 8 images, bf16", ddim_encode_row, 60, 0.6, of_value=True))
    out.append(Row("DDIM, 1,000 draws, bf16", ddim_draw_row, 50, 8.0, of_value=True))
    out.append(Row("incremental, constants", constants_row, 5, tf32=True))
    alike = functools.partial(information_row, stride=PATCH, alike=True)
    out.append(Row("PMI + IG, bf16 with float32", alike, 15, 0.999, of_value=True, at_least=True, unit="correlation"))
    swept = functools.partial(information_row, stride=1, alike=False)
    out.append(Row("PMI + IG, VGG19, stride 1, bf16", swept, 70, 180.0, of_value=True))
    return out


PROTOCOL = Row("Fashion-MNIST protocol, two networks", protocol_row, 180, 180.0, of_value=True)


class OutOfTime(BaseException):
    """A row took too long; no error, so that nobody takes it for one and goes on."""


@contextmanager
def at_most(limit: float) -> Iterator[None]:
    """Stop what is done after so many seconds, where signals can (in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime(f"stopped after {limit:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def tf32_kept() -> Iterator[None]:
    """TF32's settings are put back afterwards."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def heading(place: Place) -> str:
    """Where the numbers are from."""
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    if place.small:
        return f"GPU work, on the CPU and small: the code is tried, the numbers mean nothing; {versions}"
    memory = torch.cuda.get_device_properties(place.device).total_memory / 1e9
    name = torch.cuda.get_device_name(place.device)
    return (
        f"{name}, {memory:.0f} GB, CUDA {torch.version.cuda}, {versions}; float32 with TF32 off but where a row says so"
    )


def measured(row: Row, place: Place, limit: float) -> tuple[Found | None, str]:
    """A row, or why there is none; what it held is let go of."""
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = row.tf32, False
    try:
        with at_most(limit):
            return row.measure(place), ""
    except (Exception, OutOfTime) as e:  # a row ends no run
        return None, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"


def line_of(row: Row, found: Found | None, target: Target | None, took: float, judged: bool) -> list[Cell]:
    """The row of the table."""
    f = found or Found(None)
    shown: list[Cell] = [round(v) if v is not None and v >= 1000 else v for v in (f.ours, f.bare)]
    wanted = None if target is None else f"{target.wanted} {row.unit if row.of_value else 'x bare'}"
    met = None if target is None or not judged else "yes" if target.met else "no"
    return [row.name, row.unit, *shown, f.over, f.spread, f.beside, f.beside_over, wanted, met, took]


COLUMNS = ["row", "unit", "ours", "bare", "ours/bare", "range", "beside", "beside/bare", "target", "met", "took s"]


def gpu(
    device: str = "cuda",
    minutes: float = MINUTES,
    protocol: bool = False,
    only: Sequence[str] = (),
    each: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Every row within so many minutes.

    Args:
        device: `cuda`, or `cpu`, which tries the same code on next to nothing.
        minutes: rows that no longer fit are left out, and named.
        protocol: also the whole protocol in processes of its own.
        only: words of which a row's name has one; none = every row.
        each: is given the report after every row.
    """
    on_gpu = device == "cuda"
    place = Place(torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"), not on_gpu)
    report = Report(heading(place), COLUMNS)
    began, left_out = time.perf_counter(), []
    with tf32_kept():
        rows = [r for r in rows_of() if not only or any(w.lower() in r.name.lower() for w in only)]
        for row in [*rows, *([PROTOCOL] if protocol else [])]:
            start = time.perf_counter()
            left = 60 * minutes - (start - began)
            if left < (0 if place.small else row.takes):
                left_out.append(row.name)
                continue
            found, why = measured(row, place, min(left, START + LONGER * row.takes))
            if not place.small:
                gc.collect()
                torch.cuda.empty_cache()
            target = row.target(found)
            report.rows.append(line_of(row, found, target, time.perf_counter() - start, not place.small))
            if target is not None and not place.small:
                report.targets.append(target)
            told = [why] if found is None else [*found.notes, *(["TF32 convolutions"] if row.tf32 else [])]
            report.notes += [f"{row.name}: {'; '.join(told)}"] if told else []
            each(report)
    if left_out:
        report.notes.append(f"left out, since {minutes:g} minutes were over: {'; '.join(left_out)}")
    report.notes.append("bare: model calls of a good size alone; LIME's superpixels are made in the warm-up and kept")
    let_go()
    return report


def let_go() -> None:
    """Of the networks, and of what was drawn by them."""
    for cached in (classifier, ddim, glow, incremental.network):
        cached.cache_clear()
    forget()

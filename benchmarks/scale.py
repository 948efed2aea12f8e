"""What many maps, many shards and many processes cost, and what that predicts for large experiments: docs/scale.md.

`python -m benchmarks scale` measures a small setting; `python -m benchmarks.scale full` the one that docs/scale.md reports
(200,000 maps, 10,000 shards), and `python -m benchmarks.scale predict` computes the tables for ImageNet.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lit_xai
import torch
from lit_xai import engine
from lit_xai.core import Explainer, TrainedOn
from lit_xai.data.folds import Disagreements, Split
from lit_xai.explainers import RISE, Random, SmoothGrad
from lit_xai.metrics import Deletion
from lit_xai.models import resnet18
from lit_xai.segments import Quickshift
from lit_xai.store.fold import FoldStore, Predictions
from lit_xai.store.names import DISAGREEMENTS, RANDOM
from lit_xai.store.tensors import write_tensors

from benchmarks.evaluate import IDENTITY, peak_gb
from benchmarks.harness import Report, Target, seconds
from benchmarks.setting import CHANNELS, CLASSES, SIDE, bare_forward, bare_gradient, model_and_images

FOLDS, SHARD, CAP = 5, 64, 200
SCORES = ("deletion", "insertion", "mufidelity")


def write_store(root: Path, per_fold: int, explainers: tuple[str, ...] = ("rise",), side: int = SIDE) -> None:
    """A finished experiment of FOLDS folds, as the engine writes it: `per_fold` probes of every fold, explained by all."""
    g = torch.Generator().manual_seed(0)
    n = FOLDS * per_fold
    labels = torch.randint(CLASSES, (n,), generator=g)
    split = Split.make(labels, FOLDS, seed=0)
    identity = {**IDENTITY, "samples": n}
    right = torch.rand(FOLDS, n, generator=g) > 0.05
    for fold in range(FOLDS):
        predicted = torch.where(right[fold], labels, (labels + 1) % CLASSES)
        meta = {**identity, "checkpoint": f"{fold:016x}", "lipschitz": 1.0, **lit_xai.made_by()}
        store = FoldStore(root / f"fold={fold}")
        store.write_predictions(Predictions(split, fold, predicted, torch.rand(n, generator=g), meta))
    found = Disagreements.find(split, right, CAP)
    for fold in range(FOLDS):
        for name in explainers:
            store = FoldStore(root / f"fold={fold}")
            write_shards(store, name, RANDOM, split.probes(None), identity, side)
            mine = found.samples[found.concerned[:, fold]]
            write_shards(store, name, DISAGREEMENTS, mine, {**identity, "cap": CAP}, side)


def write_shards(
    store: FoldStore, name: str, kind: str, samples: torch.Tensor, identity: dict[str, Any], side: int
) -> None:
    """Shards with three scores and a detail; a smooth part of every map is common to the folds."""
    fingerprint = {**identity, "kind": kind, "seed": 0, "probes": "synthetic", "targets": "synthetic"}
    fingerprint |= {"explainer": {"name": name}, "checkpoint": f"{store.fold:016x}", "fold": store.fold}
    score = {"definition": {"name": "synthetic"}, "resolved": {}, "higher_is_better": True}
    scores = SCORES if kind == RANDOM else ()
    meta = {"fingerprint": fingerprint, "resolved": {}, "scores": dict.fromkeys(scores, score), **lit_xai.made_by()}
    for start in range(0, len(samples), SHARD):
        part = samples[start : start + SHARD]
        noise = torch.Generator().manual_seed(1 + start + 1_000_003 * store.fold)
        shared = torch.Generator().manual_seed(start)
        maps = torch.nn.functional.interpolate(
            torch.randn(len(part), 1, side // 4, side // 4, generator=shared), (side, side)
        )
        maps = maps[:, 0] + torch.randn(len(part), side, side, generator=noise)
        tensors = {"sample": part, "maps": maps, "detail/r2": torch.rand(len(part), generator=noise).double()}
        tensors |= {f"score/{s}": torch.rand(len(part), generator=noise).double() for s in scores}
        write_tensors(store.shard(kind, name, start, start + len(part)), tensors, meta)


# -------------------------------------------------------------------------------------------------------- own processes


def in_own_process(*words: object, threads: int = 2) -> dict[str, Any]:
    """What `python -m benchmarks.scale <words>` prints last."""
    command = [sys.executable, "-m", "benchmarks.scale", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_evaluate(root: Path) -> dict[str, Any]:
    """The numbers and files of `lit_xai.evaluate`, without its start."""
    from lit_xai.report import page
    from lit_xai.report.ensemble import Ensemble
    from lit_xai.report.summarise import summarise

    before = peak_gb()

    def work() -> None:
        page.write(summarise(Ensemble(root), progress=False), root)

    return {"imports_gb": before, "seconds": seconds(work), "peak_gb": peak_gb()}


def run_floor(root: Path) -> dict[str, Any]:
    """What no evaluation can do without: reading every file, and one sort of all maps."""
    files = sorted(root.glob(f"fold=*/{RANDOM}/*/*.safetensors"))
    reading = seconds(lambda: [f.read_bytes() for f in files])
    maps = torch.randn(len(files) * SHARD, SIDE * SIDE)
    return {"reading": reading, "sorting": seconds(lambda: maps.sort(1)), "bytes": sum(f.stat().st_size for f in files)}


def planned(root: Path, samples: int) -> engine.Job:
    """A predictor with as many probes, for its bookkeeping alone."""
    at = torch.arange(samples)
    on = TrainedOn((0.5,) * CHANNELS)
    store = FoldStore(root / "fold=0")
    return engine.Job(torch.nn.Identity(), Nothing(), at, at % CLASSES, store, {"data": "none"}, on)


class Nothing:
    """Images that nobody asks for."""

    def __len__(self) -> int:
        return 0

    def images(self, indices: Any) -> torch.Tensor:
        raise AssertionError("bookkeeping reads no image")


def write_scan(root: Path, shards: int, side: int) -> None:
    """A finished store of one explainer and one score, as the engine would find it."""
    job = planned(root, shards * SHARD)
    spec = engine.specs(job, {"random": Random()}, {"deletion": Deletion()})[0]
    score = {"definition": spec.wanted["deletion"], "resolved": {}, "higher_is_better": False}
    meta = {"fingerprint": spec.fingerprint, "resolved": {}, "scores": {"deletion": score}, **lit_xai.made_by()}
    maps = torch.randn(SHARD, side, side)
    for r in job.ranges():
        tensors = {"sample": job.samples[r.start : r.stop], "maps": maps, "score/deletion": torch.rand(SHARD).double()}
        write_tensors(spec.path(r), tensors, meta)


def run_scan(root: Path, shards: int) -> dict[str, Any]:
    """What a resumed command looks at before it explains: once."""
    before, job = peak_gb(), planned(root, shards * SHARD)

    def scan() -> None:
        if engine.Tasks.of(job, {"random": Random()}, {"deletion": Deletion()}):
            raise RuntimeError("not finished")

    return {"imports_gb": before, "seconds": seconds(scan), "peak_gb": peak_gb()}


def run_part(root: Path, part: int, of: int, samples: int) -> dict[str, Any]:
    """Explain one part; start-up is over when the line `ready` is out, and work begins when a line comes in."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet18(CHANNELS, CLASSES, SIDE, 16)
    images = torch.rand(samples, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    at = torch.arange(samples)
    on, store = TrainedOn((0.5,) * CHANNELS), FoldStore(root / "fold=0")
    job = engine.Job(
        model, InMemory(images), at, at % CLASSES, store, {"data": "noise"}, on, batch_size=8, shard_size=8
    )
    explainers: dict[str, Explainer] = {"rise": RISE(masks=200), "smoothgrad": SmoothGrad(), "random": Random()}
    engine.seconds_per_image(job.model, *job.batch(0)[:2])  # warm
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    took = seconds(lambda: engine.explain(job, explainers, {"deletion": Deletion()}, (part, of), progress=False))
    return {
        "seconds": took,
        "cpu": time.process_time() - cpu,
        "maps": sum(len(r) for r in job.ranges((part, of))) * len(explainers),
    }


@dataclass(frozen=True)
class InMemory:
    """Images in a tensor."""

    data: torch.Tensor

    def __len__(self) -> int:
        return len(self.data)

    def images(self, indices: Any) -> torch.Tensor:
        """A batch of them."""
        return self.data[list(indices)]


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "evaluate": run_evaluate,
    "floor": run_floor,
    "scan": run_scan,
    "part": run_part,
}


def throughput(root: Path, of: int, samples: int) -> tuple[float, float, float]:
    """Maps a second of `of` single-thread processes side by side, maps a second of their processors' time, and the
    seconds until the last was ready.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.scale", "part", str(root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    began = time.perf_counter()
    running = [subprocess.Popen([*command, str(p), str(of), str(samples)], **pipes) for p in range(of)]  # type: ignore[call-overload]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    ready = time.perf_counter() - began
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    maps = sum(r["maps"] for r in found)
    return maps / max(r["seconds"] for r in found), maps / sum(r["cpu"] for r in found), ready


# ------------------------------------------------------------------------------------------------------------ cost model


def explainers_of(names: Sequence[str]) -> dict[str, Any]:
    """Explainers or scores of `configs/` with their default counts, by `<group>/<name>`."""
    from hydra.utils import instantiate
    from lit_xai.cli.schema import config_dir
    from omegaconf import OmegaConf

    out = {}
    for name in names:
        node = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{name}.yaml"))
        assert isinstance(node, dict)
        out[name] = instantiate(node, _convert_="all")
    return out


def rates(model: torch.nn.Module, images: torch.Tensor, rounds: int = 3) -> tuple[float, float]:
    """Seconds of one image's forward pass and of its backward pass to the image, in batches as large as `images`."""
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    found = [engine.seconds_per_image(model, images, targets, math.inf) for _ in range(rounds)]
    forward, backward = zip(*found, strict=True)
    return min(forward), min(backward)


MEASURED: dict[str, dict[str, int]] = {  # with fewer passes than by default, where those are many
    "saliency": {},
    "integrated_gradients": {},
    "smoothgrad": {},
    "rise": {"masks": 128},
    "sliding_patch": {"stride": 14},
    "lime": {"samples": 128},
    "meaningful_perturbation": {"steps": 50},
}


def cost_table(number: int = 2) -> list[tuple[str, int, int, float, float]]:
    """Name, forward and backward passes, predicted and measured processor seconds of one explanation, 32 px, one thread."""
    torch.set_num_threads(1)
    model, images, targets = model_and_images()
    images, targets = images[:number], targets[:number]
    rows = []
    for name, explainer in explainers_of([f"explainer/{m}" for m in MEASURED]).items():
        fewer = MEASURED[name.rpartition("/")[2]]
        explainer = replace(explainer, **fewer).fitted(TrainedOn((0.5,) * CHANNELS))
        passes = explainer.passes(SIDE, SIDE)
        # most methods fill batches of 64 with one image's variants; a mask is learnt for all images of a batch at once
        one_by_one = passes.forward < 32 or "steps" in fewer
        batch = torch.rand(number if one_by_one else 64, CHANNELS, SIDE, SIDE)
        explainer(model, images[:1], targets[:1])  # warm
        before = cpu_rates(model, batch)
        began = time.process_time()
        explainer(model, images, targets)
        measured = (time.process_time() - began) / number
        forward, backward = ((a + b) / 2 for a, b in zip(before, cpu_rates(model, batch), strict=True))
        predicted = passes.forward * forward + passes.backward * backward
        rows.append((name.rpartition("/")[2], passes.forward, passes.backward, predicted, measured))
    return rows


def cpu_rates(model: torch.nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """`rates` in seconds of this process's processor time, which other processes do not spend."""
    targets = torch.zeros(len(images), dtype=torch.long)
    images = images.contiguous(memory_format=torch.channels_last)
    times = []
    for work in (bare_forward(model, images, 1), bare_gradient(model, images, targets, 1)):
        work()
        began = time.process_time()
        work()
        times.append((time.process_time() - began) / len(images))
    return times[0], max(0.0, times[1] - times[0])


def quickshift(side: int) -> float:
    """Processor seconds of the superpixels of one smooth random picture."""
    noise = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic").clamp(0, 1)
    Quickshift()(picture[:, :, :32, :32])  # imports
    began = time.process_time()
    Quickshift()(picture)
    return time.process_time() - began


# -------------------------------------------------------------------------------------------------------------- reports


def parallel(report: Report, samples: int) -> None:
    """Two single-thread processes against one, as rows of a report."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        runs = [throughput(Path(folder) / str(i), of, samples) for i, of in enumerate((1, 2, 2, 1))]
        one, two = (sum(f[0] for f in pair) / 2 for pair in ((runs[0], runs[3]), runs[1:3]))
        cpu_one, cpu_two = (sum(f[1] for f in pair) / 2 for pair in ((runs[0], runs[3]), runs[1:3]))
        report.rows += [
            ["one single-thread process explains", one, "maps/s"],
            ["two explain side by side", two, "maps/s"],
            ["  per second of processor time, one", cpu_one, "maps/s"],
            ["  per second of processor time, two", cpu_two, "maps/s"],
            ["  start-up of one (imports, network)", runs[0][2], "s"],
            ["  start-up of two at once", runs[1][2], "s"],
        ]
        report.targets.append(Target("two processes against one", two / one, 1.8, at_least=True))


def scale(full: bool = False) -> Report:
    """Parallel parts, the scan of a store, `--status`, and the evaluation against its floor."""
    per_fold, large, shards, side, samples = (8_000, 256, 10_000, 32, 192) if full else (800, 64, 1_000, 16, 16)
    report = Report(
        f"scale: {FOLDS * FOLDS * per_fold:,} maps of {SIDE} px, {shards:,} shards", ["what", "value", "unit"]
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder) / "maps"
        write_store(root, per_fold)
        floors = [in_own_process("floor", root)]
        found = in_own_process("evaluate", root)
        floors.append(in_own_process("floor", root))
        floor = sum(f["reading"] + f["sorting"] for f in floors) / 2
        pixels = floors[0]["bytes"] / 1e6
        report.rows += [
            ["evaluate", found["seconds"], "s"],
            ["  floor: reading the files and one torch.sort of all maps", floor, "s"],
            ["  peak memory (of it imports)", f"{found['peak_gb']:.2f} ({found['imports_gb']:.2f})", "GB"],
            ["  maps a second", FOLDS * FOLDS * per_fold / found["seconds"], "1/s"],
            ["  read and compared", pixels / found["seconds"], "MB/s"],
            [
                "  file size over bytes of its maps",
                floors[0]["bytes"] / (FOLDS * FOLDS * per_fold * SIDE * SIDE * 4),
                "",
            ],
        ]
        report.targets += [
            Target("evaluate: times its floor", found["seconds"] / floor, 2.5 if full else 6),
            Target("evaluate: peak GB", found["peak_gb"], 1.5),
        ]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder) / "large"
        write_store(root, large, side=224)
        found = in_own_process("evaluate", root)
        maps = FOLDS * FOLDS * large
        report.rows += [
            [f"evaluate {maps:,} maps of 224 px", found["seconds"], "s"],
            ["  read and compared", maps * 224 * 224 * 4 / 1e6 / found["seconds"], "MB/s"],
            ["  peak memory (of it imports)", f"{found['peak_gb']:.2f} ({found['imports_gb']:.2f})", "GB"],
            ["Quickshift of one picture of 224 px, on the CPU", quickshift(224), "s"],
        ]
        report.targets.append(Target("evaluate at 224 px: peak GB", found["peak_gb"], 1.5))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder) / "scan"
        write_scan(root, shards, side)
        found = in_own_process("scan", root, shards)
        grown = found["peak_gb"] - found["imports_gb"]
        report.rows += [
            ["scan of a finished store, every byte checked", found["seconds"], "s"],
            ["  peak memory (of it imports)", f"{found['peak_gb']:.2f} ({found['imports_gb']:.2f})", "GB"],
        ]
        report.targets += [Target("scan: seconds", found["seconds"], 5), Target("scan: GB beside imports", grown, 0.5)]
        command = [sys.executable, "-m", "lit_xai.evaluate", "--status", "name=scan", f"root={folder}"]
        report.rows.append(
            ["--status of the same store", seconds(lambda: subprocess.run(command, capture_output=True)), "s"]
        )
    parallel(report, samples)
    for name, forward, backward, predicted, measured in cost_table(2 if full else 1):
        passes = f"{forward:,} + {backward:,} passes"
        report.rows.append([f"{name}: {passes}, predicted {predicted:.3g} s", measured, "s an explanation"])
    report.notes = [
        "start-up is not in the throughput; the cost model is docs/scale.md, `python -m benchmarks.scale predict`"
    ]
    return report


# ------------------------------------------------------------------------------------------------------------ prediction

TEN = [
    "gradcam",
    "gradient_input",
    "integrated_gradients",
    "lime",
    "meaningful_perturbation",
    "random",
    "rise",
    "saliency",
    "sliding_patch",
    "smoothgrad",
]


def predict(options: argparse.Namespace) -> Report:
    """What the cost model says of a large experiment."""
    side, folds, probes, each = options.side, options.folds, options.folds * options.probes, options.shard_size
    cost: float
    names = [f"explainer/{n}" for n in TEN] + [f"score/{s}" for s in SCORES]
    report = Report(
        f"{folds} folds, {probes:,} probes, {side} px, {options.forward:g} forward passes a second and GPU, "
        f"a backward pass costs {options.backward:g} forward",
        ["what", *(f"{g} GPUs" for g in options.gpus)],
    )
    total = 0.0
    for name, thing in explainers_of(names).items():
        passes = thing.fitted(TrainedOn((0.5,) * CHANNELS)).passes(side, side)
        times = 1 if name.startswith("explainer") or hasattr(thing, "observe") else len(TEN)
        cost = (passes.forward + options.backward * passes.backward) * times * probes * folds / options.forward
        total += cost
        often = f" x {len(TEN)} explainers" if times > 1 else ""
        hours = [cost / 3600 / g for g in options.gpus]
        report.rows.append([f"{name}: {passes.forward:,} + {passes.backward:,} passes{often}, hours", *hours])
    predictions = folds * options.images / options.forward
    report.rows.append(["predictions of all training images, hours", *(predictions / 3600 / g for g in options.gpus)])
    report.rows.append(["all of it, hours", *((total + predictions) / 3600 / g for g in options.gpus)])
    shards = -(-probes // each)
    maps, size = probes * folds * len(TEN), side * side * 4 + 8 * (len(SCORES) + 2)
    for g in options.gpus:
        most = -(-shards // g)
        report.notes.append(
            f"{g} GPUs: {g} parts a fold, {folds * g:,} jobs, {shards // g}-{most} ranges of {each} probes each "
            f"({len(TEN)} shards a range); a job ends at most {100 * (most * g / shards - 1):.1f} % after the mean"
        )
    report.notes += [
        f"{maps:,} maps, {maps * size / 1e12:.2f} TB in {shards * folds * len(TEN):,} files of {each * size / 1e6:.1f} MB",
        f"evaluate at {options.evaluate:g} MB/s: {maps * size / 1e6 / options.evaluate / 3600:.1f} h in one process, "
        f"{maps * size / 1e6 / options.evaluate / 3600 / len(TEN):.1f} h an explainer",
        f"Quickshift: {probes * folds * options.quickshift / 3600:,.0f} processor hours, "
        f"{100 * options.quickshift / (total / probes / folds + options.quickshift):.1f} % of a process's time",
        f"writing: {maps * size / 1e6 / (total / options.gpus[-1]):.0f} MB/s on {options.gpus[-1]} GPUs",
    ]
    return report


def show(report: Report) -> None:
    """Print it."""
    from rich.console import Console

    report.show(Console(width=160))


def main() -> None:
    """One of the commands; those for own processes print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("full", help="200,000 maps and 10,000 shards (minutes)")
    two = commands.add_parser("parallel", help="two single-thread processes against one")
    two.add_argument("--samples", type=int, default=192)
    commands.add_parser("cost", help="predicted and measured seconds of an explanation")
    rate = commands.add_parser(
        "rate", help="forward and backward passes of ResNet-50 a second, on this machine's device"
    )
    rate.add_argument("--device", default="cuda")
    rate.add_argument("--batch", type=int, default=64)
    p = commands.add_parser("predict", help="hours, bytes and files of a large experiment")
    for name, default in (("side", 224), ("folds", 5), ("probes", 50_000), ("shard-size", 64), ("images", 1_281_167)):
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--forward", type=float, default=1500.0, help="images a second and GPU")
    p.add_argument("--backward", type=float, default=1.0, help="cost of a backward pass in forward passes")
    p.add_argument("--evaluate", type=float, default=80.0, help="MB/s of evaluate, two threads")
    p.add_argument("--quickshift", type=float, default=0.24, help="processor seconds of one picture's superpixels")
    p.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    for name in WORK:
        own = commands.add_parser(name)
        own.add_argument("root", type=Path)
        own.add_argument("numbers", type=int, nargs="*")
    o = parser.parse_args()
    if o.command == "full":
        show(scale(full=True))
    elif o.command == "parallel":
        report = Report("parts of one fold side by side", ["what", "value", "unit"])
        parallel(report, o.samples)
        show(report)
    elif o.command == "predict":
        show(predict(o))
    elif o.command == "cost":
        for name, calls, gradients, predicted, measured in cost_table():
            ratio = measured / predicted
            print(
                f"{name:24} {calls:6,} + {gradients:4,} passes, {predicted:8.3f} s predicted {measured:8.3f} s ({ratio:.2f})"
            )
    elif o.command == "rate":
        from torchvision.models import resnet50

        images = torch.rand(o.batch, 3, 224, 224, device=o.device).contiguous(memory_format=torch.channels_last)
        model = resnet50().eval().to(o.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forward, backward = rates(model, images, 10)
        print(f"{1 / forward:.0f} forward passes a second; a backward pass costs {backward / forward:.2f} of them")
    else:
        print(json.dumps(WORK[o.command](o.root, *o.numbers)))


if __name__ == "__main__":
    main()

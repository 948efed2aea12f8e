"""What fillers and samplers are worth: bits per dimension, plausibility, removal of objects."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.callbacks.checks import held_out_probes
from lit_xai.core import Filler
from lit_xai.data.folds import FoldData
from lit_xai.data.truth import unsaying
from lit_xai.errors import UsageError
from lit_xai.fillers.fitted import FittedFiller
from lit_xai.fillers.generative import GenerativeFiller
from lit_xai.fillers.tiles import WindowFiller
from lit_xai.metrics.statistics import Estimate, mean_estimate, too_few
from lit_xai.quality.plausibility import inception, penultimate, plausibility_table, window_corners
from lit_xai.quality.removal import removal_table
from lit_xai.report import draw, printed, tables
from lit_xai.report.dashboard import Dashboard
from lit_xai.report.printed import Printed
from lit_xai.report.table import Table
from lit_xai.rng import SampleRng, stable_hash
from lit_xai.store.files import write_csv
from lit_xai.store.fold import FoldStore

PATCH = 8  # where no filler knows a K


def held_out_order(data: FoldData, seed: int) -> Tensor:
    """V_i in a random order that belongs to the seed."""
    g = torch.Generator().manual_seed(stable_hash(seed, "held out"))
    return data.held_out[torch.randperm(len(data.held_out), generator=g)]


class SamplerReport(RankZeroReport):
    """What a sampler knows of the fold it never saw, as `quality.csv`, and draws as `samples.png`.

    Of a sampler of windows: bits per dimension of one random window an image. Of a sampler of images: what its `quality`
    says (reconstruction error, bits per dimension, error in a hole), and seconds per 1,000 draws.

    Args:
        store: where they go.
        seed: of the windows and of the draws.
        number: held-out images that are measured by windows.
        whole: held-out images that are measured as a whole.
        shown: of them, those in the picture.
        draws: of each of those.
    """

    def __init__(
        self,
        store: FoldStore,
        seed: int = 0,
        number: int = 1000,
        whole: int = 64,
        shown: int = 8,
        draws: int = 8,
    ) -> None:
        self.store, self.seed, self.number, self.whole = store, seed, number, whole
        self.shown, self.draws = shown, draws

    @property
    def files(self) -> tuple[Path, Path]:
        """The table and the picture."""
        return self.store.root / "quality.csv", self.store.root / "samples.png"

    @property
    def complete(self) -> bool:
        """Whether both are there."""
        return all(f.exists() for f in self.files)

    def make(self, on: Context) -> None:
        """Measure what V_i tells about the sampler, and draw some of its samples."""
        sampler: GenerativeFiller | WindowFiller = on.module.to(on.device).sampler()  # type: ignore[operator]
        if isinstance(sampler, GenerativeFiller):
            sampler = replace(sampler, compile="never")  # so few draws are over before a compiler is
        table, picture = self.files
        quality = self.measure(sampler, on.data, on.device)
        seconds = self.draw(sampler, on.data, on.device, picture)
        if isinstance(sampler, GenerativeFiller):
            quality["seconds_per_1000_draws"] = Estimate(1000 * seconds)
        number = max(e.samples for e in quality.values())
        row: dict[str, Any] = {"images": number}
        for name, e in quality.items():
            known = {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
            row |= {k: v for k, v in known.items() if not math.isnan(v)}
        write_csv(table, list(row), [list(row.values())])
        on.dashboard.scalars({f"quality/{name}": e.value for name, e in quality.items()})
        on.dashboard.picture("samples", picture)
        text = ", ".join(f"{name} {e.text(zeros=True)}" for name, e in quality.items())
        print(f"{text} on {number} held-out images{too_few(number)}: {picture}")

    def images(self, data: FoldData, number: int, device: torch.device) -> tuple[Tensor, SampleRng]:
        """The first held-out images of a fixed order, and their noise."""
        samples = held_out_order(data, self.seed)[:number].tolist()
        return data.source.train.images(samples).to(device), SampleRng(self.seed, tuple(samples))

    def measure(
        self, sampler: GenerativeFiller | WindowFiller, data: FoldData, device: torch.device
    ) -> dict[str, Estimate]:
        """Each measure's mean over held-out images."""
        found: dict[str, list[Tensor]] = {}
        number = min(self.whole if isinstance(sampler, GenerativeFiller) else self.number, len(data.held_out))
        samples = held_out_order(data, self.seed)[:number]
        for part in samples.split(100):
            images = data.source.train.images(part.tolist()).to(device)
            rng = SampleRng(self.seed, tuple(part.tolist()))
            if isinstance(sampler, GenerativeFiller):
                values = sampler.quality(images)
            else:
                top, left = window_corners(images, sampler.patch, rng).to(device).unbind(1)
                values = {"bits_per_dim": sampler.window_bits(images, top, left)}
            for name, value in values.items():
                found.setdefault(name, []).append(value.double().cpu())
        return {name: mean_estimate(torch.cat(parts)) for name, parts in found.items()}

    def draw(self, sampler: FittedFiller, data: FoldData, device: torch.device, path: Path) -> float:
        """Context, truth and draws of a few holes, or of whole images; returns the seconds a draw took."""
        images, rng = self.images(data, self.shown, device)
        side = min(images.shape[-2:])
        hole = sampler.window_side() or (side // 2 if sampler.paints else side)
        keep = torch.ones(len(images), 1, *images.shape[-2:], dtype=torch.bool, device=device)
        for row, (top, left) in enumerate(window_corners(images, hole, rng).tolist()):
            keep[row, 0, top : top + hole, left : left + hole] = False
        began = time.perf_counter()
        drawn = sampler(images, keep, rng, self.draws)[:, 0].cpu()
        made = len(images) * (1 if sampler.deterministic else self.draws)
        seconds = (time.perf_counter() - began) / made
        title = f"{self.store.root.parent.name}, fold {data.fold} held out: context, truth, draws"
        draw.samples(images.cpu(), keep[:, 0].cpu(), drawn, path, title)
        return seconds


class FillerReport(RankZeroReport):
    """How plausible images are after every filler (`plausibility.csv`), and how well it removes objects (`removal.csv`).

    Plausible: bits per dimension and the Fréchet distance of held-out images with one refilled window each. Removed:
    accuracy, MS-SSIM, LPIPS of the held-out probes, where the data have masks of the object.

    Args:
        store: where the tables go.
        fillers: by name.
        seed: of their noise.
        number: most held-out images of the first table.
        inception: weights of torchvision's inception_v3, whose features then take the place of the predictor's own.
        beside: what papers print, to stand beside the second table.
    """

    def __init__(
        self,
        store: FoldStore,
        fillers: Mapping[str, Filler],
        seed: int = 0,
        number: int = 2000,
        inception: str | None = None,
        beside: Sequence[Printed] = (),
    ) -> None:
        self.store, self.fillers, self.seed, self.number, self.weights = store, dict(fillers), seed, number, inception
        self.beside = beside

    def make(self, on: Context) -> None:
        """Measure how plausible refilled images are and, where there are masks, how well an object is removed."""
        data, model = on.data, on.model
        fitted = {n: f.fitted(data.trained_on) for n, f in self.fillers.items()}
        self.leave("plausibility", self.plausible(model, fitted, data, on.device), on.dashboard)
        if data.source.truth is not None and "object" in data.source.truth.names and data.source.labelled:
            found, title = self.removed(model, fitted, data, on.device)
            self.leave("removal", tables.removal(found, title), on.dashboard)
            printed.put_beside(self.beside, found, self.store.root, "removal-printed", {"accuracy": False})

    def leave(self, name: str, table: Table, dashboard: Dashboard) -> None:
        """A table as a file, on the dashboard and on the terminal."""
        path = self.store.root / f"{name}.csv"
        write_csv(path, *table.file())
        dashboard.table(name, *table.file())
        replace(table, title=f"{table.title}: {path}").show()

    def plausible(
        self, model: torch.nn.Module, fillers: Mapping[str, Filler], data: FoldData, device: torch.device
    ) -> Table:
        """The first table.

        Raises:
            UsageError: fillers that were fitted to windows of different sizes; no weights of inception_v3.
        """
        known = {n: k for n, f in fillers.items() if (k := f.window_side()) is not None}
        if len(set(known.values())) > 1:
            sizes = ", ".join(f"{n} K={k}" for n, k in known.items())
            raise UsageError(
                f"fillers of different windows cannot be compared ({sizes}): fit them with one model.patch="
            )
        patch = next(iter(known.values()), min(PATCH, *data.source.shape[1:]))
        samples = held_out_order(data, self.seed)[: self.number].tolist()
        images = data.source.train.images(samples).to(device)
        features = inception(self.weights, device) if self.weights else partial(penultimate, model)
        table = plausibility_table(features, images, fillers, patch, SampleRng(self.seed, tuple(samples)))
        where = "inception_v3" if self.weights else "the predictor's penultimate features"
        title = (
            f"one window of {patch} x {patch} refilled in {len(samples)} held-out images, Fréchet distance in {where}"
            f"{too_few(len(samples))}"
        )
        return tables.plausibility(table, title)

    def removed(
        self, model: torch.nn.Module, fillers: Mapping[str, Filler], data: FoldData, device: torch.device
    ) -> tuple[dict[str, dict[str, Estimate]], str]:
        """How well each filler removes the object of held-out probes, as a table."""
        samples = held_out_probes(data)
        masks = data.source.truth.masks("object", samples.tolist())  # type: ignore[union-attr]
        says = ~unsaying(masks)  # an empty mask leaves nothing to remove, a full one nothing to see
        if not bool(says.any()):
            raise UsageError(
                "every mask of these probes is empty or full: raise data.probes_per_fold=, or leave out filler="
            )
        samples, masks = samples[says], masks[says].to(device)
        images = data.source.train.images(samples.tolist()).to(device)
        labels, rng = data.split.label(samples).to(device), SampleRng(self.seed, tuple(samples.tolist()))
        title = f"object removed by each filler, {len(samples)} held-out probes{too_few(len(samples))}"
        return removal_table(model, images, masks, labels, fillers, rng), title

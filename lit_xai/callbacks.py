"""Lightning callbacks: explain the probes after `trainer.test`, say how stable explanations are, draw some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_xai import draw, engine
from lit_xai.core import Explainer, Filler, SampleRng, Score, UsageError, fit_fillers, stable_hash
from lit_xai.dashboard import Dashboard
from lit_xai.data.folds import Disagreements, FoldData
from lit_xai.ensemble import Ensemble
from lit_xai.files import write_csv
from lit_xai.fillers.fitted import Sampler
from lit_xai.metrics.localisation import settle
from lit_xai.metrics.removal import COLUMNS, removal_table
from lit_xai.metrics.removal import rows as rows_of
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.store import DISAGREEMENTS, RANDOM, FoldStore, MapReader, Predictions


def parse_part(part: str) -> tuple[int, int]:
    """`"0/4"` to (0, 4)."""
    try:
        index, of = (int(p) for p in str(part).split("/"))
    except ValueError:
        raise UsageError(f"part={part} is not of the form i/n: write e.g. part=0/4") from None
    if not 0 <= index < of:
        raise UsageError(f"part={part} does not exist: parts are 0/{of} .. {of - 1}/{of}")
    return index, of


class Explain(pl.Callback):
    """Predicts all training samples, then explains and scores the probes of every fold, shard by shard.

    Ranks share the shards (no sample twice, none left out); a finished shard is skipped, so a killed run resumes.

    Args:
        explainers, scores: by name.
        store: where results go.
        probes: `random` or `disagreements`.
        seed: of all noise.
        batch_size, shard_size: images per explainer call, probes per file.
        target: the class a map explains: `label` or `prediction`.
        cap: most disagreements explained per fold; None = all.
        part: this job's share of the shards, `i/n`.
        progress: show a bar.
    """

    def __init__(
        self,
        explainers: Mapping[str, Explainer],
        scores: Mapping[str, Score],
        store: FoldStore,
        probes: str = "random",
        seed: int = 0,
        batch_size: int = 16,
        shard_size: int = 64,
        target: str = "label",
        cap: int | None = 200,
        part: str = "0/1",
        progress: bool = True,
    ) -> None:
        if probes not in ("random", "disagreements"):
            raise UsageError(f"probes must be random or disagreements, found {probes!r}")
        if target not in ("label", "prediction"):
            raise UsageError(f"target must be label or prediction, found {target!r}")
        self.explainers, self.store, self.probes = dict(explainers), store, probes
        self.scores = dict(scores) if probes == "random" else {}
        self.seed, self.batch_size, self.shard_size = seed, batch_size, shard_size
        self.target, self.cap, self.part, self.progress = target, cap, parse_part(part), progress
        self.written = 0

    @property
    def kind(self) -> str:
        """The store's folder."""
        return RANDOM if self.probes == "random" else DISAGREEMENTS

    def job(self, model: torch.nn.Module, data: FoldData, device: torch.device) -> engine.Explained:
        """The predictor with the random probes; targets are set once predictions are known."""
        target = self.target if data.source.labelled else "prediction"
        return engine.Explained(
            model=model,
            images=data.source.train,
            samples=data.probes,
            targets=data.split.label(data.probes),
            store=self.store,
            identity={**data.identity(), "target": target},
            trained_on=data.trained_on,
            truth=data.source.truth,
            kind=RANDOM,
            seed=self.seed,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            device=device,
        )

    def choose(self, job: engine.Explained, predictions: Predictions, data: FoldData) -> engine.Explained:
        """Set the samples and targets of the pass that was asked for."""
        if self.probes == "disagreements":
            job.kind = DISAGREEMENTS
            job.identity = {**job.identity, "cap": self.cap}
            ensemble = Ensemble(self.store.root.parent)
            absent = sorted(set(range(data.k)) - set(ensemble.folds))
            if absent:
                raise UsageError(
                    f"disagreements need the predictions of all {data.k} folds, fold {absent[0]} is missing: "
                    f"run python -m lit_xai.train fold={absent[0]} first"
                )
            found = Disagreements.find(ensemble.split, ensemble.correct, self.cap)
            job.samples = found.samples[found.concerned[:, self.store.fold]]
        labels = data.split.label(job.samples)
        job.targets = labels if job.identity["target"] == "label" else predictions.of(job.samples)
        return job

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do it all."""
        data, rank, world = trainer.datamodule, trainer.global_rank, trainer.world_size  # type: ignore[attr-defined]
        if trainer.sanity_checking:
            return
        job = self.job(pl_module.predictor(), data, pl_module.device)  # type: ignore[operator]
        show = self.progress and rank == 0
        predictions = engine.predictions_of(job, data.split, data.fold, rank, world, show)
        trainer.strategy.barrier("predictions")
        job = self.choose(job, predictions, data)
        index, of = self.part
        part = (index * world + rank, of * world)

        def heed_signals(explainer: str) -> None:
            if trainer.received_sigterm:  # Lightning has caught it: end between two shards
                raise SIGTERMException

        self.written = engine.explain(job, self.explainers, self.scores, part, show, heed_signals)
        trainer.strategy.barrier("explained")
        if rank == 0 and self.probes == "random":
            self.report(Dashboard(trainer.loggers), data, predictions)

    def report(self, dashboard: Dashboard, data: FoldData, predictions: Predictions) -> None:
        """Per-probe scores to `scores.csv` and the dashboard, means as scalars."""
        columns, rows, means = score_table(self.store, self.explainers, data.probes, predictions)
        write_csv(self.store.root / "scores.csv", columns, rows)
        dashboard.scalars(means)
        dashboard.table("scores", columns, rows)


def score_table(
    store: FoldStore, explainers: Mapping[str, Any], probes: Tensor, predictions: Predictions
) -> tuple[list[str], list[list[Any]], dict[str, float]]:
    """Columns and rows (one a probe and explainer) of what is complete, and the means by `<score>/<explainer>`."""
    names: list[str] = []
    found: dict[str, dict[str, Tensor]] = {}
    for explainer in explainers:
        reader = MapReader(store, RANDOM, explainer)
        if reader.files and reader.has(probes):
            found[explainer] = {n: reader.rows(probes, f"score/{n}") for n in reader.scores()}
            for n, v in found[explainer].items():
                if v.ndim == 2:  # a column for every setting: the one chosen on half of the probes, on the other half
                    better = reader.meta["scores"][n]["higher_is_better"]
                    found[explainer][n] = settle(v, probes, better)[0]
            for key in sorted(reader.extra):
                if key.startswith("detail/"):
                    found[explainer][key.removeprefix("detail/")] = reader.rows(probes, key)
            names += [n for n in found[explainer] if n not in names]
    home, labels, predicted = predictions.split.fold(probes), predictions.split.label(probes), predictions.of(probes)
    rows = []
    for explainer, values in found.items():
        for row, sample in enumerate(probes.tolist()):
            numbers = [float(values[n][row]) if n in values else math.nan for n in names]
            rows.append([sample, int(home[row]), int(labels[row]), int(predicted[row]), explainer, *numbers])
    means = {f"{n}/{e}": float(v.nanmean()) for e, values in found.items() for n, v in values.items()}
    return ["sample", "fold", "label", "predicted", "explainer", *names], rows, means


class Stability(pl.Callback):
    """After a fold: MeGe and ReCo over the folds that are complete, with their number."""

    def __init__(self, store: FoldStore, explainers: Sequence[str], seed: int = 0) -> None:
        self.store, self.explainers, self.seed = store, list(explainers), seed
        self.values: dict[str, float] = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0 reads the stores; others go on."""
        if trainer.global_rank == 0:
            self.values = self.measure(Dashboard(trainer.loggers), trainer.datamodule.probes)  # type: ignore[attr-defined]
        trainer.strategy.barrier("stability")

    def measure(self, dashboard: Dashboard, probes: Tensor) -> dict[str, float]:
        """Measure and log."""
        everything = Ensemble(self.store.root.parent, self.seed)
        values: dict[str, float] = {}
        for name in self.explainers:
            whole = [f for f in everything.folds if MapReader(everything.stores[f], RANDOM, name).has(probes)]
            ensemble = Ensemble(self.store.root.parent, self.seed, whole) if whole else None
            if ensemble is None:
                continue
            values["stability/folds"] = len(whole)
            estimates, _, (equal, differ) = ensemble.measure(name, columns=("mege", "reco", "reco_eq6"))
            values.update({f"{n}/{name}": e.value for n, e in estimates.items()})
            dashboard.histogram(f"distances/{name}/equal", equal)
            dashboard.histogram(f"distances/{name}/differ", differ)
        dashboard.scalars(values)
        return values


class Gallery(pl.Callback):
    """A few probes with the maps of every explainer, as `gallery.png` and on the dashboard."""

    def __init__(self, store: FoldStore, explainers: Sequence[str], probes: int = 6) -> None:
        self.store, self.explainers, self.number = store, list(explainers), probes

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0 draws."""
        if trainer.global_rank == 0:
            names = getattr(pl_module, "class_names", ()) or ()
            path = self.draw(trainer.datamodule, names)  # type: ignore[attr-defined]
            if path is not None:
                Dashboard(trainer.loggers).picture("gallery", path)
        trainer.strategy.barrier("gallery")

    def draw(self, data: FoldData, class_names: Sequence[str] = ()) -> Path | None:
        """The picture; None while no map is there."""
        spread = torch.linspace(0, len(data.probes) - 1, min(self.number, len(data.probes))).long()
        samples = data.probes[spread.unique()]
        maps = {}
        for name in self.explainers:
            reader = MapReader(self.store, RANDOM, name)
            if reader.files and reader.has(samples):
                maps[name] = reader.rows(samples)
        if not maps:
            return None
        names = class_names or data.source.classes
        captions = captions_of(Ensemble(self.store.root.parent), self.store.fold, samples, names)
        title = f"{self.store.root.parent.name}, predictor of fold {self.store.fold}"
        images = data.source.train.images(samples.tolist())
        return draw.gallery(images, captions, maps, self.store.root / "gallery.png", title)


def captions_of(ensemble: Ensemble, fold: int, samples: Tensor, names: Sequence[str]) -> list[str]:
    """Label, this predictor's prediction with its probability, and how many of the others agree."""

    def text(c: int) -> str:
        return str(names[c]) if 0 <= c < len(names) else str(c)

    own, split = ensemble.predictions[fold], ensemble.split
    out = []
    for s in samples:
        row = int(torch.searchsorted(split.samples, s))
        label, predicted = int(split.labels[row]), int(own.predicted[row])
        lines = [f"{text(predicted)} ({float(own.confidence[row]):.2f})"]
        if label >= 0:
            lines = [f"label {text(label)}", f"pred. {lines[0]}", f"held out by f{int(split.fold_of[row])}"]
        if len(ensemble.folds) > 1:
            others = [int(p.predicted[row]) for f, p in ensemble.predictions.items() if f != fold]
            lines.append(f"{sum(o == predicted for o in others)} of {len(others)} others agree")
        out.append("\n".join(lines))
    return out


class Removal(pl.Callback):
    """How well every filler removes the object: accuracy, MS-SSIM, LPIPS on the probes, as `removal.csv`.

    Args:
        store: where the table goes.
        fillers: by name.
        seed: of their noise.
    """

    def __init__(self, store: FoldStore, fillers: Mapping[str, Filler], seed: int = 0) -> None:
        self.store, self.fillers, self.seed = store, dict(fillers), seed

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0 measures."""
        if trainer.global_rank == 0:
            data: FoldData = trainer.datamodule  # type: ignore[attr-defined]
            rows = self.measure(pl_module.predictor().to(pl_module.device), data, pl_module.device)  # type: ignore[operator]
            path = self.store.root / "removal.csv"
            write_csv(path, list(COLUMNS), rows)
            Dashboard(trainer.loggers).table("removal", list(COLUMNS), rows)
            number = len(self.probes(data))
            show_rows(f"object removed by each filler, {number} held-out probes: {path}", COLUMNS, rows)
        trainer.strategy.barrier("removal")

    def probes(self, data: FoldData) -> Tensor:
        """The probes that this predictor never saw."""
        return data.probes[data.split.fold(data.probes) == data.fold]

    def measure(self, model: torch.nn.Module, data: FoldData, device: torch.device) -> list[list[Any]]:
        """The table's rows.

        Raises:
            UsageError: the data have no masks of the object, or no labels.
        """
        truth = data.source.truth
        if truth is None or "object" not in truth.names or not data.source.labelled:
            raise UsageError(
                "filler= removes objects: it needs labels and masks of the object (data=shapes, data.masks=)"
            )
        probes = self.probes(data)
        samples = probes.tolist()
        fitted = {n: fit_fillers(f, data.trained_on) for n, f in self.fillers.items()}
        images = data.source.train.images(samples).to(device)
        masks, labels = truth.masks("object", samples).to(device), data.split.label(probes).to(device)
        return rows_of(removal_table(model, images, masks, labels, fitted, SampleRng(self.seed, tuple(samples))))


class SamplerReport(pl.Callback):
    """What a sampler knows of the fold it never saw: bits per dimension as `quality.csv`, draws as `samples.png`.

    Args:
        store: where they go.
        seed: of the windows and of the draws.
        number: held-out images that are measured, one random window each.
        shown: of them, those in the picture.
        draws: of each of those.
    """

    def __init__(self, store: FoldStore, seed: int = 0, number: int = 1000, shown: int = 8, draws: int = 8) -> None:
        self.store, self.seed, self.number, self.shown, self.draws = store, seed, number, shown, draws

    @property
    def files(self) -> tuple[Path, Path]:
        """The table and the picture."""
        return self.store.root / "quality.csv", self.store.root / "samples.png"

    @property
    def complete(self) -> bool:
        """Whether both are there."""
        return all(f.exists() for f in self.files)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rank 0 measures and draws."""
        if trainer.global_rank == 0:
            data: FoldData = trainer.datamodule  # type: ignore[attr-defined]
            sampler: Sampler = pl_module.sampler()  # type: ignore[operator]
            table, picture = self.files
            bits = self.measure(sampler, data, pl_module.device)
            self.draw(sampler, data, pl_module.device, picture)
            columns = ["windows", "bits_per_dim", "bits_per_dim_low", "bits_per_dim_high"]
            number = min(self.number, len(data.held_out))
            write_csv(table, columns, [[number, bits.value, bits.low, bits.high]])
            dashboard = Dashboard(trainer.loggers)
            dashboard.scalars({"heldout/bits_per_dim": bits.value})
            dashboard.picture("samples", picture)
            rank_zero_only(print)(
                f"{bits.value:.3f} [{bits.low:.3f}, {bits.high:.3f}] bits per dimension on {number} held-out windows: {picture}"
            )
        trainer.strategy.barrier("sampler")

    def windows(self, data: FoldData, number: int, patch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first held-out samples of a fixed order, and a random window of each that belongs to the sample."""
        g = torch.Generator().manual_seed(stable_hash(self.seed, "held out"))
        samples = data.held_out[torch.randperm(len(data.held_out), generator=g)[:number]]
        rng = SampleRng(self.seed, tuple(samples.tolist()))
        spare = torch.tensor([n - patch + 1 for n in data.source.shape[1:]])
        corners = torch.stack([(rng.uniform("window", r, (2,)) * spare).long() for r in range(len(samples))])
        return samples, corners[:, 0], corners[:, 1]

    def measure(self, sampler: Sampler, data: FoldData, device: torch.device) -> Estimate:
        """Bits per dimension."""
        samples, top, left = self.windows(data, self.number, sampler.patch)
        parts = [
            sampler.window_bits(data.source.train.images(s.tolist()).to(device), t.to(device), w.to(device)).cpu()
            for s, t, w in zip(samples.split(100), top.split(100), left.split(100), strict=True)
        ]
        return mean_estimate(torch.cat(parts).double())

    def draw(self, sampler: Sampler, data: FoldData, device: torch.device, path: Path) -> None:
        """Context, truth and draws of a few windows."""
        samples, top, left = self.windows(data, self.shown, sampler.patch)
        images = data.source.train.images(samples.tolist()).to(device)
        keep = torch.ones(len(images), 1, *images.shape[-2:], dtype=torch.bool, device=device)
        for row, (t, w) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            keep[row, 0, t : t + sampler.patch, w : w + sampler.patch] = False
        drawn = sampler.fill(images, keep, SampleRng(self.seed, tuple(samples.tolist())), self.draws)[:, 0]
        title = f"{self.store.root.parent.name}, fold {data.fold} held out: context, truth, draws"
        draw.samples(images.cpu(), keep[:, 0].cpu(), drawn.cpu(), path, title)


def show_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on the terminal."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    Console(width=None if Console().is_terminal else 180).print(table)

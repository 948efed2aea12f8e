"""Predict, explain and score: what every run on a fold begins with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_xai import engine
from lit_xai.cluster.heartbeat import Heartbeat, alive
from lit_xai.cluster.interruption import Interruption
from lit_xai.core import Explainer, Score
from lit_xai.data.folds import Disagreements, FoldData
from lit_xai.errors import UsageError
from lit_xai.metrics.localisation import settle
from lit_xai.report.dashboard import Dashboard
from lit_xai.report.ensemble import Ensemble
from lit_xai.store.files import write_csv
from lit_xai.store.fold import FoldStore, MapReader, Predictions
from lit_xai.store.names import DISAGREEMENTS, RANDOM
from lit_xai.store.plans import plan_text
from lit_xai.store.shards import Identity, identity_of

SHOWN = 10_000  # rows of the table on the dashboard; the file has them all


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
        command: the door and the overrides that compute the same, for `lit_xai.evaluate --status`.
        nodes: every explainer's part of the configuration, so that later commands on this folder take the same.
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
        command: tuple[str, Sequence[str]] = ("explain", ()),
        nodes: Mapping[str, Any] | None = None,
    ) -> None:
        if probes not in ("random", "disagreements"):
            raise UsageError(f"probes must be random or disagreements, found {probes!r}")
        if target not in ("label", "prediction"):
            raise UsageError(f"target must be label or prediction, found {target!r}")
        self.explainers, self.store, self.probes = dict(explainers), store, probes
        self.scores = dict(scores) if probes == "random" else {}
        self.seed, self.batch_size, self.shard_size = seed, batch_size, shard_size
        self.target, self.cap, self.part, self.progress = target, cap, parse_part(part), progress
        self.command, self.nodes, self.written = command, dict(nodes or {}), 0

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

    def leave_plans(self, probes: int) -> None:
        """Say what there is to do."""
        counts: dict[str, Any] = {"probes": probes, "shard_size": self.shard_size, "scores": list(self.scores)}
        nodes = {name: {"node": self.nodes[name]} if name in self.nodes else {} for name in self.explainers}
        self.store.leave_plans(self.kind, {n: plan_text(*self.command, **counts, **node) for n, node in nodes.items()})

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
        if rank == 0:
            self.leave_plans(len(job.samples))
            alive(self.store.root, remove=True)
        index, of = self.part
        part = (index * world + rank, of * world)

        interruption = next((c for c in getattr(trainer, "callbacks", []) if isinstance(c, Interruption)), None)
        shown = f"{index}/{of}" if of > 1 else ""
        with Heartbeat(self.store.root, f"explain {self.kind}", rank, world, shown, lines=not self.progress) as heart:

            def watch(at: str, done: int, total: int, images: int) -> None:
                heart.doing(at, done, total, images)
                if interruption is not None and done < total:
                    interruption.heed()

            self.written = engine.explain(job, self.explainers, self.scores, part, show, watch)
        trainer.strategy.barrier("explained")
        if rank == 0 and self.probes == "random":
            self.report(Dashboard(trainer.loggers), job, data, predictions)

    def report(self, dashboard: Dashboard, job: engine.Explained, data: FoldData, predictions: Predictions) -> None:
        """Per-probe scores to `scores.csv` and the dashboard, means as scalars, once no part has anything left to do.

        Parts that end at the same time may all come here. A shard that another one wrote meanwhile is not in the table
        that this one wrote over the other's: then it is made again.
        """
        while engine.finished(job, self.explainers, self.scores):
            before = self.shards()
            columns, rows, means = score_table(self.store, self.explainers, data.probes, predictions)
            write_csv(self.store.root / "scores.csv", columns, rows)
            if self.shards() == before:
                dashboard.scalars(means)
                dashboard.table("scores", columns, rows[:SHOWN])
                return

    def shards(self) -> list[Identity | None]:
        """All files that a table rests on, as they are now."""
        return [identity_of(path) for name in self.explainers for path in self.store.shards(self.kind, name)]


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
    split = predictions.split
    known = [t.tolist() for t in (probes, split.fold(probes), split.label(probes), predictions.of(probes))]
    rows = []
    for explainer, values in found.items():
        own = [values[n].double().tolist() if n in values else [math.nan] * len(probes) for n in names]
        rows += [list(row) for row in zip(*known, [explainer] * len(probes), *own, strict=True)]
    means = {f"{n}/{e}": float(v.nanmean()) for e, values in found.items() for n, v in values.items()}
    return ["sample", "fold", "label", "predicted", "explainer", *names], rows, means

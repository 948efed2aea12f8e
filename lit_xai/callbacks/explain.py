"""Predict, explain and score: what every run on a fold begins with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_xai import engine
from lit_xai.callbacks.base import Context, Report
from lit_xai.cluster.heartbeat import Heartbeat, alive
from lit_xai.core import Explainer, Score
from lit_xai.data.folds import Disagreements, FoldData
from lit_xai.engine import Job, Tasks, explained_classes
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.metrics.kept_share import KEPT, KeptShare
from lit_xai.metrics.localisation import settle
from lit_xai.models.lipschitz import without_temperature
from lit_xai.report.dashboard import Dashboard
from lit_xai.report.ensemble import Ensemble
from lit_xai.store.files import write_csv
from lit_xai.store.fold import FoldStore, MapReader, Predictions
from lit_xai.store.names import CHECKS, DECISIONS, DISAGREEMENTS, RANDOM, RANDOMISED, REPEATED, TEST
from lit_xai.store.plans import plan_text
from lit_xai.store.shards import Stamp, stamp_of

PASSES = {"random": RANDOM, **{kind: kind for kind in (DISAGREEMENTS, DECISIONS, RANDOMISED, REPEATED, TEST)}}
FEW_PROBES = 12  # that are explained again, of every fold
TEST_PROBES = 200  # at most, of images that no fold saw
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


class Explain(Report):
    """Predicts all training samples, then explains and scores the probes of every fold, shard by shard.

    Ranks share the shards (no sample twice, none left out); a finished shard is skipped, so a killed run resumes.

    Args:
        explainers, scores: by name.
        store: where results go.
        probes: `random`; `disagreements`, for their labels; `decisions`, the disagreements on which this predictor is wrong, for
            the classes that it says (a pass of its own where `target` is the label); `randomised`, a few held-out random probes by
            the network with fresh weights; `repeated`, the same with other noise; `test`, images that no fold saw, whose kept share alone
            is scored (a chosen `KeptShare`, else the default one).
        seed: of all noise.
        batch_size, shard_size: images per explainer call, probes per file.
        target: the class a map explains: `label` or `prediction`.
        cap: most disagreements explained per fold; None = all.
        checks: probes of `randomised` and `repeated`.
        tests: most probes of `test`; None = all images that no fold saw.
        part: this job's share of the shards, `i/n`.
        progress: show a bar.
        command: the command and its overrides that compute the same, for `lit_xai.evaluate --status`.
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
        checks: int = FEW_PROBES,
        tests: int | None = TEST_PROBES,
        part: str = "0/1",
        progress: bool = True,
        command: tuple[str, Sequence[str]] = ("explain", ()),
        nodes: Mapping[str, Any] | None = None,
    ) -> None:
        if probes not in PASSES:
            raise UsageError(f"probes must be random, disagreements or test, found {probes!r}")
        if target not in ("label", "prediction"):
            raise UsageError(f"target must be label or prediction, found {target!r}")
        self.explainers, self.store, self.probes = dict(explainers), store, probes
        if tests is not None and (not isinstance(tests, int) or isinstance(tests, bool) or tests < 1):
            raise UsageError(f"test_probes must be a whole number of at least 1, or null for all, found {tests!r}")
        chosen: dict[str, Score] = {name: s for name, s in scores.items() if isinstance(s, KeptShare)} or {
            KEPT: KeptShare()
        }
        of_kind: dict[str, dict[str, Score]] = {"random": dict(scores), "test": chosen}
        self.scores = of_kind.get(probes, {})
        self.seed, self.batch_size, self.shard_size = seed, batch_size, shard_size
        self.target, self.cap, self.checks, self.tests = target, cap, checks, tests
        self.part, self.progress = parse_part(part), progress
        self.command, self.nodes, self.written = command, dict(nodes or {}), 0

    @property
    def kind(self) -> str:
        """The name of the store's folder for these probes."""
        return PASSES[self.probes]

    def job(
        self,
        model: torch.nn.Module,
        data: FoldData,
        device: torch.device,
        predictions: Predictions | None,
        checkpoint: str | None = None,
    ) -> Job:
        """The predictor and the probes of this pass; see `classes`."""
        target = self.target if data.source.labelled else "prediction"
        samples, images, shared = data.probes, data.source.train, {**data.shared(), "target": target}
        if self.kind == TEST:
            unseen = data.unseen(self.tests)
            samples, images, shared = unseen.samples, unseen.images, {**shared, "test": unseen.content}
            if predictions is not None and not predictions.has(samples):
                predictions = None  # of fewer of them
        elif self.kind in CHECKS:
            samples = engine.checked_probes(data.split, samples, data.fold, self.checks)
        elif self.kind != RANDOM:
            samples, shared = self.disagreements(data), {**shared, "cap": self.cap}
        if self.kind == DECISIONS and predictions is not None:  # all folds' predictions are there
            samples = predictions.wrong_of(samples)
        return Job(
            model=model,
            images=images,
            samples=samples,
            targets=self.classes(samples, data, predictions),
            store=self.store,
            shared=shared,
            trained_on=data.trained_on,
            truth=None if self.kind == TEST else data.source.truth,
            kind=self.kind,
            seed=self.seed,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            device=device,
            checkpoint=checkpoint,
        )

    def classes(self, samples: Tensor, data: FoldData, predictions: Predictions | None) -> Tensor:
        """The class that each map explains, of samples `[n]`; what is not predicted yet counts as 0."""
        predicted = torch.zeros_like(samples) if predictions is None else predictions.of(samples)
        target = "prediction" if self.kind == DECISIONS else self.target
        split = data.unseen(self.tests).split if self.kind == TEST else data.split
        return explained_classes(target, split.label(samples), lambda: predicted)

    def disagreements(self, data: FoldData) -> Tensor:
        """Those that this fold's predictor explains.

        Raises:
            UsageError: predictions of a fold are missing.
        """
        ensemble = Ensemble(self.store.root.parent)
        absent = sorted(set(range(data.k)) - set(ensemble.folds))
        if absent:
            raise UsageError(
                f"disagreements need the predictions of all {data.k} folds, fold {absent[0]} is missing: "
                f"run python -m lit_xai.train fold={absent[0]} first"
            )
        found = Disagreements.find(ensemble.split, ensemble.correct, self.cap)
        return found.samples[found.concerned[:, self.store.fold]]

    def tasks(
        self, model: torch.nn.Module, data: FoldData, device: torch.device, checkpoint: str | None = None
    ) -> Tasks:
        """What this part has to do with a model; `checkpoint` is empty where it is not trained yet."""
        predictions = self.known_predictions()
        before = without_temperature(model)
        if predictions and before is not None and predictions.meta.get("checkpoint") == engine.model_hash(before):
            raise UsageError(
                f"{self.store.root} was explained at temperature 1 by an earlier version, while its network is trained as "
                f"softmax(tau z): delete its {self.store.predictions_file.name}, maps/ and disagreements/ (not model.ckpt) and "
                f"explain again"
            )
        if predictions is None and self.file.exists() and self.target == "prediction":
            self.store.read_predictions(self.file)  # damaged: the explained classes are not known
        job = self.job(model, data, device, predictions, checkpoint)
        return Tasks.of(job, self.explainers, self.scores, self.part)

    @property
    def file(self) -> Path:
        """Where the predictions of its samples are."""
        return self.store.test_file if self.kind == TEST else self.store.predictions_file

    def known_predictions(self) -> Predictions | None:
        """Those of an earlier run; None if there are none."""
        if not self.file.exists():
            return None
        with contextlib.suppress(DamagedFile):  # it is written anew
            return self.store.read_predictions(self.file)
        return None

    def predict(self, on: Context, job: Job, show: bool) -> Predictions:
        """Predictions of all training samples, which are kept; of a pass over test probes, of these, too, and these are meant."""
        whole = replace(job, images=on.data.source.train, shared={k: v for k, v in job.shared.items() if k != "test"})
        predictions = engine.predictions_of(whole, on.data.split, on.data.fold, on.rank, on.world, show)
        if self.kind == TEST:
            split = on.data.unseen(self.tests).split
            predictions = engine.predictions_of_tests(job, split, on.rank, on.world, show)
        on.barrier("predictions")
        return predictions

    def write_plans(self, probes: int) -> None:
        """Say what there is to do."""
        counts: dict[str, Any] = {"probes": probes, "shard_size": self.shard_size, "scores": list(self.scores)}
        nodes = {name: {"node": self.nodes[name]} if name in self.nodes else {} for name in self.explainers}
        self.store.write_plans(self.kind, {n: plan_text(*self.command, **counts, **node) for n, node in nodes.items()})

    def run(self, on: Context, tasks: Tasks | None = None) -> None:
        """Predict, explain, score; `tasks` are what `self.tasks` found for this trained model, if anybody has asked."""
        show = self.progress and on.rank == 0
        job = self.job(on.model, on.data, on.device, self.known_predictions()) if tasks is None else tasks.job
        predictions = self.predict(on, job, show)
        now = self.job(job.model, on.data, on.device, predictions, job.checkpoint)
        same = torch.equal(now.samples, job.samples) and torch.equal(now.targets, job.targets)
        if tasks is None or not same:
            tasks = Tasks.of(now, self.explainers, self.scores, self.part)
        mine = engine.changed_tasks(tasks.share(on.rank, on.world))
        if mine is None:  # other ranks may have nothing to do here, and wait at the end
            on.barrier("explained")
            return
        if on.rank == 0:
            self.write_plans(len(tasks.job.samples))
            alive(self.store.root, remove=True)
        index, of = self.part
        shown = f"{index}/{of}" if of > 1 else ""
        lines = not self.progress
        with Heartbeat(self.store.root, f"explain {self.kind}", on.rank, on.world, shown, lines=lines) as heart:

            def watch(at: str, done: int, total: int, images: int) -> None:
                heart.doing(at, done, total, images)
                if done < total:
                    on.pause()

            self.written = engine.compute(mine, show, watch)
        on.barrier("explained")
        if on.rank == 0 and self.kind == RANDOM:
            engine.keep_thumbnails(now, on.data.split, on.data.show)
            self.report(on.dashboard, mine, on.data, predictions)

    def report(self, dashboard: Dashboard, tasks: Tasks, data: FoldData, predictions: Predictions) -> None:
        """Per-probe scores to `scores.csv` and the dashboard, means as scalars, once no part has anything left to do.

        Parts that end at the same time may all come here. A shard that another one wrote meanwhile is not in the table
        that this one wrote over the other's: then it is made again.
        """
        while tasks.others_finished():
            before = self.shards()
            columns, rows, means, better = score_table(self.store, self.explainers, data.probes, predictions, self.seed)
            write_csv(self.store.root / "scores.csv", columns, rows)
            if self.shards() == before:
                dashboard.scalars(means, better)
                dashboard.table("scores", columns, rows[:SHOWN])
                return

    def shards(self) -> list[Stamp | None]:
        """All files that a table rests on, as they are now."""
        return [stamp_of(path) for name in self.explainers for path in self.store.shards(self.kind, name)]


def score_table(
    store: FoldStore, explainers: Mapping[str, Any], probes: Tensor, predictions: Predictions, seed: int = 0
) -> tuple[list[str], list[list[Any]], dict[str, float], dict[str, bool]]:
    """Of probes `[p]`: columns and rows (one a probe and explainer) of what is complete, means by `<score>/<explainer>`, directions."""
    names: list[str] = []
    better: dict[str, bool] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for explainer in explainers:
        reader = MapReader(store, RANDOM, explainer)
        if reader.files and reader.has(probes):
            found[explainer] = {n: reader.rows(probes, f"score/{n}") for n in reader.scores()}
            better |= {n: bool(reader.meta["scores"][n]["higher_is_better"]) for n in reader.scores()}
            for n, v in found[explainer].items():
                if v.ndim == 2:  # a column for every setting: the one chosen on half of the probes, on the other half
                    found[explainer][n] = settle(v, probes, better[n], seed)[0]
            for key in sorted(reader.extra):
                if key.startswith("detail/") and (numbers := reader.rows(probes, key)).ndim == 1:
                    found[explainer][key.removeprefix("detail/")] = numbers
            names += [n for n in found[explainer] if n not in names]
    split = predictions.split
    known = [t.tolist() for t in (probes, split.fold(probes), split.label(probes), predictions.of(probes))]
    rows = []
    for explainer, values in found.items():
        own = [values[n].double().tolist() if n in values else [math.nan] * len(probes) for n in names]
        rows += [list(row) for row in zip(*known, [explainer] * len(probes), *own, strict=True)]
    means = {f"{n}/{e}": float(v.nanmean()) for e, values in found.items() for n, v in values.items()}
    return ["sample", "fold", "label", "predicted", "explainer", *names], rows, means, better

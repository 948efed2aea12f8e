"""How far from what a network knows the images lie that the scores show it: the measured half of "has it seen such images?"."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_xai import engine
from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.callbacks.checks import held_out_probes
from lit_xai.callbacks.fillers import held_out_order
from lit_xai.callbacks.samplers import fit_mahalanobis
from lit_xai.core import Explainer, Score
from lit_xai.engine import explained_classes
from lit_xai.errors import UsageError
from lit_xai.fillers.hiding import Hiding
from lit_xai.metrics.in_domain import InDomain
from lit_xai.quality.domain import Known, shown_by
from lit_xai.rng import SampleRng, stable_hash
from lit_xai.store.files import write_csv
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import DOMAIN, HELD_OUT, NOISE, RANDOM

TRAINING, OTHERS, NOISES = (
    500,
    200,
    20,
)  # images: those the distance is fitted to, held-out ones beside, and uniform noise
COLUMNS = ("checkpoint", "shown_by", "sample", "mahalanobis", "beyond", "trained_on")


class Domain(RankZeroReport):
    """For a few held-out probes: how far the images lie that each score shows the network, as `domain.csv`.

    A row a probe and score (means over the images that it shows), and a row for each held-out image and each of uniform noise.

    Args:
        store: where maps lie and the file goes.
        explainers, scores: by name; the first explainer that asks the model and has explained the probes is judged.
        hiding: how the network's training hid parts of its images; None = not at all.
        target: the class that maps explain.
        number: of the probes.
        seed: of all noise.
    """

    def __init__(
        self,
        store: FoldStore,
        explainers: Mapping[str, Explainer],
        scores: Mapping[str, Score],
        hiding: Hiding | None,
        target: str = "label",
        number: int = 12,
        seed: int = 0,
    ) -> None:
        self.store, self.explainers, self.scores = store, dict(explainers), dict(scores)
        self.hiding, self.target, self.number, self.seed = hiding, target, number, seed

    @property
    def file(self) -> Path:
        """Where the table lies, in the fold's folder."""
        return self.store.root / DOMAIN

    def make(self, on: Context) -> None:
        """Measure, where there are maps, scores that call the model, and training images."""
        probes, shape = held_out_probes(on.data, self.number), on.data.source.shape
        asked = {
            n: s
            for n, s in self.scores.items()
            if s.truth is None and not s.explanations and s.passes(*shape[1:]).forward
        }
        reader = self.reader(probes)
        checkpoint = engine.model_hash(on.model)
        if reader is None or not asked or on.data.k < 2 or self.complete(checkpoint, asked):
            return
        try:
            rows = self.measure(on, probes, reader, asked)
        except UsageError as e:  # a network whose features are not known
            print(f"domain: {e}", flush=True)
            return
        write_csv(self.file, COLUMNS, [[checkpoint, *row] for row in rows])

    def reader(self, probes: Tensor) -> MapReader | None:
        """The maps of the first explainer that is no null and has explained these probes `[p]`; None if none has."""
        readers = (MapReader(self.store, RANDOM, n) for n, e in self.explainers.items() if not e.null)
        return next((r for r in readers if r.files and len(probes) and r.has(probes)), None)

    def complete(self, checkpoint: str, asked: Mapping[str, Score]) -> bool:
        """Whether the file says all of that of these weights."""
        if not self.file.exists():
            return False
        with open(self.file, newline="") as file:
            there = {row["shown_by"] for row in csv.DictReader(file) if row.get("checkpoint") == checkpoint}
        return set(asked) <= there

    def known(self, on: Context, others: Tensor) -> Known:
        """What the network knows: its training images' features, and how far held-out images, `others` `[o]`, lie from them."""
        training = on.data.split.training(on.data.fold)
        g = torch.Generator().manual_seed(stable_hash(self.seed, "domain"))
        training = training[torch.randperm(len(training), generator=g)[:TRAINING]]
        score = fit_mahalanobis(on.model, on.data, training, on.device)
        images = on.data.source.train.images(others.tolist()).to(on.device)
        return Known(score, Known(score, torch.empty(0)).distance(on.model, images))

    def measure(self, on: Context, probes: Tensor, reader: MapReader, asked: Mapping[str, Score]) -> list[list[object]]:
        """Every row but for its checkpoint, of probes `[p]`; none where there are no other held-out images."""
        order, model = held_out_order(on.data, self.seed), on.model
        others = order[~torch.isin(order, probes)][:OTHERS]
        if not len(others):
            return []
        known = self.known(on, others)
        rows: list[list[object]] = [
            [HELD_OUT, int(s), float(d), float(b), ""]
            for s, d, b in zip(others, known.held_out, known.beyond(known.held_out), strict=True)
        ]
        rng = SampleRng(self.seed, tuple(others[:NOISES].tolist()))
        noise = known.distance(model, rng.noise("domain").uniform(on.data.source.shape).to(on.device))
        beyond = known.beyond(noise)
        rows += [[NOISE, int(s), float(d), float(b), ""] for s, d, b in zip(others, noise, beyond, strict=False)]
        labels, predictions = on.data.split.label(probes), self.store.read_predictions()
        targets = explained_classes(self.target, labels, lambda: predictions.of(probes)).to(on.device)
        for name, score in asked.items():
            fitted, seen = score.fitted(on.data.trained_on), self.trained_on(score)
            for row, sample in enumerate(probes.tolist()):
                image = on.data.source.train.images([sample]).to(on.device)
                map_ = reader.rows(probes[row : row + 1]).to(image)
                shown = shown_by(fitted, model, image, map_, targets[row : row + 1], SampleRng(self.seed, (sample,)))
                d = known.distance(model, shown)
                rows.append([name, sample, float(d.mean()), float(known.beyond(d).double().mean()), seen])
        return rows

    def trained_on(self, score: Score) -> str:
        """Whether the network's training hid parts as this score does."""
        own = isinstance(score, InDomain) and self.hiding is not None and score.hiding == self.hiding
        return "yes" if own else "no"

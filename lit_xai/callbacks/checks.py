"""Checks of explanations against the model: sanity under randomisation, curves of removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.calls import Gate
from lit_xai.core import Explainer, Score
from lit_xai.data.folds import FoldData
from lit_xai.data.images import seen
from lit_xai.engine import explained_classes
from lit_xai.errors import UsageError
from lit_xai.metrics.fidelity import Walk
from lit_xai.metrics.sanity import HOW, Entry, Sanity, compare_models, curves, sanity, sanity_table
from lit_xai.metrics.statistics import mean_estimate, too_few
from lit_xai.report import draw, tables
from lit_xai.rng import SampleRng
from lit_xai.store.files import write_csv
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import RANDOM

LABELS = "labels"


def held_out_probes(data: FoldData, number: int | None = None) -> Tensor:
    """The probes that this predictor never saw, or the first of them."""
    return data.probes[data.split.fold(data.probes) == data.fold][:number]


class SanityCheck(RankZeroReport):
    """Maps of a model that forgets what it learned, layer by layer, as `sanity.csv` and a picture for each way.

    Args:
        explainers: by name.
        store: where the files go.
        how: `cascading`, `independent`, and `labels` for the predictor `other` that was trained on random labels.
        other: gives that predictor.
        stages: at most so many of each way.
        number: held-out probes.
        seed: of the new weights and of all noise.
        batch_size: images per explainer call.
        progress: show a bar.
    """

    def __init__(
        self,
        explainers: Mapping[str, Explainer],
        store: FoldStore,
        how: Sequence[str],
        other: Any = None,
        stages: int = 6,
        number: int = 16,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = True,
    ) -> None:
        known = (*HOW, LABELS)
        if not how or set(how) - set(known):
            raise UsageError(f"sanity must be of {', '.join(known)}, found {', '.join(map(str, how))}")
        if not explainers:
            raise UsageError("sanity= checks explainers and none is chosen: set explainer=[...]")
        for name, value in (("sanity_stages", stages), ("sanity_images", number)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, found {value}")
        self.explainers, self.store, self.how, self.other = dict(explainers), store, list(how), other
        self.stages, self.number, self.seed = stages, number, seed
        self.batch_size, self.progress = batch_size, progress

    def make(self, on: Context) -> None:
        """Check in every way that was asked for, and leave `sanity.csv` and a picture each."""
        entries: list[Entry] = []
        for how in self.how:
            result = self.check(how, on.model, on.data, on.device)
            table = sanity_table(result, self.seed)
            entries += table
            on.dashboard.picture(f"sanity/{how}", self.picture(how, result, table, on.data))
            for entry in table:
                if entry.number == len(result.stages):
                    last = {f"sanity/{how}/{m}": entry.estimates[m].value for m in ("spearman", "magnitude")}
                    values = {f"{m}/{entry.explainer}": v for m, v in last.items()}
                    on.dashboard.scalars(values, dict.fromkeys(last, False))
        path = self.store.root / "sanity.csv"
        file = tables.sanity(entries).file()
        write_csv(path, *file)
        on.dashboard.table("sanity", *file)
        print(f"sanity: {path} and {', '.join(f'sanity-{h}.png' for h in self.how)}", flush=True)

    def check(self, how: str, model: nn.Module, data: FoldData, device: torch.device) -> Sanity:
        """One way of forgetting, on held-out probes, for the class the trained model predicts."""
        samples = held_out_probes(data, self.number)
        images = data.source.train.images(samples.tolist()).to(device)
        with torch.inference_mode():
            targets = Gate.of(model)(images).argmax(1)
        fitted = {n: e.fitted(data.trained_on) for n, e in self.explainers.items()}
        common: Any = (images, targets.clone(), fitted, SampleRng(self.seed, tuple(samples.tolist())))
        options: Any = {"batch_size": self.batch_size, "progress": self.progress}
        if how == LABELS:
            return compare_models(model, self.other().to(device), *common, **options)
        return sanity(model, *common, how=how, stages=self.stages, **options)

    def picture(self, how: str, result: Sanity, table: Any, data: FoldData) -> Any:
        """Maps over the stages."""
        shown = len(next(iter(result.maps.values()))[0])
        images = seen(data.source.train.images(held_out_probes(data, shown).tolist()), data.show)
        stages = ["trained on random labels"] if how == LABELS else [s.layer for s in result.stages]
        number = len(result.trained)
        title = f"{self.store.root.parent.name}, fold {data.fold}: {how}, {number} held-out probes{too_few(number)}"
        path = self.store.root / f"sanity-{how}.png"
        lines = curves(table, "spearman"), curves(table, "magnitude")
        legends = {n: e.legend for n, e in self.explainers.items()}
        return draw.sanity(images, stages, result.maps, *lines, path, title, legends)


class Curves(RankZeroReport):
    """The mean curve of every score that walks along one (deletion, insertion, negative evidence), per explainer.

    On the held-out probes that are explained; as `curves-<score>.csv` and `.png`.

    Args:
        store: where maps lie and files go.
        explainers: their names.
        scores: by name; those without a curve are left out.
        target: the class that maps explain: `label` or `prediction`.
        seed: of all noise.
        batch_size: images per call.
    """

    def __init__(
        self,
        store: FoldStore,
        explainers: Sequence[str],
        scores: Mapping[str, Score],
        target: str = "label",
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        self.scores = {n: s for n, s in scores.items() if isinstance(s, Walk)}
        if not self.scores:
            raise UsageError(
                "curves=true draws deletion, insertion and negative evidence: choose one of them by score="
            )
        self.store, self.explainers, self.target, self.seed = store, list(explainers), target, seed
        self.batch_size = batch_size

    def make(self, on: Context) -> None:
        """Walk along the curve of every score, and leave a table and a picture each."""
        for name, score in self.scores.items():
            lines = self.lines(score.fitted(on.data.trained_on), on)
            span = score.span(*on.data.source.shape[1:])
            path = self.store.root / f"curves-{name}.png"
            rows = [
                [e, x, *values]
                for e, line in lines.items()
                for x, values in zip(grid(line, *span), line.tolist(), strict=True)
            ]
            columns = ["explainer", "share", "probability", "probability_low", "probability_high"]
            write_csv(path.with_suffix(".csv"), columns, rows)
            number = len(held_out_probes(on.data))
            title = (
                f"{self.store.root.parent.name}, fold {on.data.fold}: {name}, {number} held-out probes{too_few(number)}"
            )
            draw.curves(lines, span, path, title, score.what)
            on.dashboard.picture(f"curves/{name}", path)
            print(f"curve: {path}", flush=True)

    def lines(self, score: Walk, on: Context) -> dict[str, Tensor]:
        """`{explainer: [points, 3]}`: the mean over probes and its 95 % interval at every point."""
        model, samples, out = on.model, held_out_probes(on.data), {}
        labels, predictions = on.data.split.label(samples), self.store.read_predictions()
        classes = explained_classes(self.target, labels, lambda: predictions.of(samples))
        for explainer in self.explainers:
            reader = MapReader(self.store, RANDOM, explainer)
            if not reader.files or not reader.has(samples):
                continue
            parts = []
            for some, targets in zip(samples.split(self.batch_size), classes.split(self.batch_size), strict=True):
                images = on.data.source.train.images(some.tolist()).to(on.device)
                rng = SampleRng(self.seed, tuple(some.tolist()))
                parts.append(score.curve(model, images, reader.rows(some).to(images), targets.to(on.device), rng).cpu())
            points = [mean_estimate(column) for column in torch.cat(parts).double().unbind(1)]
            out[explainer] = torch.tensor([[e.value, e.low, e.high] for e in points], dtype=torch.float64)
        return out


def grid(line: Tensor, begin: float, end: float) -> list[float]:
    """The shares of pixels, evenly from `begin` to `end`, at which a curve `[points, 3]` has its points."""
    return np.linspace(begin, end, len(line)).round(6).tolist()

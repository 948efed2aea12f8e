"""What is drawn and measured from explanations that are there: stability over folds, the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.core import Explainer
from lit_xai.data.folds import FoldData
from lit_xai.data.images import seen
from lit_xai.metrics.measures import MEASURES, view
from lit_xai.models.pretrained import Given
from lit_xai.report import draw
from lit_xai.report.dashboard import Dashboard
from lit_xai.report.ensemble import Ensemble
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import RANDOM, UNDECIDED


class Stability(RankZeroReport):
    """After a fold: the default view's measures over the folds that are complete, and how many these are. Values alone."""

    def __init__(self, store: FoldStore, explainers: Sequence[str], seed: int = 0) -> None:
        self.store, self.explainers, self.seed = store, list(explainers), seed
        self.values: dict[str, float] = {}

    def make(self, on: Context) -> None:
        """Measure and keep the values."""
        self.values = self.measure(on.dashboard, on.data.probes)

    def measure(self, dashboard: Dashboard, probes: Tensor) -> dict[str, float]:
        """Of probes `[p]`: measures by `<measure>/<explainer>` over the folds that have explained them all; they are logged, too."""
        everything = Ensemble(self.store.root.parent, self.seed)
        values: dict[str, float] = {}
        for name in self.explainers:
            whole = [f for f in everything.folds if MapReader(everything.stores[f], RANDOM, name).has(probes)]
            if self.store.fold not in whole:  # another part will complete it: not every part reads all folds' maps
                continue
            ensemble = Ensemble(self.store.root.parent, self.seed, whole)
            values |= {"stability/folds": len(whole), "stability/of_folds": everything.split.k}
            pairs = ensemble.pairs(name)
            values.update({f"{m}/{name}": MEASURES[m].alone(pairs)[0] for m in view("default")})
            for kind, distances in zip(("equal", "differ"), pairs.sets(), strict=True):
                dashboard.histogram(f"distances/{name}/{kind}", distances)
        dashboard.scalars(values, {name: measure.better == "up" for name, measure in MEASURES.items()})
        return values


class Gallery(RankZeroReport):
    """A few probes with the maps of every explainer, as `gallery.png` and on the dashboard."""

    def __init__(self, store: FoldStore, explainers: Mapping[str, Explainer], probes: int = 6) -> None:
        self.store, self.explainers, self.number = store, dict(explainers), probes

    def make(self, on: Context) -> None:
        """Draw the gallery, and log it if there is anything to see."""
        names = on.module.class_names if isinstance(on.module, Given) else ()
        path = self.draw(on.data, names)
        if path is not None:
            on.dashboard.picture("gallery", path)

    def draw(self, data: FoldData, class_names: Sequence[str] = ()) -> Path | None:
        """The picture; None while no map is there."""
        spread = torch.linspace(0, len(data.probes) - 1, min(self.number, len(data.probes))).long()
        samples = data.probes[spread.unique()]
        maps, undecided = {}, {}
        for name in self.explainers:
            reader = MapReader(self.store, RANDOM, name)
            if reader.files and reader.has(samples):
                maps[name] = reader.rows(samples)
                if UNDECIDED in reader.extra:
                    undecided[name] = reader.rows(samples, UNDECIDED)
        if not maps:
            return None
        names = class_names or data.source.classes
        captions = captions_of(Ensemble(self.store.root.parent), self.store.fold, samples, names)
        title = f"{self.store.root.parent.name}, predictor of fold {self.store.fold}"
        legends = {n: e.legend for n, e in self.explainers.items()}
        images = seen(data.source.train.images(samples.tolist()), data.show)
        return draw.gallery(images, captions, maps, self.store.root / "gallery.png", title, legends, undecided)


def captions_of(ensemble: Ensemble, fold: int, samples: Tensor, names: Sequence[str]) -> list[str]:
    """Of samples `[n]`: label, this predictor's prediction with its probability, and how many of the others agree."""

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

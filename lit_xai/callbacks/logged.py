"""What W&B alone gets of a fold: a table of probes with pictures, and what its maps are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.callbacks.checks import held_out_probes
from lit_xai.core import Explainer
from lit_xai.data.folds import FoldData
from lit_xai.engine.predict import SMALL, thumbnails
from lit_xai.report import lineage
from lit_xai.report.figure import Scale, span
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import RANDOM

LEAST = 64  # pixels a side of a picture, below which every pixel is drawn larger


class Logged(RankZeroReport):
    """The table `probes`, and the artifacts of data, model and maps; nothing where no run of W&B is.

    Args:
        store: where maps lie.
        explainers: by name.
        trained: whether this run trains the model (else an earlier one has).
        number: held-out probes in the table.
    """

    def __init__(
        self, store: FoldStore, explainers: Mapping[str, Explainer], trained: bool = False, number: int = 32
    ) -> None:
        self.store, self.explainers, self.trained, self.number = store, dict(explainers), trained, number

    def make(self, on: Context) -> None:
        """Log them, of the explainers that are complete."""
        if not on.dashboard.runs:
            return
        readers = {name: MapReader(self.store, RANDOM, name) for name in self.explainers}
        readers = {name: r for name, r in readers.items() if r.files and r.has(on.data.probes)}
        if readers:
            on.dashboard.log("probes", lambda wandb: self.table(wandb, on.data, readers))
        shared, made = on.data.shared(), []
        if self.trained:
            digest = self.store.read_predictions().meta.get("checkpoint")
            made.append(lineage.model_of(self.store, self.store.root / "model.ckpt", shared, digest))
        if readers:
            made.append(lineage.maps_of(self.store, readers))
        lineage.log(on.dashboard, lineage.data_of(shared), *made)

    def table(self, wandb: Any, data: FoldData, readers: Mapping[str, MapReader]) -> Any:
        """One row a held-out probe: its image, every explainer's map in the gallery's colours, every score."""
        samples = held_out_probes(data, self.number)
        predictions = self.store.read_predictions()
        at = torch.searchsorted(predictions.split.samples, samples)
        known = [t[at].tolist() for t in (predictions.split.labels, predictions.predicted)]
        sure = [round(c, 4) for c in predictions.confidence[at].tolist()]
        images = [
            wandb.Image(enlarged(i.permute(1, 2, 0).numpy())) for i in thumbnails(data.source.train, samples, data.show)
        ]
        maps: dict[str, list[Any]] = {}
        scores: dict[str, list[float]] = {}
        for name, reader in readers.items():
            maps[name] = pictures(wandb, reader.rows(samples), self.explainers[name])
            of = {f"{n}/{name}": reader.rows(samples, f"score/{n}") for n in reader.scores()}
            scores |= {n: v.double().tolist() for n, v in of.items() if v.ndim == 1}
        columns = ["sample", "label", "predicted", "confidence", "image", *maps, *scores]
        rows = zip(samples.tolist(), *known, sure, images, *maps.values(), *scores.values(), strict=True)
        return wandb.Table(columns=columns, data=[list(row) for row in rows])


def pictures(wandb: Any, maps: Tensor, explainer: Explainer) -> list[Any]:
    """Maps `[n, h, w]` as pictures on one scale, with the range of their values."""
    scale = Scale.of(maps, explainer.legend)
    return [wandb.Image(enlarged(scale.at(m).pixels(reduced(m))), caption=span(m)) for m in maps]


def reduced(map_: Tensor) -> Tensor:
    """A map `[h, w]` of at most `SMALL` pixels a side."""
    share = SMALL / max(map_.shape)
    if share >= 1:
        return map_
    return F.interpolate(map_[None, None].float(), [max(1, round(n * share)) for n in map_.shape], mode="area")[0, 0]


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """A picture `[h, w, c]` of at least `LEAST` pixels a side."""
    times = math.ceil(LEAST / max(pixels.shape[:2]))
    return pixels.repeat(times, 0).repeat(times, 1)

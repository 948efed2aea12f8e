"""What fillers are worth as samplers of perturbed images: a table and two pictures of one fold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.callbacks.checks import held_out_probes
from lit_xai.callbacks.fillers import held_out_order
from lit_xai.core import Filler
from lit_xai.data.folds import FoldData
from lit_xai.engine import explained_classes
from lit_xai.errors import UsageError
from lit_xai.quality.plausibility import features_and_logits
from lit_xai.quality.sampler import MEASURES, Mahalanobis
from lit_xai.quality.sampler_quality import SamplerQuality, sampler_table
from lit_xai.report import draw_samplers, printed, tables
from lit_xai.report.dashboard import Dashboard
from lit_xai.report.printed import Printed
from lit_xai.rng import SampleRng
from lit_xai.store.files import write_atomically, write_csv
from lit_xai.store.fold import FoldStore

TRAINING = 10_000  # most images that the Mahalanobis score is fitted to
OTHERS = 500  # most real images beside the explained ones
READ = 256  # images read at once


def fit_mahalanobis(model: nn.Module, data: FoldData, samples: Int[Tensor, "t"], device: torch.device) -> Mahalanobis:
    """The Mahalanobis score of these training samples; their classes are predicted where they have no labels."""
    features, labels = [], []
    for some in samples.split(READ):
        found, logits = features_and_logits(model, data.source.train.images(some.tolist()).to(device))
        features.append(found.cpu())
        labels.append(data.split.label(some) if data.source.labelled else logits.argmax(1).cpu())
    if not features:
        raise UsageError("no images are left to fit the Mahalanobis score to: give more data or lower sampler_images=")
    return Mahalanobis.fit(torch.cat(features), torch.cat(labels))


class SamplerTable(RankZeroReport):
    """Alignment, diversity, locality and cost of every filler's samples of the held-out probes.

    As `samplers.csv`, `samplers.tex`, `samplers-umap.png` and `samplers-tradeoff.png` beside the fold's store.

    Args:
        store: where they go.
        fillers: by name; the first is the one that others are compared with.
        seed: of all noise.
        number: most held-out probes.
        draws: samples of each.
        target: the explained class: `label` or `prediction`.
        progress: show a bar.
        beside: what papers print, to stand beside it.
    """

    def __init__(
        self,
        store: FoldStore,
        fillers: Mapping[str, Filler],
        seed: int = 0,
        number: int = 32,
        draws: int = 100,
        target: str = "label",
        progress: bool = True,
        beside: Sequence[Printed] = (),
    ) -> None:
        for name, value in (("sampler_images", number), ("sampler_draws", draws)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, found {value}")
        self.store, self.fillers, self.seed = store, dict(fillers), seed
        self.number, self.draws, self.target, self.progress = number, draws, target, progress
        self.beside = beside

    @property
    def files(self) -> dict[str, Path]:
        """The table, the same for LaTeX, and the pictures."""
        names = ("samplers.csv", "samplers.tex", "samplers-umap.png", "samplers-tradeoff.png")
        return {name: self.store.root / name for name in names}

    def make(self, on: Context) -> None:
        """Measure the samplers, and leave table and pictures."""
        self.leave(self.measure(on.model, on.data, on.device), on.data, on.dashboard)

    def chosen(self, data: FoldData) -> tuple[Int[Tensor, "b"], Int[Tensor, "r"], Int[Tensor, "t"]]:
        """Probes, other held-out samples, and training samples.

        Where nothing was held out (a pretrained model), half of the others stand for the training samples.
        """
        probes, order = held_out_probes(data, self.number), held_out_order(data, self.seed)
        others = order[~torch.isin(order, probes)]
        if data.k > 1:
            training = data.split.training(data.fold)
            g = torch.Generator().manual_seed(self.seed)
            return probes, others[:OTHERS], training[torch.randperm(len(training), generator=g)[:TRAINING]]
        real = others[: min(OTHERS, len(others) // 2)]
        return probes, real, others[len(real) :][:TRAINING]

    def measure(self, model: nn.Module, data: FoldData, device: torch.device) -> SamplerQuality:
        """How good the fillers are as samplers, on held-out images."""
        probes, others, training = self.chosen(data)
        images, real = (data.source.train.images(s.tolist()).to(device) for s in (probes, others))
        score = fit_mahalanobis(model, data, training, device)
        labels = data.split.label(probes).to(device)
        targets = explained_classes(
            self.target, labels, lambda: features_and_logits(model, images)[1].argmax(1).clone()
        )
        fitted = {name: f.fitted(data.trained_on) for name, f in self.fillers.items()}
        rng = SampleRng(self.seed, tuple(probes.tolist()))
        return sampler_table(model, images, targets, fitted, score, real, self.draws, rng, progress=self.progress)

    def leave(self, quality: SamplerQuality, data: FoldData, dashboard: Dashboard) -> None:
        """The table and the pictures as files, on the dashboard and on the terminal."""
        table, tex, plane, trade = self.files.values()
        where = f"{self.store.root.parent.name}, fold {data.fold} held out"
        about = tables.about_samplers(quality, where)
        shown, file = tables.samplers(quality, "\n".join(about)), tables.every_sampler_number(quality).file()
        silhouettes = {name: row["silhouette"] for name, row in quality.estimates.items()}
        draw_samplers.alignment(quality.plane, silhouettes, plane, f"{where}: UMAP of penultimate features")
        points = {n: (quality.estimates[n]["l2"], quality.estimates[n]["label_entropy"]) for n in quality.hides}
        draw_samplers.tradeoff(points, trade, f"{where}: {quality.draws} samples of every image")
        write_atomically(tex, shown.latex(about))
        write_csv(table, *file)
        dashboard.scalars(
            {
                f"samplers/{m}/{n}": e.value
                for n, row in quality.estimates.items()
                for m, e in row.items()
                if not math.isnan(e.value)
            }
        )
        dashboard.table("samplers", *file)
        dashboard.picture("samplers/umap", plane)
        dashboard.picture("samplers/tradeoff", trade)
        shown.show()
        up = {name: m.better == "up" for name, m in MEASURES.items() if m.better in ("up", "down")}
        printed.put_beside(self.beside, quality.estimates, self.store.root, "samplers-printed", up)
        rank_zero_only(print)(f"samplers: {table}, {tex.name}, {plane.name}, {trade.name}", flush=True)

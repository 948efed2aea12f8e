"""Reproducibility (Arun et al., 2021): maps of two networks that were trained on the same folds, and of what maps vary.

`mege` and `reco` between two networks are those of an ensemble, of other pairs: f_i's map of a sample that fold i holds out by the one
network, and f_i's map by the other. Neither saw the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_xai.metrics.components import components, moments
from lit_xai.metrics.distance import distance_of, unit_ranks
from lit_xai.metrics.estimation import estimates
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.tested import VALUES
from lit_xai.store.fold import MapReader, common_samples
from lit_xai.store.names import RANDOM, TEST

MOST = 200  # samples of the components of variance


@dataclass(frozen=True)
class Between:
    """One explainer's maps by two networks.

    Attributes:
        estimates: `mege` and `reco` of the two networks; ReCo of labels where maps explain these.
        parts: the components of variance, by name; empty where there are too few folds or samples.
        probes: of which probes they are, `test` or `maps`, and how many.
    """

    estimates: dict[str, Estimate]
    parts: dict[str, Estimate]
    probes: tuple[str, int]

    def plain(self) -> dict[str, Any]:
        """What `audit.json` holds of two networks."""
        numbers = {name: e.plain() for name, e in self.estimates.items()}
        parts = {name: e.plain() for name, e in self.parts.items()}
        return {**numbers, "components": parts, "kind": self.probes[0], "samples": self.probes[1]}


def between(a: Ensemble, b: Ensemble, explainer: str, distance: str) -> Between | None:
    """One explainer's maps by two networks on one split; None where they share no fold, or explain different classes."""
    folds = [f for f in a.folds if f in b.folds]
    if not folds or a.target != b.target:
        return None
    pairs = pairs_between(a, b, explainer, distance, folds)
    reco = MEASURES["reco_label" if a.target == "label" else "reco"]
    of = estimates(pairs, {"mege": MEASURES["mege"], "reco": reco})
    both = [e.readers(explainer, kind) for kind in (TEST, RANDOM) for e in (a, b)]
    for kind, (one, other) in ((TEST, both[:2]), (RANDOM, both[2:])):
        readers = [[one[f] for f in folds], [other[f] for f in folds]]
        samples = common_samples([r for row in readers for r in row])
        if len(samples) > 2 and len(folds) > 1:
            parts, number = parts_of(readers, samples)
            if parts:
                return Between(of, parts, (kind, number))
    return Between(of, {}, ("", 0))


def pairs_between(a: Ensemble, b: Ensemble, explainer: str, distance: str, folds: Sequence[int]) -> Pairs:
    """The maps of fold i by both networks, of the random probes that fold i holds out; a pair is of the fold, i = j."""
    one, other, d = a.readers(explainer), b.readers(explainer), distance_of(distance)
    nobody = torch.zeros(0, dtype=torch.long)
    rows: list[tuple[Tensor, ...]] = [(nobody.double(), nobody.bool(), nobody.bool(), nobody, nobody)]
    for f in folds:
        samples = common_samples([one[f], other[f]])
        samples = samples[a.split.fold(samples) == f] if len(samples) else samples
        right = [e.predictions[f].right(samples) for e in (a, b)]
        for rows_of in chunks_of(one[f], samples):
            maps = [d.prepare(r[f].rows(samples[rows_of])) for r in (one, other)]
            x, y = (r[rows_of] for r in right)
            rows.append((d.compare(*maps), x & y, x ^ y, samples[rows_of], torch.full_like(samples[rows_of], f)))
    apart, equal, differ, sample, fold = (torch.cat(column) for column in zip(*rows, strict=True))
    labels, weight = torch.full_like(differ, a.target == "label"), torch.ones_like(apart)
    two = {0: a.predictions[folds[0]], 1: b.predictions[folds[0]]}  # of two networks, not of one predictor
    return Pairs(
        apart,
        equal,
        differ,
        sample,
        weight,
        fold,
        fold,
        labels & differ,
        distance,
        a.seed,
        two,
        found=int(differ.sum()),
    )


def chunks_of(reader: MapReader, samples: Tensor) -> list[slice]:
    """Slices of samples `[n]` whose maps are in memory at once."""
    if not len(samples):
        return []
    each = max(8, VALUES // max(1, reader.rows(samples[:1]).numel()))
    return [slice(start, start + each) for start in range(0, len(samples), each)]


def parts_of(readers: Sequence[Sequence[MapReader]], samples: Tensor) -> tuple[dict[str, Estimate], int]:
    """The components of the variance of maps of samples `[n]`, by network and fold, and of how many; none of too few.

    Samples of which any map is constant are left out, and of many every so manieth is taken.
    """
    samples = samples[torch.linspace(0, len(samples) - 1, min(MOST, len(samples))).round().long()]
    squares, means = [], []
    for rows_of in chunks_of(readers[0][0], samples):
        part = samples[rows_of]
        cells = torch.stack([torch.stack([unit_ranks(r.rows(part)) for r in row], 1) for row in readers], 2)
        known = torch.isfinite(cells).flatten(1).all(1)
        found, mean = moments(cells[known])
        squares.append(found)
        means.append(mean)
    number = sum(map(len, squares))
    if number < 3:
        return {}, number
    return components(torch.cat(squares), torch.cat(means), len(readers[0]), len(readers)), number

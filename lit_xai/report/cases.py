"""Consensus and contradiction: what all predictors' maps of one probe share, and where they give different reasons.

From stores alone, for every random probe that all folds have explained:

- consensus map: for each pixel, the share of the folds whose map has it among its highest tenth;
- core: the pixels that all folds have there, as a share of a map's own. Its null is the core of maps of different probes;
- worst rho: the smallest signed rank correlation of two folds' maps. The case is a contradiction where all folds predict the same
  class, rightly, and worst rho is below `LIMIT` and below what sampling noise alone would give in all but 5 % of the probes, by
  the same predictor's maps with other noise (`noise_of`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lit_xai.engine.predict import small
from lit_xai.metrics.distance import correlation, unit_ranks
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.report import draw
from lit_xai.report.ensemble import Ensemble, Growing
from lit_xai.report.table import Column, Table
from lit_xai.store.names import REPEATED

TOP = 0.1  # share of the pixels that count as a map's highest
LIMIT = 0.5  # of rho, above which two maps are no contradiction even of a method without noise
ALPHA = 0.05
TAIL = 0.1  # share of the correlations with other noise from which smaller ones are extrapolated
MOST = 0.999  # of rho, whose z is infinite at 1
SHIFTS = 8  # pairings of different probes in the null of the core
WORST = 10  # cases of every explainer that are drawn
COLUMNS = (
    "probe", "explainer", "worst_rho", "fold_a", "fold_b", "core_share", "prediction", "label", "contradiction", "reference",
)  # fmt: skip


def highest(maps: Float[Tensor, "n h w"]) -> Bool[Tensor, "n p"]:
    """The highest tenth of every map's pixels; of equal values at its edge all or none, so of a constant map none."""
    flat = maps.flatten(1).numpy()
    pixels = flat.shape[1]
    number = max(1, round(TOP * pixels))
    edge = np.partition(flat, pixels - number, axis=1)[:, pixels - number, None]
    above, tied = flat > edge, flat == edge
    by_mean_rank = 2 * above.sum(1, keepdims=True) + tied.sum(1, keepdims=True) < 2 * number
    return torch.from_numpy(above | (tied & by_mean_rank))


def core(bits: UInt8[np.ndarray, "k n bytes"]) -> Float[Tensor, "n"]:
    """The pixels that all predictors have on top (a bit each), as a share of what each has there on average; NaN where nobody has any."""
    shared, each = np.bitwise_count(np.bitwise_and.reduce(bits)).sum(1), np.bitwise_count(bits).sum(2).mean(0)
    return torch.from_numpy(shared.astype(np.float64)) / torch.from_numpy(each)


def consensus(maps: Float[Tensor, "k h w"]) -> Float[Tensor, "h w"]:
    """The share of the predictors that have each pixel among their map's highest tenth."""
    return highest(maps).double().mean(0).view(maps.shape[1:])


@dataclass
class Seen:
    """What is noted of the maps of random probes while they pass by (`Ensemble.pairs(look=...)`).

    Attributes:
        ensemble: whose predictors.
        samples: the probes.
        alike: whether all predictors say the same class, the right one.
        worst: the smallest signed correlation of two folds' maps; NaN where fewer than two are not constant.
        folds: `[2]` of that pair.
        core: share of the highest tenth that all folds have in common.
        chance: the same of maps of different probes, one number a pairing.
        kept: of the `WORST` first cases, the place in `order`, the sample and all predictors' maps, no larger than thumbnails are.
    """

    ensemble: Ensemble
    samples: Growing = field(default_factory=lambda: Growing(torch.long))
    alike: Growing = field(default_factory=lambda: Growing(torch.bool))
    worst: Growing = field(default_factory=lambda: Growing(torch.float64))
    folds: Growing = field(default_factory=lambda: Growing(torch.long))
    core: Growing = field(default_factory=lambda: Growing(torch.float64))
    chance: Growing = field(default_factory=lambda: Growing(torch.float64))
    kept: list[tuple[tuple[bool, float], int, Float[Tensor, "k h w"]]] = field(default_factory=list)

    def __call__(self, samples: Tensor, maps: dict[int, Tensor], ranks: dict[int, Tensor] | None = None) -> None:
        """Look at the maps `[n, h, w]` of some probes `[n]` by all folds; `ranks` are their `unit_ranks`, where somebody has them."""
        pairs = list(combinations(sorted(maps), 2))
        if not pairs:
            return
        ranks = ranks or {f: unit_ranks(m) for f, m in maps.items()}
        rho = torch.stack([correlation(ranks[a], ranks[b]) for a, b in pairs])
        known = torch.where(torch.isfinite(rho), rho, math.inf)
        worst, at = known.min(0)
        tops = np.stack([np.packbits(highest(m).numpy(), axis=1) for m in maps.values()])
        self.samples.add(samples)
        self.alike.add(alike := self.all_right(samples))
        self.worst.add(torch.where(torch.isfinite(worst), worst, torch.nan))
        self.keep(samples, order(alike, worst), maps)
        self.folds.add(torch.tensor(pairs)[at])
        self.core.add(core(tops))
        for shift in range(1, min(SHIFTS, (len(samples) - 1) // max(1, len(maps) - 1)) + 1):
            self.chance.add(core(np.stack([np.roll(top, shift * n, axis=0) for n, top in enumerate(tops)])))

    def all_right(self, samples: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Whether all predictors say the same class, and the label where there is one."""
        said = torch.stack([p.of(samples) for p in self.ensemble.predictions.values()])
        label = self.ensemble.split.label(samples)
        return (said == said[0]).all(0) & ((label < 0) | (said[0] == label))

    def keep(self, samples: Tensor, places: Sequence[tuple[bool, float]], maps: Mapping[int, Tensor]) -> None:
        """Keep the maps `[n, h, w]` of the first cases of these and those before."""
        first = sorted(range(len(places)), key=places.__getitem__)[:WORST]
        first = [n for n in first if math.isfinite(places[n][1])]
        if first:
            of = small(torch.stack([m[first] for m in maps.values()]))
            self.kept += [(places[n], int(samples[n]), of[:, row]) for row, n in enumerate(first)]
            self.kept = sorted(self.kept, key=lambda case: case[0])[:WORST]

    @property
    def first_maps(self) -> dict[int, Float[Tensor, "k h w"]]:
        """All predictors' maps of the first cases, by sample, in order."""
        return {sample: maps for _, sample, maps in self.kept}

    @property
    def empty(self) -> bool:
        """Whether nothing was seen."""
        return not self.samples.data

    def shared(self, seed: int) -> tuple[Estimate, float]:
        """The mean core over probes, and that of maps of different probes (NaN of a single probe)."""
        return mean_estimate(self.core.tensor(), seed), float(self.chance.tensor().nanmean())


def order(alike: Bool[Tensor, "n"], worst: Float[Tensor, "n"]) -> list[tuple[bool, float]]:
    """What cases are sorted by: those with equal and right predictions first, then the smallest correlation."""
    known = worst.nan_to_num(math.inf, math.inf)
    return list(zip((~alike).tolist(), known.tolist(), strict=True))


def noise_of(ensemble: Ensemble, explainer: str, pairs: int) -> float:
    """What sampling noise alone would leave of the smallest of so many correlations, in all but 5 % of the probes; NaN where unknown.

    It rests on the signed correlations of two maps of the same predictor with different noise.
    """
    found = [correlation(unit_ranks(a), unit_ranks(b)) for _, _, a, b in ensemble.checked(explainer, REPEATED)]
    rho = torch.cat(found) if found else torch.zeros(0)
    rho = rho[torch.isfinite(rho)]
    return low_quantile(rho, ALPHA / pairs) if len(rho) else math.nan


def low_quantile(rho: Float[Tensor, "n"], share: float) -> float:
    """A quantile of correlations that may lie beyond the smallest of them.

    Below the lowest tenth, Fisher's z is taken to fall off exponentially, by as much as the tenth itself lies below its upper end on
    average (docs/statistics.md).
    """
    z = rho.clamp(-MOST, MOST).atanh()
    end = z.quantile(TAIL)
    excess = float((end - z[z <= end]).mean())
    return math.tanh(float(end) - excess * math.log(TAIL / share))


def cases(explainer: str, seen: Seen) -> list[dict[str, Any]]:
    """One row a probe: contradictions first, then others with equal and right predictions, the smallest correlation first; then the rest.

    `contradiction` is None where it is not known: nobody has explained with other noise.
    """
    ensemble = seen.ensemble
    reference = noise_of(ensemble, explainer, math.comb(len(ensemble.folds), 2))
    samples, worst, core = seen.samples.tensor(), seen.worst.tensor(), seen.core.tensor()
    pairs, split = seen.folds.tensor().view(-1, 2), ensemble.split
    prediction, label, alike = said_of(ensemble, samples), split.label(samples), seen.alike.tensor()
    places = order(alike, worst)
    found = alike & (worst < min(LIMIT, reference)) if math.isfinite(reference) else None
    return [
        {
            "probe": int(samples[n]),
            "explainer": explainer,
            "worst_rho": float(worst[n]),
            "fold_a": int(pairs[n, 0]),
            "fold_b": int(pairs[n, 1]),
            "core_share": float(core[n]),
            "prediction": int(prediction[n]),
            "label": int(label[n]),
            "contradiction": None if found is None else bool(found[n]),
            "reference": reference,
        }
        for n in sorted(range(len(samples)), key=places.__getitem__)
    ]


def said_of(ensemble: Ensemble, samples: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """What the predictor that never saw a sample says; where it is missing, what the first one does."""
    home = ensemble.split.fold(samples)
    out = next(iter(ensemble.predictions.values())).of(samples)
    for f, p in ensemble.predictions.items():
        out = torch.where(home == f, p.of(samples), out)
    return out


def case_table(rows: list[dict[str, Any]]) -> Table:
    """One row a probe and explainer, for files."""
    values = [[plain(row[c]) for c in COLUMNS] for row in rows]
    return Table([Column(c) for c in COLUMNS], values)


def plain(value: Any) -> Any:
    """A cell of a file: nothing where a number is undefined, words for what is true or false."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return ("no", "yes")[value] if isinstance(value, bool) else value


def draw_worst(
    ensemble: Ensemble, rows: list[dict[str, Any]], kept: Mapping[str, Mapping[int, Tensor]], folder: Path
) -> list[Path]:
    """The first cases of every explainer, all folds' maps side by side, as `cases/<explainer>.png`; `kept` are maps `[k, h, w]`."""
    known, out = {(row["explainer"], row["probe"]): row for row in rows}, []
    for name, of in kept.items():
        maps = torch.stack(list(of.values()), 1)
        columns = {f"fold {f}": m for f, m in zip(ensemble.folds, maps, strict=True)}
        shared = torch.stack([consensus(m) for m in of.values()])
        captions = [caption(known[name, sample]) for sample in of]
        title = f"{ensemble.root.name}, {name}: the probes whose maps differ most between folds"
        images = ensemble.thumbnails(torch.tensor(list(of)))
        out.append(draw.cases(images, captions, columns, shared, folder / f"{name}.png", title))
    return out


def caption(row: dict[str, Any]) -> str:
    """What stands beside a case."""
    says = (
        f"sample {row['probe']}\nlabel {row['label']}, said {row['prediction']}"
        if row["label"] >= 0
        else f"sample {row['probe']}"
    )
    return f"{says}\nrho {row['worst_rho']:.2f} (f{row['fold_a']}, f{row['fold_b']})" + (
        "\ncontradiction" if row["contradiction"] else ""
    )

"""What the page of an audit shows beside the table: slices of the probes, costs, the stability plane, histograms."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai import explainers
from lit_xai.core import Explainer, Passes
from lit_xai.errors import UsageError
from lit_xai.metrics.calibration import calibration_error, reliability
from lit_xai.metrics.measures import MEASURES
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.page import plane as points_of_plane
from lit_xai.report.summary import Summary, class_of
from lit_xai.store.names import DOMAIN, HELD_OUT, NOISE

BINS = 24  # of a histogram
CLASSES = 20  # most classes that are slices of their own: those with most probes
RESAMPLES = 500  # of a slice
QUARTERS = ("least sure quarter", "second quarter", "third quarter", "surest quarter")


def short(e: Estimate) -> dict[str, Any]:
    """A slice's number, JSON-ready."""
    return {k: v for k, v in e.plain().items() if k in ("value", "low", "high", "samples", "reason")}


def slices(ensemble: Ensemble, summary: Summary, classes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every score of every explainer on parts of the probes: `{by, slice, n, scores: {column: {explainer: number}}}`.

    Right, wrong and how sure is what the predictor says that never saw the probe.
    """
    out: list[dict[str, Any]] = []
    values: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}  # by column and explainer: samples and values
    for row in summary.rows:
        samples = summary.probes[row.explainer]
        for column, e in row.estimates.items():
            if column not in MEASURES and len(e.each) == len(samples):
                values.setdefault(column, {})[row.explainer] = samples, e.each
    most = max((s for of in values.values() for s, _ in of.values()), key=len, default=torch.zeros(0, dtype=torch.long))
    for (by, name), inside in parts(ensemble, most, classes).items():
        scores: dict[str, dict[str, Any]] = {}
        for column, of in values.items():
            for explainer, (samples, each) in of.items():
                here = each[torch.isin(samples, inside)]
                if len(here):
                    e = mean_estimate(here, ensemble.seed, RESAMPLES)
                    scores.setdefault(column, {})[explainer] = short(e)
        out.append({"by": by, "slice": name, "n": len(inside), "scores": scores})
    return out


def parts(ensemble: Ensemble, samples: Int[Tensor, "p"], classes: Sequence[str] = ()) -> dict[tuple[str, str], Tensor]:
    """The samples of every slice, `{(by, name): samples}`; empty slices are left out."""
    split, out = ensemble.split, {}
    place, home = torch.searchsorted(split.samples, samples), split.fold(samples)
    labels = split.labels[place]
    right, sure = torch.zeros(len(samples), dtype=torch.bool), torch.zeros(len(samples))
    for f, p in ensemble.predictions.items():
        right = torch.where(home == f, p.right(samples), right)
        sure = torch.where(home == f, p.confidence[place].float(), sure)
    known = torch.isin(home, torch.tensor(ensemble.folds))  # by whose own predictor there is
    for f in ensemble.folds:
        out["fold", f"fold {f}"] = samples[home == f]
    if len(labels) and bool((labels >= 0).all()):
        out["prediction", "right"], out["prediction", "wrong"] = samples[known & right], samples[known & ~right]
        number = torch.bincount(labels)
        for c in sorted(number.argsort(descending=True)[:CLASSES].tolist()):
            out["class", classes[c] if c < len(classes) else f"class {c}"] = samples[labels == c]
    for name, quarter in zip(QUARTERS, samples[known][sure[known].argsort(stable=True)].chunk(4), strict=False):
        out["confidence", name] = quarter.sort().values
    return {key: inside for key, inside in out.items() if len(inside)}


# --------------------------------------------------------------------------------------------- what predictors know


def calibration(ensemble: Ensemble) -> dict[int, dict[str, Any]]:
    """By fold: the expected calibration error on V_i, its null, the reliability of every bin, and the predictor's temperature."""
    out = {}
    for f, p in ensemble.predictions.items():
        own = p.split.fold_of == f
        if bool(own.any()) and bool((p.split.labels >= 0).all()):
            e = calibration_error(p.confidence[own], p.correct[own], ensemble.seed)
            found = {"error": {**short(e), "null": e.null}, "bins": reliability(p.confidence[own], p.correct[own])}
            out[f] = {**found, "temperature": p.meta.get("temperature")}
    return out


def domain(ensemble: Ensemble) -> dict[str, dict[str, Any]]:
    """Of every score: how far the images lie that it shows the networks, and whether they were trained on such.

    `distance` is the squared Mahalanobis distance in units of the held-out images' mean of the same fold (1 = as far as they),
    `beyond` the share that lies farther than 95 of 100 held-out images (.05 = as they); both with 95 % intervals over probes.
    Two further rows: `held out`, those themselves, and `noise`, images of uniform noise.
    """
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for f in ensemble.folds:
        with contextlib.suppress(OSError, KeyError, ValueError, csv.Error):  # absent, or not as we write it
            with open(ensemble.stores[f].root / DOMAIN, newline="") as file:
                there = [
                    (r["shown_by"], float(r["mahalanobis"]), float(r["beyond"]), r["trained_on"])
                    for r in csv.DictReader(file)
                    if r["checkpoint"] == ensemble.predictions[f].meta["checkpoint"]  # of these weights
                ]
            own = [d for name, d, _, _ in there if name == HELD_OUT]
            for name, d, share, said in there if own else ():
                rows.setdefault(name, []).append((d * len(own) / sum(own), share, said))
    out = {}
    for name in sorted(rows, key=lambda n: (n in (HELD_OUT, NOISE), n)):
        far, past, trained = zip(*rows[name], strict=True)
        values = {"distance": far, "beyond": past}
        known = {k: short(mean_estimate(torch.tensor(v), ensemble.seed, RESAMPLES)) for k, v in values.items()}
        out[name] = {**known, "trained_on": None if name in (HELD_OUT, NOISE) else set(trained) == {"yes"}}
    return out


# --------------------------------------------------------------------------------------------------------------- costs


def passes_of(described: Mapping[str, Any], height: int, width: int) -> Passes | None:
    """What one map costs, from an explainer's description; None of one that is not ours or cannot be made of it."""
    kind = class_of(explainers, described)
    if kind is None:
        return None
    known = {f.name for f in fields(kind) if f.init}  # type: ignore[arg-type]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in described.items() if not isinstance(v, Mapping)}
    try:
        made = kind(**{k: v for k, v in given.items() if k in known})
        return Passes(*map(int, made.passes(height, width))) if isinstance(made, Explainer) else None
    except (TypeError, ValueError, ArithmeticError, AttributeError, UsageError):  # a file may say anything
        return None


def costs(
    ensemble: Ensemble, summary: Summary, seconds: tuple[float, float] | None = None
) -> dict[str, dict[str, Any]]:
    """What one map of every explainer costs: model passes, and what they take where the seconds of one of each are known."""
    out = {}
    for name, described in summary.definitions["explainers"].items():
        reader = next(iter(ensemble.readers(name).values()))
        height, width = reader.rows(reader.samples[:1]).shape[-2:]
        passes = passes_of(described, height, width)
        took = None if passes is None or seconds is None else sum(n * s for n, s in zip(passes, seconds, strict=True))
        out[name] = {**(passes._asdict() if passes else {"forward": None, "backward": None}), "seconds": took}
    return out


def leaderboard(
    summary: Summary,
    judged: Mapping[str, str],
    standing: Mapping[str, tuple[int, ...]],
    cost: Mapping[str, Any],
    column: str,
) -> list[dict[str, Any]]:
    """Methods by their standing and rank: rank sets, cost, and whether none is at once cheaper and better at `column`."""
    rows = [row for row in summary.rows if row.explainer in judged]
    points = {
        row.explainer: (
            cost[row.explainer]["forward"] + cost[row.explainer]["backward"],
            value_of(summary, row, column),
        )
        for row in rows
        if cost[row.explainer]["forward"] is not None and column in row.estimates
    }
    points = {name: (passes, value) for name, (passes, value) in points.items() if math.isfinite(value)}
    out = []
    for row in rows:
        own = points.get(row.explainer)
        beaten = own is not None and any(p <= own[0] and v >= own[1] and (p, v) != own for p, v in points.values())
        out.append(
            {
                "explainer": row.explainer,
                "overall": judged[row.explainer],
                "ranks": {c: list(r) for c, r in row.ranks.items()},
                "cost": dict(cost[row.explainer]),
                "front": own is not None and not beaten,
            }
        )
    return sorted(out, key=lambda r: (standing[r["explainer"]], middle(r["ranks"])))


def value_of(summary: Summary, row: Any, column: str) -> float:
    """A value, larger = better."""
    return float(row.estimates[column].value) * (1 if summary.columns[column] else -1)


def middle(ranks: Mapping[str, Sequence[int]]) -> float:
    """The mean middle of sets of ranks; those without any are last."""
    return sum((first + last) / 2 for first, last in ranks.values()) / len(ranks) if ranks else math.inf


# ------------------------------------------------------------------------------------------------------------- pictures


def plane(summary: Summary) -> list[dict[str, Any]]:
    """The stability plane: across 1 - sanity, up MeGe, both with intervals; explainers that have both."""
    out = []
    for name, (sanity, mege) in points_of_plane(summary).items():
        x = {"value": 1 - sanity.value, "low": 1 - sanity.high, "high": 1 - sanity.low}
        y = {"value": mege.value, "low": mege.low, "high": mege.high}
        point = {axis: {k: None if math.isnan(v) else v for k, v in e.items()} for axis, e in (("x", x), ("y", y))}
        out.append({"explainer": name, "null": name in summary.nulls, **point})
    return out


def histogram(values: Float[Tensor, "n"], top: float) -> list[int]:
    """How many values fall into each of `BINS` equal bins of [0, top]."""
    known = values[values.isfinite()].double().clamp(0, top)
    return [int(n) for n in torch.histc(known, BINS, 0.0, top)] if len(known) else [0] * BINS


def distances(summary: Summary) -> dict[str, dict[str, Any]]:
    """Histograms of S_equal and S_differ of every explainer, over the same range."""
    most = [float(v.max()) for sets in summary.distances.values() for v in sets if len(v)]
    top = max([1.0, *(m for m in most if math.isfinite(m))])
    return {
        name: {"top": top, "equal": histogram(equal, top), "differ": histogram(differ, top)}
        for name, (equal, differ) in summary.distances.items()
        if len(equal) or len(differ)
    }

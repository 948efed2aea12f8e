"""What the numbers of an experiment rest on: folds, accuracy, versions of the code, and why not to trust them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from lit_xai.errors import DamagedFile
from lit_xai.metrics.statistics import Estimate, share_estimate
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.shortcut import planted_in
from lit_xai.store.fold import Predictions
from lit_xai.store.names import KINDS
from lit_xai.store.shards import Said, read_head

MAX_SPREAD = 0.03  # beyond it, accuracies of the folds are not comparable (Fel et al., 4.1)


def accuracy_of(p: Predictions) -> Estimate | None:
    """A predictor's accuracy on V_i, whose null is the share of the most frequent class; None without labels."""
    labels = p.split.labels
    if not len(labels) or bool((labels < 0).any()):
        return None
    return share_estimate(p.held_out, float(torch.bincount(labels).max() / len(labels)))


def untaught(predictions: Mapping[int, Predictions]) -> list[str]:
    """Why explanations of these predictors are worth nothing, by fold: no better than chance, or an infinite loss."""
    out = []
    accuracy = {f: a for f, p in predictions.items() if (a := accuracy_of(p)) is not None}
    poor = {f: a for f, a in accuracy.items() if a.null is not None and a.low <= a.null}  # NaN: of too few samples
    if poor:
        found = ", ".join(f"fold {f} {percent(a.value, a.low, a.high)}" for f, a in poor.items())
        chance = 100 * max(a.null or 0.0 for a in poor.values())
        out.append(
            f"no better than chance: held-out accuracy % of {found}; the most frequent class alone has {chance:.1f}"
        )
    lost = [str(f) for f, p in predictions.items() if p.meta.get("loss", 0.0) is None]
    if lost:
        out.append(f"the loss is not finite in fold {', '.join(lost)}: a held-out image's own class has probability 0")
    return out


def percent(value: float, low: float | None, high: float | None) -> str:
    """A share in percent with its interval, where it has one."""
    bounds = "" if low is None or high is None or math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{bounds}"


def versions(ensemble: Ensemble) -> list[dict[str, Any]]:
    """Which versions of the code computed predictions and shards of which folds."""
    seen: dict[tuple[str, str], set[int]] = {}
    for f in ensemble.folds:
        store, meta = ensemble.stores[f], ensemble.predictions[f].meta
        made = {(str(meta.get("version", "")), str(meta.get("code", "")))}
        for kind in KINDS:
            for path in (p for e in store.explainers(kind) for p in store.shards(kind, e)):
                with contextlib.suppress(DamagedFile):  # refused when it is read, if it is
                    made.update((ensemble.said.get(path) or Said.of(read_head(path))).made_by)
        for code in made:
            seen.setdefault(code, set()).add(f)
    return [{"version": v, "code": c, "folds": sorted(folds)} for (v, c), folds in sorted(seen.items())]


def head(ensemble: Ensemble) -> dict[str, Any]:
    """What the numbers rest on."""
    accuracy = {f: a for f, p in ensemble.predictions.items() if (a := accuracy_of(p)) is not None}
    values = [a.value for a in accuracy.values()]
    spread = max(values) - min(values) if values else None
    alarms = untaught(ensemble.predictions)
    warnings = []
    if spread is not None and spread > MAX_SPREAD:
        warnings.append(f"held-out accuracy differs by {100 * spread:.1f} points between folds: more than 3")
    made_by = versions(ensemble)
    if len(made_by) > 1:
        of = [f"{v['version']} {v['code']} in fold {', '.join(map(str, v['folds']))}" for v in made_by]
        warnings.append(f"computed by {len(made_by)} versions of the code ({'; '.join(of)})")
    meta = ensemble.predictions[ensemble.folds[0]].meta
    return {
        "name": ensemble.root.name,
        "data": meta.get("data"),
        "content": meta.get("content"),
        "samples": len(ensemble.split.samples),
        "folds": ensemble.split.k,
        "folds_present": ensemble.folds,
        "split_seed": ensemble.split.seed,
        "target": ensemble.target,
        "held_out_accuracy": {f: a.plain() for f, a in accuracy.items()},
        "accuracy_spread": spread,
        "planted": planted_in(ensemble),
        "held_out_loss": {f: p.meta["loss"] for f, p in ensemble.predictions.items() if "loss" in p.meta},
        "empirical_lipschitz": {f: ensemble.predictions[f].meta.get("lipschitz") for f in ensemble.folds},
        "versions": made_by,
        "alarms": alarms,
        "warnings": [*alarms, *warnings],
    }

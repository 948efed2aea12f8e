"""What docs/deeper.md shows: scores in the network's domain, and what calibration changes.

python docs/deeper.py in_domain checkpoints/shapes-resnet18 checkpoints/shapes-resnet18-hide=mean
python docs/deeper.py calibration checkpoints/digits-resnet18-calibrated checkpoints/digits-lipschitz-calibrated

The folds are trained first, all with fold=0 explain=false: train data=shapes data.size=32 trainer.max_epochs=20 [hide=mean], and
train data=digits model=resnet18|lipschitz calibrate=true.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lit_xai.callbacks.fillers import held_out_order
from lit_xai.callbacks.samplers import fit_mahalanobis
from lit_xai.cli.build import read_config
from lit_xai.cli.compose import compose
from lit_xai.cli.offered import refuse_other_code
from lit_xai.cli.run import Run
from lit_xai.cli.saved import SETTING
from lit_xai.core import Score
from lit_xai.explainers import GradCAM, IntegratedGradients, Lime
from lit_xai.fillers import BlurOrMean, Hiding
from lit_xai.metrics import (
    Deletion,
    InDomainDeletion,
    InDomainInsertion,
    InDomainMuFidelity,
    Insertion,
    MuFidelity,
    map_distance,
)
from lit_xai.metrics.calibration import calibration_error
from lit_xai.metrics.statistics import Estimate, difference, mean_estimate
from lit_xai.models.lipschitz import Temperature, temperature_of, without_temperature
from lit_xai.quality.domain import Known
from lit_xai.report.table import Column, Table
from lit_xai.rng import SampleRng, stable_hash
from torch import Tensor, nn

BATCH = 20
NOISE = (0.0, 0.5, 1.0, 2.0, 4.0)  # the ladder: noise in units of a map's own standard deviation
POINTS = 8  # about so many of a curve
COARSE = 8  # a side of the noise, which is enlarged to the map
EXPLAINERS = {
    "gradcam": GradCAM(),
    "integrated_gradients": IntegratedGradients(steps=16),
}


def fold_of(folder: Path, fold: int) -> Run:
    """The run that trained a predictor, from the configuration in its folder."""
    from omegaconf import OmegaConf

    saved = read_config(file := folder / f"fold={fold}" / "config.yaml")
    refuse_other_code(saved, file, ("data", "model", "trainer"))
    cfg: Any = compose("explain", ["explainer=[]", "score=[]"])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    cfg.update({k: saved[k] for k in (*SETTING, "trainer") if k in saved})
    cfg.update({"fold": fold, "name": folder.name, "root": str(folder.parent)})
    return Run(cfg, "explain")


def cell(e: Estimate) -> str:
    """A number with its interval."""
    return e.text()


# ------------------------------------------------------------------------------------------------------------ in domain


PAIRS = ("deletion", "insertion", "mufidelity")


def plain_scores(subsets: int, pixels: int) -> dict[str, Score]:
    """Those that every network has."""
    walk: Any = {"step": max(1, pixels // (2 * POINTS))}
    return {
        "deletion": Deletion(**walk),
        "insertion": Insertion(filler=BlurOrMean(), **walk),
        "mufidelity": MuFidelity(subsets=subsets, grid=7),
    }


def own_scores(hiding: Hiding, subsets: int) -> dict[str, Score]:
    """Those in the domain of a network that was trained with parts hidden, with as many points."""
    hides: Any = {"filler": hiding.filler, "cells": hiding.cells}
    walk: Any = {"step": max(1, hiding.cells**2 // (2 * POINTS)), **hides}
    return {
        "deletion": InDomainDeletion(**walk),
        "insertion": InDomainInsertion(**walk),
        "mufidelity": InDomainMuFidelity(subsets=subsets, **hides),
    }


def ladder(maps: Tensor, rng: SampleRng) -> list[Tensor]:
    """The maps with growing noise of `COARSE` x `COARSE` blobs: level by level worse, by construction."""
    coarse = rng.noise("ladder").normal((1, COARSE, COARSE))
    noise = nn.functional.interpolate(coarse, size=maps.shape[-2:], mode="bilinear")[:, 0]
    noise = noise / noise.flatten(1).std(1)[:, None, None] * maps.flatten(1).std(1)[:, None, None]
    return [maps + level * noise for level in NOISE]


def ranked_right(values: Tensor, up: bool) -> Tensor:
    """The share of the ten pairs of levels of every image, `[l, b] -> [b]`, that a score ranks right; ties count half."""
    v = values if up else -values
    pairs = [(a, b) for a in range(len(v)) for b in range(a + 1, len(v))]
    return torch.stack([(v[a] > v[b]).double() + 0.5 * (v[a] == v[b]).double() for a, b in pairs]).mean(0)


def judged(run: Run, samples: Tensor, scores: Mapping[str, Score]) -> dict[tuple[str, str], Tensor]:
    """By score and explainer, the share of pairs of the ladder that it ranks right, `[images]`."""
    model, data = run.load().predictor(), run.data  # type: ignore[operator]
    fitted = {n: s.fitted(data.trained_on) for n, s in scores.items()}
    out: dict[tuple[str, str], list[Tensor]] = {}
    for part in samples.split(BATCH):
        images, rng = data.source.train.images(part.tolist()), SampleRng(run.cfg.seed, tuple(part.tolist()))
        with torch.no_grad():
            targets = model(images).argmax(1)
        rungs = {n: ladder(e.fitted(data.trained_on)(model, images, targets, rng), rng) for n, e in EXPLAINERS.items()}
        rungs["object"] = ladder(data.source.truth.masks("object", part.tolist()).float(), rng)  # type: ignore[union-attr]
        for n, score in fitted.items():
            seen = score.observe(model, images, targets, rng)
            for explainer, maps in rungs.items():
                values = torch.stack([score(model, images, m, targets, rng, seen) for m in maps]).double()
                out.setdefault((n, explainer), []).append(ranked_right(values, score.higher_is_better))
    return {key: torch.cat(parts) for key, parts in out.items()}


def distances(run: Run, samples: Tensor, hiding: Hiding, draws: int = 4) -> Tensor:
    """How far images with hidden cells lie from what a network knows, in units of the same images untouched, `[images]`."""
    model, data = run.load().predictor(), run.data  # type: ignore[operator]
    score = fit_mahalanobis(model, data, data.split.training(data.fold), torch.device("cpu"))
    images = data.source.train.images(samples.tolist())
    known = Known(score, score_of(score, model, images))
    far = []
    for epoch in range(draws * 4):  # of every image about half of the draws hide nothing
        shown = hiding.fitted(data.trained_on).shown(images, stable_hash(run.cfg.seed, "seen"), epoch)
        hides = (shown != images).flatten(1).any(1)
        far.append(torch.where(hides, known.distance(model, shown), math.nan))
    return torch.stack(far).nanmean(0) / known.held_out.mean()


def score_of(score: Any, model: nn.Module, images: Tensor) -> Tensor:
    """The Mahalanobis score of untouched images."""
    return Known(score, torch.empty(0)).distance(model, images)


def in_domain(plain: Path, hidden: Path, fold: int, number: int, subsets: int) -> list[Table]:
    """How far hidden images lie for both networks, and which scores rank a ladder of degraded maps right."""
    runs = {"trained on whole images": fold_of(plain, fold), "trained with hide=": fold_of(hidden, fold)}
    hiding = runs["trained with hide="].hiding
    if hiding is None:
        raise SystemExit(f"{hidden} was not trained with hide=: train it by python -m lit_xai.train hide=mean")
    samples = held_out_order(runs["trained on whole images"].data, 0)[:number]
    far = {name: mean_estimate(distances(run, samples, hiding)) for name, run in runs.items()}
    rows: list[list[Any]] = [[name, cell(e)] for name, e in far.items()]
    rows.append(["difference", cell(difference(*reversed(far.values())))])
    title = f"hidden images: squared Mahalanobis distance, 1 = the same {len(samples)} held-out images untouched"
    tables = [Table([Column("network"), Column("distance")], rows, title)]
    first, second = runs.values()
    pixels = first.data.source.shape[1] * first.data.source.shape[2]
    whole, own = (
        judged(first, samples, plain_scores(subsets, pixels)),
        judged(second, samples, own_scores(hiding, subsets)),
    )
    rows = []
    for explainer in (*EXPLAINERS, "object"):
        for score in PAIRS:
            a, b = (mean_estimate(of[score, explainer]) for of in (whole, own))
            rows.append([explainer, score, cell(a), cell(b), cell(difference(b, a))])
    a, b = (mean_estimate(torch.stack(list(of.values())).mean(0)) for of in (whole, own))
    rows.append(["all", "all", cell(a), cell(b), cell(difference(b, a))])
    title = (
        f"share of the pairs of {len(NOISE)} levels (a map with noise of {', '.join(map(str, NOISE))} of its own standard deviation) that "
        f"a score ranks right; {len(samples)} held-out probes, .5 = by chance"
    )
    heads = ("explainer", "score", "plain score, plain network", "in_domain/, network of hide=", "difference")
    return [*tables, Table([Column(n) for n in heads], rows, title)]


# ---------------------------------------------------------------------------------------------------------- calibration


def at(model: nn.Module, tau: float) -> nn.Module:
    """The predictor with another temperature."""
    network = without_temperature(model)
    return nn.Sequential(*(network if isinstance(network, nn.Sequential) else [model]), Temperature(tau)).eval()


def calibration(folders: Sequence[Path], fold: int, number: int) -> list[Table]:
    """Expected calibration error on V_i, deletion, insertion and LIME before and after, for every network."""
    rows: list[list[Any]] = []
    for folder in folders:
        run = fold_of(folder, fold)
        module: Any = run.load()
        if module.calibration is None:
            raise SystemExit(f"{folder} is not calibrated: train it by python -m lit_xai.train calibrate=true")
        whole, data = module.predictor(), run.data
        after = temperature_of(whole)
        models = {"before": at(whole, after / float(module.calibration)), "after": whole}
        images, labels = data.source.train.images(data.held_out.tolist()), data.split.label(data.held_out)
        with torch.no_grad():
            said = {when: m(images).double().softmax(1) for when, m in models.items()}
        assert torch.equal(*(p.argmax(1) for p in said.values())), "a positive factor changes no argmax"
        samples = held_out_order(data, 0)[:number]
        found = {when: changed(m, run, samples) for when, m in models.items()}
        for when, p in said.items():
            e = calibration_error(p.max(1).values, p.argmax(1) == labels)
            errors = f"{cell(e)} /{e.null:.3f}", f"{float(nn.functional.nll_loss(p.log(), labels)):.4f}"
            walks = [cell(mean_estimate(found[when][n])) for n in ("deletion", "insertion", "LIME R²")]
            rows.append([folder.name, when, f"{temperature_of(models[when]):.2f}", *errors, *walks, ""])
        alike = 1 - map_distance(found["before"]["LIME"], found["after"]["LIME"])
        rows[-1][-1] = cell(mean_estimate(alike.double()))
    columns = (
        "network",
        "",
        "temperature",
        "calibration error /null",
        "cross-entropy",
        "deletion ↓",
        "insertion ↑",
        "LIME R²",
    )
    title = (
        f"before and after calibration: error on all of V_{fold}, the rest on {number} held-out images, for the predicted class; "
        "last, the rank correlation of LIME's maps before and after"
    )
    return [Table([*map(Column, columns), Column("LIME, before and after")], rows, title)]


def changed(model: nn.Module, run: Run, samples: Tensor) -> dict[str, Tensor]:
    """Deletion and insertion of Integrated Gradients of the logits, LIME's maps of the probability and their R²."""
    on, out = run.data.trained_on, {}
    scores: dict[str, Score] = {
        "deletion": Deletion().fitted(on),
        "insertion": Insertion(filler=BlurOrMean()).fitted(on),
    }
    lime = Lime(samples=300, output="probability").fitted(on)
    parts: dict[str, list[Tensor]] = {}
    for some in samples.split(BATCH):
        images, rng = run.data.source.train.images(some.tolist()), SampleRng(run.cfg.seed, tuple(some.tolist()))
        with torch.no_grad():
            targets = model(images).argmax(1)
        maps = IntegratedGradients(steps=16)(model, images, targets, rng)
        for n, score in scores.items():
            parts.setdefault(n, []).append(score(model, images, maps, targets, rng))
        found, details = lime.with_details(model, images, targets, rng)
        parts.setdefault("LIME", []).append(found)
        parts.setdefault("LIME R²", []).append(details["r2"])
    out = {n: torch.cat(p).double() for n, p in parts.items()}
    return out


def main() -> None:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("in_domain", "calibration"))
    parser.add_argument("folders", type=Path, nargs="+", help="checkpoints/<name> of trained classifiers")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--images", type=int, default=200, help="held-out images")
    parser.add_argument("--subsets", type=int, default=200, help="of muFidelity")
    options = parser.parse_args()
    if options.what == "in_domain":
        tables = in_domain(*options.folders, options.fold, options.images, options.subsets)
    else:
        tables = calibration(options.folders, options.fold, options.images)
    for table in tables:
        table.show()


if __name__ == "__main__":
    main()

"""Sanity checks: does a map change when the model forgets what it learned?

Adebayo et al., "Sanity Checks for Saliency Maps" (2018). The layers of a trained model are re-initialised, from the
logits down (`cascading`, section 3.1) or one at a time (`independent`, section 3.2), and every stage's maps are
compared with the trained model's. A method whose maps stay alike explains the image, not the model. Maps of two
models, one of them trained on permuted labels, are compared in the same way (section 4, `compare_models`).

The targets, and the noise of methods that sample, are the same for every model: agreement that comes from a method's
masks alone counts as agreement. Whether a map is still alike is one question, whether anything is left of it another: a
map that vanishes may keep its ranks, so `magnitude` stands beside the similarities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from lit_xai.calls import admit, evaluating, select_output
from lit_xai.core import Images, Maps, Model, Scores, Targets
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import correlation, scaled_to_one, ssim, unit_ranks
from lit_xai.metrics.statistics import RESAMPLES, Estimate, finish, mean_estimate, resamples
from lit_xai.models.randomise import Layer, find_layers, randomised
from lit_xai.rng import SampleRng

HOW = ("cascading", "independent")
MODELS = "models"  # the `how` of two models that were trained, not re-initialised
MEASURES = ("spearman", "spearman_abs", "ssim", "magnitude", "probability")


def plan(layers: tuple[Layer, ...], how: str, stages: int | None = None) -> list[tuple[Layer, ...]]:
    """Which layers every stage re-initialises, the newest one last.

    Args:
        layers: in order of execution, as `find_layers` gives them.
        how: `cascading`, every stage re-initialises more of the last layers; `independent`, one layer each, from the
            last to the first.
        stages: at most so many, evenly spaced, the first (the last layer alone) and the last (all layers; the first
            layer alone) among them; 1 is the last one. None takes a stage for every layer.

    Raises:
        UsageError: an unknown `how`, fewer than one stage.
    """
    if how not in HOW:
        raise UsageError(f"how must be one of {', '.join(HOW)}, found {how!r}")
    if stages is not None and stages < 1:
        raise UsageError(f"stages must be at least 1, or None for one a layer, found {stages}")
    downwards, last = layers[::-1], len(layers) - 1
    number = min(stages or len(layers), len(layers))
    at = [last] if number == 1 else [round(t * last / (number - 1)) for t in range(number)]
    return [downwards[: t + 1] if how == "cascading" else (downwards[t],) for t in at]


# ----------------------------------------------------------------------------------------------------------- similarity


@dataclass(frozen=True)
class Similarity:
    """How alike two maps of every image are, float64, NaN where that is undefined.

    Attributes:
        spearman: signed rank correlation, average ranks for ties; in [-1, 1].
        spearman_abs: the same of |map|.
        ssim: structural similarity of the maps divided by their own max |map|, data range 2, window 5; in [-1, 1].
        before, after: the mean |map| of the first and of the second map, in the map's own unit.
    """

    spearman: Scores
    spearman_abs: Scores
    ssim: Scores
    before: Scores
    after: Scores

    @property
    def undefined(self) -> int:
        """Images for which at least one of the three similarities is undefined."""
        return int(torch.isnan(self.spearman + self.spearman_abs + self.ssim).sum())


def compare(maps: Maps, others: Maps) -> Similarity:
    """How alike two maps of every image are.

    A constant map has no rank order and nothing to see: its similarities are NaN, and its mean |map| is not. Of a map
    with a NaN or infinite value both are NaN.

    Raises:
        UsageError: maps of different shapes, or of fewer than 5 pixels a side.
    """
    if maps.shape != others.shape:
        raise UsageError(f"maps to compare have shapes {tuple(maps.shape)} and {tuple(others.shape)}: they must agree")
    a, b = maps.double(), others.double()
    finite = [torch.isfinite(m).flatten(1).all(1) for m in (a, b)]
    a, b = (torch.where(f[:, None, None], m, 0.0) for f, m in zip(finite, (a, b), strict=True))
    varies = (a.amax((-2, -1)) > a.amin((-2, -1))) & (b.amax((-2, -1)) > b.amin((-2, -1)))
    before, after = (torch.where(f, m.abs().mean((-2, -1)), nan) for f, m in zip(finite, (a, b), strict=True))
    return Similarity(
        correlation(unit_ranks(a), unit_ranks(b)),
        correlation(unit_ranks(a.abs()), unit_ranks(b.abs())),
        torch.where(varies, ssim(scaled_to_one(a), scaled_to_one(b)), nan),
        before,
        after,
    )


def ratio_of_means(
    above: Float[Tensor, "n"], below: Float[Tensor, "n"], seed: int = 0, n_resamples: int = RESAMPLES
) -> Estimate:
    """mean(above) / mean(below) over samples, with a percentile bootstrap interval that resamples the pairs.

    The mean of the samples' own ratios would be ruled by those whose `below` is next to nothing. Samples where either
    is NaN are left out of both means; NaN where `below` is nothing at all.
    """
    above, below = above.double(), below.double()
    known = torch.isfinite(above) & torch.isfinite(below)
    dropped = int((~known).sum())
    a, b = (torch.where(known, x, 0.0) for x in (above, below))
    if float(b.sum()) == 0:
        reason = "nothing to relate to: the denominator is 0" if known.any() else "undefined for every sample"
        return Estimate(nan, samples=int(known.sum()), dropped=dropped, reason=reason)
    strata = torch.zeros(len(a), dtype=torch.long)
    draws = torch.cat([(counts @ a) / (counts @ b) for counts in resamples(strata, n_resamples, seed)])
    reason = f"undefined for {dropped} of {len(a)} samples" if dropped else ""
    return finish(float(a.sum() / b.sum()), draws, samples=int(known.sum()), dropped=dropped, reason=reason)


# ---------------------------------------------------------------------------------------------------------------- check


class Stage(NamedTuple):
    """A model beside the trained one: the layer re-initialised last, and how many are by now."""

    layer: str
    layers: int


@dataclass(frozen=True)
class Sanity:
    """The maps of changed models beside those of the trained one.

    Attributes:
        how: `cascading`, `independent`, or `models` for two models.
        stages: the changed models, s of them.
        similarity: `{explainer: [one Similarity per stage]}`; `before` is the trained model's.
        trained: p(target) of the trained model.
        probability: p(target) of every stage's model.
        maps: `{explainer: [1 + s, shown, h, w]}`, the first images' maps; the trained model's come first.
    """

    how: str
    stages: tuple[Stage, ...]
    similarity: dict[str, list[Similarity]]
    trained: Float[Tensor, "b"]
    probability: Float[Tensor, "s b"]
    maps: dict[str, Float[Tensor, "_ _ _ _"]]


@dataclass(frozen=True)
class Batch:
    """What every model is asked about, and how many images at once."""

    images: Images
    targets: Targets
    rng: SampleRng
    size: int

    def rows(self) -> Iterable[list[int]]:
        """The rows of every call."""
        n = len(self.images)
        return (list(range(start, min(start + self.size, n))) for start in range(0, n, self.size))

    def explain(self, name: str, explainer: Callable[..., Maps], model: Model, bar: tqdm) -> Maps:
        """The maps of all images, on the CPU."""
        maps = []
        for rows in self.rows():
            found = explainer(model, self.images[rows], self.targets[rows], self.rng.take(rows))
            expected = (len(rows), *self.images.shape[-2:])
            if tuple(found.shape) != expected:
                raise UsageError(f"the explainer {name} must return maps {expected}, found {tuple(found.shape)}")
            maps.append(found.detach().cpu())
            bar.update(len(rows))
        return torch.cat(maps)

    def probability(self, model: Model) -> Float[Tensor, "b"]:
        """p(target) of every image, float64 on the CPU."""
        out, (gate, images, _) = [], admit(model, self.images, self.targets)
        with torch.no_grad(), evaluating(gate):
            for rows in self.rows():
                logits = gate(images[rows]).double()
                out.append(select_output(logits, self.targets[rows], "probability").cpu())
        return torch.cat(out)


def checked(
    model: Model,
    images: Images,
    targets: Targets,
    explainers: Mapping[str, Callable[..., Maps]],
    rng: SampleRng | None,
    batch_size: int,
) -> Batch:
    """The batch, once nothing about it can be refused."""
    targets = admit(model, images, targets)[2]
    if not explainers:
        raise UsageError("a sanity check needs explainers, found none: pass {name: explainer}")
    if len(images) == 0:
        raise UsageError("a sanity check needs images, found none: pass at least one")
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, found {batch_size}")
    return Batch(images, targets, SampleRng.default(len(images), rng), batch_size)


def against(
    model: Model,
    others: Iterable[Model],
    stages: tuple[Stage, ...],
    how: str,
    batch: Batch,
    explainers: Mapping[str, Callable[..., Maps]],
    progress: bool,
    shown: int,
) -> Sanity:
    """The maps of every other model, each made when its turn comes, beside those of `model`."""
    total = (1 + len(stages)) * len(explainers) * len(batch.images)
    similarity: dict[str, list[Similarity]] = {name: [] for name in explainers}
    probability = []
    with tqdm(total=total, desc=how, unit="map", disable=not progress, dynamic_ncols=True) as bar:
        trained = batch.probability(model)
        before = {name: batch.explain(name, explainer, model, bar) for name, explainer in explainers.items()}
        pictures = {name: [maps[:shown]] for name, maps in before.items()}
        for other in others:
            probability.append(batch.probability(other))
            for name, explainer in explainers.items():
                maps = batch.explain(name, explainer, other, bar)
                parts = [compare(before[name][rows], maps[rows]) for rows in batch.rows()]  # bounds memory
                values = zip(*(vars(part).values() for part in parts), strict=True)
                similarity[name].append(Similarity(*(torch.cat(column) for column in values)))
                pictures[name].append(maps[:shown])
    kept = {name: torch.stack(maps) for name, maps in pictures.items()}
    return Sanity(how, stages, similarity, trained, torch.stack(probability), kept)


def sanity(
    model: Model,
    images: Images,
    targets: Targets,
    explainers: Mapping[str, Callable[..., Maps]],
    rng: SampleRng | None = None,
    how: str = "cascading",
    stages: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
    shown: int = 2,
) -> Sanity:
    """Re-initialise the layers of a model step by step and compare the maps (Adebayo et al., 2018, section 3).

    An explainer is called on copies of the model, in evaluation mode, and gradients are as the caller has them. The
    Random control draws its noise from the model's first and last parameter: under `independent` it changes with these
    layers only.

    Args:
        model: a `torch.nn.Module`, images -> logits `[b, k]`; it is left as it is.
        images: `[b, c, h, w]` in [0, 1].
        targets: the class that is explained, the same at every stage.
        explainers: `{name: explainer}`, fillers fitted.
        rng: the samples' noise, the same at every stage; its seed also gives the new weights.
        how: `cascading` (from the logits down, cumulative) or `independent` (one layer at a time).
        stages: at most so many, see `plan`; None takes one for every layer.
        batch_size: images per call of an explainer.
        progress: show a bar.
        shown: how many images' maps are kept for a picture.

    Raises:
        UsageError: what `find_layers` and `plan` refuse; targets that are not the images'; no explainers, no images;
            maps of another size, or of fewer than 5 pixels a side.
    """
    batch = checked(model, images, targets, explainers, rng, batch_size)
    steps = plan(find_layers(model, images), how, stages)
    assert isinstance(model, nn.Module)
    others = (randomised(model, step, batch.rng.seed) for step in steps)
    names = tuple(Stage(step[-1].name, len(step)) for step in steps)
    return against(randomised(model, (), 0), others, names, how, batch, explainers, progress, shown)


def compare_models(
    model: Model,
    other: Model,
    images: Images,
    targets: Targets,
    explainers: Mapping[str, Callable[..., Maps]],
    rng: SampleRng | None = None,
    batch_size: int = 32,
    progress: bool = False,
    shown: int = 2,
) -> Sanity:
    """Compare the maps of two models, e.g. of one trained on permuted labels (Adebayo et al., 2018, section 4).

    The result has one stage without a layer. Models may be any functions of images; both are explained as they are.
    The arguments and errors are those of `sanity`.
    """
    batch = checked(model, images, targets, explainers, rng, batch_size)
    return against(model, [other], (Stage("", 0),), MODELS, batch, explainers, progress, shown)


# ---------------------------------------------------------------------------------------------------------------- table


class Entry(NamedTuple):
    """One explainer at one stage; stages count from 1. `estimates` has every one of `MEASURES`."""

    how: str
    explainer: str
    number: int
    stage: Stage
    estimates: dict[str, Estimate]
    undefined: int


def sanity_table(result: Sanity, seed: int = 0) -> list[Entry]:
    """The means over images of every explainer at every stage, with 95 % bootstrap intervals.

    `magnitude` is the mean |map| under the changed model / that under the trained one, a ratio of means. All estimates
    share their resamples: `statistics.difference` may subtract them.
    """
    probabilities = [mean_estimate(p, seed) for p in result.probability]
    table = []
    for explainer, similarities in result.similarity.items():
        for number, (stage, s) in enumerate(zip(result.stages, similarities, strict=True), start=1):
            estimates = {
                "spearman": mean_estimate(s.spearman, seed),
                "spearman_abs": mean_estimate(s.spearman_abs, seed),
                "ssim": mean_estimate(s.ssim, seed),
                "magnitude": ratio_of_means(s.after, s.before, seed),
                "probability": probabilities[number - 1],
            }
            table.append(Entry(result.how, explainer, number, stage, estimates, s.undefined))
    return table


def curves(table: Iterable[Entry], measure: str) -> dict[str, Float[Tensor, "_ 3"]]:
    """One of `MEASURES` over the stages, for a picture: value, low and high of every explainer."""
    lines: dict[str, list[list[float]]] = {}
    for entry in table:
        e = entry.estimates[measure]
        lines.setdefault(entry.explainer, []).append([e.value, e.low, e.high])
    return {name: torch.tensor(line, dtype=torch.float64) for name, line in lines.items()}

"""Test probes, which no fold saw: the distances of all pairs of predictors, and what they say of a new image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.conformal import SHARE, Bound, bound
from lit_xai.metrics.distance import distance_of
from lit_xai.metrics.kept_share import KEPT
from lit_xai.metrics.pairs import Pairs
from lit_xai.store.fold import FoldStore, MapReader, Predictions, common_samples

VALUES = 1 << 19  # map values of one fold in memory at once
LARGEST = {"spearman": 1.0, "sqrt_spearman": 1.0, "dice": 1.0}  # the largest value of a distance that has one


@dataclass(frozen=True)
class Conformal:
    """What holds for a new image with probability `SHARE` or more, by one explainer.

    Attributes:
        samples: the test probes it rests on.
        target: which class the maps explain, `label` or `prediction`.
        distance: its name.
        pairs: of every two predictors, how far apart their maps are at most.
        any_two: how far apart those two are at most that are furthest from each other.
        kept: of every predictor, the share of the most important pixels that leaves its prediction.
        by_all: the share that leaves the prediction of every one of them; None where nobody measured it.
    """

    samples: Int[Tensor, "n"]
    target: str
    distance: str
    pairs: dict[tuple[int, int], Bound]
    any_two: Bound | None
    kept: dict[int, Bound] = field(default_factory=dict)
    by_all: Bound | None = None

    def plain(self) -> dict[str, Any]:
        """JSON-ready, every bound with its sentence."""
        found = {
            "pairs": {
                f"{i},{j}": said(b, self.apart(f"by the predictors {i} and {j}")) for (i, j), b in self.pairs.items()
            },
            "kept": {str(f): said(b, self.keeping(f"of predictor {f}", b)) for f, b in self.kept.items()},
        }
        if self.any_two is not None:
            found["any_two"] = said(self.any_two, self.apart("by any two predictors"))
        if self.by_all is not None:
            found["kept_by_all"] = said(self.by_all, self.keeping("of every predictor", self.by_all))
        about = {"probes": len(self.samples), "target": self.target, "distance": self.distance}
        return {**about, **found}

    def apart(self, whose: str) -> str:
        """What a bound of distances says, with a place for it."""
        of = "what each says" if self.target == "prediction" else "its label"
        return f"the maps of a new image {whose}, for {of}, are at most {{:.3f}} apart ({self.distance})"

    def keeping(self, whose: str, b: Bound) -> str:
        """What a bound of kept shares says, with a place for it."""
        if b.value >= 1:
            return f"all of a new image's pixels (share {{:.3f}}: no smaller one is shown) leave the prediction {whose}"
        return f"keeping the share {{:.3f}} of a new image's most important pixels leaves the prediction {whose}"


def said(b: Bound, what: str) -> dict[str, Any]:
    """A bound, JSON-ready, with what it says in words; there it is rounded up."""
    if b.reason:
        return {**b.plain(), "sentence": b.reason}
    _, low, high = b.coverage
    given = f"given these {b.samples} test probes that holds for {low:.1%} to {high:.1%} of new images (95% interval)"
    text = what.format(math.ceil(1000 * b.value) / 1000)
    return {**b.plain(), "sentence": f"with probability {b.level:.0%} or more, {text}; {given}"}


def predictions_of_tests(
    stores: Mapping[int, FoldStore], predictions: Mapping[int, Predictions]
) -> dict[int, Predictions]:
    """What every predictor says of the test probes.

    Raises:
        UsageError: a fold's are missing, or another checkpoint's.
    """
    found = {f: store.read_predictions(store.test_file) for f, store in stores.items()}
    for f, p in found.items():
        if p.meta["checkpoint"] != predictions[f].meta["checkpoint"]:
            raise UsageError(
                f"{stores[f].test_file} is another checkpoint's than {stores[f].predictions_file}: delete it and "
                f"{stores[f].root / 'test'}, and run python -m lit_xai.explain probes=test fold={f}"
            )
    return found


def pairs_of_tests(
    readers: Mapping[int, MapReader], tests: Mapping[int, Predictions], distance: str, seed: int
) -> Pairs:
    """All pairs of predictors on the test probes that all of them have explained: neither saw the image. Pairs of which not both are
    right are of neither set.

    Raises:
        UsageError: there are no predictions of some of them.
    """
    samples, d = common_samples(readers.values()), distance_of(distance)
    each = max(8, VALUES // max(1, next(iter(readers.values())).rows(samples[:1]).numel())) if len(samples) else 8
    for f, p in tests.items():
        if not p.has(samples):
            raise UsageError(
                f"fold={f} has maps of test probes that it has no predictions of: run python -m lit_xai.explain probes=test fold={f}"
            )
    right = {f: p.right(samples) for f, p in tests.items()}
    rows: list[tuple[Tensor, ...]] = []
    for start in range(0, len(samples), each):
        part = samples[start : start + each]
        prepared = {f: d.prepare(r.rows(part)) for f, r in readers.items()}
        for i, j in combinations(readers, 2):
            both = (right[i] & right[j])[start : start + each]
            apart = d.compare(prepared[i], prepared[j])
            rows.append((apart, both, part, torch.full_like(part, i), torch.full_like(part, j)))
    if not rows:  # one predictor, or no probe that all have explained
        nobody = torch.zeros(0, dtype=torch.long)
        rows.append((nobody.double(), nobody.bool(), *[nobody] * 3))
    apart, equal, *whose = (torch.cat(column) for column in zip(*rows, strict=True))
    sample, one, other = whose
    weight = torch.ones_like(apart)
    return Pairs(apart, equal, torch.zeros_like(equal), sample, weight, one, other, None, distance, seed, tests)


def conformal(pairs: Pairs, readers: Mapping[int, MapReader], target: str, level: float = SHARE) -> Conformal:
    """What the test probes say of a new image, by one explainer; `pairs` are its pairs of them."""
    samples = common_samples(readers.values())
    rows = {(i, j): pairs.take((pairs.i == i) & (pairs.j == j)).distance for i, j in combinations(readers, 2)}
    scores = sorted(set.intersection(*(set(r.scores()) for r in readers.values())), key=lambda n: (n != KEPT, n))[:1]
    kept = {f: r.rows(samples, f"score/{name}").double() for name in scores for f, r in readers.items()}
    by_all = bound(torch.stack(list(kept.values())).amax(0), level) if kept else None
    return Conformal(
        samples,
        target,
        pairs.name,
        {both: bound(apart, level) for both, apart in rows.items()},
        bound(torch.stack(list(rows.values())).amax(0), level) if rows else None,
        {f: bound(share, level) for f, share in kept.items()},
        by_all,
    )

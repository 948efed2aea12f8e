"""Measures: one number of an ensemble for every explainer, from the pairs of its maps (see `Pairs`).

For a sample x of the held-out fold V_i and every other predictor j, delta = d(phi_i(x), phi_j(x)). Delta belongs to
S_equal if both predictors are right and to S_differ if exactly one is; both wrong is ignored (Fel et al., 2022).

- MeGe = 1 / (1 + mean(S_equal)); `mege_test` the same of test probes, images that no fold saw, and of every two predictors.
- sanity, repeat = mean |rho| of two maps of one predictor: its own, and that of its network with fresh weights (Adebayo et al.,
  2018), or with other noise.
- ReCo = max over thresholds gamma of TPR + TNR - 1: how well a distance tells agreement from contradiction.

A new measure is a function `pairs -> number` and an entry of `MEASURES` (`docs/new_measure.md`); tables, files, the dashboard
and the degradation study take it from there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.estimation import (
    BOTH,
    LABELS,
    PERMUTED,
    RANDOMISED,
    REPEATED,
    SHORT,
    Measure,
    Weighted,
)
from lit_xai.metrics.gaps import Gaps, Repeated, Sums
from lit_xai.metrics.intervals import BASIC, CROSSED, SIGNED
from lit_xai.metrics.pairs import Pairs
from lit_xai.metrics.statistics import Estimate, difference
from lit_xai.store.names import TEST


def mege(pairs: Pairs) -> float:
    """1 / (1 + mean(S_equal)), Eq. 5."""
    return 1 / (1 + float(pairs.distance.double().mean()))


def alike(pairs: Pairs) -> float:
    """Mean |rho| over the pairs."""
    return 1 - float(pairs.distance.double().mean())


class Means:
    """Sums of the distances and numbers of the pairs of every sample."""

    def __init__(self, pairs: Pairs, cluster: Int[Tensor, "p"], samples: int) -> None:
        zeros = torch.zeros(samples, dtype=torch.float64)
        self.total = zeros.index_add(0, cluster, pairs.distance.double())
        self.number = zeros.index_add(0, cluster, torch.ones(len(pairs), dtype=torch.float64))

    def __call__(self, counts: Float[Tensor, "r n"]) -> Iterator[Tensor]:
        yield (counts @ self.total) / (counts @ self.number)


QUICK_MEGE = Weighted(Means, lambda mean: (1 / (1 + mean)).numpy())
MEGE = partial(
    Measure,
    mege,
    "MeGe = 1 / (1 + mean(S_equal))",
    quick=QUICK_MEGE,
    interval=CROSSED,
    source="Fel et al. 2022, Eq. 5",
    version=2,
)
SAME = partial(
    Measure,
    quick=Weighted(Means, lambda mean: (1 - mean).numpy()),
    interval=CROSSED,
    views=("default",),
    against_nulls=False,
)
RECO = partial(Measure, over=BOTH, interval=BASIC, null=PERMUTED, source="Fel et al. 2022, Eq. 2 and 6", version=3)
BALANCED = "max TPR + TNR - 1, TPR = |S_equal < g| / |S_equal|, TNR = |S_differ >= g| / |S_differ|"

MEASURES: dict[str, Measure] = {
    "mege": MEGE(views=("default", "paper", SHORT)),
    "sanity": SAME(
        alike,
        "mean |rho| of a map and that of the same network with all layers re-initialised; near 1 = it does not depend on the model",
        better="down",
        over=RANDOMISED,
        source="Adebayo et al. 2018",
    ),
    "repeat": SAME(
        alike,
        "mean |rho| of two maps of the same predictor with different noise; 1 = the method draws none, or enough",
        over=REPEATED,
        views=(),
    ),
    "mege_test": MEGE(over=TEST, variant="test probes", views=(), version=1),
    "reco": RECO(
        Weighted(Gaps, Sums.reco),
        f"ReCo: {BALANCED}",
    ),
    "reco_label": RECO(
        Weighted(Gaps, Sums.reco), f"ReCo of labels: {BALANCED}", over=LABELS, variant="label", views=(), version=2
    ),
    "reco_eq6": RECO(
        Weighted(Gaps, Sums.eq6),
        "ReCo: max TPR + TNR - 1, TPR = |S_equal < g| / |S < g|, TNR = |S_differ > g| / |S > g|",
        warning="no evidence by itself: on pure noise it is .97 where the single largest distance happens to be of a "
        "disagreement (30 % of draws), else .04, and its interval lies above its own null in 28 % of them",
        variant="paper",
        views=("paper",),
    ),
    "reco_auc": RECO(
        Weighted(Gaps, Sums.auc),
        "ReCo: mean over g in S of TPR + TNR - 1, class-conditional rates; signed, below 0 where disagreements look more alike",
        variant="auc",
        interval=SIGNED,
        views=("default",),
    ),
    "mege_xplique": MEGE(variant="xplique", distance="sqrt_spearman", views=("xplique",)),
    "reco_xplique": RECO(
        Weighted(Repeated, lambda value: value),
        "ReCo: Xplique: strict inequalities, every (|S| // 20 + 1)-th threshold",
        over=LABELS,
        variant="xplique",
        distance="sqrt_spearman",
        views=("xplique",),
        version=2,
        null=None,
        most=200,
    ),
}
OWN = tuple(MEASURES)


def measure(name: str, meaning: str, **options: Any) -> Callable[[Callable[[Pairs], float]], Callable[[Pairs], float]]:
    """Register a function `pairs -> number` as a measure of ensembles; the options are those of `Measure`.

        @measure("spread", "standard deviation of S_equal", better="down")
        def spread(pairs): ...

    Raises:
        UsageError: one of lit_xai's own measures has that name; options that mean nothing.
    """
    if name in OWN:
        raise UsageError(f"a measure is named {name!r}, which is one of lit_xai's own: name it otherwise")

    def register(value: Callable[[Pairs], float]) -> Callable[[Pairs], float]:
        MEASURES[name] = Measure(value, meaning, **options)
        return value

    return register


def register_from(modules: str | Sequence[str]) -> None:
    """Import modules that register measures.

    Raises:
        UsageError: one cannot be imported.
    """
    for module in [modules] if isinstance(modules, str) else modules:
        try:
            importlib.import_module(module)
        except UsageError:
            raise
        except Exception as e:
            raise UsageError(f"measures={module} cannot be imported ({type(e).__name__}: {e})") from None


def view(name: str) -> list[str]:
    """The measures that a table of this name shows."""
    return [measure for measure, m in MEASURES.items() if name in m.views]


def paired(column: str, a: Estimate, b: Estimate) -> Estimate | None:
    """The paired difference a - b of a measure or score; None where the two do not rest on the same resamples."""
    if len(a.draws) != len(b.draws):
        return None
    known = MEASURES.get(column)
    return (known.interval.difference if known else difference)(a, b)

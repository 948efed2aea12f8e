"""Probable label errors from out-of-fold probabilities, and whether the folds' reasons agree with the label."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.metrics.distance import correlation, unit_ranks
from lit_xai.metrics.statistics import Estimate, difference, finish, mean_estimate, resamples, share_estimate
from lit_xai.rng import stable_hash

MEND = "pip install 'lit_xai[labels]'"
PERMUTATIONS = 1000
LIST, CONFIDENCE, WITH, ALONE = WAYS = ("list", "self-confidence", "with reasons", "reasons alone")


def require_cleanlab() -> None:
    """Refuse to go on without the package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import cleanlab.filter  # noqa: F401
    except ImportError as e:
        raise UsageError(f"label_errors= needs cleanlab ({e}): {MEND}") from None


def listed(given: Int[Tensor, "n"], probabilities: Float[Tensor, "n k"]) -> Int[Tensor, "m"]:
    """Probable label errors by confident learning (Northcutt, Jiang & Chuang, 2021), the least self-confident first.

    cleanlab's `find_label_issues` with its default, `prune_by_noise_rate`: of class i taken for class j, as many as the confident joint
    estimates, those with the largest margin p_j - p_i.

    Args:
        given: the label of every sample.
        probabilities: by a predictor that never saw the sample.

    Raises:
        UsageError: a probability is no number.
    """
    require_cleanlab()
    from cleanlab.filter import find_label_issues

    if not bool(probabilities.isfinite().all()):
        lacks = int((~probabilities.isfinite().all(1)).sum())
        raise UsageError(
            f"{lacks} samples have no probabilities: a predictor's answer is no number; train that fold again"
        )
    p = probabilities.double()
    p = p / p.sum(1, keepdim=True)  # float32 sums to 1 up to its rounding
    options = {"return_indices_ranked_by": "self_confidence", "filter_by": "prune_by_noise_rate", "n_jobs": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has no sample
        found = find_label_issues(given.numpy(), p.numpy(), **options)
    return torch.as_tensor(np.asarray(found), dtype=torch.long)


def pool(issues: Int[Tensor, "m"], given: Int[Tensor, "n"], probabilities: Float[Tensor, "n k"]) -> Int[Tensor, "p"]:
    """The list, and behind it at most as many further samples whose label is not what is predicted, the least self-confident first: a
    list in another order has the same members, so that reasons can only mend it where there is somebody to take in.
    """
    own = probabilities.gather(1, given[:, None])[:, 0]
    others = probabilities.argmax(1) != given
    others[issues] = False
    rest = torch.nonzero(others)[:, 0]
    return torch.cat([issues, rest[own[rest].argsort(stable=True)][: len(issues)]])


def agreement(maps: Float[Tensor, "k b h w"]) -> Float[Tensor, "b"]:
    """Mean rank correlation of every two folds' maps of an image, in [-1, 1]; pairs with a constant map are left out, NaN if all are."""
    ranks = [unit_ranks(m) for m in maps]
    pairs = torch.stack([correlation(a, b) for a, b in combinations(ranks, 2)])
    return pairs.nanmean(0)


def reasons(predicted: Float[Tensor, "b"], given: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """How much more the folds agree about why it is the predicted class than about why it is the given one; 0 where either is not known."""
    return (predicted - given).nan_to_num(0.0)


def ways(confidence: Float[Tensor, "p"], reason: Float[Tensor, "p"]) -> dict[str, Tensor]:
    """The ranks `[p]` of the pool, the most probable error first, ties with the mean of their ranks: as it is (the list first), by
    self-confidence, by the mean of that and the rank by reasons, and by reasons.
    """
    place = torch.arange(1, len(reason) + 1, dtype=torch.float64)
    sure, why = (torch.from_numpy(rankdata(values.double().numpy())) for values in (confidence, -reason))
    return {LIST: place, CONFIDENCE: sure, WITH: (sure + why) / 2, ALONE: why}


def first(ranks: Float[Tensor, "p"], number: int) -> Bool[Tensor, "p"]:
    """Which of the pool are the first so many; of equal ranks those that come first in the pool."""
    chosen = torch.zeros(len(ranks), dtype=torch.bool)
    chosen[ranks.argsort(stable=True)[:number]] = True
    return chosen


@dataclass(frozen=True)
class Judged:
    """How good a list is whose errors are known.

    Attributes:
        precision: by `WAYS`, the share of the list, at the same length, that is wrong; `null` is the share of all samples, with reasons
            the mean when reasons are dealt to the pool at random.
        recall: the share of all errors that is listed.
        gain: precision minus that of self-confidence, paired over the pool.
        p: how often reasons dealt at random give as high a precision with reasons.
        auc: how often, within the list, an error has the smaller rank than a sample with the right label.
        auc_gain: that with reasons minus that of self-confidence, paired over the list.
    """

    precision: dict[str, Estimate]
    recall: dict[str, Estimate]
    gain: dict[str, Estimate]
    p: float
    auc: dict[str, Estimate]
    auc_gain: Estimate


def judge(
    wrong: Bool[Tensor, "p"],
    listed_: int,
    confidence: Float[Tensor, "p"],
    reason: Float[Tensor, "p"],
    errors: int,
    samples: int,
    seed: int = 0,
) -> Judged:
    """Judge the list by errors that are known.

    Args:
        wrong: of every sample of the pool, in its order.
        listed_: how many of the pool are the list.
        confidence: the probability of its label.
        reason: `reasons` of the pool.
        errors, samples: how many labels of how many are wrong.
        seed: of resamples and permutations.
    """
    size, ranks = len(wrong), ways(confidence, reason)
    chosen = {way: first(of, listed_) for way, of in ranks.items()}
    precision = {way: share_estimate(wrong[of], errors / samples) for way, of in chosen.items()}
    recall, gain = {}, {}
    for way, of in chosen.items():
        found = torch.zeros(errors, dtype=torch.bool)
        found[: int(wrong[of].sum())] = True
        recall[way] = share_estimate(found)
        if way != CONFIDENCE:
            changed = (of.double() - chosen[CONFIDENCE].double()) * wrong
            gain[way] = mean_estimate(changed * size / listed_, seed)
    g = torch.Generator().manual_seed(stable_hash(seed, "label errors"))
    dealt = [
        float(
            wrong[first(ranks[CONFIDENCE] + ranks[ALONE][torch.randperm(size, generator=g)], listed_)].double().mean()
        )
        for _ in range(PERMUTATIONS)
    ]
    precision[WITH].null = sum(dealt) / len(dealt)
    as_high = sum(d >= precision[WITH].value - 1e-12 for d in dealt)
    auc = {way: area(-of[:listed_], wrong[:listed_], seed) for way, of in ranks.items() if way != LIST}
    return Judged(
        precision, recall, gain, (1 + as_high) / (1 + PERMUTATIONS), auc, difference(auc[WITH], auc[CONFIDENCE])
    )


def area(values: Float[Tensor, "m"], wrong: Bool[Tensor, "m"], seed: int = 0) -> Estimate:
    """The area under the ROC curve, ties half: how often a wrong sample has the larger value; null .5, bootstrap over both kinds."""
    a, b = values[wrong].double(), values[~wrong].double()
    if not len(a) or not len(b):
        return Estimate(math.nan, reason="all of one kind", samples=len(values))
    wins = (a[:, None] > b[None]).double() + 0.5 * (a[:, None] == b[None]).double()
    draws = [
        torch.einsum("ra,ab,rb->r", counts[:, : len(a)], wins, counts[:, len(a) :]) / wins.numel()
        for counts in resamples(torch.tensor([0] * len(a) + [1] * len(b)), seed=seed)
    ]
    return finish(float(wins.mean()), torch.cat(draws), null=0.5, samples=len(values))


def names_of(classes: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """The names of classes, their numbers where there are none."""
    return [classes[n] if n < len(classes) else str(n) for n in numbers]

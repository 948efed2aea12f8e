"""How far an image must move before a map changes its order: proven from below, attacked from above (docs/deeper.md).

A map that is a weighted sum of outputs at masked images (`Explainer.masked_sum`) changes at most as fast as the network's Lipschitz
constants allow (`lit_xai.models.bounds`). Radii are l2 distances of images, in pixel values, over all pixels and channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_xai.calls import Gate, admit, evaluating, gradients, per_call, select_output
from lit_xai.core import Explainer, Images, MaskedSum, Model, Segments, Targets
from lit_xai.errors import UsageError
from lit_xai.incremental.patches import full_precision
from lit_xai.models.bounds import Slopes, slopes
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid, segment_counts, segment_sums

LARGEST, SMALLEST = 1e6, 1e-9  # radii beyond which one is infinite, or zero
HALVINGS = 30  # of the interval that a radius is known to lie in
EPSILONS = 100.0  # by how many roundings of an output a difference must exceed 0
PAIRS = 64  # whose sharper bound is taken at once
ROWS = 512  # most masked images of a model call


class Reach(NamedTuple):
    """By how much outputs can change within a radius e: down and up, and their largest slope there."""

    down: Float[Tensor, "n"]
    up: Float[Tensor, "n"]
    slope: Float[Tensor, "n"]


@dataclass(frozen=True)
class Ranking:
    """The order of one image's regions by one method: the top ones against the rest.

    Attributes:
        masks: of the masked images, `[n, h * w]`, float64.
        rows: the regions' weights of the outputs, float64; a region has the mean of its pixels.
        outputs: f at the masked images, float64.
        log_odds: of the explained class there, float64; of logits, unused.
        top: the regions that stand first.
        constant: the Lipschitz constant of f's logit, or of its log odds.
        gradients: of every region's value, where f is affine: then nothing is bounded, all is exact.
        probability: whether f is a softmax probability.
        rounding: relative error of one output.
    """

    masks: Float[Tensor, "n p"]
    rows: Float[Tensor, "r n"]
    outputs: Float[Tensor, "n"]
    log_odds: Float[Tensor, "n"]
    top: Bool[Tensor, "r"]
    constant: float
    gradients: Float[Tensor, "r q"] | None
    probability: bool
    rounding: float

    @property
    def values(self) -> Float[Tensor, "r"]:
        """The map, a number a region."""
        return self.rows @ self.outputs

    def gaps(self, values: Float[Tensor, "r"]) -> Float[Tensor, "t q"]:
        """By how much every top region exceeds every other."""
        return values[self.top][:, None] - values[~self.top]

    def reach(self, radius: float) -> Reach:
        """What outputs can do within the radius: |d z| <= L |A_n| e, of probabilities the same of the log odds s, and p = sigmoid(s)."""
        most = radius * self.constant * self.masks.amax(1)
        if not self.probability:
            return Reach(most, most, torch.full_like(most, self.constant))
        p, nearest = self.log_odds.sigmoid(), (self.log_odds.abs() - most).clamp_min(0)
        down, up = p - (self.log_odds - most).sigmoid(), (self.log_odds + most).sigmoid() - p
        return Reach(down, up, self.constant * nearest.sigmoid() * (-nearest).sigmoid())

    def holds(self, radius: float, whole: bool = True) -> Bool[Tensor, "t q"]:
        """Which top regions stay above which others, wherever the image moves to within the radius.

        Args:
            radius: at least 0.
            whole: False may stop at the first pair that is not certified; then others may be wrongly False, none wrongly True.
        """
        first, rest = self.rows[self.top], self.rows[~self.top]
        total = torch.cdist(first, rest, p=1.0)
        left = self.gaps(self.values) - EPSILONS * self.rounding * self.outputs.abs().amax() * total
        if self.gradients is not None:
            return left > radius * torch.cdist(
                self.gradients[self.top], self.gradients[~self.top], compute_mode="donot_use_mm_for_euclid_dist"
            )
        r = self.reach(radius)
        both, apart = (r.down + r.up) / 2, (r.down - r.up) / 2
        most = torch.cdist(first * both, rest * both, p=1.0) + (first @ apart)[:, None] - rest @ apart
        sure = left > most
        missing = (~sure).nonzero()
        order = (left - most)[~sure].argsort()
        for some in missing[order].split(PAIRS):
            i, j = some.T
            good = left[i, j] > radius * self.sharper((first[i] - rest[j]).abs() * r.slope)
            sure[i, j] = good
            if not whole and not bool(good.all()):
                break
        return sure

    def sharper(self, weights: Float[Tensor, "k n"]) -> Float[Tensor, "k"]:
        """The largest sum_n weights_n |m_n d| over |d| <= 1, by Cauchy and Schwarz: a change d hides behind no mask that is there.

        (sum w |m d|)^2 <= sum w * sum_n w_n sum_i m_ni^2 d_i^2 <= sum w * max_i sum_n w_n m_ni^2.
        """
        return (weights.sum(1) * (weights @ self.masks.square()).amax(1)).sqrt()

    def radius(self) -> float:
        """The largest radius, from below, at which the whole top stays above all the rest; 0 where not even here, NaN where an answer is no number."""

        def good(radius: float) -> bool:
            return bool(self.holds(radius, whole=False).all())

        if not bool(self.outputs.isfinite().all()):
            return math.nan
        low = 0.01
        while not good(low):
            low /= 2
            if low < SMALLEST:
                return 0.0
        high = 2 * low
        while good(high):
            low, high = high, 2 * high
            if high > LARGEST:
                return math.inf
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if good(middle) else (low, middle)
        return low


@dataclass(frozen=True)
class Question:
    """What is certified, or attacked: the order of which regions, of which method, model and images.

    Args:
        explainer: a method that is a `masked_sum`.
        model, images, targets, rng: as in its call.
        cells: the regions are a grid of so many a side, of which the top one counts; 0 = pixels, of which a share does.
        share: of the pixels that are the top.
        segments: regions of one's own, of which the top one counts.

    Raises:
        UsageError: a method or a model without certificates; one region alone.
    """

    gate: Gate
    images: Images
    targets: Targets
    sums: MaskedSum
    labels: Segments
    tops: int

    @staticmethod
    def of(
        explainer: Explainer,
        model: Model,
        images: Images,
        targets: Targets,
        rng: SampleRng | None = None,
        cells: int = 7,
        share: float = 0.1,
        segments: Segments | None = None,
    ) -> Question:
        """The question about these images."""
        gate, images, targets = admit(model, images, targets)
        height, width = images.shape[-2:]
        if not 0 < share < 1 or cells < 0:
            raise UsageError(f"a top needs cells >= 0 and a share in (0, 1), found {cells} and {share}")
        pixels = torch.arange(height * width, device=images.device).view(1, height, width).expand(len(images), -1, -1)
        labels = segments if segments is not None else Grid(cells)(images) if cells else pixels
        if int(labels.amax()) < 1:
            raise UsageError("one region alone has no order: take more cells")
        tops = 1 if cells or segments is not None else max(1, round(share * height * width))
        return Question(gate, images, targets, explainer.masked_sum(images, rng), labels.to(images.device), tops)

    def masked(self, image: int, x: Float[Tensor, "c h w"], some: slice) -> Float[Tensor, "n c h w"]:
        """`x` in place of an image, behind some of that image's masks."""
        keep = self.sums.keep[image, some][:, None]
        return keep * x + (1 - keep) * self.sums.fill[image]

    def chunks(self) -> Iterator[slice]:
        """The masks, a model call each."""
        number, each = self.sums.keep.shape[1], per_call(self.images, ROWS)
        return (slice(start, min(start + each, number)) for start in range(0, number, each))

    def logits(self, image: int, x: Float[Tensor, "c h w"]) -> Float[Tensor, "n k"]:
        """At all masked images, float64, of a model whose float32 is not rounded to TF32."""
        with torch.inference_mode(), evaluating(self.gate), full_precision():
            return torch.cat([self.gate(self.masked(image, x, some)).double() for some in self.chunks()])

    def outputs(self, image: int, x: Float[Tensor, "c h w"]) -> Float[Tensor, "n"]:
        """F at all masked images, float64."""
        logits = self.logits(image, x)
        return select_output(logits, self.targets[image].expand(len(logits)), self.sums.output)

    def regions(self, image: int) -> Float[Tensor, "r n"]:
        """The weights of the means over regions."""
        weights, labels = self.sums.weights[image], self.labels[image : image + 1]
        size = segment_sums(torch.ones_like(weights[:1]), labels)
        return (segment_sums(weights, labels.expand(len(weights), -1, -1)) / size).mT.contiguous()

    def rankings(self) -> Iterator[Ranking]:
        """The ranking of the regions of every image."""
        known, count = slopes(self.gate, self.images), segment_counts(self.labels)
        for image in range(len(self.images)):
            yield self.ranking(image, known, int(count[image]))

    def ranking(self, image: int, known: Slopes, count: int) -> Ranking:
        """The ranking of the regions of one image."""
        target, logits = self.targets[image], self.logits(image, self.images[image])
        others = logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) == target, -torch.inf)
        outputs = select_output(logits, target.expand(len(logits)), self.sums.output)
        rows, masks = self.regions(image)[:count], self.sums.keep[image].flatten(1).double()
        values = rows @ outputs
        top = torch.zeros(count, dtype=torch.bool, device=values.device)
        top[values.argsort(descending=True)[: self.tops]] = True
        probability = self.sums.output == "probability"
        exact = None
        if known.affine and not probability:
            seen = (rows @ masks)[:, None] * known.rows[target].view(self.images.shape[1], -1)  # [r, c, p]
            exact = seen.flatten(1)
        constant = known.log_odds(target[None]) if probability else known.logit(target[None])
        return Ranking(
            masks,
            rows,
            outputs,
            logits[:, target] - others.logsumexp(1),
            top,
            float(constant),
            exact,
            probability,
            torch.finfo(self.images.dtype).eps,
        )

    def alive(self, image: int, x: Float[Tensor, "c h w"], some: slice) -> Float[Tensor, "n"]:
        """F behind some masks, with its gradient."""
        logits = self.gate(self.masked(image, x, some))
        return select_output(logits, self.targets[image].clone().expand(len(logits)), self.sums.output)

    def margin(
        self, image: int, x: Float[Tensor, "c h w"], rows: Float[Tensor, "r n"], top: Bool[Tensor, "r"]
    ) -> tuple[float, Float[Tensor, "c h w"]]:
        """By how much the least of the top exceeds the most of the rest at `x`, and that difference's gradient."""
        chunks, total = list(self.chunks()), torch.zeros_like(x)
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.gate):
            moved = x.clone().requires_grad_()
            whole = self.alive(image, moved, chunks[0]) if len(chunks) == 1 else None
            outputs = self.outputs(image, x) if whole is None else whole.detach().double()
            values = rows @ outputs
            least = values.masked_fill(~top, torch.inf).argmin()
            most = values.masked_fill(top, -torch.inf).argmax()
            v = (rows[least] - rows[most]).to(x)
            for some in chunks:
                f = self.alive(image, moved, some) if whole is None else whole
                total += gradients((v[some] * f).sum(), moved)
        return float(values[least] - values[most]), total


def certified_radius(question: Question) -> Float[Tensor, "b"]:
    """The radius at which each image's top surely keeps its rank: a lower bound of the least change that ends it; float64."""
    return torch.tensor([r.radius() for r in question.rankings()], dtype=torch.float64)


def certified_share(question: Question, radius: float) -> Float[Tensor, "b"]:
    """The share of the pairs of a top and another region whose order surely holds within the radius."""
    return torch.tensor([float(r.holds(radius).double().mean()) for r in question.rankings()], dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------------- attack


def attack_radius(question: Question, steps: int = 100) -> Float[Tensor, "b"]:
    """The least change of each image, within [0, 1], that is found to end the rank of its top: an upper bound; float64.

    Infinite where none is found; see `attacked`.
    """
    found = [attacked(question, image, steps)[0] for image in range(len(question.images))]
    return torch.tensor(found, dtype=torch.float64)


def attacked(
    question: Question, image: int, steps: int, radius: float | None = None
) -> tuple[float, Float[Tensor, "c h w"]]:
    """Projected gradient descent on the margin of the top, and what it found: the size of the change, and the image.

    Without a radius that of the ball shrinks where the top has lost its rank and grows where not (fast minimum-norm attack, Pintor et
    al., 2021): the least change is returned, infinite if none was found, NaN where the model's answer is no number. With one, what leaves the least margin within it.
    """
    x = question.images[image]
    rows = question.regions(image)
    values = rows @ question.outputs(image, x)
    if not bool(values.isfinite().all()):
        return math.nan, x
    top = torch.zeros_like(values, dtype=torch.bool)
    top[values.argsort(descending=True)[: question.tops]] = True
    moved, best, least = x, x, math.inf
    ball, smallest = radius or 0.0, math.inf
    for k in range(steps):
        margin, slope = question.margin(image, moved, rows, top)
        size, norm = float((moved - x).double().norm()), float(slope.norm())
        share = (1 + math.cos(math.pi * k / steps)) / 2  # of the first step, and of the ball's first change
        if radius is not None:
            best, least = (moved, margin) if margin < least else (best, least)
        elif margin <= 0:
            best, smallest = (moved, size) if size < smallest else (best, smallest)
            ball = min(ball * (1 - 0.05 * share), smallest)
        else:
            ball = ball * (1 + 0.05 * share)
            if math.isinf(smallest) and norm > 0:
                ball = max(ball, 1.05 * (size + margin / norm))
        if norm == 0:
            break
        change = moved - x - max(share, 0.01) * min(1.0, ball) * slope / norm
        change *= min(1.0, ball / max(float(change.norm()), 1e-12))
        moved = (x + change).clamp(0, 1)
    if radius is not None:
        return float((best - x).double().norm()), best
    return smallest, best

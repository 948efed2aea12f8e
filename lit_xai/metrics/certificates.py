"""How far an image must move before a map changes its order: proven from below, attacked from above (docs/deeper.md).

A map that is a weighted sum of outputs at masked images (`Explainer.masked_sum`) changes at most as fast as the network's Lipschitz
constants allow (`lit_xai.models.bounds`). Radii are l2 distances of images, in pixel values, over all pixels and channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lit_xai.calls import Chunk, Gate, admit, chunks, evaluating, gradients, per_call, select_output
from lit_xai.core import Explainer, Images, MaskedSum, Model, Segments, Targets
from lit_xai.errors import UsageError
from lit_xai.incremental.patches import full_precision
from lit_xai.models.bounds import Slopes, slopes
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid, segment_counts

FIRST = 0.01 * 2.0**-23  # the least radius that is tried, about 1e-9: a smaller one is 0;
DOUBLINGS = 49  # of it are the largest, about 1e6: a larger one is infinite
HALVINGS = 30  # of the interval that a radius is known to lie in
EPSILONS = 100.0  # by how many roundings of an output, and of its sums, a difference must exceed 0
PAIRS = 64  # whose sharper bound is taken at once on the CPU, which leaves out those that hold without it,
VALUES = 1 << 26  # and the numbers that it takes on a device, which takes all of them and waits for nothing
MEMORY = 1 << 29  # bytes of the masks that are kept at once, and on a device of the pairs,
CACHED = 1 << 17  # of which a CPU takes so many together: what they need stays in its cache
ROWS = 512  # most masked images of a model call


class Reach(NamedTuple):
    """By how much outputs can change within a radius e: down and up, and their largest slope there."""

    down: Float[Tensor, "b n"]
    up: Float[Tensor, "b n"]
    slope: Float[Tensor, "b n"]


class Order(NamedTuple):
    """Which regions stand first: the top, all others, and which of those are regions of their image, where another has more."""

    top: Int[Tensor, "b t"]
    rest: Int[Tensor, "b q"]
    real: Bool[Tensor, "b q"]


@dataclass(frozen=True)
class Ranking:
    """The order of some images' regions by one method: the top ones against the rest.

    Attributes:
        masks: of the masked images, `[b, n, h * w]`, float64.
        rows: the regions' weights of the outputs, float64; a region has the mean of its pixels.
        outputs: f at the masked images, float64.
        log_odds: of the explained class there, float64; of logits, unused.
        order: of the regions.
        constant: the Lipschitz constants of f's logits, or of their log odds.
        gradients: of every region's value, where f is affine: then nothing is bounded, all is exact.
        probability: whether f is a softmax probability.
        rounding: relative error of one output.
    """

    masks: Float[Tensor, "b n p"]
    rows: Float[Tensor, "b r n"]
    outputs: Float[Tensor, "b n"]
    log_odds: Float[Tensor, "b n"]
    order: Order
    constant: Float[Tensor, "b"]
    gradients: Float[Tensor, "b r f"] | None
    probability: bool
    rounding: float

    @property
    def values(self) -> Float[Tensor, "b r"]:
        """The maps, a number a region."""
        return valued(self.rows, self.outputs)

    def gaps(self, values: Float[Tensor, "b r"]) -> Float[Tensor, "b t q"]:
        """By how much every top region exceeds every other; infinite where there is no other."""
        gaps = values.gather(1, self.order.top)[:, :, None] - values.gather(1, self.order.rest)[:, None]
        return gaps.masked_fill(~self.order.real[:, None], torch.inf)

    def reach(self, radius: Float[Tensor, "b"]) -> Reach:
        """What outputs can do within the radius: |d z| <= L |A_n| e, of probabilities the same of the log odds s, and p = sigmoid(s)."""
        most = (radius * self.constant)[:, None] * self.largest
        if not self.probability:
            return Reach(most, most, self.constant[:, None].expand_as(most))
        p, nearest = self.log_odds.sigmoid(), (self.log_odds.abs() - most).clamp_min(0)
        down, up = p - (self.log_odds - most).sigmoid(), (self.log_odds + most).sigmoid() - p
        return Reach(down, up, self.constant[:, None] * nearest.sigmoid() * (-nearest).sigmoid())

    @cached_property
    def largest(self) -> Float[Tensor, "b n"]:
        """The largest value of every mask."""
        return self.masks.amax(2)

    @cached_property
    def squares(self) -> Float[Tensor, "b n p"]:
        """The squares of the masks' values."""
        return self.masks.square()

    @cached_property
    def both(self) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b q n"]]:
        """The weights of the top regions and of the others."""
        return taken(self.rows, self.order.top), taken(self.rows, self.order.rest)

    @cached_property
    def slopes(self) -> Float[Tensor, "b t q"]:
        """The norms of the gaps' gradients, where f is affine."""
        assert self.gradients is not None
        first, rest = (taken(self.gradients, of) for of in self.order[:2])
        return torch.cdist(first, rest, compute_mode="donot_use_mm_for_euclid_dist")

    @cached_property
    def left(self) -> Float[Tensor, "b t q"]:
        """By how much the gaps exceed the rounding of what they are made of: of outputs, and of the sums in float64.

        Two regions of the same weights are equal, and their sums need not be.
        """
        first, rest = (rows.abs().sum(2) for rows in self.both)
        summed = torch.finfo(torch.float64).eps * (first[:, :, None] + rest[:, None])
        rounding = self.rounding * torch.cdist(*self.both, p=1.0) + summed
        return self.gaps(self.values) - EPSILONS * self.outputs.abs().amax(1)[:, None, None] * rounding

    def holds(self, radius: float | Float[Tensor, "b"], whole: bool = True) -> Bool[Tensor, "b t q"]:
        """Which top regions stay above which others, wherever the images move to within the radius; always where there is no other.

        Args:
            radius: at least 0, one for all images or one each.
            whole: False may stop at the first pair of an image that is not certified; then others may be wrongly False, none wrongly True.
        """
        radius = torch.full_like(self.constant, radius) if isinstance(radius, float | int) else radius
        within, left = radius[:, None, None], self.left
        if self.gradients is not None:
            return left > within * self.slopes
        (first, rest), r = self.both, self.reach(radius)
        mean, apart = ((r.down + sign * r.up)[:, None] / 2 for sign in (1, -1))
        most = torch.cdist(first * mean, rest * mean, p=1.0)
        most = most + (first * apart).sum(2)[:, :, None] - (rest * apart).sum(2)[:, None]
        slack, left = (left - most).flatten(1), left.flatten(1)
        sure, cpu = slack > 0, slack.device.type == "cpu"
        each = PAIRS if cpu else max(1, VALUES // (len(slack) * max(self.masks.shape[1:])))
        for part, number in parts_of(sure):
            worst = (
                slack[part].topk(number, largest=False).indices
                if cpu
                else torch.arange(number, device=slack.device).expand_as(slack)
            )
            for some in worst.split(each, dim=1):
                i, j = some // rest.shape[1], some % rest.shape[1]
                weights = (taken(first[part], i) - taken(rest[part], j)).abs() * r.slope[part, None]
                good = left[part].gather(1, some) > radius[part, None] * self.sharper(weights, part)
                sure[part].scatter_(1, some, good | sure[part].gather(1, some))
                if cpu and not whole and not bool(good.all()):
                    break
        return sure.view_as(self.left)

    def share(self, radius: float) -> Float[Tensor, "b"]:
        """The share of the pairs of a top and another region whose order holds."""
        real = self.order.real[:, None].expand_as(self.left)
        return (self.holds(radius) & real).flatten(1).double().sum(1) / real.flatten(1).sum(1)

    def sharper(self, weights: Float[Tensor, "b k n"], part: slice = slice(None)) -> Float[Tensor, "b k"]:
        """The largest sum_n weights_n |m_n d| over |d| <= 1, by Cauchy and Schwarz: a change d hides behind no mask that is there.

        (sum w |m d|)^2 <= sum w * sum_n w_n sum_i m_ni^2 d_i^2 <= sum w * max_i sum_n w_n m_ni^2.
        """
        return (weights.sum(2) * (weights @ self.squares[part]).amax(2)).sqrt()

    def radius(self) -> Float[Tensor, "b"]:
        """The largest radius, from below, at which the whole top stays above all the rest; 0 where not even here, NaN where an answer is no number."""

        def good(radius: Float[Tensor, "b"]) -> Bool[Tensor, "b"]:
            return self.holds(radius, whole=False).flatten(1).all(1)

        # what holds within a radius holds within every smaller one: the largest doubling of the first is searched bit by bit
        doublings = torch.ones(1, dtype=torch.long, device=self.constant.device)
        last = doublings.new_full((len(self.constant),), -1)
        for bit in reversed(range(DOUBLINGS.bit_length())):
            tried = last + (1 << bit)
            right = good(FIRST * (doublings << tried.clamp(max=DOUBLINGS)).double()) & (tried <= DOUBLINGS)
            last = torch.where(right, tried, last)
        low = FIRST * (doublings << last.clamp_min(0)).double()
        high = 2 * low
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            right = good(middle)
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        low = low.masked_fill(last == DOUBLINGS, torch.inf).masked_fill(last < 0, 0.0)
        return low.masked_fill(~self.outputs.isfinite().all(1), torch.nan)


def parts_of(sure: Bool[Tensor, "b k"]) -> list[tuple[slice, int]]:
    """Which images' pairs are asked together, and how many of them: on the CPU image by image, those that do not hold yet."""
    if sure.device.type != "cpu":
        return [(slice(None), sure.shape[1])]
    return [(slice(i, i + 1), number) for i, number in enumerate((~sure).count_nonzero(1).tolist()) if number]


def valued(rows: Float[Tensor, "b r n"], outputs: Float[Tensor, "b n"]) -> Float[Tensor, "b r"]:
    """The values of the regions, given outputs at the masked images."""
    return (rows @ outputs[:, :, None])[:, :, 0]


def taken(rows: Float[Tensor, "b r n"], which: Int[Tensor, "b k"]) -> Float[Tensor, "b k n"]:
    """Some rows of every image."""
    return rows.gather(1, which[:, :, None].expand(-1, -1, rows.shape[2]))


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
    counts: Int[Tensor, "b"]
    most: int
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
        labels = labels.to(images.device)
        counts = segment_counts(labels)
        most = int(counts.amax())
        if most < 2:
            raise UsageError("one region alone has no order: take more cells")
        tops = 1 if cells or segments is not None else max(1, round(share * height * width))
        if tops == most:
            raise UsageError(f"a top of all {most} pixels has no order: take a smaller share, found {share}")
        return Question(gate, images, targets, explainer.masked_sum(images, rng), labels, counts, most, tops)

    @cached_property
    def regions(self) -> Float[Tensor, "b r n"]:
        """The weights of the means over regions; 0 beyond an image's own."""
        weights, labels = self.sums.weights.flatten(2), self.labels.flatten(1)
        sums = weights.new_zeros(*weights.shape[:2], self.most)
        sums.scatter_add_(2, labels[:, None].expand_as(weights), weights)
        size = weights.new_zeros(len(labels), self.most)
        size.scatter_add_(1, labels, torch.ones_like(labels, dtype=size.dtype))
        return (sums / size.clamp_min(1)[:, None]).mT.contiguous()

    @property
    def number(self) -> int:
        """Masks of an image."""
        return self.sums.keep.shape[1]

    def chunks(self) -> Iterator[Chunk]:
        """The masked images, a model call each; whole images' where those of one fit."""
        each = per_call(self.images, ROWS)
        return chunks(len(self.images), self.number, each // self.number * self.number or each, self.images.device)

    def answers(self, x: Float[Tensor, "m c h w"], chunk: Chunk) -> Float[Tensor, "r k"]:
        """The logits at the rows of a chunk, in place of whose images stands `x`."""
        keep, fill = self.sums.keep[chunk.image, chunk.variant][:, None], self.sums.fill[chunk.image]
        return self.gate(keep * x[chunk.image - chunk.images.start] + (1 - keep) * fill)

    def logits(self, x: Images) -> Float[Tensor, "b n k"]:
        """At all masked images, float64, of a model whose float32 is not rounded to TF32; `x` stands in place of the images."""
        with torch.inference_mode(), evaluating(self.gate), full_precision():
            found = [self.answers(x[within(chunk)], chunk).double() for chunk in self.chunks()]
        return torch.cat(found).unflatten(0, (len(x), self.number))

    def outputs(self, x: Images) -> Float[Tensor, "b n"]:
        """F at all masked images, float64."""
        return self.chosen(self.logits(x))

    def chosen(self, logits: Float[Tensor, "b n k"]) -> Float[Tensor, "b n"]:
        """F at all masked images, of their logits."""
        targets = self.targets[:, None].expand(logits.shape[:2])
        return select_output(logits.flatten(0, 1), targets.flatten(), self.sums.output).view(targets.shape)

    def part(self, some: slice) -> Question:
        """That about some of its images."""
        keep, fill, weights, output = self.sums
        images, targets, labels, counts = (t[some] for t in (self.images, self.targets, self.labels, self.counts))
        sums = MaskedSum(keep[some], fill[some], weights[some], output)
        return replace(self, images=images, targets=targets, sums=sums, labels=labels, counts=counts)

    def rankings(self) -> Iterator[Ranking]:
        """The rankings of the regions of all images, of as many together as `MEMORY` bytes hold."""
        known = slopes(self.gate, self.images)
        channels, *side = self.images.shape[1:]
        wide = max(self.number, self.most * channels) if self.is_exact(known) else self.number
        pairs = self.tops * (self.most - self.tops)
        room = CACHED if self.images.device.type == "cpu" else MEMORY // 8
        each = max(1, min(MEMORY // (8 * wide * math.prod(side)), room // pairs))
        for start in range(0, len(self.images), each):
            yield self.part(slice(start, start + each)).ranking(known)

    def is_exact(self, known: Slopes) -> bool:
        """Whether f is affine."""
        return known.affine and self.sums.output == "logit"

    def order(self, outputs: Float[Tensor, "b n"]) -> Order:
        """The order of the regions by these outputs."""
        real = torch.arange(self.most, device=outputs.device) < self.counts[:, None]
        order = valued(self.regions, outputs).masked_fill(~real, -torch.inf).argsort(1, descending=True)
        top, rest = order.split([self.tops, self.most - self.tops], dim=1)
        return Order(top, rest, real.gather(1, rest))

    def ranking(self, known: Slopes) -> Ranking:
        """The ranking of the regions of all images at once."""
        logits, rows, masks = self.logits(self.images), self.regions, self.sums.keep.flatten(2).double()
        outputs, target, exact = self.chosen(logits), self.targets[:, None, None], None
        others = logits.masked_fill(torch.arange(logits.shape[2], device=logits.device) == target, -torch.inf)
        own = logits.gather(2, target.expand(-1, self.number, -1))[..., 0]
        if self.is_exact(known):
            slope = known.rows[self.targets].unflatten(1, (self.images.shape[1], -1))  # [b, c, p]
            exact = ((rows @ masks)[:, :, None] * slope[:, None]).flatten(2)
        probability, eps = self.sums.output == "probability", torch.finfo(self.images.dtype).eps
        constant = known.log_odds(self.targets) if probability else known.logit(self.targets)
        odds, order = own - others.logsumexp(2), self.order(outputs)
        return Ranking(masks, rows, outputs, odds, order, constant, exact, probability, eps)

    def margin(self, x: Images, order: Order) -> tuple[Float[Tensor, "b"], Images]:
        """By how much the least of the top exceeds the most of the rest at `x`, and that difference's gradient."""

        def between(outputs: Float[Tensor, "m n"], some: slice) -> tuple[Float[Tensor, "m"], Float[Tensor, "m n"]]:
            rows, (top, rest, real) = self.regions[some], (t[some] for t in order)
            values = valued(rows, outputs)
            least, i = values.gather(1, top).min(1, keepdim=True)
            most, j = values.gather(1, rest).masked_fill(~real, -torch.inf).max(1, keepdim=True)
            apart = taken(rows, top.gather(1, i)) - taken(rows, rest.gather(1, j))
            return (least - most)[:, 0], apart[:, 0]

        every, margins = list(self.chunks()), []
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.gate):
            total = torch.zeros_like(x)
            whole = len(every[0]) % self.number == 0
            known, apart = (None, None) if whole else between(self.outputs(x), slice(None))
            for chunk in every:
                some = within(chunk)
                moved = x[some].clone().requires_grad_()
                f = select_output(self.answers(moved, chunk), self.targets[chunk.image], self.sums.output)
                if apart is None:
                    margin, weights = between(f.detach().double().view(-1, self.number), some)
                    margins.append(margin)
                else:
                    weights = apart.flatten()[chunk.start : chunk.stop]
                total[some] += gradients((weights.flatten().to(f) * f).sum(), moved)
        return torch.cat(margins) if known is None else known, total


def within(chunk: Chunk) -> slice:
    """Which images a chunk has rows of."""
    return slice(chunk.images.start, chunk.images.stop)


def certified_radius(question: Question) -> Float[Tensor, "b"]:
    """The radius at which each image's top surely keeps its rank: a lower bound of the least change that ends it; float64."""
    return torch.cat([r.radius() for r in question.rankings()])


def certified_share(question: Question, radius: float) -> Float[Tensor, "b"]:
    """The share of the pairs of a top and another region whose order surely holds within the radius; float64."""
    return torch.cat([r.share(radius) for r in question.rankings()])


# --------------------------------------------------------------------------------------------------------------------- attack


def attack_radius(question: Question, steps: int = 100) -> Float[Tensor, "b"]:
    """The least change of each image, within [0, 1], that is found to end the rank of its top: an upper bound; float64.

    Infinite where none is found; see `attacked`.
    """
    return attacked(question, steps)[0]


def attacked(question: Question, steps: int, radius: float | None = None) -> tuple[Float[Tensor, "b"], Images]:
    """Projected gradient descent on the margin of every image's top, and what it found: the sizes of the changes, and the images.

    Without a radius that of the ball shrinks where the top has lost its rank and grows where not (fast minimum-norm attack, Pintor et
    al., 2021): the least change is returned, infinite if none was found, NaN where the model's answer is no number. With one, what
    leaves the least margin within it.
    """
    x = question.images
    outputs = question.outputs(x)
    order, finite = question.order(outputs), outputs.isfinite().all(1)
    moved, best, none = x, x, torch.full_like(outputs[:, 0], torch.inf)
    ball, smallest, least = torch.full_like(none, radius or 0.0), none, none
    for k in range(steps):
        margin, slope = question.margin(moved, order)
        size, norm = length(moved - x), length(slope)
        share = (1 + math.cos(math.pi * k / steps)) / 2  # of the first step, and of the ball's first change
        if radius is not None:
            better = margin < least
            least = torch.where(better, margin, least)
        else:
            lost = margin <= 0
            better = lost & (size < smallest)
            smallest = torch.where(better, size, smallest)
            grown = ball * (1 + 0.05 * share)
            reached = torch.maximum(grown, 1.05 * (size + margin / norm))  # of a plane
            grown = torch.where(smallest.isinf() & (norm > 0), reached, grown)
            ball = torch.where(lost, torch.minimum(ball * (1 - 0.05 * share), smallest), grown)
        best = torch.where(spread(better), moved, best)
        step = max(share, 0.01) * ball.clamp(max=1) / norm
        change = moved - x - spread(step.to(x)) * slope
        change = change * spread((ball / length(change).clamp_min(1e-12)).clamp(max=1).to(x))
        moved = torch.where(spread(norm > 0), (x + change).clamp(0, 1), moved)  # flat ground is where an image stays
    found = smallest if radius is None else length(best - x)
    return found.masked_fill(~finite, torch.nan), best


def length(x: Images) -> Float[Tensor, "b"]:
    """The l2 norms, float64."""
    return x.double().flatten(1).norm(dim=1)


def spread(values: Shaped[Tensor, "b"]) -> Shaped[Tensor, "b 1 1 1"]:
    """A number or truth an image, for all of its pixels."""
    return values[:, None, None, None]

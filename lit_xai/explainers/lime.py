"""LIME for images: perturb, represent, weigh, fit (Ribeiro et al., 2016; Garreau & Mardaoui, 2021).

One class. What is perturbed, how a perturbed image is represented, how it is weighed: each is a parameter, so that
KernelSHAP and LIME on samples of a generative model are configurations of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, admit, evaluate_rows, gated
from lit_xai.core import (
    SIGNED,
    Auto,
    Component,
    Explainer,
    Filler,
    Images,
    Legend,
    Maps,
    MaskedSum,
    Model,
    Passes,
    Scores,
    Segments,
    Targets,
)
from lit_xai.errors import UsageError, counted
from lit_xai.explainers.surrogate import LEVEL, Block, Surrogate, fit, is_settled, solved
from lit_xai.fillers.constant import constant_colour
from lit_xai.fillers.refill import Refill
from lit_xai.fillers.simple import SegmentMean
from lit_xai.rng import Noise, SampleRng
from lit_xai.segments import Grid, Quickshift, Segmenter, segment_counts, to_pixels

BLOCK = 256  # perturbed images of one sample that are drawn together; memory is bounded by it
Seen = tuple[Tensor, Tensor, Tensor]  # features, responses and weights of a block, where the images are


def on_the_host(seen: Sequence[Seen]) -> list[Block]:
    """Blocks for the fit, in one copy of each kind whatever their number."""
    sizes = [response.shape[1] for _, response, _ in seen]
    parts = [torch.cat(kind, dim=1).cpu().split(sizes, dim=1) for kind in zip(*seen, strict=True)]
    return [Block.of(*block) for block in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Rows:
    """One chunk of perturbed images, for representations and kernels.

    Attributes:
        images, segments: of the whole batch.
        image_of: the image of every row.
        visible: `[r, d]` superpixels that stay visible; False beyond an image's own.
        perturbed: `[r, c, h, w]` the model's input.
        counts: `[r]` superpixels of each row's image.
    """

    images: Images
    segments: Segments
    image_of: Int[Tensor, "r"]
    visible: Bool[Tensor, "r d"]
    perturbed: Float[Tensor, "r c h w"]
    counts: Int[Tensor, "r"]


# -------------------------------------------------------------------------------------------------------- perturbation


@dataclass(frozen=True)
class Toggle(Component):
    """Every superpixel stays with probability `keep`, independently; the others are filled.

    `keep=0` with `whole_first=False` hides everything: the filler then paints full-input samples.

    Args:
        filler: what stands where a superpixel is hidden.
        keep: in [0, 1].
        whole_first: the first mask hides nothing, as in the `lime` package.
    """

    filler: Filler = field(default_factory=SegmentMean)
    keep: float = 0.5
    whole_first: bool = True

    deterministic: ClassVar[bool] = False

    def visible(self, noise: Noise, masks: range, own: Bool[Tensor, "b d"]) -> Bool[Tensor, "b n d"]:
        """The superpixels that stay: a function of the image's key and of the numbers of mask and superpixel alone.

        Args:
            noise: a key an image.
            masks: their numbers.
            own: which superpixels each image has; the others do not stay.
        """
        if not 0 <= self.keep <= 1:
            raise UsageError(f"a superpixel's probability to stay, keep={self.keep}, must lie in [0, 1]")
        z = noise.parts(masks.start, masks.stop).uniform(own.shape[1:]) < self.keep
        if self.whole_first and masks.start == 0:
            z[:, 0] = True
        return z & own[:, None]


@dataclass(frozen=True)
class Coalitions(Toggle):
    """Coalitions of KernelSHAP: the size s has probability proportional to (d-1) / (s (d-s)), its members are uniform.

    The first two masks show everything and nothing (Lundberg & Lee, 2017).
    """

    def visible(self, noise: Noise, masks: range, own: Bool[Tensor, "b d"]) -> Bool[Tensor, "b n d"]:
        """The coalitions; as of `Toggle`."""
        keys, d = noise.parts(masks.start, masks.stop), own.sum(1, keepdim=True)
        size = torch.arange(1, own.shape[1] + 1, dtype=torch.float64, device=own.device)
        up_to = torch.where(size < d, 1 / (size * (d - size)), 0.0).cumsum(1)  # [b, d], of the sizes 1 .. d - 1
        u = keys.part(0).uniform((1,), torch.float64) * up_to[:, -1:, None]
        sizes = 1 + torch.searchsorted(up_to, u[..., 0], right=True).minimum(d - 2)
        last = torch.iinfo(torch.long).max
        values = keys.part(1).bits(own.shape[1]).masked_fill(~own[:, None], last)  # its own come first
        z = values.argsort(2).argsort(2) < sizes[..., None]
        if masks.start == 0:
            z[:, 0], z[:, 1] = True, False
        return z & own[:, None]


# ------------------------------------------------------------------------------------------------------ representation


@dataclass(frozen=True)
class OnOff(Component):
    """1 where a superpixel is visible, else 0."""

    def __call__(self, rows: Rows) -> Tensor:
        """Whether each superpixel of a row is visible, `[r, d]`, boolean."""
        return rows.visible


@dataclass(frozen=True)
class SegmentDistance(Component):
    """1 - l1(x, x~) / largest possible l1, superpixel by superpixel: how much of it is left, in [0, 1] (POMELO)."""

    def __call__(self, rows: Rows) -> Tensor:
        """How much of each superpixel of a row is left, `[r, d]`, float32."""
        x = rows.images[rows.image_of]
        segments = rows.segments[rows.image_of].flatten(1)
        change, most = (x - rows.perturbed).abs().sum(1), torch.maximum(x, 1 - x).sum(1)
        total = change.new_zeros(2, len(x), rows.visible.shape[1])
        total[0].scatter_add_(1, segments, change.flatten(1))
        total[1].scatter_add_(1, segments, most.flatten(1))
        return torch.where(total[1] > 0, 1 - total[0] / total[1].clamp_min(1e-12), 0.0).float()


# -------------------------------------------------------------------------------------------------------------- kernel


class Kernel(Component):
    """The weight of every perturbed image."""

    @abstractmethod
    def __call__(self, rows: Rows) -> Float[Tensor, "r"]:
        """Weights, at least 0, float64."""


def bell(distance: Tensor, width: float) -> Tensor:
    """exp(-distance^2 / (2 width^2)) of distances `[r]`."""
    if not width > 0:
        raise UsageError(f"the kernel's width (bandwidth) must be positive, found {width}")
    return torch.exp(-(distance**2) / (2 * width**2))


@dataclass(frozen=True)
class CosineKernel(Kernel):
    """exp(-(1 - cos(z, 1))^2 / (2 width^2)); a mask that hides everything lies at distance 1."""

    width: float = 0.25

    def __call__(self, rows: Rows) -> Float[Tensor, "r"]:
        return bell(1 - (rows.visible.sum(1).double() / rows.counts).sqrt(), self.width)


@dataclass(frozen=True)
class PixelCosineKernel(Kernel):
    """The same bell with the cosine distance between the image's and the perturbed image's pixels (POMELO)."""

    width: float = 0.25

    def __call__(self, rows: Rows) -> Float[Tensor, "r"]:
        x, y = rows.images[rows.image_of].flatten(1).double(), rows.perturbed.flatten(1).double()
        size = x.norm(dim=1) * y.norm(dim=1)
        return bell(1 - torch.where(size > 0, (x * y).sum(1) / size.clamp_min(1e-300), 0.0), self.width)


@dataclass(frozen=True)
class ShapleyKernel(Kernel):
    """Equal weights for `Coalitions`, and `anchor` for the two masks that show everything and nothing.

    The coalitions are drawn in proportion to the Shapley kernel, so the fit is KernelSHAP's; the anchors' weight makes
    the coefficients sum to f(x) - f(everything filled).
    """

    anchor: float = 1e7

    def __call__(self, rows: Rows) -> Float[Tensor, "r"]:
        shown = rows.visible.sum(1)
        return torch.where((shown == 0) | (shown == rows.counts), self.anchor, 1.0).double()


@dataclass(frozen=True)
class Lime(Explainer):
    """Local surrogate over superpixels; every default is the `lime` package's.

    The coefficients tend to a limit that is known in closed form for some models (`lit_xai.explainers.lime_limit`).

    Args:
        segments: makes the superpixels.
        perturbation: hides superpixels and fills them.
        representation: what the surrogate sees of a perturbed image.
        kernel: the weight of a perturbed image.
        samples: perturbed images an image; `auto` draws until the five largest coefficients are settled at 95 % (looks
            at 256, 512, 1024 ... samples) or `cap` is reached: each of the five must exceed each other one, pair by pair, at
            95 % shared among the looks.
        cap: most samples with `auto`.
        ridge: penalty of the coefficients; 0 for least squares, whose intervals hold.
        output: `probability` or `logit` of the explained class.
        repeat: number of the run: another number draws other masks.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most images per model call.
    """

    count = "samples"
    segments: Segmenter = field(default_factory=Quickshift)
    perturbation: Toggle = field(default_factory=Toggle)
    representation: OnOff | SegmentDistance = field(default_factory=OnOff)
    kernel: Kernel = field(default_factory=CosineKernel)
    samples: int | Auto = 1000
    cap: int = 10_000
    ridge: float = 1.0
    output: str = "probability"
    repeat: int = 0
    precision: str = "float32"
    max_batch: Size = AUTO

    @property
    def most(self) -> int:
        """The largest number of samples an image can take."""
        if self.samples == "auto" and self.cap < 1:
            raise UsageError(f"cap must be a positive number, found {self.cap}")
        return counted("samples", self.samples, self.cap)

    @property
    def legend(self) -> Legend:
        """Contributions to the output."""
        return Legend(SIGNED, unit=self.output)

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass a sample; with `auto`, at most that."""
        return Passes(self.most)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return self.with_details(model, images, targets, rng)[0]

    @gated
    def with_details(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> tuple[Maps, dict[str, Scores]]:
        """The maps, and per image: weighted R^2, mean standard error of a coefficient, samples, superpixels, settled."""
        s = self.explain(model, images, targets, rng)
        error = s.standard_errors.sum(1) / s.counts
        details = {"r2": s.r2, "standard_error": error, "samples": s.samples, "superpixels": s.counts}
        if self.samples == "auto":
            details["settled"] = s.settled
        return s.maps().to(images), {k: v.double() for k, v in details.items()}

    def explain(
        self,
        model: Model,
        images: Images,
        targets: Targets,
        rng: SampleRng | None = None,
        segments: Segments | None = None,
        masks: Bool[Tensor, "b n d"] | None = None,
    ) -> Surrogate:
        """The fitted surrogates.

        Args:
            model, images, targets, rng: as in the call.
            segments: superpixels of one's own instead of the segmenter's.
            masks: visible superpixels of every perturbed image, instead of random ones.

        Raises:
            UsageError: one superpixel only, fewer samples than superpixels, a kernel without width, a singular design.
        """
        model, images, targets = admit(model, images, targets)
        rng = SampleRng.default(len(images), rng).repeated(self.repeat)
        segments = self.segments(images) if segments is None else segments.to(images.device)
        if segments.shape != (len(images), *images.shape[-2:]):
            raise UsageError(f"superpixels of shape {tuple(segments.shape)} do not belong to these images")
        counts = segment_counts(segments).cpu()
        total = self.most if masks is None else masks.shape[1]
        for row, count in enumerate(counts.tolist()):
            if count < 2:
                raise UsageError(
                    f"sample {rng.samples[row]} has one superpixel: choose a finer segmentation (segments=)"
                )
            if total < count + 1:
                raise UsageError(
                    f"{total} samples cannot fit {count} superpixels of sample {rng.samples[row]}: "
                    f"set {'cap' if self.samples == 'auto' else 'samples'}= to at least {count + 1}, better ten times that"
                )
        if masks is not None and masks.shape[2] < int(counts.max()):
            raise UsageError(f"masks of {masks.shape[2]} superpixels for images that have {int(counts.max())}")
        if self.samples == "auto" and masks is None:
            return self.until_settled(model, images, targets, rng, segments, counts)
        refill = Refill(self.perturbation.filler, images, rng, segments)
        seen = [
            self.block(model, targets, refill, counts, start // BLOCK, min(BLOCK, total - start), masks)
            for start in range(0, total, BLOCK)
        ]
        blocks = on_the_host(seen)
        theta, covariance, r2 = fit(blocks, counts, self.ridge)
        samples = torch.full((len(images),), total)
        settled = [is_settled(t, v, int(c), LEVEL) for t, v, c in zip(theta, covariance, counts, strict=True)]
        return Surrogate(
            segments,
            counts,
            theta[:, 1:],
            theta[:, 0],
            covariance,
            r2,
            samples,
            torch.tensor(settled, dtype=torch.bool),
        )

    def masked_sum(self, images: Images, rng: SampleRng | None = None, segments: Segments | None = None) -> MaskedSum:
        """The surrogate's coefficients as sums of the outputs; `segments` are superpixels that do not move with the image."""
        if segments is None and type(self.segments) is not Grid:
            raise UsageError(
                f"superpixels by {type(self.segments).__name__} move with the image: certificates need a grid, "
                "segments._target_=lit_xai.segments.Grid, or superpixels of one's own"
            )
        sees_masks = type(self.representation) is OnOff and type(self.kernel) in (CosineKernel, ShapleyKernel)
        if not sees_masks or self.samples == "auto" or self.precision != "float32":
            kinds = (type(self.representation).__name__, type(self.kernel).__name__, self.samples, self.precision)
            raise UsageError(
                "certificates need a surrogate that sees masks alone (OnOff, CosineKernel or ShapleyKernel), a number of samples and "
                f"float32, found {', '.join(map(str, kinds))}"
            )
        fill = constant_colour(self.perturbation.filler, images)
        segments = self.segments(images) if segments is None else segments.to(images.device)
        counts, number = segment_counts(segments), self.most
        own = torch.arange(int(counts.max()), device=images.device) < counts[:, None]
        noise = SampleRng.default(len(images), rng).repeated(self.repeat).noise("lime", images.device)
        visible = self.perturbation.visible(noise, range(number), own)
        keep = visible.gather(2, segments.flatten(1)[:, None].expand(-1, number, -1)).unflatten(2, images.shape[-2:])
        weights = []
        for z, count, labels in zip(visible, counts, segments, strict=True):
            each = count.expand(number)
            rows = Rows(images, segments, torch.zeros_like(each), z, fill[:1].expand(number, -1, -1, -1), each)
            shares = solved(z[:, : int(count)].double().cpu(), self.kernel(rows).cpu(), self.ridge)
            weights.append(to_pixels(shares[1:].mT.contiguous(), labels.cpu().expand(number, -1, -1)))
        return MaskedSum(keep.to(images.dtype), fill, torch.stack(weights).to(images.device), self.output)

    def block(
        self,
        model: Model,
        targets: Targets,
        refill: Refill,
        counts: Int[Tensor, "b"],
        number: int,
        size: int,
        masks: Bool[Tensor, "b n d"] | None = None,
    ) -> Seen:
        """Draw, fill, ask and weigh one block of every image."""
        images, segments = refill.images, refill.segments
        assert segments is not None
        width = int(counts.max())
        start, device = number * BLOCK, images.device
        counts = counts.to(device)
        own = torch.arange(width, device=device) < counts[:, None]
        if masks is None:
            noise = refill.rng.noise("lime", device)
            visible = self.perturbation.visible(noise, range(start, start + size), own)
        else:
            visible = masks[:, start : start + size, :width].to(device, torch.bool) & own[:, None]
        made: dict[int, tuple[Tensor, Tensor]] = {}  # features and weights, by the first row of their chunk
        flat = segments.flatten(1)

        def make(chunk: Chunk) -> Tensor:
            z = visible.flatten(0, 1)[chunk.start : chunk.stop]
            one = len(chunk.images) == 1
            index = flat[chunk.images[0]].expand(len(z), -1) if one else flat[chunk.image]
            keep = z.gather(1, index).view(len(z), *segments.shape[1:])
            perturbed = refill(keep, chunk, since=start)
            rows = Rows(images, segments, chunk.image, z, perturbed, counts[chunk.image])
            made[chunk.start] = self.representation(rows), self.kernel(rows)
            return perturbed

        response = evaluate_rows(
            model, make, images, targets, size, self.max_batch, self.output, self.precision
        )  # [b, size]
        features, weights = (torch.cat(parts) for parts in zip(*made.values(), strict=True))
        return features.view(len(images), size, width), response.double(), weights.view(len(images), size)

    def until_settled(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng, segments: Segments, counts: Tensor
    ) -> Surrogate:
        """Image by image (of `counts` `[b]` superpixels): twice the samples at every look, until the top is settled or the cap reached."""
        looks = 1 + max(0, math.ceil(math.log2(self.cap / BLOCK)))
        level = 1 - (1 - LEVEL) / looks
        width = int(counts.max())
        theta = torch.zeros(len(images), width + 1, dtype=torch.float64)
        covariance = torch.zeros(len(images), width + 1, width + 1, dtype=torch.float64)
        r2, samples = torch.zeros(len(images), dtype=torch.float64), torch.zeros(len(images), dtype=torch.long)
        settled = torch.zeros(len(images), dtype=torch.bool)
        together = Refill(self.perturbation.filler, images, rng, segments)
        for i, count in enumerate(counts.tolist()):
            refill = together.of(i, i + 1)
            blocks: list[Block] = []
            done, target = 0, BLOCK
            while not settled[i] and done < self.cap:
                while done < min(target, self.cap):
                    size = min(BLOCK, self.cap - done)
                    one = counts[i : i + 1]
                    blocks += on_the_host([self.block(model, targets[i : i + 1], refill, one, done // BLOCK, size)])
                    done += size
                target *= 2
                if done <= count:
                    continue
                t, v, r = fit(blocks, counts[i : i + 1], self.ridge)
                theta[i, : count + 1], covariance[i, : count + 1, : count + 1] = t[0], v[0]
                r2[i], samples[i] = r[0], done
                settled[i] = is_settled(t[0], v[0], count, level)
        return Surrogate(segments, counts, theta[:, 1:], theta[:, 0], covariance, r2, samples, settled)

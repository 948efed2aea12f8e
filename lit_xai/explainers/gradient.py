"""Gradient methods: Saliency, Gradient x Input, Integrated Gradients, SmoothGrad, GradientSHAP.

Definitions follow Fel et al., "How Good is your Explanation?" (2022), appendix B, on the logit of the explained class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.calls import (
    AUTO,
    Chunk,
    Gate,
    Size,
    evaluating,
    gated,
    gradients,
    in_format_of,
    select_output,
    walk,
)
from lit_xai.core import MAGNITUDE, SIGNED, Auto, Explainer, Images, Legend, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError, at_least, counted
from lit_xai.rng import Noise, SampleRng
from lit_xai.sequential.confidence import Stopped, cells, until_decided

CAP = 1000  # most copies of SmoothGrad's `auto`


def input_gradient(model: Model, images: Images, targets: Targets, output: str = "logit") -> Images:
    """D output / d images. No parameter gradient is computed or touched, whatever mode the caller is in."""
    gate = Gate.of(model, targets)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(gate):
        x = images.clone().requires_grad_()
        return gradients(select_output(gate(x), targets.clone(), output).sum(), x)


def reduce_channels(attribution: Images, how: str) -> Maps:
    """`mean`, `max` or `sum` over the channels."""
    if how == "max":
        return attribution.amax(dim=1)
    if how in ("mean", "sum"):
        return attribution.mean(dim=1) if how == "mean" else attribution.sum(dim=1)
    raise UsageError(f"channels must be mean, max or sum, found {how!r}")


def mean_gradient(
    model: Model,
    images: Images,
    targets: Targets,
    weights: Float[Tensor, "n"],
    make: Callable[[Chunk], Tensor],
    max_batch: Size,
    output: str,
) -> Images:
    """sum_t weights[t] * gradient at variant t of every image, which `make(chunk)` makes (see `walk`)."""
    total, weights = torch.zeros_like(images), weights.to(images)

    def ask(chunk: Chunk) -> None:
        gradient = input_gradient(model, in_format_of(make(chunk), images), targets[chunk.image], output)
        total.index_add_(0, chunk.image, gradient * weights[chunk.variant].view(-1, 1, 1, 1))

    walk(model, images, len(weights), max_batch, ask)
    return total


@dataclass(frozen=True)
class Saliency(Explainer):
    """|gradient|, maximum over channels (Simonyan et al., 2014).

    Args:
        output: `logit` or `probability` of the explained class.
        channels: reduction over the channels.
    """

    deterministic: ClassVar[bool] = True

    output: str = "logit"
    channels: str = "max"

    legend: ClassVar[Legend] = Legend(MAGNITUDE)

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass."""
        return Passes(1, 1)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return reduce_channels(input_gradient(model, images, targets, self.output).abs(), self.channels)


@dataclass(frozen=True)
class GradientInput(Explainer):
    """x * |gradient|, mean over channels, as printed by Fel et al. (appendix B).

    Args:
        signed: x * gradient instead, as Shrikumar et al. (2017) and captum's InputXGradient have it.
        output: `logit` or `probability`.
        channels: reduction over the channels.
    """

    deterministic: ClassVar[bool] = True

    signed: bool = False
    output: str = "logit"
    channels: str = "mean"

    @property
    def legend(self) -> Legend:
        """Without a sign it tells how much, not which way."""
        return Legend(SIGNED if self.signed else MAGNITUDE)

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass."""
        return Passes(1, 1)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        gradient = input_gradient(model, images, targets, self.output)
        return reduce_channels(images * (gradient if self.signed else gradient.abs()), self.channels)


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """(x - x0) times the mean gradient on the line from x0 to x (Sundararajan et al., 2017).

    `steps` points, both ends included, trapezoidal weights that sum to one; hence the sum over pixels and channels
    tends to f(x) - f(x0) (completeness), and on a linear model equals it.

    Args:
        steps: number of points, at least 2.
        baseline: the value of every pixel of x0.
        output: `logit` or `probability`.
        channels: reduction over the channels.
        max_batch: most images per model call.
    """

    deterministic: ClassVar[bool] = True

    count = "steps"
    steps: int = 60
    baseline: float = 0.0
    output: str = "logit"
    channels: str = "mean"
    max_batch: Size = AUTO

    legend: ClassVar[Legend] = Legend(SIGNED)

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass a point."""
        return Passes(self.steps, self.steps)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        if self.steps < 2:
            raise UsageError(f"integrated gradients need at least 2 steps, found {self.steps}")
        position = torch.linspace(0, 1, self.steps, dtype=images.dtype, device=images.device)
        weights = torch.full_like(position, 1 / (self.steps - 1))
        weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
        difference = images - self.baseline

        def points(chunk: Chunk) -> Tensor:
            return self.baseline + position[chunk.variant].view(-1, 1, 1, 1) * difference[chunk.image]

        mean = mean_gradient(model, images, targets, weights, points, self.max_batch, self.output)
        return reduce_channels(self.shown(difference * mean), self.channels)

    def shown(self, attribution: Images) -> Images:
        """What of every pixel and channel is reduced over the channels."""
        return attribution


@dataclass(frozen=True)
class AbsoluteIntegratedGradients(IntegratedGradients):
    """|Integrated Gradients|, mean over channels: how much a pixel matters, not which way; in [0, inf).

    The printed results of Fel et al. (2022) are of these: they give Gradient x Input and Integrated Gradients the same MeGe on
    Fashion-MNIST, as absolute values have and signed ones have not. Completeness is lost.
    """

    legend: ClassVar[Legend] = Legend(MAGNITUDE)

    def shown(self, attribution: Images) -> Images:
        """The absolute values of the attribution."""
        return attribution.abs()


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """Mean gradient over noisy copies of the image (Smilkov et al., 2017). `sigma=0` is the gradient itself.

    Args:
        samples: noisy copies an image; `auto` draws until of 65 % of the map's cells (14 a side) it is known whether they are among the
            top 10 %, each at 95 %, valid at every look, at most `CAP`.
        sigma: standard deviation of the noise, in units of the [0, 1] range.
        output: `logit` or `probability`.
        channels: reduction over the channels.
        max_batch: most images per model call.
    """

    count = "samples"
    samples: int | Auto = 60
    sigma: float = 0.2
    output: str = "logit"
    channels: str = "mean"
    max_batch: Size = AUTO

    legend: ClassVar[Legend] = Legend(
        SIGNED, "red = a brighter pixel is for {label}, blue = a darker one is, white = neither"
    )

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass a copy; with `auto`, at most that."""
        return Passes(self.most, self.most)

    @property
    def most(self) -> int:
        """The largest number of copies an image can take."""
        return counted("samples", self.samples, CAP)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return self.with_details(model, images, targets, rng)[0]

    @gated
    def with_details(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> tuple[Maps, dict[str, Float[Tensor, "b *cells"]]]:
        """The maps; with `auto` also how many copies each took, the share of its cells that are known, and which are not."""
        at_least(0, sigma=self.sigma)
        if self.samples == "auto":
            maps, stopped = self.until_decided(model, images, targets, rng)
            return maps, stopped.details("samples", *images.shape[-2:])
        noise = SampleRng.default(len(images), rng).noise("smoothgrad", images.device)
        weights = torch.full((self.most,), 1 / self.most, dtype=torch.float64, device=images.device)

        def noisy(chunk: Chunk) -> Tensor:
            drawn = noise[chunk.image].part(chunk.variant).normal(images.shape[1:])
            return images[chunk.image] + self.sigma * drawn.to(images.dtype)

        mean = mean_gradient(model, images, targets, weights, noisy, self.max_batch, self.output)
        return reduce_channels(mean, self.channels), {}

    def until_decided(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None
    ) -> tuple[Maps, Stopped]:
        """The maps of as many copies as their top 10 % needs, and what is known of it."""
        if self.channels == "max":
            raise UsageError("samples=auto needs a mean over copies: channels=mean or sum, found max")
        noise = SampleRng.default(len(images), rng).noise("smoothgrad", images.device)
        number = cells(images[:1, 0]).shape[1]
        total = torch.zeros(len(images), *images.shape[-2:], dtype=torch.float64, device=images.device)
        pairs = torch.zeros(len(images), number, number, dtype=torch.float64, device=images.device)

        def draw(active: list[int], start: int, stop: int) -> None:
            rows = torch.tensor(active, device=images.device)

            def add(chunk: Chunk) -> None:
                b = rows[chunk.image]
                drawn = noise[b].part(start + chunk.variant).normal(images.shape[1:])
                x = in_format_of(images[b] + self.sigma * drawn.to(images.dtype), images)
                maps = reduce_channels(input_gradient(model, x, targets[b], self.output), self.channels).double()
                places = [cells(maps[chunk.rows(i)]) for i in chunk.images]
                products = [
                    p.mT @ p for p in places
                ]  # nothing is added before: a chunk that does not fit is asked again
                total.index_add_(0, b, maps)
                for i, product in zip(chunk.images, products, strict=True):
                    pairs[active[i]] += product

            walk(model, images[rows], stop - start, self.max_batch, add)

        def moments(active: list[int], draws: int) -> tuple[Tensor, Tensor]:
            mean = cells(total[active] / draws)
            return mean, pairs[active] / draws - mean[:, :, None] * mean[:, None]

        stopped = until_decided(len(images), draw, moments, CAP)
        maps = total / stopped.draws.to(images.device)[:, None, None]
        return maps.to(images.dtype), stopped


@dataclass(frozen=True)
class GradientShap(Explainer):
    """GradientSHAP (Lundberg & Lee, 2017), also known as expected gradients (Erion et al., 2021), as captum has it.

    The mean over copies x' = x + sigma z of the image of (x' - b) times the gradient at b + alpha (x' - b), with z standard normal,
    alpha uniform in [0, 1), and b drawn from the baselines. In expectation, integrated gradients from b to x' averaged over both:
    the sum over pixels and channels tends to the mean of f(x') - f(b).

    Args:
        samples: copies an image.
        sigma: standard deviation of the noise, in units of the [0, 1] range.
        baselines: the value of every pixel of b; of several values, every copy draws one.
        output: `logit` or `probability`.
        channels: reduction over the channels.
        max_batch: most images per model call.
    """

    count = "samples"
    samples: int = 20
    sigma: float = 0.1
    baselines: float | Sequence[float] = 0.0
    output: str = "logit"
    channels: str = "mean"
    max_batch: Size = AUTO

    legend: ClassVar[Legend] = Legend(SIGNED)

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass a copy."""
        return Passes(self.samples, self.samples)

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        at_least(1, samples=self.samples)
        at_least(0, sigma=self.sigma)
        starts = self.starts().to(images)
        noise = SampleRng.default(len(images), rng).noise("gradient_shap", images.device)
        total = torch.zeros_like(images)

        def ask(chunk: Chunk) -> None:
            z, alpha, which = draws(noise[chunk.image].part(chunk.variant), images, len(starts))
            start = starts[which].view(-1, 1, 1, 1)
            difference = images[chunk.image] + self.sigma * z - start
            points = in_format_of(start + alpha.view(-1, 1, 1, 1) * difference, images)
            gradient = input_gradient(model, points, targets[chunk.image], self.output)
            total.index_add_(0, chunk.image, gradient * difference)

        walk(model, images, self.samples, self.max_batch, ask)
        return reduce_channels(total / self.samples, self.channels)

    def starts(self) -> Float[Tensor, "n"]:
        """The baselines' values, float64 on the CPU."""
        try:
            found = torch.as_tensor(self.baselines, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):  # as torch has it
            found = torch.empty(0)
        if found.ndim > 1 or not found.numel() or not bool(found.isfinite().all()):
            raise UsageError(f"baselines must be a number or several, as [0,1], found {self.baselines!r}")
        return found.reshape(-1)


def draws(
    noise: Noise, images: Images, baselines: int
) -> tuple[Float[Tensor, "r c h w"], Float[Tensor, "r"], Int[Tensor, "r"]]:
    """What GradientSHAP draws with the keys `[r]` of its copies: z, alpha and the number of the baseline."""
    z = noise.part(0).normal(images.shape[1:]).to(images.dtype)
    return z, noise.part(1).uniform((), images.dtype), noise.part(2).bits(1)[:, 0].remainder(baselines)

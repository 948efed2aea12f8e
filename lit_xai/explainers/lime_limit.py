"""What LIME converges to: the limit explanation in closed form (Garreau & Mardaoui, "What Does LIME Really See in
Images?", ICML 2021).

With n -> infinity and no ridge, LIME's coefficients tend to linear combinations of expectations of pi f, where pi is the
kernel's weight of a random mask. Everything here is float64 and exact up to rounding, for up to 1,000 superpixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from torch import Tensor

from lit_xai.calls import AUTO, Chunk, Size, admit, evaluate_rows
from lit_xai.core import Filler, Images, Model
from lit_xai.errors import UsageError
from lit_xai.explainers.lime import CosineKernel, Lime, OnOff, Toggle
from lit_xai.explainers.surrogate import LEVEL, Surrogate
from lit_xai.fillers.base import BackgroundFiller
from lit_xai.fillers.refill import Refill
from lit_xai.rng import SampleRng
from lit_xai.segments import segment_counts, segment_sums

ENUMERABLE = 20  # most superpixels whose 2^d masks are enumerated
CHUNK = 1 << 14  # masks at once
Cut = Int[Tensor, "*one h w"]  # superpixels of one image, [h, w] or [1, h, w]


def psi(removed: float, bandwidth: float) -> float:
    """LIME's weight of a mask that removes this share of the superpixels (Eq. 4)."""
    return math.exp(-((1 - math.sqrt(1 - removed)) ** 2) / (2 * bandwidth**2))


@dataclass(frozen=True)
class Limit:
    """The constants of the limit for `superpixels` d and `bandwidth` nu.

    Attributes:
        superpixels: d, at least 2.
        bandwidth: nu, positive.
    """

    superpixels: int
    bandwidth: float = 0.25

    def __post_init__(self) -> None:
        if self.superpixels < 2:
            raise UsageError(f"the limit needs at least 2 superpixels, found {self.superpixels}")
        if not self.bandwidth > 0:
            raise UsageError(f"the bandwidth must be positive, found {self.bandwidth}")

    def alpha(self, on: int, off: int = 0) -> float:
        """alpha_{p,q} = E[pi 1{p given superpixels are on, q given ones are off}] (Prop. 1; q = 0 there).

        0 where p + q > d. Binomials are exact integers.
        """
        d, free = self.superpixels, self.superpixels - on - off
        if free < 0:
            return 0.0
        return math.fsum(math.comb(free, s) / 2**d * psi((s + off) / d, self.bandwidth) for s in range(free + 1))

    @cached_property
    def alphas(self) -> tuple[float, float, float]:
        """The constants alpha_0, alpha_1, alpha_2 of the limit."""
        return self.alpha(0), self.alpha(1), self.alpha(2)

    @cached_property
    def normalisation(self) -> float:
        """c_d = (d-1) a0 a2 - d a1^2 + a0 a1, positive."""
        d, (a0, a1, a2) = self.superpixels, self.alphas
        return (d - 1) * a0 * a2 - d * a1**2 + a0 * a1

    @cached_property
    def sigmas(self) -> tuple[float, float, float, float]:
        """sigma_0 .. sigma_3 (Definition 2; sigma_0 from the appendix)."""
        d, (a0, a1, a2) = self.superpixels, self.alphas
        return (
            (d - 1) * a2 + a1,
            -a1,
            ((d - 2) * a0 * a2 - (d - 1) * a1**2 + a0 * a1) / (a1 - a2),
            (a1**2 - a0 * a2) / (a1 - a2),
        )

    def coefficients(self, mean: float | Tensor, each: Float[Tensor, "d"]) -> tuple[float, Float[Tensor, "d"]]:
        """(beta_0, beta) from E[pi f], a number, and E[pi z_j f], `[d]`, of any function (Prop. 2)."""
        each = torch.as_tensor(each, dtype=torch.float64)
        if each.shape != (self.superpixels,):
            raise UsageError(f"{tuple(each.shape)} expectations for {self.superpixels} superpixels: one each is needed")
        s0, s1, s2, s3 = self.sigmas
        total = each.sum()
        intercept = (s0 * mean + s1 * total) / self.normalisation
        return float(intercept), (s1 * mean + s2 * each + s3 * (total - each)) / self.normalisation

    def detector(self, on: int, off: int = 0) -> tuple[float, float, float, float]:
        """Limit of the function that is 1 if `on` given superpixels are on and `off` given ones are off, else 0.

        Returns beta_0 and the coefficients of an `on` superpixel, of an `off` one, and of any other (NaN where there is
        none of that kind).
        """
        d, p, q = self.superpixels, on, off
        if p < 0 or q < 0 or p + q > d:
            raise UsageError(f"{p} superpixels on and {q} off do not fit {d} superpixels")
        here, more = self.alpha(p, q), self.alpha(p + 1, q)
        each = torch.tensor([here] * p + [0.0] * q + [more] * (d - p - q), dtype=torch.float64)
        intercept, beta = self.coefficients(here, each)
        kinds = [(p, 0), (q, p), (d - p - q, p + q)]
        return (intercept, *(float(beta[first]) if number else math.nan for number, first in kinds))  # type: ignore[return-value]

    def expected(self, f: Float[Tensor, "m"]) -> tuple[float, Float[Tensor, "d"]]:
        """E[pi f] and E[pi z_j f] from f at all 2^d masks; mask number m shows superpixel j where bit j of m is 1."""
        d = self.superpixels
        if d > ENUMERABLE or f.shape != (2**d,):
            raise UsageError(
                f"enumeration takes f at 2^d masks for d <= {ENUMERABLE}, found {tuple(f.shape)} for d = {d}"
            )
        mean, each = 0.0, torch.zeros(d, dtype=torch.float64)
        for numbers in torch.arange(2**d).split(CHUNK):
            z = bits(numbers, d).double()
            weighted = self.weights(z) * f[numbers].double() / 2**d
            mean += float(weighted.sum())
            each += weighted @ z
        return mean, each

    def weights(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m"]:
        """LIME's weight pi of masks, by how many superpixels they hide."""
        table = torch.tensor(
            [psi(s / self.superpixels, self.bandwidth) for s in range(self.superpixels + 1)], dtype=torch.float64
        )
        return table[(self.superpixels - z.sum(1)).long()]

    def sampling_covariance(self, f: Float[Tensor, "m"]) -> Float[Tensor, "p p"]:
        """N times the covariance of LIME's (intercept, coefficients) for large n, from f at all 2^d masks.

        A^-1 E[pi^2 e^2 x x'] A^-1 with A = E[pi x x'], x = (1, z), e = f - beta'x: the limit of the sandwich form.
        """
        d = self.superpixels
        intercept, beta = self.coefficients(*self.expected(f))
        gram = torch.zeros(d + 1, d + 1, dtype=torch.float64)
        meat = torch.zeros_like(gram)
        for numbers in torch.arange(2**d).split(CHUNK):
            z = bits(numbers, d).double()
            x = torch.cat([torch.ones(len(z), 1, dtype=torch.float64), z], dim=1)
            pi, e = self.weights(z), f[numbers].double() - intercept - z @ beta
            gram += (x * pi[:, None]).T @ x / 2**d
            meat += (x * (pi * e)[:, None] ** 2).T @ x / 2**d
        inverse = torch.linalg.inv(gram)
        return inverse @ meat @ inverse


def bits(numbers: Int[Tensor, "m"], d: int) -> Bool[Tensor, "m d"]:
    """The masks of these numbers."""
    return (numbers[:, None] >> torch.arange(d, device=numbers.device)) & 1 > 0


# -------------------------------------------------------------------------------------------------------- closed forms


def linear_limit(
    weights: Float[Tensor, "c h w"], image: Float[Tensor, "c h w"], filled: Float[Tensor, "c h w"], segments: Cut
) -> Float[Tensor, "d"]:
    """Beta of f(x) = sum_u lambda_u x_u: the sum of lambda_u (xi_u - filler_u) over each superpixel, for any bandwidth."""
    change = (weights.double() * (image.double() - filled.double())).sum(0)
    return segment_sums(change[None], segments.reshape(1, *change.shape))[0]


@dataclass(frozen=True)
class ShapeDetector:
    """f(x) = 1 if all pixels of a shape exceed `threshold`, else 0; as a model, its two logits are f and -f.

    Args:
        shape: `[h, w]` pixels of the shape S; in an image of several channels, all of them count.
        threshold: tau, in [0, 1].
    """

    shape: Bool[Tensor, "h w"]
    threshold: float = 0.5

    def __call__(self, images: Images) -> Float[Tensor, "b 2"]:
        """The logits (f, -f), f = 1 where the shape is there."""
        f = ((images > self.threshold) | ~self.shape).flatten(1).all(1).to(images.dtype)
        return torch.stack([f, -f], 1)

    def limit(
        self, image: Float[Tensor, "c h w"], filled: Float[Tensor, "c h w"], segments: Cut, bandwidth: float = 0.25
    ) -> tuple[float, Float[Tensor, "d"]]:
        """(beta_0, beta) in closed form, general case (Prop. 3 and its appendix).

        A superpixel that meets S must be on if its filling stays at or below the threshold there, must be off if the
        image does and the filling does not, and the function is 0 everywhere if it would have to be both.
        """
        segments = segments.reshape(image.shape[-2:])
        d = int(segments.max()) + 1

        def fails(x: Tensor) -> Bool[Tensor, "d"]:
            missed = ((x <= self.threshold).any(0) & self.shape).double()
            return segment_sums(missed[None], segments[None])[0] > 0

        must_be_on, must_be_off = fails(filled), fails(image)
        limit = Limit(d, bandwidth)
        if bool((must_be_on & must_be_off).any()):
            return 0.0, torch.zeros(d, dtype=torch.float64)
        intercept, on, off, other = limit.detector(int(must_be_on.sum()), int(must_be_off.sum()))
        beta = torch.full((d,), other, dtype=torch.float64)
        beta[must_be_on], beta[must_be_off] = on, off
        return intercept, beta


def large_bandwidth_limit(mean: float, given_on: Float[Tensor, "d"]) -> Float[Tensor, "d"]:
    """beta_j -> 2 (E[f | z_j = 1] - E[f]) as the bandwidth grows (Eq. 6)."""
    return 2 * (torch.as_tensor(given_on, dtype=torch.float64) - mean)


# --------------------------------------------------------------------------------------------------------- enumeration


def responses(
    model: Model,
    image: Float[Tensor, "c h w"],
    segments: Cut,
    filler: Filler,
    target: int = 0,
    output: str = "probability",
    max_batch: Size = AUTO,
    rng: SampleRng | None = None,
) -> Float[Tensor, "m"]:
    """The model's output at all 2^d masks of one image, in the order of `Limit.expected`. d <= 20: up to a million calls.

    Raises:
        UsageError: more superpixels than can be enumerated.
    """
    segments = segments.reshape(1, *image.shape[-2:])
    d = int(segment_counts(segments)[0])
    if d > ENUMERABLE:
        raise UsageError(f"{d} superpixels have 2^{d} masks: enumeration stops at {ENUMERABLE}; choose a coarser grid")
    refill = Refill(filler, image[None], SampleRng.default(1, rng), segments)

    def make(chunk: Chunk) -> Tensor:
        z = bits(chunk.variant, d)
        keep = z[:, segments.flatten()].view(len(z), *image.shape[-2:])
        return refill(keep, chunk)

    targets = torch.tensor([target], device=image.device)
    return evaluate_rows(model, make, image[None], targets, 2**d, max_batch, output)[0].double().cpu()


def exact_limit(
    model: Model,
    image: Float[Tensor, "c h w"],
    segments: Cut,
    filler: Filler,
    target: int = 0,
    output: str = "probability",
    bandwidth: float = 0.25,
    max_batch: Size = AUTO,
) -> tuple[float, Float[Tensor, "d"]]:
    """(beta_0, beta) of any model by enumerating the masks of one image (d <= 20)."""
    f = responses(model, image, segments, filler, target, output, max_batch)
    limit = Limit(int(segments.max()) + 1, bandwidth)
    return limit.coefficients(*limit.expected(f))


# ----------------------------------------------------------------------------------------------- how far a run is away


@dataclass(frozen=True)
class Gap:
    """A finite run of LIME beside its limit, for one image.

    Attributes:
        run: the run (its ridge is kept, so its bias is part of the gap).
        limit: `[d]` the limit's coefficients.
        distance: largest |coefficient - limit|.
        deviations: `[d]` (coefficient - limit) / standard error; NaN where the standard error is 0.
        needed: samples that would bring every coefficient within `accuracy` of its limit, 95 % each.
        accuracy: the accuracy asked for.
    """

    run: Surrogate
    limit: Float[Tensor, "d"]
    distance: float
    deviations: Float[Tensor, "d"]
    needed: int
    accuracy: float


def required_samples(run: Surrogate, accuracy: float) -> Int[Tensor, "b"]:
    """Samples that bring every coefficient's 95 % interval down to +- `accuracy`, from the run's sampling variance."""
    if not accuracy > 0:
        raise UsageError(f"accuracy must be positive, found {accuracy}")
    half = float(norm.ppf((1 + LEVEL) / 2)) * run.standard_errors.amax(1)
    if not bool(half.isfinite().all()):
        raise UsageError("the run has as many samples as parameters and no standard errors: set samples= higher")
    return (run.samples * (half / accuracy) ** 2).ceil().long()


def lime_gap(
    model: Model,
    image: Float[Tensor, "c h w"],
    target: int = 0,
    lime: Lime | None = None,
    accuracy: float = 0.01,
    limit: Float[Tensor, "d"] | None = None,
    segments: Cut | None = None,
    rng: SampleRng | None = None,
) -> Gap:
    """How far a run of `lime` on one image is from its limit.

    Args:
        model, image, target: what is explained.
        lime: the run's settings (None: the defaults); on-off representation, cosine kernel, masks with keep = 1/2.
        accuracy: for `needed`, in units of the output.
        limit: the limit where it is known in closed form; None enumerates the masks (d <= 20).
        segments: `[h, w]` superpixels of one's own.
        rng: the image's noise.

    Raises:
        UsageError: no limit is known for these settings, or too many superpixels to enumerate.
    """
    lime = lime or Lime()
    plain = isinstance(lime.kernel, CosineKernel) and isinstance(lime.representation, OnOff)
    if not plain or type(lime.perturbation) is not Toggle or lime.perturbation.keep != 0.5:
        raise UsageError(
            "the limit is known for Toggle(keep=0.5), the on-off representation and the cosine kernel alone"
        )
    images, targets = image[None], torch.tensor([target], device=image.device)
    model, images, targets = admit(model, images, targets)
    image = images[0]
    cut = lime.segments(images) if segments is None else segments.reshape(1, *image.shape[-2:])
    run = lime.explain(model, images, targets, rng, segments=cut)
    if limit is None:
        bandwidth = lime.kernel.width  # type: ignore[attr-defined]
        filler = lime.perturbation.filler
        if not isinstance(filler, BackgroundFiller):
            raise UsageError(
                f"{type(filler).__name__} fills every mask anew: enumeration knows no limit; give limit=, or a filler "
                f"that does not depend on the mask"
            )
        limit = exact_limit(model, image, cut, filler, target, lime.output, bandwidth, lime.max_batch)[1]
    limit = limit.to(run.coefficients)
    difference, error = run.coefficients[0] - limit, run.standard_errors[0]
    deviations = torch.where(error > 0, difference / error, torch.nan)
    needed = int(required_samples(run, accuracy)[0])
    return Gap(run, limit, float(difference.abs().max()), deviations, needed, accuracy)

"""A Gaussian over image windows; hidden pixels are drawn from its conditional given what is visible around them.

The filler of prediction difference analysis (Zintgraf et al., "Visualizing Deep Neural Network Decisions", 2017). A
window is a K x K tile with `margin` pixels of surroundings on each side. With k the known pixels of a window and u the
hidden ones of its tile,

    x_u | x_k ~ N(mu_u + S_uk S_kk^-1 (x_k - mu_k),  S_uu - S_uk S_kk^-1 S_ku),   clipped to [0, 1].

One Cholesky factor F of S with u last gives both: S_uk S_kk^-1 = F_uk F_kk^-1, and F_uu is the root of the covariance.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.core import Corners, Images, Keep
from lit_xai.errors import UsageError, at_least, share
from lit_xai.fillers.base import keys_of
from lit_xai.fillers.tiles import LEVELS, ImageSet, Step, WindowFiller, cut, pictures, windows
from lit_xai.models.trainable import SamplerModule
from lit_xai.rng import Noise, SampleRng, stable_hash

ROUNDING = 1 / (12 * (LEVELS - 1) ** 2)  # variance of rounding to 8 bits: what the Cholesky factor needs and no more
FOLD_IMAGES = 2000  # most images of a fold that are read
Juts = Sequence[int]  # pixels of a window outside of the image: at the top, at the bottom, on the left, on the right


class Conditional(NamedTuple):
    """The distribution of a tile's hidden pixels given one pattern of known ones; float64.

    `known` [k] and `hidden` [u] index the window `[c, s, s]`, `row` and `column` [p] place the hidden pixels within the
    tile (u = c p); the mean is `mean_hidden + gain (x_known - mean_known)`, the covariance `scale scale'`.
    """

    known: Tensor
    hidden: Tensor
    row: Tensor
    column: Tensor
    mean_known: Tensor
    mean_hidden: Tensor
    gain: Tensor
    scale: Tensor

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return sum(t.nbytes for t in self)

    def mean(self, window: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows u"]:
        """The conditional mean for flattened windows."""
        return self.mean_hidden + (window.double()[..., self.known] - self.mean_known) @ self.gain.mT

    def drawn(self, window: Float[Tensor, "g #d v"], z: Float[Tensor, "g d u"]) -> Float[Tensor, "g d u"]:
        """The hidden values of flattened windows for standard normal numbers."""
        return (self.mean(window) + z.double() @ self.scale.mT).clamp(0, 1)

    def bits(self, windows: Float[Tensor, "m c s s"]) -> Float[Tensor, "m"]:
        """Bits a hidden value, see `ConditionalGaussian.bits_per_dimension`."""
        flat, sd = windows.flatten(1).double(), self.scale.square().sum(1).sqrt()
        level = (flat[:, self.hidden] * (LEVELS - 1)).round()
        low, high = (((level + e) / (LEVELS - 1) - self.mean(flat)) / sd for e in (-0.5, 0.5))
        low = low.masked_fill(level <= 0, -math.inf)
        high = high.masked_fill(level >= LEVELS - 1, math.inf)
        return -log_normal_mass(low, high).mean(1) / math.log(2)


def moments(
    images: ImageSet | Tensor,
    patch: int = 8,
    margin: int | None = None,
    positions: int = 20_000,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    shrinkage: float = 0.0,
) -> tuple[Float[Tensor, "c s s"], Float[Tensor, "d d"]]:
    """Mean and covariance of windows at random positions (Zintgraf et al., 2017), float64.

    The variance of rounding to 8 bits is added to every pixel's, so that constant pixels do no harm.

    Args:
        images: an image set, or a tensor `[n, c, h, w]`, in [0, 1].
        patch: side K of what is hidden, pixels.
        margin: surroundings on each side, pixels; None: K, or what the images allow. The covariance has
            (c (K + 2 margin)^2)^2 numbers, and its factor costs the cube of its side: 1,728 for K = 8 in colour.
        positions: windows.
        seed: of their choice.
        samples: indices of the images that may be used; all if None.
        shrinkage: share in [0, 1] by which covariances (not variances) are lowered.

    Raises:
        UsageError: a window is larger than the images, or there are too few windows for their covariance.
    """
    if len(images) == 0 or (samples is not None and len(samples) == 0):
        raise UsageError("a Gaussian needs images to be fitted on, found none")
    channels, height, width = pictures(images, [0 if samples is None else int(samples[0])]).shape[1:]
    if not 1 <= patch <= min(height, width):
        raise UsageError(f"patch={patch} does not fit images of {height} x {width} pixels")
    most = (min(height, width) - patch) // 2
    margin = min(patch, most) if margin is None else margin
    if not 0 <= margin <= most:
        raise UsageError(
            f"margin={margin} around patch={patch} does not fit images of {height} x {width}: choose 0..{most}"
        )
    share(shrinkage=shrinkage)
    side = patch + 2 * margin
    size = channels * side**2
    if positions <= size and (positions < 2 or shrinkage == 0):
        raise UsageError(
            f"positions={positions} cannot determine the covariance of {size} values: "
            f"raise positions, lower patch or margin, or set shrinkage > 0"
        )
    total = torch.zeros(size, dtype=torch.float64)
    square = torch.zeros(size, size, dtype=torch.float64)
    for batch in windows(images, side, positions, seed, samples):
        flat = batch.double().flatten(1).cpu()
        total += flat.sum(0)
        square.addmm_(flat.mT, flat)
    mean = total / positions
    covariance = square.sub_(positions * torch.outer(mean, mean)).div_(positions - 1)
    variance = covariance.diagonal() + ROUNDING
    covariance.mul_(1 - shrinkage).diagonal().copy_(variance)
    return mean.view(channels, side, side), covariance


def log_normal_mass(low: Float[Tensor, "*n"], high: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(Phi(high) - Phi(low)), exact in the tails; low < high, both may be infinite."""
    right = low > 0  # mirrored, so that no difference of numbers near 1 is taken
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return b + torch.log1p(-torch.exp(a - b))


class GaussianModule(SamplerModule):
    """The Gaussian as something that `lit_xai.train` fits and saves: in one pass over windows, without epochs.

    Args:
        channels, side, classes, colour: given by the data.
        patch, margin, positions, shrinkage: see `moments`.
    """

    in_one_pass = True

    def __init__(
        self,
        channels: int,
        side: int,
        classes: int = 0,
        colour: Any = None,
        patch: int = 8,
        margin: int | None = None,
        positions: int = 20_000,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= patch <= side:
            raise UsageError(f"model.patch={patch} does not fit images of {side} x {side} pixels: choose 1..{side}")
        self.channels, self.side = channels, side
        self.patch, self.positions, self.shrinkage = patch, positions, shrinkage
        self.margin = min(patch, (side - patch) // 2) if margin is None else margin
        window = patch + 2 * self.margin
        size = channels * window**2
        self.register_buffer("mean", torch.zeros(channels, window, window, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(size, size, dtype=torch.float64))

    def fit(self, images: ImageSet | Tensor, seed: int = 0, samples: Sequence[int] | None = None) -> None:
        """Fit to images `[n, c, h, w]`; arguments and errors as `moments`."""
        options = (self.patch, self.margin, self.positions, seed, samples, self.shrinkage)
        for name, value in zip(("mean", "covariance"), moments(images, *options), strict=True):
            self.get_buffer(name).copy_(value)

    def prepare(self, data: Any) -> None:
        """Fit to (at most 2,000 images of) the training folds of a `FoldData`: V_i is never seen."""
        samples = data.split.training(data.fold) if data.k > 1 else data.split.samples
        generator = torch.Generator().manual_seed(stable_hash(data.seed, "gaussian"))
        samples = samples[torch.randperm(len(samples), generator=generator)[:FOLD_IMAGES]].sort().values
        self.fit(data.source.train, data.seed, samples.tolist())

    def sampler(self) -> ConditionalGaussian:
        """What draws from the Gaussian."""
        return ConditionalGaussian(given=self)

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Nothing is tested: `SamplerReport` measures."""


@dataclass(frozen=True)
class ConditionalGaussian(WindowFiller):
    """Hidden pixels drawn from a Gaussian over windows given the visible ones; the same one everywhere in the image.

    A hidden K x K square is one exact draw; where a window juts out of the image, what lies outside is marginalised, not
    padded. A pattern of known pixels costs one Cholesky factor of a window; patterns that come back cost none.

    Args:
        checkpoint, trained_on, given: see `FittedFiller`.
    """

    model = "conditional_gaussian"
    kind = GaussianModule
    noun = "Gaussian"

    @property
    def side(self) -> int:
        """Side of a window, pixels."""
        return self.patch + 2 * self.margin

    @property
    def tile(self) -> tuple[slice, slice]:
        """The middle of a window."""
        return (slice(self.margin, self.margin + self.patch),) * 2

    def mean_and_covariance(self, device: torch.device) -> tuple[Float[Tensor, "v"], Float[Tensor, "v v"]]:
        """Mean and covariance of flattened windows; a device gets them once."""
        module, copies, key = self.module, self.opened.copies, (str(device), torch.float64)
        if module.mean.device != device:
            if key not in copies:
                copies[key] = copy.deepcopy(module).to(device)
            module = copies[key]
        return module.mean.flatten(), module.covariance

    def around(self, juts: Juts, device: torch.device | None = None) -> Bool[Tensor, "s s"]:
        """Which pixels of a window are known whose tile is hidden and nothing else, made where they are wanted."""
        along = torch.arange(self.side, device=device)
        down, across = (
            (along >= before) & (along < self.side - after) for before, after in zip(juts[::2], juts[1::2], strict=True)
        )
        known = down[:, None] & across
        known[self.tile] = False
        return known

    def conditional(self, known: Bool[Tensor, "s s"], device: torch.device, juts: Juts | None = None) -> Conditional:
        """The distribution of the tile's unknown pixels given the window's known ones; recent patterns are kept.

        `known` lies on the host; where it is what is `around` a tile, nothing is copied from there.
        """
        key = (known.numpy().tobytes(), str(device))
        found = self.opened.kept.get(key)
        if found is None:
            found = self.solved(known, device, juts)
            self.opened.kept.put(key, found, found.size)
        return found

    def solved(self, known: Bool[Tensor, "s s"], device: torch.device, juts: Juts | None) -> Conditional:
        """What `conditional` gives, computed anew."""
        here = known.to(device) if juts is None else self.around(juts, device)
        hidden = torch.zeros_like(here)
        hidden[self.tile] = ~here[self.tile]
        numbers = int(known.sum()), int((~known[self.tile]).sum())
        pixels = [(~m).flatten().byte().argsort(stable=True)[:n] for m, n in zip((here, hidden), numbers, strict=True)]
        channels = torch.arange(self.module.channels, device=device)[:, None] * self.side**2
        k, u = ((channels + p).flatten() for p in pixels)
        (mean, covariance), order = self.mean_and_covariance(device), torch.cat([k, u])
        # on a device the check would wait for the factor; without it, nothing is drawn but NaN where there is none
        root, failed = torch.linalg.cholesky_ex(covariance[order[:, None], order], check_errors=device.type == "cpu")
        gain = torch.linalg.solve_triangular(
            root[: len(k), : len(k)], root[len(k) :, : len(k)], upper=False, left=False
        )
        scale = root[len(k) :, len(k) :].clone()
        row, column = pixels[1] // self.side - self.margin, pixels[1] % self.side - self.margin
        return Conditional(k, u, row, column, mean[k], mean[u].masked_fill(failed > 0, math.nan), gain, scale)

    def alike(
        self, corners: Corners, height: int, width: int
    ) -> tuple[Int[Tensor, "b"], Iterator[tuple[slice, Conditional]]]:
        """An order of windows in which those of one pattern of known pixels follow each other, and what each such slice shares.

        How many there are of a pattern is counted on the host, so that nothing waits for the device.
        """
        edge, device = self.margin, corners[0].device

        def juts(places: Tensor) -> list[Tensor]:
            ends = zip(places.unbind(1), (height, width), strict=True)
            both = ((edge - first, first + self.patch + edge - side) for first, side in ends)
            return [pixels.clamp_min(0) for ends in both for pixels in ends]

        number = torch.zeros_like(corners[0][:, 0])
        for pixels in juts(corners[0]):
            number = number * (edge + 1) + pixels
        kinds, counts = torch.stack(juts(corners[1]), 1).unique(dim=0, return_counts=True)  # in the order of numbers

        def groups() -> Iterator[tuple[slice, Conditional]]:
            start = 0
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
                yield slice(start, start + count), self.conditional(self.around(kind), device, kind)
                start += count

        return number.argsort(stable=True), groups()

    def in_windows(
        self, images: Images, keep: Keep, corners: Corners, rng: SampleRng, draws: int = 1
    ) -> Float[Tensor, "b 1 d c h w"]:
        """One tile a row, all of it hidden: what is known around it is told by where it lies."""
        self.check(images)
        at_least(1, draws=draws)
        order, groups = self.alike(corners, *images.shape[-2:])
        top, left = corners[0][order].unbind(1)
        with torch.no_grad():
            padded = torch.nn.functional.pad(images, (self.margin,) * 4)
            seen = cut(padded, order, top, left, self.side).flatten(1)[:, None]
            noise = self.noise(keys_of(keep, rng, draws)[order, 0].part(0))
            values = torch.empty_like(noise, dtype=images.dtype)
            for some, here in groups:
                values[some] = here.drawn(seen[some], noise[some].flatten(2)).view_as(values[some])
        along = torch.arange(self.patch, device=images.device)
        y, x = (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None]
        out = images[:, None].repeat(1, draws, 1, 1, 1)
        out[order[:, None, None], :, :, y, x] = values.permute(0, 3, 4, 1, 2)
        return out[:, None]

    def noise(self, keys: Noise) -> Float[Tensor, "g d c k k"]:
        """Standard normal numbers, one a value of the tile."""
        return keys.normal((self.module.channels, self.patch, self.patch))

    def fill_tiles(
        self,
        canvas: Float[Tensor, "r d c hp wp"],
        state: Float[Tensor, "r 1 hp wp"],
        at: Int[Tensor, "g 3"],
        rows: list[int],
        steps: list[Step],
        noise: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """Fill one tile of each of these rows in place, those of one pattern of known pixels together."""
        alike = defaultdict(list)
        for i, step in enumerate(steps):
            alike[step.known.tobytes()].append(i)
        for some in alike.values():
            index = torch.tensor(some, device=canvas.device)
            self.fill_alike(canvas, at[index], torch.from_numpy(steps[some[0]].known), noise[index], first)

    def fill_alike(
        self,
        canvas: Float[Tensor, "r d c hp wp"],
        at: Int[Tensor, "g 3"],
        known: Bool[Tensor, "s s"],
        noise: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """The same for rows of one pattern of known pixels, which share a mean where their draws still look alike."""
        here, (row, top, left) = self.conditional(known, canvas.device), at[..., None].unbind(1)
        along = torch.arange(self.side, device=canvas.device)
        seen = canvas[:, :1] if first else canvas
        y, x = top + along, left + along
        window = seen[row[:, :, None], :, :, y[:, :, None], x[:, None]]  # [g, s, s, d, c]
        value = here.drawn(
            window.permute(0, 3, 4, 1, 2).flatten(2), noise[..., here.row, here.column].flatten(2)
        ).unflatten(2, (self.module.channels, -1))
        y, x = self.margin + top + here.row, self.margin + left + here.column
        canvas[row, :, :, y, x] = value.permute(0, 3, 1, 2).to(canvas.dtype)

    def bits_per_dimension(
        self, windows: Float[Tensor, "m c s s"], known: Bool[Tensor, "s s"] | None = None
    ) -> Float[Tensor, "m"]:
        """Bits a pixel and channel of the tile in the middle of held-out windows, given their surroundings.

        -log2 of the mass that the pixel's conditional (marginal over the rest of the tile) gives to its own of 256 bins
        around the levels 0, 1/255 .. 1, the outer bins open, averaged over the tile. 8 is a uniform guess. `known` are the
        surroundings that are known, the tile not among them; all of them if None.
        """
        known = self.around((0, 0, 0, 0)) if known is None else known
        return self.conditional(known, windows.device).bits(windows)

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """`bits_per_dimension` of the K x K window at (top, left) of every image; what lies outside the image is unknown."""
        self.check(images)
        places = torch.stack([top, left], 1)
        corners = places.to(images.device), places.cpu()  # one copy, whichever way
        order, groups = self.alike(corners, *images.shape[-2:])
        padded = torch.nn.functional.pad(images, (self.margin,) * 4)
        top, left = corners[0][order].unbind(1)
        seen = cut(padded, order, top, left, self.side)
        out = images.new_empty(len(images), dtype=torch.float64)
        for some, here in groups:
            out[order[some]] = here.bits(seen[some])
        return out

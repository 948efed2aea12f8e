"""A Gaussian over image windows; hidden pixels are drawn from its conditional given what is visible around them.

The filler of prediction difference analysis (Zintgraf et al., "Visualizing Deep Neural Network Decisions", 2017). A
window is a K x K tile with `margin` pixels of surroundings on each side. With k the known pixels of a window and u the
hidden ones of its tile,

    x_u | x_k ~ N(mu_u + S_uk S_kk^-1 (x_k - mu_k),  S_uu - S_uk S_kk^-1 S_ku),   clipped to [0, 1].

One Cholesky factor F of S with u last gives both: S_uk S_kk^-1 = F_uk F_kk^-1, and F_uu is the root of the covariance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.core import Images
from lit_xai.errors import UsageError, share
from lit_xai.fillers.tiles import LEVELS, ImageSet, Step, WindowFiller, cut, pictures, windows
from lit_xai.models.trainable import SamplerModule
from lit_xai.rng import Noise, stable_hash

ROUNDING = 1 / (12 * (LEVELS - 1) ** 2)  # variance of rounding to 8 bits: what the Cholesky factor needs and no more
FOLD_IMAGES = 2000  # most images of a fold that are read


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

    def conditional(self, known: Bool[Tensor, "s s"], device: torch.device | None = None) -> Conditional:
        """The distribution of the tile's unknown pixels given the window's known ones; recent patterns are kept."""
        key = (known.numpy().tobytes(), str(device))
        found = self.opened.kept.get(key)
        if found is None:
            found = self.solved(known, device)
            self.opened.kept.put(key, found, found.size)
        return found

    def solved(self, known: Bool[Tensor, "s s"], device: torch.device | None) -> Conditional:
        """What `conditional` gives, computed anew."""
        hidden = torch.zeros_like(known)
        middle = slice(self.margin, self.margin + self.patch)
        hidden[middle, middle] = ~known[middle, middle]
        row, column = (i - self.margin for i in torch.nonzero(hidden, as_tuple=True))
        k, u = (torch.nonzero(m.repeat(self.module.channels, 1).flatten())[:, 0].to(device) for m in (known, hidden))
        mean, order = self.module.mean.flatten().to(device), torch.cat([k, u])
        root = torch.linalg.cholesky(self.module.covariance.to(device)[order[:, None], order])
        gain = torch.linalg.solve_triangular(
            root[: len(k), : len(k)], root[len(k) :, : len(k)], upper=False, left=False
        )
        scale = root[len(k) :, len(k) :].clone()
        return Conditional(k, u, row.to(device), column.to(device), mean[k], mean[u], gain, scale)

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
            self.fill_alike(canvas, [rows[i] for i in some], [steps[i] for i in some], noise[some], first)

    def fill_alike(
        self,
        canvas: Float[Tensor, "r d c hp wp"],
        rows: list[int],
        steps: list[Step],
        noise: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """The same for rows of one pattern of known pixels, which share a mean where their draws still look alike."""
        device, side = canvas.device, self.patch + 2 * self.margin
        here = self.conditional(torch.from_numpy(steps[0].known), device)
        row = torch.tensor(rows, device=device)[:, None]
        top, left = (
            torch.tensor(places, device=device)[:, None] for places in zip(*(s[:2] for s in steps), strict=True)
        )
        along = torch.arange(side, device=device)
        seen = canvas[:, :1] if first else canvas
        y, x = top + along, left + along
        window = seen[row[:, :, None], :, :, y[:, :, None], x[:, None]]  # [g, s, s, d, c]
        mean = here.mean(window.permute(0, 3, 4, 1, 2).flatten(2))
        z = noise[..., here.row, here.column].double().flatten(2)
        value = (mean + z @ here.scale.mT).clamp(0, 1).unflatten(2, (self.module.channels, -1))
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
        if known is None:
            known = torch.ones(windows.shape[-2:], dtype=torch.bool)
            known[self.margin : self.margin + self.patch, self.margin : self.margin + self.patch] = False
        here, flat = self.conditional(known, windows.device), windows.flatten(1).double()
        sd = here.scale.square().sum(1).sqrt()
        level = (flat[:, here.hidden] * (LEVELS - 1)).round()
        low, high = (((level + e) / (LEVELS - 1) - here.mean(flat)) / sd for e in (-0.5, 0.5))
        low = low.masked_fill(level <= 0, -math.inf)
        high = high.masked_fill(level >= LEVELS - 1, math.inf)
        return -log_normal_mass(low, high).mean(1) / math.log(2)

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """`bits_per_dimension` of the K x K window at (top, left) of every image; what lies outside the image is unknown."""
        self.check(images)
        (height, width), side = images.shape[-2:], self.patch + 2 * self.margin
        padded = torch.nn.functional.pad(images, (self.margin,) * 4)
        out = images.new_empty(len(images), dtype=torch.float64)
        along = torch.arange(side)
        alike = defaultdict(list)  # rows whose windows jut out of the image in the same way
        for row, corner in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            y, x = (c - self.margin + along for c in corner)
            known = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
            known[self.margin : self.margin + self.patch, self.margin : self.margin + self.patch] = False
            alike[known.numpy().tobytes()].append((row, known))
        for group in alike.values():
            rows = torch.tensor([row for row, _ in group], device=images.device)
            here = cut(padded, rows, top.to(rows)[rows], left.to(rows)[rows], side)
            out[rows] = self.bits_per_dimension(here, group[0][1])
        return out

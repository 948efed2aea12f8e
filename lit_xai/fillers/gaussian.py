"""A Gaussian over image windows; hidden pixels are drawn from its conditional given what is visible around them.

The filler of prediction difference analysis (Zintgraf et al., "Visualizing Deep Neural Network Decisions", 2017). A
window is a K x K tile with `margin` pixels of surroundings on each side. With k the known pixels of a window and u the
hidden ones of its tile,

    x_u | x_k ~ N(mu_u + S_uk S_kk^-1 (x_k - mu_k),  S_uu - S_uk S_kk^-1 S_ku),   clipped to [0, 1].

One Cholesky factor F of S with u last gives both: S_uk S_kk^-1 = F_uk F_kk^-1, and F_uu is the root of the covariance.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from lit_xai.core import Images, Keep, Segments
from lit_xai.errors import UsageError
from lit_xai.fillers.fitted import Saved, WindowFiller, WindowSampler, rebuilt
from lit_xai.fillers.tiles import LEVELS, ImageSet, Step, check_fits, cut, pictures, plan, windows
from lit_xai.models.trainable import TrainedModule
from lit_xai.rng import SampleRng, stable_hash
from lit_xai.store.files import write_atomically

FORMAT = 1
ROUNDING = 1 / (12 * (LEVELS - 1) ** 2)  # variance of rounding to 8 bits: what the Cholesky factor needs and no more
CACHE = 1 << 28  # bytes of conditionals that are kept
FOLD_IMAGES = 2000  # most images of a fold that are read


# ------------------------------------------------------------------------------------------------------------ the model


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
        """Bytes."""
        return sum(t.nbytes for t in self)

    def mean(self, window: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows u"]:
        """The conditional mean for flattened windows."""
        return self.mean_hidden + (window.double()[..., self.known] - self.mean_known) @ self.gain.mT


class Recent:
    """The conditionals used last, as many as fit `CACHE` bytes and at least one."""

    def __init__(self) -> None:
        self.kept: dict[tuple[bytes, str], Conditional] = {}
        self.bytes = 0

    def get(self, key: tuple[bytes, str], make: Callable[[], Conditional]) -> Conditional:
        """The one of this key, made if it is not there."""
        found = self.kept.pop(key, None)
        if found is None:
            found = make()
            self.bytes += found.size
        self.kept[key] = found  # the last of all
        while self.bytes > CACHE and len(self.kept) > 1:
            self.bytes -= self.kept.pop(next(iter(self.kept))).size
        return found


@dataclass(frozen=True, eq=False)
class GaussianPatches(WindowSampler):
    """A Gaussian over windows `[c, s, s]`, s = patch + 2 margin; the same one everywhere in the image.

    `fill` is a `Filler`, so a fitted one can be used without a file.

    Attributes:
        mean: `[c, s, s]`, float64.
        covariance: `[c s s, c s s]`, float64, positive definite.
        patch: side K of the tile in the middle, pixels.
        margin: surroundings on each side, pixels.
        about: what it was fitted on (`FoldData.about`).
    """

    mean: Float[Tensor, "c s s"]
    covariance: Float[Tensor, "d d"]
    patch: int
    margin: int
    about: str = ""
    recent: Recent = field(default_factory=Recent, init=False, repr=False)

    @property
    def channels(self) -> int:
        """Channels of the images it fits."""
        return len(self.mean)

    @property
    def side(self) -> int:
        """Side of a window, pixels."""
        return self.patch + 2 * self.margin

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of everything that is saved."""
        crc = zlib.crc32(f"{self.patch} {self.margin} {self.about}".encode())
        return zlib.crc32(self.covariance.numpy().tobytes(), zlib.crc32(self.mean.numpy().tobytes(), crc))

    # ------------------------------------------------------------------------------------------------------ conditionals

    def conditional(self, known: Bool[Tensor, "s s"], device: torch.device | None = None) -> Conditional:
        """The distribution of the tile's unknown pixels given the window's known ones; recent patterns are kept."""
        return self.recent.get((known.numpy().tobytes(), str(device)), lambda: self.solved(known, device))

    def solved(self, known: Bool[Tensor, "s s"], device: torch.device | None) -> Conditional:
        """The same, computed."""
        hidden = torch.zeros_like(known)
        middle = slice(self.margin, self.margin + self.patch)
        hidden[middle, middle] = ~known[middle, middle]
        row, column = (i - self.margin for i in torch.nonzero(hidden, as_tuple=True))
        k, u = (torch.nonzero(m.repeat(self.channels, 1).flatten())[:, 0].to(device) for m in (known, hidden))
        mean, order = self.mean.flatten().to(device), torch.cat([k, u])
        root = torch.linalg.cholesky(self.covariance.to(device)[order[:, None], order])
        gain = torch.linalg.solve_triangular(
            root[: len(k), : len(k)], root[len(k) :, : len(k)], upper=False, left=False
        )
        scale = root[len(k) :, len(k) :].clone()
        return Conditional(k, u, row.to(device), column.to(device), mean[k], mean[u], gain, scale)

    # ----------------------------------------------------------------------------------------------------------- filling

    def fill(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """Hidden pixels drawn given the visible ones, as `Filler` says; draw d of mask n has noise of its own.

        Any hole is filled, in tiles (see `plan`); a hidden K x K square is one exact draw. Where a window juts out of the
        image, what lies outside is unknown and marginalised, not padded. Later tiles of a hole see the earlier, clipped
        ones. A pattern of known pixels costs one Cholesky factor of a window; patterns that come back cost none.

        Raises:
            UsageError: other channels than it was fitted on; a tile larger than the image; draws < 1.
        """
        check_fits(images, self.channels, self.patch, "Gaussian")
        if draws < 1:
            raise UsageError(f"draws must be at least 1, found {draws}")
        masks = keep.shape[1]
        with torch.no_grad():
            plans = [plan(m, self.patch, self.margin) for m in keep.flatten(0, 1).cpu().numpy()]
            noise = [self.noise(rng, r, masks, draws, len(p)).to(images.device) for r, p in enumerate(plans)]
            out = images.repeat_interleave(masks, dim=0)[:, None].repeat(1, draws, 1, 1, 1)
            for s in range(max((len(p) for p in plans), default=0)):
                alike = defaultdict(list)  # rows with the same pattern of known pixels
                for r, p in enumerate(plans):
                    if s < len(p):
                        alike[p[s].known.tobytes()].append(r)
                for rows in alike.values():
                    z = torch.stack([noise[r][:, s] for r in rows])
                    self.fill_tiles(out, rows, [plans[r][s] for r in rows], z, first=s == 0)
        out = out.view(len(images), masks, draws, *images.shape[1:])
        return torch.where(keep[:, :, None, None], images[:, None, None], out)

    def noise(self, rng: SampleRng, row: int, masks: int, draws: int, tiles: int) -> Float[Tensor, "d t c k k"]:
        """Standard normal numbers for the tiles of one mask (row i masks + n is mask n of image i)."""
        image, n = divmod(row, masks)
        each = (tiles, self.channels, self.patch, self.patch)
        return rng.normal("filler", [image] * draws, [n * draws + d for d in range(draws)], each)

    def fill_tiles(
        self,
        out: Float[Tensor, "r d c h w"],
        rows: list[int],
        steps: list[Step],
        noise: Float[Tensor, "g d c k k"],
        first: bool,
    ) -> None:
        """Fill one tile of each of these rows in place; all have the same pattern of known pixels.

        On the `first` tile of a row, its draws still look alike and share one mean.
        """
        device, (height, width) = out.device, out.shape[-2:]
        here = self.conditional(torch.from_numpy(steps[0].known), device)
        row = torch.tensor(rows, device=device)[:, None]
        top = torch.tensor([s.top for s in steps], device=device)[:, None]
        left = torch.tensor([s.left for s in steps], device=device)[:, None]
        along = torch.arange(self.side, device=device) - self.margin
        y, x = (top + along).clamp(0, height - 1), (left + along).clamp(0, width - 1)
        seen = out[:, :1] if first else out
        window = seen[row[:, :, None], :, :, y[:, :, None], x[:, None]]  # [g, s, s, d, c]
        mean = here.mean(window.permute(0, 3, 4, 1, 2).flatten(2))
        z = noise[..., here.row, here.column].double().flatten(2)
        value = (mean + z @ here.scale.mT).clamp(0, 1).unflatten(2, (self.channels, -1))
        out[row, :, :, top + here.row, left + here.column] = value.permute(0, 3, 1, 2).to(out.dtype)

    def bits_per_dimension(
        self, windows: Float[Tensor, "m c s s"], known: Bool[Tensor, "s s"] | None = None
    ) -> Float[Tensor, "m"]:
        """Bits a pixel and channel of the tile in the middle of held-out windows, given their surroundings.

        -log2 of the mass that the pixel's conditional (marginal over the rest of the tile) gives to its own of 256 bins
        around the levels 0, 1/255 .. 1, the outer bins open, averaged over the tile. 8 is a uniform guess. `known` are the
        surroundings that are known, the tile not among them; all of them if None.
        """
        if known is None:
            known = torch.ones(self.side, self.side, dtype=torch.bool)
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
        check_fits(images, self.channels, self.patch, "Gaussian")
        height, width = images.shape[-2:]
        padded = torch.nn.functional.pad(images, (self.margin,) * 4)
        out = images.new_empty(len(images), dtype=torch.float64)
        along = torch.arange(self.side)
        alike = defaultdict(list)  # rows whose windows jut out of the image in the same way
        for row, corner in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            y, x = (c - self.margin + along for c in corner)
            known = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
            known[self.margin : self.margin + self.patch, self.margin : self.margin + self.patch] = False
            alike[known.numpy().tobytes()].append((row, known))
        for group in alike.values():
            rows = torch.tensor([row for row, _ in group], device=images.device)
            windows = cut(padded, rows, top.to(rows)[rows], left.to(rows)[rows], self.side)
            out[rows] = self.bits_per_dimension(windows, group[0][1])
        return out

    # -------------------------------------------------------------------------------------------------------------- file

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            UsageError: it could not be written.
        """
        path = Path(path)
        meta = {
            "kind": "GaussianPatches",
            "format": FORMAT,
            "patch": self.patch,
            "margin": self.margin,
            "channels": self.channels,
            "data": self.about,
            "checksum": self.checksum,
        }
        tensors = {"mean": self.mean.contiguous(), "covariance": self.covariance.contiguous()}
        data = save_bytes(tensors, metadata={"lit_xai": json.dumps(meta, sort_keys=True)})
        write_atomically(path, data)

    @staticmethod
    def load(path: str | Path) -> GaussianPatches:
        """Read what `save` wrote. No code runs.

        Raises:
            UsageError: the file is missing, cut, altered or of another kind.
        """
        path, again = Path(path), "fit it again with lit_xai.fillers.gaussian.fit_fold(data).save(path)"
        if not path.is_file():
            raise UsageError(f"{path} is missing: {again}")
        try:
            data = path.read_bytes()
            size = int.from_bytes(data[:8], "little")
            meta = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["lit_xai"])
            tensors = load_bytes(data)
            found = GaussianPatches(tensors["mean"], tensors["covariance"], meta["patch"], meta["margin"], meta["data"])
            mine = meta["kind"] == "GaussianPatches" and meta["format"] == FORMAT
            whole = mine and meta["checksum"] == found.checksum
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as e:
            raise UsageError(f"{path} is no whole file of a Gaussian ({type(e).__name__}): {again}") from None
        if not whole:
            raise UsageError(f"{path} is no whole file of a Gaussian (kind, format or checksum differs): {again}")
        return found


def log_normal_mass(low: Float[Tensor, "*n"], high: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log(Phi(high) - Phi(low)), exact in the tails; low < high, both may be infinite."""
    right = low > 0  # mirrored, so that no difference of numbers near 1 is taken
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return b + torch.log1p(-torch.exp(a - b))


# -------------------------------------------------------------------------------------------------------------- fitting


def fit(
    images: ImageSet | Tensor,
    patch: int = 8,
    margin: int | None = None,
    positions: int = 20_000,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    shrinkage: float = 0.0,
    data: str = "",
) -> GaussianPatches:
    """Mean and covariance of windows at random positions (Zintgraf et al., 2017).

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
        data: what the images are, for people.

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
    if not 0 <= shrinkage <= 1:
        raise UsageError(f"shrinkage must lie in [0, 1], found {shrinkage}")
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
    return GaussianPatches(mean.view(channels, side, side), covariance, patch, margin, data)


def fit_fold(
    data: Any,
    patch: int = 8,
    margin: int | None = None,
    positions: int = 20_000,
    seed: int = 0,
    shrinkage: float = 0.0,
) -> GaussianPatches:
    """`fit` on (at most 2,000 images of) the training folds of a `FoldData`: V_i is never seen.

        fit_fold(data, patch=8).save("fold=0/gaussian.safetensors")
        ConditionalGaussian("fold=0/gaussian.safetensors")

    Raises:
        UsageError: as `fit`.
    """
    samples = data.split.training(data.fold) if data.k > 1 else data.split.samples
    generator = torch.Generator().manual_seed(stable_hash(seed, "gaussian"))
    samples = samples[torch.randperm(len(samples), generator=generator)[:FOLD_IMAGES]].sort().values
    return fit(data.source.train, patch, margin, positions, seed, samples.tolist(), shrinkage, data.about)


# --------------------------------------------------------------------------------------------------------------- filler


class GaussianModule(TrainedModule):
    """The Gaussian as something that `lit_xai.train` fits and saves: in one pass over windows, without epochs.

    Args:
        channels, side, classes, colour: given by the data.
        patch, margin, positions, shrinkage: see `fit`.
    """

    is_sampler = True
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
        self.patch, self.positions, self.shrinkage = patch, positions, shrinkage
        self.margin = min(patch, (side - patch) // 2) if margin is None else margin
        window = patch + 2 * self.margin
        size = channels * window**2
        self.register_buffer("mean", torch.zeros(channels, window, window, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(size, size, dtype=torch.float64))

    def prepare(self, data: Any) -> None:
        """Fit to the training folds of a `FoldData`; errors as `fit`."""
        found = fit_fold(data, self.patch, self.margin, self.positions, data.seed, self.shrinkage)
        self.get_buffer("mean").copy_(found.mean)
        self.get_buffer("covariance").copy_(found.covariance)

    def sampler(self, about: str = "") -> GaussianPatches:
        """What was fitted."""
        mean, covariance = (self.get_buffer(n).detach().cpu() for n in ("mean", "covariance"))
        return GaussianPatches(mean, covariance, self.patch, self.margin, about)

    def test_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Nothing: `SamplerReport` measures."""


@dataclass(frozen=True)
class ConditionalGaussian(WindowFiller):
    """The filler of a fitted Gaussian (see `GaussianPatches.fill`).

    Args:
        checkpoint, trained_on: see `FittedFiller`; a file that `GaussianPatches.save` wrote will do, too.
    """

    model = "conditional_gaussian"

    @staticmethod
    def read(file: Path) -> GaussianPatches:
        """The Gaussian of a `model.ckpt`, or of a file of `GaussianPatches.save`."""
        if file.suffix == ".safetensors":
            return GaussianPatches.load(file)

        def build(found: Saved) -> GaussianPatches:
            mean, covariance, patch = found.state["mean"], found.state["covariance"], found.model["patch"]
            return GaussianPatches(mean, covariance, patch, (mean.shape[-1] - patch) // 2, found.about)

        return rebuilt(file, GaussianModule.__name__, ConditionalGaussian.model, build)

"""Are perturbed images still plausible? Fréchet distance of features, and bits per dimension of what was hidden.

Yi et al., "Information-Theoretic Visual Explanation for Black-Box Classifiers", section IV-B, Fig. 14: images whose windows
a filler has refilled should look to a network like images of the data set (the lower the distance, the better).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.calls import Chunk, chunks, evaluating, in_format_of, per_call
from lit_xai.core import Filler, Images, Model
from lit_xai.errors import UsageError
from lit_xai.fillers.refill import Refill
from lit_xai.metrics.statistics import RESAMPLES, Estimate, difference, finish, mean_estimate, quantiles, resamples
from lit_xai.rng import SampleRng
from lit_xai.store.files import read_state

Features = Callable[[Tensor], Tensor]  # images [n, c, h, w] -> [n, f]

REAL = "real"  # the row of a table where nothing is refilled
SPLITS = 100  # into random halves, for that row
ENOUGH = 3  # images a feature, from which on the distance's interval was found to cover
INCEPTION_SIDE = 299  # pixels


def moments(features: Float[Tensor, "n f"], counts: Float[Tensor, "n"]) -> tuple[Tensor, Tensor]:
    """The mean `[f]` and a root R `[r, f]` of the sample covariance, S = R'R, r = min(n, f); row i counts `counts[i]` times."""
    used = counts > 0
    x, weight = features[used], counts[used, None]
    mean = (weight * x).sum(0) / weight.sum()
    root = (weight / (weight.sum() - 1)).sqrt() * (x - mean)
    return mean, torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def distance_of(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """The Fréchet distance of two Gaussians given by `moments`, mean `[f]` and root `[r, f]` each."""
    (mean_a, root_a), (mean_b, root_b) = a, b
    total = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum()
    return max(0.0, float(total - 2 * torch.linalg.svdvals(root_a @ root_b.mT).sum()))


def checked(features: Tensor, rows: int | None = None) -> Float[Tensor, "n f"]:
    """Features in float64 on the CPU.

    Raises:
        UsageError: they are not `[rows, f]`, or not finite.
    """
    if features.ndim != 2 or (rows is not None and len(features) != rows):
        expected = "[n, f]" if rows is None else f"[{rows}, f]"
        raise UsageError(f"features must be {expected}, one row an image, found shape {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        raise UsageError(
            "features hold NaN or infinite values: check the network's weights and that images lie in [0, 1]"
        )
    return features.detach().double().cpu()


def frechet_distance(a: Float[Tensor, "n f"], b: Float[Tensor, "m g"]) -> float:
    """Squared Fréchet distance of two Gaussians with the moments of these features (Heusel et al., 2017), at least 0.

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2),    S with n - 1, in float64

    With S = R'R, tr (S_a S_b)^1/2 is the sum of the singular values of R_a R_b'. No covariance is multiplied out and no
    root of a rounded eigenvalue is taken, so fewer rows than features do no harm. Few rows bias it upwards.

    Raises:
        UsageError: fewer than two rows, different widths, features that are not finite.
    """
    a, b = checked(a), checked(b)
    if min(len(a), len(b)) < 2:
        raise UsageError(f"a Fréchet distance needs two images on either side, found {len(a)} and {len(b)}")
    if a.shape[1] != b.shape[1]:
        raise UsageError(
            f"features of {a.shape[1]} and {b.shape[1]} numbers cannot be compared: take the same network's"
        )
    ones = torch.ones(max(len(a), len(b)), dtype=a.dtype)
    return distance_of(moments(a, ones[: len(a)]), moments(b, ones[: len(b)]))


def entering(executed: list[tuple[nn.Module, Tensor]], rows: int) -> Float[Tensor, "b f"]:
    """What enters the last executed layer, from `[b, f]` or `[b, f, u, v]`, as one row an image."""
    layer, x = executed[-1] if executed else (None, torch.empty(0))
    if isinstance(layer, nn.Linear) and len(x) == rows:
        return x.flatten(1)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        return x.mean((2, 3))
    found = f"its last layer is {layer}" if executed else "it has none"
    raise UsageError(
        "features are what enters a last nn.Linear (a row an image) or 1 x 1 convolution of a torch.nn.Module, "
        f"{found}: pass a function images -> [n, f] of your own"
    )


def features_and_logits(
    model: Model, images: Images, max_batch: int = 64
) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b k"]]:
    """The features of `penultimate` and the logits that the classifier makes of them, in one pass.

    Args:
        model: a torch.nn.Module.
        images: `[b, c, h, w]` in [0, 1].
        max_batch: most images per model call.

    Raises:
        UsageError: as `penultimate`.
    """
    layers = (
        [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)] if isinstance(model, nn.Module) else []
    )
    executed: list[tuple[nn.Module, Tensor]] = []

    def record(layer: nn.Module, inputs: Any) -> None:
        executed[:] = [(layer, inputs[0])]

    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    features, logits = [], []
    try:
        with torch.inference_mode(), evaluating(model):
            for chunk in chunks(len(images), 1, per_call(images, max_batch), images.device):
                logits.append(model(in_format_of(images[chunk.row], images)))
                features.append(entering(executed, len(chunk)))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(features), torch.cat(logits)


def penultimate(model: Model, images: Images, max_batch: int = 64) -> Float[Tensor, "b f"]:
    """The features a classifier decides by: what enters the last nn.Linear that it executes, flattened.

    Where the last layer is a 1 x 1 convolution (SqueezeNet), the spatial mean of its input. The model is evaluated and left
    as found.

    Args:
        model: a torch.nn.Module.
        images: `[b, c, h, w]` in [0, 1].
        max_batch: most images per model call.

    Raises:
        UsageError: another kind of last layer, or a model that is a plain function.
    """
    return features_and_logits(model, images, max_batch)[0]


class Enlarged(nn.Module):
    """Images as Inception takes them: three channels, 299 x 299 pixels."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s s"]:
        if x.shape[1] not in (1, 3):
            raise UsageError(f"inception_v3 takes images of 1 or 3 channels, found {x.shape[1]}: pass other features")
        size = (INCEPTION_SIDE, INCEPTION_SIDE)
        return F.interpolate(
            x.float().expand(-1, 3, -1, -1), size, mode="bilinear", antialias=True, align_corners=False
        )


def inception(weights_file: str | Path, device: str | torch.device = "cpu", max_batch: int = 64) -> Features:
    """The 2,048 pooled features of torchvision's inception_v3, with weights from a file; nothing is downloaded.

    Images in [0, 1] of any size are resized to 299 x 299 (bilinear, antialiased), grey ones repeated to three channels, and
    normalised as torchvision's training was. These are torchvision's weights, so distances compare among themselves only,
    and not with published FIDs, which rest on the network of the TensorFlow release.

    Args:
        weights_file: a state dict, e.g. of `inception_v3(weights="DEFAULT")`. No code is run from it.
        device: where the network runs: that of the images.
        max_batch: most images per call of the network.

    Returns:
        images `[n, c, h, w]` -> features `[n, 2048]`.

    Raises:
        UsageError: the file is missing, damaged, or of another network.
    """
    from torchvision.models import inception_v3

    from lit_xai.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, Normalise

    file, again = Path(weights_file), "save the state_dict() of torchvision's inception_v3 there"
    state = read_state(file, again)
    with torch.device("meta"):  # no random numbers are drawn
        network = inception_v3(weights=None, aux_logits=False, transform_input=True, init_weights=False)
    try:
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith("AuxLogits.")}, assign=True)
    except (RuntimeError, AttributeError, TypeError):
        raise UsageError(f"{file} holds no weights of inception_v3: {again}") from None
    network = nn.Sequential(Enlarged(), Normalise(IMAGENET_MEAN, IMAGENET_STD), network.float()).requires_grad_(False)
    return partial(penultimate, network.to(device), max_batch=max_batch)


def window_corners(images: Images, patch: int, rng: SampleRng) -> Int[Tensor, "b 2"]:
    """Top and left pixel of a random K x K window of every image: a function of the sample, the same for every filler.

    Raises:
        UsageError: windows that do not fit the images.
    """
    height, width = images.shape[-2:]
    if not 1 <= patch <= min(height, width):
        raise UsageError(
            f"windows must be of 1..{min(height, width)} pixels a side on images of {height} x {width}, found patch={patch}"
        )
    places = torch.tensor([height - patch + 1, width - patch + 1])
    return (rng.noise("windows").uniform((2,)) * places).long()


@torch.no_grad()
def windows_refilled(
    images: Images, filler: Filler, patch: int, rng: SampleRng | None = None, max_batch: int = 64
) -> Images:
    """Every image with a random K x K window, see `window_corners`, refilled by one draw of the filler.

    Args:
        images: `[b, c, h, w]` in [0, 1].
        filler: what draws the windows' content.
        patch: side K of a window, pixels.
        rng: the samples' noise.
        max_batch: most images per call of the filler.

    Raises:
        UsageError: windows that do not fit the images; a filler that returns another shape.
    """
    rng = SampleRng.default(len(images), rng)
    inside = []
    for start, side in zip(window_corners(images, patch, rng).to(images.device).T, images.shape[-2:], strict=True):
        place = torch.arange(side, device=images.device)
        inside.append((place >= start[:, None]) & (place < start[:, None] + patch))
    keep = ~(inside[0][:, :, None] & inside[1][:, None])
    out = torch.empty_like(images)
    for chunk in chunks(len(images), 1, max_batch, images.device):
        rows = chunk.row
        refill = Refill(filler, images[rows], rng.take(rows))
        out[rows] = refill(keep[rows], Chunk(0, len(rows), 1, images.device), 0)
    return out


def distances(
    real: Float[Tensor, "n f"], filled: Mapping[str, Float[Tensor, "n f"]], n_resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """The Fréchet distance of each set of features to the real images', without its bias; see `plausibility_table`.

    Row i of every set is image i. `draws` holds 2 D - D*, so that `statistics.difference` is basic too.
    """
    n, width = real.shape
    values: dict[str, float] = {}
    replicates: dict[str, list[float]] = {name: [] for name in filled}
    ones = torch.ones(n, dtype=real.dtype)
    for name, other in filled.items():
        values[name] = distance_of(moments(real, ones), moments(other, ones))
    for block in resamples(torch.zeros(n, dtype=torch.long), n_resamples):
        for counts in block[(block > 0).sum(1) > 1]:  # one image alone has no covariance
            here = moments(real, counts)
            for name, other in filled.items():
                replicates[name].append(distance_of(here, moments(other, counts)))
    few = f"{n} images for {width} features: too large" if n < ENOUGH * width else ""
    out = {}
    for name, value in values.items():
        out[name] = finish(value, 2 * value - torch.tensor(replicates[name], dtype=real.dtype), samples=n, reason=few)
        out[name].value = float(out[name].draws.mean())
        e = out[name]
        e.value, e.low, e.high = (max(v, 0.0) for v in (e.value, e.low, e.high))  # in this order NaN stays NaN
    return out


def between_halves(real: Float[Tensor, "n f"], rng: SampleRng) -> Estimate:
    """The distance of one random half of the images to the other: mean and central 95 % of 100 splits, bias included."""
    n = len(real)
    order = rng.noise("halves").uniform((SPLITS,)).argsort(dim=0, stable=True)
    found = []
    for split in order.unbind(1):
        one = torch.zeros(n, dtype=real.dtype)
        one[split[: n // 2]] = 1
        found.append(distance_of(moments(real, one), moments(real, 1 - one)))
    draws = torch.tensor(found, dtype=real.dtype)
    low, high = quantiles(draws)
    return Estimate(float(draws.mean()), low, high, float(draws.std()), samples=n, reason="two random halves")


def bits_of(filler: Filler, images: Images, corners: Int[Tensor, "b 2"], max_batch: int) -> Estimate:
    """Mean bits per dimension of one window an image under the filler, where it has a density."""
    parts = []
    for chunk in chunks(len(images), 1, max_batch, images.device):
        rows = chunk.row
        part = filler.window_bits(images[rows], corners[rows, 0], corners[rows, 1])
        if part is None:
            return Estimate(math.nan, reason="the filler has no density")
        parts.append(part)
    bits = torch.cat(parts).cpu()
    impossible = int(torch.isposinf(bits).sum())
    if impossible:  # a mean that left them out would praise the filler
        return Estimate(math.nan, reason=f"infinite: {impossible} of {len(bits)} windows have probability 0")
    return mean_estimate(bits)


@torch.no_grad()
def plausibility_table(
    features: Features,
    images: Images,
    fillers: Mapping[str, Filler],
    patch: int,
    rng: SampleRng | None = None,
    max_batch: int = 64,
    n_resamples: int = RESAMPLES,
) -> dict[str, dict[str, Estimate]]:
    """`distance` and `bits` of every filler: the lower, the more plausible are images with a refilled window.

    **distance**: the Fréchet distance of the features of the refilled images to those of the same images untouched, without
    its bias: 2 D - mean D*, with D* the distances of `n_resamples` resamples of images, pairs together. The interval is the
    basic one, [2 D - q.975, 2 D - q.025], both cut off at 0. With fewer than 3 images a feature it stays too large, which
    `reason` then says. What the intervals cover stands in `docs/statistics.md`.

    **real**, the first row: the plain distance of one random half of the untouched images to the other, mean and central
    95 % of 100 splits. A yardstick, not a bound: fillers may lie below.

    **bits**: mean bits per pixel and channel of what the window of every image holds, given its surroundings, with a
    percentile interval, for fillers with a density (`window_bits`). 8 is a uniform guess.

    Args:
        features: images -> `[n, f]`: `functools.partial(penultimate, model)`, `inception(file)`, or your own.
        images: `[n, c, h, w]` in [0, 1].
        fillers: by name.
        patch: side K of the windows, pixels; that of the fillers with `window_bits`.
        rng: the samples' noise: windows, fillings and halves.
        max_batch: most images per call of `features` and of a filler.
        n_resamples: of the images; each costs min(n, f)^3 operations a filler.

    Raises:
        UsageError: fewer than four images; a filler named `real`; windows that do not fit; features that are not `[n, f]`
            or not finite.
    """
    if REAL in fillers:
        raise UsageError(f"a filler is named {REAL!r}, which is the row of the untouched images: name it otherwise")
    if len(images) < 4:
        raise UsageError(f"plausibility compares halves of at least 4 images, found {len(images)}: give more")
    rng = SampleRng.default(len(images), rng)
    corners = window_corners(images, patch, rng)

    def seen(filler: Filler | None) -> Float[Tensor, "n f"]:
        parts = []
        for chunk in chunks(len(images), 1, max_batch, images.device):
            rows = chunk.row
            shown = images[rows]
            if filler is not None:
                shown = windows_refilled(shown, filler, patch, rng.take(rows), max_batch)
            parts.append(checked(features(shown), len(rows)))
        return torch.cat(parts)

    real = seen(None)
    found = distances(real, {name: seen(filler) for name, filler in fillers.items()}, n_resamples)
    table = {REAL: {"distance": between_halves(real, rng), "bits": Estimate(math.nan, reason="nothing is filled")}}
    for name, filler in fillers.items():
        table[name] = {"distance": found[name], "bits": bits_of(filler, images, corners.to(images.device), max_batch)}
    return table


def differences(table: Mapping[str, Mapping[str, Estimate]], reference: str) -> dict[str, Estimate]:
    """Every other filler's distance minus that of the filler `reference`, on the same resamples (basic interval).

    Negative = more plausible than the reference.

    Raises:
        UsageError: the table has no such filler.
    """
    fillers = [name for name in table if name != REAL]
    if reference not in fillers:
        raise UsageError(f"no filler of the table is named {reference!r}: choose one of {', '.join(fillers)}")
    out = {}
    for name in fillers:
        if name != reference:
            out[name] = difference(table[name]["distance"], table[reference]["distance"])
            out[name].value = float(out[name].draws.mean())  # of distances that are not cut off at 0
    return out

"""The table of samplers: n samples of every image by every filler, beside held-out images that nobody touched.

Ademi, Noppel & Wressnegger, "POMELO", sections 4.2 and 4.3, table 1, Fig. 4 and 5; the measures are those of `sampler.py`. A
sampler is any filler: superpixels are hidden at random, or everything is, and it draws what stands there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lit_xai.calls import Chunk, admit, check_classes, chunks
from lit_xai.core import Filler, Images, Model, Segments, Targets
from lit_xai.errors import UsageError, at_least
from lit_xai.fillers.generative import forget
from lit_xai.fillers.refill import Refill
from lit_xai.metrics.statistics import RESAMPLES, Estimate, difference, finish, mean_estimate, resamples
from lit_xai.quality.plausibility import checked, features_and_logits
from lit_xai.quality.sampler import (
    MEASURES,
    Mahalanobis,
    image_ssim,
    label_entropy,
    pixel_distance,
    probability_entropy,
    silhouette,
    umap_plane,
)
from lit_xai.rng import SampleRng
from lit_xai.segments import Segmenter, Slic, segment_counts

REAL, NOISE = "real", "noise"  # the reference rows of a table: untouched held-out images, uniform noise
GROUP = 16  # images that a filler is given at once, and encodes at once
LEAST = 4  # images on either side
POMELO_SEGMENTS = Slic(35, 10.0, 0.0)  # appendix B
OF_REAL = ("mahalanobis", "silhouette")  # the measures that untouched images have


def hides_of(filler: Filler) -> float:
    """The probability that a superpixel is hidden where this filler's samples are judged: its `turn_off_rate`.

    Raises:
        UsageError: it is not in (0, 1].
    """
    if not 0 < filler.turn_off_rate <= 1:
        raise UsageError(f"{type(filler).__name__}.turn_off_rate must lie in (0, 1], found {filler.turn_off_rate}")
    return float(filler.turn_off_rate)


def hidden_segments(segments: Segments, hides: float, rng: SampleRng, draws: int) -> Bool[Tensor, "b n d"]:
    """Which superpixels are hidden in each of n samples: each by itself with probability `hides`, everything at 1.

    The numbers behind it belong to the image: the same for all fillers, and nested for growing `hides`.
    """
    counts = segment_counts(segments)
    place = torch.arange(int(counts.max()), device=segments.device)
    u = rng.noise("sampler masks", segments.device).parts(draws).uniform((len(place),))
    return (u < hides) | (place >= counts[:, None])[:, None]


class Seen(NamedTuple):
    """What a model makes of n samples of b images, and how far they are from them; on the CPU.

    Attributes:
        predicted: class.
        probability: of the explained class, in [0, 1].
        mahalanobis, l2, ssim: see `Mahalanobis`, `pixel_distance`, `image_ssim`.
        seconds: of the filler, for one sample.
        features: of the first m samples of every image.
    """

    predicted: Int[Tensor, "b n"]
    probability: Float[Tensor, "b n"]
    mahalanobis: Float[Tensor, "b n"]
    l2: Float[Tensor, "b n"]
    ssim: Float[Tensor, "b n"]
    seconds: Float[Tensor, "b n"]
    features: Float[Tensor, "b m f"]


@dataclass(frozen=True, eq=False)
class SamplerWalk:
    """Walks over images x samples in chunks; of the samples, only numbers and some features are kept.

    Attributes are the arguments of `sampler_table`; `plotted` is m of `Seen`.
    """

    model: Model
    images: Images
    targets: Targets
    score: Mahalanobis
    rng: SampleRng
    segments: Segments
    draws: int
    plotted: int
    max_batch: int

    def observe(self, images: Images) -> tuple[Float[Tensor, "m f"], Float[Tensor, "m k"]]:
        """Features and probabilities of all classes."""
        found, probabilities = [], []
        for chunk in chunks(len(images), 1, self.max_batch, images.device):
            features, logits = features_and_logits(self.model, images[chunk.row], self.max_batch)
            found.append(checked(features, len(chunk)))
            probabilities.append(logits.float().softmax(1))
        return torch.cat(found), torch.cat(probabilities)

    def keep(self, hidden: Bool[Tensor, "b n d"], rows: list[int], draw_of: list[int]) -> Bool[Tensor, "m h w"]:
        """The visible pixels of sample `draw_of[t]` of image `rows[t]`."""
        segments = self.segments[rows]
        return ~hidden[rows, draw_of].gather(1, segments.flatten(1)).view(segments.shape)

    def __call__(self, filler: Filler, bar: tqdm) -> Seen:
        """All samples of one filler."""
        forget()
        hidden = hidden_segments(self.segments, hides_of(filler), self.rng, self.draws)
        other = 1 - self.images[:1]  # what is loaded once is no sample's cost; what is kept of an image would be
        first = Chunk(0, 1, 1, other.device)
        Refill(filler, other, self.rng.take([0]), self.segments[:1])(self.keep(hidden, [0], [0]), first)
        parts = []
        for start in range(0, len(self.images), GROUP):
            for part in self.of_group(filler, list(range(start, min(start + GROUP, len(self.images)))), hidden):
                parts.append(part)
                bar.update(len(part[0]))
        *columns, features = (torch.cat(column) for column in zip(*parts, strict=True))
        shape = (len(self.images), self.draws)
        return Seen(*(c.view(shape) for c in columns), features.view(len(self.images), self.plotted, -1))  # type: ignore[call-arg]

    def of_group(self, filler: Filler, group: list[int], hidden: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The samples of some images, `hidden` `[b, n, d]`, chunk by chunk: `Seen`'s columns, and the features that are kept."""
        began = clock(self.images)
        refill = Refill(filler, self.images[group], self.rng.take(group), self.segments[group])
        encoding = (clock(self.images) - began) / (len(group) * self.draws)
        for chunk in chunks(len(group), self.draws, self.max_batch, self.images.device):
            rows, draw_of = [group[i] for i in chunk.image.tolist()], chunk.variant.tolist()
            keep = self.keep(hidden, rows, draw_of)
            began = clock(self.images)
            samples = refill(keep, chunk)
            seconds = encoding + (clock(self.images) - began) / len(rows)
            originals, time_of = self.images[rows], torch.full((len(rows),), seconds, dtype=torch.float64)
            found, probabilities = self.observe(samples)
            explained = probabilities.gather(1, self.targets[rows][:, None])[:, 0]
            classes = (probabilities.argmax(1), explained, self.score(found))
            apart = (pixel_distance(samples, originals), image_ssim(samples, originals))
            columns = (t.cpu() for t in (*classes, *apart, time_of))
            yield *columns, found[torch.tensor(draw_of) < self.plotted]


def clock(images: Tensor) -> float:
    """Seconds, once the device of images `[b, c, h, w]` has done what it was asked for."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter()


def device_of(images: Tensor) -> str:
    """Where seconds were measured, as the device of images `[b, c, h, w]` says."""
    if images.is_cuda:
        return torch.cuda.get_device_name(images.device)
    return f"{images.device.type}, {torch.get_num_threads()} threads"


@dataclass(frozen=True, eq=False)
class SamplerQuality:
    """What `sampler_table` found.

    Attributes:
        estimates: `{row: {measure: Estimate}}`, the rows `real` and `noise` before the fillers; NaN with a reason where a
            row has no such number.
        plane: `{row: [p, 2]}` places in the one UMAP plane of all.
        hides: the turn-off rate of every filler.
        reference: the filler that the others are compared with: the first.
        draws: samples an image.
        measured_on: the device of the seconds.
    """

    estimates: dict[str, dict[str, Estimate]]
    plane: dict[str, Float[Tensor, "_ 2"]]
    hides: dict[str, float]
    reference: str
    draws: int
    measured_on: str

    def to_reference(self, row: str, measure: str) -> Estimate | None:
        """A filler's number minus that of the reference filler, paired by image; None of the reference and of no filler."""
        if row == self.reference or row not in self.hides:
            return None
        return difference(self.estimates[row][measure], self.estimates[self.reference][measure])

    def to_real(self, row: str, measure: str) -> Estimate | None:
        """A row's number minus that of untouched held-out images (other images, so not paired); None where they have none."""
        if row == REAL or measure not in OF_REAL:
            return None
        return difference(self.estimates[row][measure], self.estimates[REAL][measure])


def silhouettes(
    plane: Mapping[str, Float[Tensor, "_ 2"]], images: int, halves: Int[Tensor, "r"], n_resamples: int
) -> dict[str, Estimate]:
    """The silhouette of every row against `real`, and of one random half of `real` against the other.

    The plane stays as it is; images are resampled, with all their samples, the same for all rows (percentile intervals).
    """
    real, noise = plane[REAL], plane[NOISE]
    first, second = halves[: len(real) // 2], halves[len(real) // 2 :]
    number = {name: len(points) if name in (REAL, NOISE) else images for name, points in plane.items()}

    def of(name: str, of_real: Tensor, of_noise: Tensor, of_images: Tensor) -> Tensor:
        if name == REAL:
            return silhouette(real[first], real[second], None, of_real[:, first], of_real[:, second])
        origin = torch.arange(number[name]).repeat_interleave(len(plane[name]) // number[name])
        weight = (of_noise if name == NOISE else of_images)[:, origin]
        return silhouette(real, plane[name], origin, of_real, weight)

    sizes = [len(real), len(noise), images]
    strata = torch.cat([torch.full((n,), s) for s, n in enumerate(sizes)])
    once = torch.ones(1, sum(sizes), dtype=real.dtype).split(sizes, dim=1)
    values = {name: float(of(name, *once)) for name in plane}
    draws: dict[str, list[Tensor]] = {name: [] for name in plane}
    for block in resamples(strata, n_resamples):
        for name in plane:
            draws[name].append(of(name, *block.split(sizes, dim=1)))
    out = {n: finish(values[n], torch.cat(draws[n]), samples=number[n]) for n in plane}
    out[REAL].add_reason("one random half to the other")
    return out


def of_samples(seen: Seen, n_resamples: int) -> dict[str, Estimate]:
    """Every measure of a filler but the silhouette: means over images."""
    values = {
        "mahalanobis": seen.mahalanobis.mean(1),
        "label_entropy": label_entropy(seen.predicted),
        "probability_entropy": probability_entropy(seen.probability),
        "l2": seen.l2.mean(1),
        "ssim": seen.ssim.mean(1),
        "seconds_per_1000": 1000 * seen.seconds.mean(1),
    }
    return {name: mean_estimate(v, n_resamples=n_resamples) for name, v in values.items()}


@torch.no_grad()
def sampler_table(
    model: Model,
    images: Images,
    targets: Targets,
    fillers: Mapping[str, Filler],
    score: Mahalanobis,
    real: Float[Tensor, "r c h w"],
    draws: int = 100,
    rng: SampleRng | None = None,
    segmenter: Segmenter = POMELO_SEGMENTS,
    plotted: int = 500,
    max_batch: int = 64,
    n_resamples: int = RESAMPLES,
    progress: bool = False,
) -> SamplerQuality:
    """Distribution alignment, diversity, locality and cost of every filler's samples; see `MEASURES`.

    Of every image, each superpixel is hidden by itself with the filler's turn-off rate (its `turn_off_rate`; at 1 nothing is kept), `draws` times, the same superpixels for all fillers. All intervals resample images, 95 %.

    **real** (other held-out images) and **noise** (as many images of uniform noise) have a Mahalanobis score and a
    silhouette: of one random half of `real` to the other, and of noise to `real`. All rows lie in one UMAP plane, so that
    a silhouette depends on which fillers are compared; its interval takes the plane as given (`docs/statistics.md`).

    Args:
        model: images -> logits `[b, k]`.
        images: `[b, c, h, w]` in [0, 1], which the model was not trained on.
        targets: the explained class of each.
        fillers: by name; not `real` or `noise`.
        score: fitted to the features of training images.
        real: other images that the model was not trained on.
        draws: samples an image.
        rng: the images' noise: masks, samples, halves.
        segmenter: the superpixels.
        plotted: about how many samples of a filler, and most images of `real`, lie in the plane.
        max_batch: most samples at once, and most images per call of the model.
        n_resamples: of the images.
        progress: show a bar.

    Raises:
        UsageError: fewer than four images or four real ones, no fillers, a name that is taken, draws < 1, a model
            without penultimate features; what fillers and superpixels refuse.
    """
    model, images, targets = admit(model, images, targets)
    check_request(images, real, fillers, draws)
    rng = SampleRng.default(len(images), rng)
    each = min(draws, max(1, plotted // len(images)))
    options = (segmenter(images), draws, each, max_batch)
    walk = SamplerWalk(model, images, targets, score, rng, *options)
    others = SampleRng(rng.seed, tuple(range(len(real))))
    noise = others.noise("sampler noise", real.device).uniform(real.shape[1:]).to(real)
    alike, probabilities = walk.observe(real)
    check_classes(probabilities, targets)
    unlike = walk.observe(noise)[0]
    nothing = {m: Estimate(math.nan, reason="no samples of an image") for m in MEASURES}
    estimates = {  # other images than those of the fillers, hence other resamples
        REAL: {**nothing, "mahalanobis": mean_estimate(score(alike), 1, n_resamples)},
        NOISE: {**nothing, "mahalanobis": mean_estimate(score(unlike), 2, n_resamples)},
    }
    embedded = {REAL: alike[:plotted], NOISE: unlike[:plotted]}
    with tqdm(total=len(fillers) * len(images) * draws, unit="sample", disable=not progress, dynamic_ncols=True) as bar:
        for name, filler in fillers.items():
            bar.set_description(name)
            seen = walk(filler, bar)
            estimates[name] = {**nothing, **of_samples(seen, n_resamples)}
            embedded[name] = seen.features.flatten(0, 1)
        bar.set_description("umap")
        places = umap_plane(torch.cat(list(embedded.values())), rng.seed).split([len(f) for f in embedded.values()])
    plane = dict(zip(embedded, places, strict=True))
    halves = others.noise("sampler halves").uniform(()).argsort()
    for name, e in silhouettes(plane, len(images), halves, n_resamples).items():
        estimates[name]["silhouette"] = e
    hides = {name: hides_of(f) for name, f in fillers.items()}
    return SamplerQuality(estimates, plane, hides, next(iter(fillers)), draws, device_of(images))


def check_request(images: Images, real: Float[Tensor, "r c h w"], fillers: Mapping[str, Filler], draws: int) -> None:
    """Refuse what `sampler_table` cannot compare."""
    if not fillers:
        raise UsageError("no sampler is chosen: name fillers")
    for name, filler in fillers.items():
        hides_of(filler)
        if name in (REAL, NOISE):
            raise UsageError(f"a filler is named {name!r}, which is a row of the table: name it otherwise")
    for what, given in (("images", images), ("other real images", real)):
        if len(given) < LEAST:
            raise UsageError(f"samplers are compared on at least {LEAST} {what}, found {len(given)}: give more")
    at_least(1, draws=draws)

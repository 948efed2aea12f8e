"""Predictions of all training samples."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from tqdm.auto import tqdm

import lit_xai
from lit_xai.calls import Gate
from lit_xai.data.folds import Split
from lit_xai.data.images import ImageSet, seen
from lit_xai.engine.job import Job
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.models.lipschitz import local_lipschitz, temperature_of
from lit_xai.store.fold import Predictions, differences
from lit_xai.store.names import KINDS

IMAGES, BACKWARD = 128, 5_000  # most images, and about how many backward passes, of the Lipschitz constant
COMPANY = 0.05  # of the largest |logit|: TF32 and other kernels for other batches stay far below
KEPT = 1 << 26  # most probabilities that are kept of a fold: more are asked for again by who wants them
SMALL, MOST = 96, 500  # pixels a side of a thumbnail, and how many are kept of a fold


def predict(
    model: nn.Module,
    images: ImageSet,
    samples: Int[Tensor, "n"],
    labels: Int[Tensor, "n"],
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 250,
    progress: bool = False,
    keep: Bool[Tensor, "n"] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predicted class, its softmax, and -log p(label) (float64, NaN without a label) for every sample; and the softmax of every class
    for those of `keep`.

    Ranks share the work and all get the whole result. A class may have the logit -inf (probability 0).

    Raises:
        UsageError: an image has no probabilities.
    """
    gate = Gate.of(model)
    mine: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []
    keep = torch.zeros(len(samples), dtype=torch.bool) if keep is None else keep
    starts = range(0, len(samples), batch_size)[rank::world]
    with torch.inference_mode():
        for start in tqdm(starts, desc="predict", unit="batch", disable=not progress, leave=False):
            x = images.images(samples[start : start + batch_size].tolist())
            x = x.to(device, memory_format=torch.channels_last)
            logits = gate(x).float()
            if not mine and len(x) > 1:
                refuse_company(logits[:1], gate(x[:1]).float())
            p = logits.softmax(-1)
            if torch.isnan(p).any():
                raise UsageError("the model predicts NaN: train again with another model.lr=, or check the checkpoint")
            confidence, predicted = p.max(-1)
            # in float64: a probability that float32 rounds to 0 is not 0
            loss = -logits.cpu().double().log_softmax(-1)
            label = labels[start : start + batch_size]
            known = (label >= 0) & (label < loss.shape[1])
            own = loss.gather(1, torch.where(known, label, 0)[:, None])[:, 0].where(known, torch.nan)
            mine.append((start, predicted.cpu(), confidence.cpu(), own, p.cpu()[keep[start : start + batch_size]]))
    parts = [mine]
    if world > 1:
        parts = [[] for _ in range(world)]
        torch.distributed.all_gather_object(parts, mine)
    everything = sorted((row for part in parts for row in part), key=lambda row: row[0])
    predicted, confidence, loss, kept = (torch.cat(column) for column in list(zip(*everything, strict=True))[1:])
    return predicted, confidence, loss, kept


def refuse_company(among: Float[Tensor, "1 k"], alone: Float[Tensor, "1 k"]) -> None:
    """Refuse a model that answers an image otherwise among others than alone, by more than any rounding (`COMPANY`)."""
    if bool((among - alone).abs().max() > COMPANY * alone.abs().max()):
        raise UsageError(
            "the model answers an image differently alone and in a batch, so maps would depend on its neighbours: give its "
            "normalisation running statistics"
        )


def lipschitz_of(job: Job, held: Int[Tensor, "n"]) -> float:
    """The largest local Lipschitz constant at the first held-out images: 128, fewer where there are many classes."""
    with torch.inference_mode():
        classes = Gate.of(job.model)(job.images.images(held[:1].tolist()).to(job.device)).shape[1]
    chosen = held[: min(IMAGES, max(4, BACKWARD // classes))].tolist()
    if len(chosen) < min(IMAGES, len(held)):
        print(f"local Lipschitz constant: {classes:,} backward passes of {len(chosen)} images", flush=True)
    return float(local_lipschitz(job.model, job.images.images(chosen).to(job.device)).max())


def predictions_of_tests(job: Job, split: Split, rank: int = 0, world: int = 1, progress: bool = False) -> Predictions:
    """Predictions of test probes (`split`, see `Unseen`): the store's if they are this checkpoint's of these, else new ones, written by
    rank 0 beside those of other probes, which other explainers may have.
    """
    meta = {**job.shared, "checkpoint": job.checkpoint, **lit_xai.made_by()}
    own, found = {k: v for k, v in meta.items() if k not in ("test", *lit_xai.made_by())}, None
    with contextlib.suppress(DamagedFile, UsageError):  # none, or none that can be read
        found = job.store.read_predictions(job.store.test_file)
        if any(found.meta.get(k) != v for k, v in own.items()):
            found = None
        elif found.meta["test"] == meta["test"] and found.has(split.samples):
            return found
    predicted, confidence, *_ = predict(
        job.model, job.images, split.samples, split.labels, job.device, rank, world, progress=progress
    )
    columns: list[tuple[Tensor, ...]] = [(split.samples, split.labels, predicted, confidence)]
    if found is not None:
        other = ~torch.isin(found.split.samples, split.samples)
        known = found.split.samples, found.split.labels, found.predicted, found.confidence
        columns.append(tuple(column[other] for column in known))
    samples, labels, predicted, confidence = (torch.cat(column) for column in zip(*columns, strict=True))
    order = samples.argsort()
    every = Split(samples[order], torch.full_like(samples, -1), labels[order], split.k, split.seed)
    out = Predictions(every, job.store.fold, predicted[order], confidence[order], meta)
    if rank == 0:
        job.store.write_predictions(out, job.store.test_file)
    return out


def keep_thumbnails(job: Job, split: Split, show: Sequence[int] | None = None) -> None:
    """Keep small copies of this fold's held-out probes, at most `MOST`, where there are none yet; `show` as in `seen`."""
    samples, _ = job.store.read_thumbnails()
    own = job.samples[split.fold(job.samples) == job.store.fold][:MOST]
    if len(own) and not torch.equal(samples, own.sort().values):
        job.store.write_thumbnails(own, torch.cat([thumbnails(job.images, part, show) for part in own.split(32)]))


def thumbnails(
    images: ImageSet, samples: Int[Tensor, "p"], show: Sequence[int] | None = None
) -> UInt8[Tensor, "p c h w"]:
    """Small copies of images, of the channels that are drawn."""
    return (small(seen(images.images(samples.tolist()), show)).clamp(0, 1) * 255).round().to(torch.uint8)


def small(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c s t"]:
    """Images or maps of at most `SMALL` pixels a side."""
    scale = SMALL / max(x.shape[-2:])
    return x if scale >= 1 else F.interpolate(x, [max(1, round(n * scale)) for n in x.shape[-2:]], mode="area")


def predictions_of(
    job: Job, split: Split, fold: int, rank: int = 0, world: int = 1, progress: bool = False
) -> Predictions:
    """The store's predictions if they are this checkpoint's, else new ones (written by rank 0)."""
    shared = {k: v for k, v in job.shared.items() if k != "cap"}  # predictions are the same for every pass
    meta = {**shared, "checkpoint": job.checkpoint, **lit_xai.made_by()}
    if job.store.predictions_file.exists():
        with contextlib.suppress(DamagedFile):  # a damaged file is written anew
            found = job.store.read_predictions()
            there, here = ({k: m.get(k) for k in meta if k not in lit_xai.made_by()} for m in (found.meta, meta))
            difference = differences(there, here)
            if not difference:
                return found
            if any(job.store.explainers(kind) for kind in KINDS):
                raise UsageError(
                    f"{job.store.root} holds explanations of another run ({'; '.join(difference[:3])}): delete its maps/, "
                    f"disagreements/ and {job.store.predictions_file.name}, or choose another name="
                )
    held = split.fold_of == fold
    predicted, confidence, loss, kept = predict(
        job.model, job.images, split.samples, split.labels, job.device, rank, world, progress=progress, keep=held
    )
    if rank == 0 and split.k > 1 and kept.numel() <= KEPT:
        job.store.write_probabilities(split.samples[held], kept, job.checkpoint)
    own = loss[held].mean()
    if not torch.isnan(own):
        meta["loss"] = float(own) if torch.isfinite(own) else None  # JSON knows no infinity
    meta["temperature"] = temperature_of(job.model)
    if split.k > 1:
        meta["lipschitz"] = lipschitz_of(job, split.held_out(fold))
    out = Predictions(split, fold, predicted, confidence, meta)
    if rank == 0:
        job.store.write_predictions(out)
    return out

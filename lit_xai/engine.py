"""Explain and score a range of probes with one model: the one loop behind callbacks, doors and `crossval`.

Model batches are aligned to the probe order: batch b always holds probes b*B .. (b+1)*B-1, whatever shard or rank asks
for them, so a map is bitwise the same for any rank count and shard size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

import lit_xai
from lit_xai.core import (
    Explainer,
    Passes,
    SampleRng,
    Score,
    TrainedOn,
    UsageError,
    contents,
    describe,
    fit_fillers,
    passes_of,
    resolve,
)
from lit_xai.data.folds import Split
from lit_xai.data.sources import ImageSet, digest
from lit_xai.data.truth import Truth
from lit_xai.errors import DamagedFile
from lit_xai.explainers.sweep import SlidingPatch
from lit_xai.models.lipschitz import local_lipschitz
from lit_xai.shards import Identity, identity_of, is_settled, read_head, shard_name, side_by_side, verify
from lit_xai.store import (
    DISAGREEMENTS,
    RANDOM,
    FoldStore,
    Predictions,
    check_shard,
    differences,
    read_shard,
    write_tensors,
)

BLOCK = 32  # shards that one thread looks at


def model_hash(model: nn.Module) -> str:
    """A digest of a model's parameters and buffers."""
    h = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode())
        h.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return h.hexdigest()


@dataclass
class Explained:
    """One predictor and the probes it explains.

    Attributes:
        model: plain module in evaluation mode, images in [0, 1] to logits.
        images: the data set's training images.
        samples: `[p]` the probes, in the order that defines batches and shards.
        targets: `[p]` the class that each map explains.
        store: where results go.
        identity: what folds must share to be compared (data, split, probes, seed).
        trained_on: what the predictor was trained on, for fillers that are fitted to it.
        truth: masks beside the images, for scores that want them.
        kind: `maps` (random probes) or `disagreements`.
        seed: of all noise.
        batch_size: images per explainer call.
        shard_size: probes per file.
        device: where the model runs.
    """

    model: nn.Module
    images: ImageSet
    samples: Int[Tensor, "p"]
    targets: Int[Tensor, "p"]
    store: FoldStore
    identity: dict[str, Any]
    trained_on: TrainedOn
    truth: Truth | None = None
    kind: str = RANDOM
    seed: int = 0
    batch_size: int = 16
    shard_size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shard_size < 1:
            raise UsageError(f"batch_size and shard_size must be positive, found {self.batch_size}, {self.shard_size}")
        self.model = self.model.to(self.device).eval()
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.checkpoint = model_hash(self.model)

    def ranges(self, part: tuple[int, int] = (0, 1)) -> list[range]:
        """The probe ranges of one part (job or rank): every range belongs to exactly one."""
        index, of = part
        if not 0 <= index < of:
            raise UsageError(f"part={index}/{of} does not exist: parts are 0/{of}..{of - 1}/{of}")
        n = len(self.samples)
        return [range(s, min(s + self.shard_size, n)) for s in range(0, n, self.shard_size)][index::of]

    def fingerprint(self, explainer: Explainer) -> dict[str, Any]:
        """What a shard must agree in to be reused."""
        return {
            **read_from(explainer, self.trained_on),
            **self.identity,
            "kind": self.kind,
            "seed": self.seed,
            "probes": digest(self.samples),
            "targets": digest(self.targets),
            "explainer": describe(explainer),
            "checkpoint": self.checkpoint,
            "fold": self.store.fold,
        }

    def batch(self, start: int) -> tuple[Tensor, Tensor, SampleRng]:
        """Images, targets and noise of the aligned batch that begins at probe `start`."""
        samples = self.samples[start : start + self.batch_size]
        images = self.images.images(samples.tolist()).to(self.device, memory_format=torch.channels_last)
        rng = SampleRng(self.seed, tuple(samples.tolist()))
        return images, self.targets[start : start + self.batch_size].to(self.device), rng

    def batches(self, shard: range) -> Iterator[int]:
        """Where the aligned batches that overlap a shard begin."""
        return iter(range(shard.start - shard.start % self.batch_size, shard.stop, self.batch_size))


def read_from(thing: Any, trained_on: TrainedOn) -> dict[str, Any]:
    """What the files that an explainer or a score reads hold: `fitted` is the same for all folds, `files` a fold's own."""
    found = contents(fit_fillers(thing, trained_on))
    if not found:
        return {}
    fitted = {name: {k: v for k, v in c.items() if k != "digest"} for name, c in found.items()}
    return {"fitted": fitted, "files": {name: c["digest"] for name, c in found.items()}}


def files_of(thing: Any, trained_on: TrainedOn) -> dict[str, str]:
    """The digests of the files that an explainer or a score reads, by dotted name."""
    return read_from(thing, trained_on).get("files", {})


@dataclass(frozen=True)
class Recipe:
    """What all shards of one explainer must agree in, computed once for all of them.

    Attributes:
        job: the predictor and its probes.
        name: the explainer's.
        explainer: itself.
        fingerprint: what its maps depend on.
        wanted: every score's definition.
        files: the digests of the files that every score reads.
        key: a digest of all this.
    """

    job: Explained
    name: str
    explainer: Explainer
    fingerprint: dict[str, Any]
    wanted: dict[str, dict[str, Any]]
    files: dict[str, dict[str, str]]
    key: str

    def path(self, shard: range) -> Path:
        """Where a shard is kept."""
        return self.job.store.shard(self.job.kind, self.name, shard.start, shard.stop)

    def refuse_other(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse what another configuration left; which version of the code did it is no difference."""
        ours = self.fingerprint
        if not self.job.checkpoint:  # not trained yet: a repeated training gives the same weights
            ours = {**ours, "checkpoint": meta["fingerprint"]["checkpoint"]}
        difference = [] if ours == meta["fingerprint"] else differences(meta["fingerprint"], ours)
        for name, wanted in self.wanted.items():
            if name in meta["scores"]:
                had = meta["scores"][name]
                difference += differences(had["definition"], wanted, f"score.{name}.")
                difference += differences(had.get("files", {}), self.files[name], f"score.{name}.")
        if difference:
            raise UsageError(
                f"{path.parent} was computed otherwise ({'; '.join(difference[:3])}): "
                f"choose another name=, restore the setting, or delete that folder"
            )

    def work(self, shard: range, there: bool = True) -> Work | None:
        """What is missing in a shard, None if nothing is; every byte of its file is read once in a process.

        A file that is cut or altered is as good as none. Threads may call this side by side.

        Args:
            shard: its probes.
            there: whether there is a file at all.

        Raises:
            UsageError: another configuration left it.
        """
        if not there:
            return Work(self, shard)
        path = self.path(shard)
        identity = identity_of(path)
        if (identity, self.key) in FINISHED:
            return None
        try:
            meta = check_shard(path, verify(path)).meta
        except DamagedFile:
            return Work(self, shard)
        self.refuse_other(path, meta)
        work = Work(self, shard, meta)
        if work.missing:
            return work
        if is_settled(identity):
            FINISHED.add((identity, self.key))
        return None


FINISHED: set[tuple[Identity | None, str]] = set()  # files that this process found finished, and by which recipe


@dataclass
class Work:
    """What is missing in one shard of one explainer.

    Attributes:
        recipe: what the shard must agree in.
        shard: its probes.
        meta: of what an earlier run left; its tensors are read again when they are used. Empty: there are no maps.
    """

    recipe: Recipe
    shard: range
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Explained:
        """The predictor and its probes."""
        return self.recipe.job

    @property
    def name(self) -> str:
        """The explainer's name."""
        return self.recipe.name

    @property
    def path(self) -> Path:
        """Where the shard is kept."""
        return self.recipe.path(self.shard)

    @property
    def missing(self) -> list[str]:
        """The scores to compute; all of them where there are no maps."""
        return [n for n in self.recipe.wanted if n not in self.meta.get("scores", {})]


def recipes(job: Explained, explainers: Mapping[str, Explainer], scores: Mapping[str, Score]) -> list[Recipe]:
    """What the shards of every explainer must agree in."""
    files = {n: files_of(s, job.trained_on) for n, s in scores.items()}
    wanted = {n: definition_of(s, job.truth, job.samples, job.trained_on) for n, s in scores.items()}
    out = []
    for name, explainer in explainers.items():
        fingerprint = job.fingerprint(explainer)
        key = digest(json.dumps([fingerprint, wanted, files], sort_keys=True, default=repr))
        out.append(Recipe(job, name, explainer, fingerprint, wanted, files, key))
    return out


def definition_of(
    score: Score, truth: Truth | None, samples: Int[Tensor, "p"], trained_on: TrainedOn
) -> dict[str, Any]:
    """What a score's number means; of a score against masks also which masks, so that mended ones are noticed.

    Raises:
        UsageError: the data have no such mask, or one cannot be read, is empty or full.
    """
    wants, fitted = getattr(score, "truth", None), read_from(score, trained_on).get("fitted")
    meaning = {**score.meaning(), **({"fitted": fitted} if fitted else {})}
    if wants is None or truth is None:
        return meaning
    return {**meaning, "masks": masks_digest(truth, wants, samples)}


DIGESTS: dict[tuple[int, str, str], tuple[Truth, str]] = {}  # with the truth itself: its id stays taken


def masks_digest(truth: Truth, name: str, samples: Int[Tensor, "p"]) -> str:
    """A digest of these samples' masks, read and checked once in a process."""
    key = (id(truth), name, digest(samples))
    if key not in DIGESTS:
        h = hashlib.blake2b(digest_size=8)
        for part in samples.split(64):
            masks = truth.masks(name, part.tolist())
            area = masks.flatten(1).sum(1)
            for row, sample in enumerate(part.tolist()):
                if not 0 < int(area[row]) < masks[row].numel():
                    word = "empty" if int(area[row]) == 0 else "full"
                    raise UsageError(f"the {name}'s mask of sample {sample} is {word}: mend it or leave the image out")
            h.update(masks.numpy().tobytes())
        DIGESTS[key] = truth, h.hexdigest()
    return DIGESTS[key][1]


def work_list(
    job: Explained, explainers: Mapping[str, Explainer], scores: Mapping[str, Score], part: tuple[int, int] = (0, 1)
) -> list[Work]:
    """What this part has to do, shard by shard, explainer by explainer; finished shards are left out."""
    stale_layouts(job, explainers)
    for name, score in scores.items():
        wants = getattr(score, "truth", None)
        if wants is not None and (job.truth is None or wants not in job.truth.names):
            have = f"has masks of: {', '.join(job.truth.names)}" if job.truth else "has no masks"
            mend = (
                "set data.tag= above 0"
                if wants == "tag"
                else "choose data=shapes, or masks beside the pictures (data.masks=)"
            )
            raise UsageError(
                f"score {name} needs a mask of the {wants} and the data {have}: {mend}, or leave the score out"
            )
    there = {name: {p.name for p in job.store.shards(job.kind, name)} for name in explainers}
    all_of_it = recipes(job, explainers, scores)
    todo = [(recipe, shard) for shard in job.ranges(part) for recipe in all_of_it]

    def missing(block: Sequence[tuple[Recipe, range]]) -> list[Work]:
        found = (r.work(s, shard_name(s.start, s.stop) in there[r.name]) for r, s in block)
        return [w for w in found if w is not None]

    blocks = (todo[i : i + BLOCK] for i in range(0, len(todo), BLOCK))
    return [work for found in side_by_side(missing, blocks) for work in found]


def finished(job: Explained, explainers: Mapping[str, Explainer], scores: Mapping[str, Score]) -> bool:
    """Whether every shard of every part is there with all of these scores, by names and heads; stops at the first that is not."""
    names = [shard_name(r.start, r.stop) for r in job.ranges()]
    if not all(set(names) <= {p.name for p in job.store.shards(job.kind, e)} for e in explainers):
        return False
    try:
        heads = (read_head(job.store.root / job.kind / e / name) for name in reversed(names) for e in explainers)
        return all(set(scores) <= set(head.meta.get("scores", {})) for head in heads)
    except DamagedFile:
        return False


def stale_layouts(job: Explained, explainers: Mapping[str, Explainer]) -> None:
    """Refuse a folder whose shards were cut with another shard size: their ranges would overlap."""
    expected = {shard_name(r.start, r.stop) for r in job.ranges()}
    for name in explainers:
        other = [p for p in job.store.shards(job.kind, name) if p.name not in expected]
        if other:
            raise UsageError(
                f"{other[0].parent} holds shards of another shard_size or probe count ({other[0].name}): "
                f"restore shard_size= and data.probes_per_fold=, choose another name=, or delete that folder"
            )


def explain(
    job: Explained,
    explainers: Mapping[str, Explainer],
    scores: Mapping[str, Score],
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
    on_shard: Callable[[str, int, int, int], None] | None = None,
) -> int:
    """Compute and write every missing shard of this part; return how many were written.

    Before every shard, and in the end, `on_shard` is told what comes, how many of how many shards are done and how many
    images that were.

    Model outputs that a score needs but that do not depend on the map are computed once per shard and shared by all
    explainers.
    """
    works = work_list(job, explainers, scores, part)
    fitted = {n: fit_fillers(s, job.trained_on) for n, s in scores.items()}
    job.store.remove_temporary()
    observed: dict[tuple[str, int], Tensor] = {}
    current: range | None = None
    total = sum(len(w.shard) for w in works)
    with tqdm(total=total, unit="map", disable=not progress or not works, dynamic_ncols=True) as bar:
        images = 0
        for done, work in enumerate(works):
            if work.shard != current:
                observed, current = {}, work.shard
            bar.set_description(f"fold {job.store.fold} {work.name}")
            if on_shard is not None:
                on_shard(f"{work.path.stem} of {work.name}", done, len(works), images)
            run(work, fitted, observed, bar)
            images += len(work.shard)
    if on_shard is not None:
        on_shard("end", len(works), len(works), images)
    return len(works)


def run(work: Work, scores: Mapping[str, Score], observed: dict[tuple[str, int], Tensor], bar: Any) -> None:
    """Compute one shard's missing maps and scores and write it."""
    job, shard = work.job, work.shard
    explainer = fit_fillers(work.recipe.explainer, job.trained_on)
    maps, values = [], {name: [] for name in work.missing}  # type: ignore[var-annotated]
    resolved: dict[str, Any] = {}
    details: dict[str, list[Tensor]] = {}
    had = read_shard(work.path)[0] if work.meta else {}
    for start in job.batches(shard):
        images, targets, rng = job.batch(start)
        inside = slice(max(shard.start - start, 0), min(shard.stop - start, len(images)))
        if not resolved:
            resolved = {"explainer": resolve(explainer, job.model, images)}
            resolved.update({n: resolve(scores[n], job.model, images) for n in scores})
        if had:
            batch_maps = torch.zeros(len(images), *images.shape[-2:], device=images.device)
            kept = had["maps"][start + inside.start - shard.start : start + inside.stop - shard.start]
            batch_maps[inside] = kept.to(images.device)
        else:
            batch_maps, found = explained_by(explainer, job.model, images, targets, rng)
            check_maps(batch_maps, images, rng, work)
            for name, detail in found.items():
                details.setdefault(f"detail/{name}", []).append(detail[inside].double().cpu())
        maps.append(batch_maps[inside].float().cpu())
        for name in work.missing:
            score = scores[name]
            wants = getattr(score, "truth", None)
            if (name, start) not in observed:
                if wants is not None and job.truth is not None:
                    observed[name, start] = job.truth.masks(wants, rng.samples).to(images.device)
                elif hasattr(score, "observe"):
                    observed[name, start] = score.observe(job.model, images, targets, rng)
            value = score(job.model, images, batch_maps, targets, rng, observed.get((name, start)))
            values[name].append(value[inside].double().cpu())
            if wants is not None:
                whole = score.reference(observed[name, start])  # type: ignore[attr-defined]
                details.setdefault(f"reference/{name}", []).append(whole[inside].double().cpu())
        bar.update(inside.stop - inside.start)
    tensors = {"sample": job.samples[shard.start : shard.stop], "maps": torch.cat(maps)}
    tensors.update({k: v for k, v in had.items() if k not in tensors})
    tensors.update({k: torch.cat(v) for k, v in details.items()})
    tensors.update({f"score/{n}": torch.cat(v) for n, v in values.items()})
    definitions = {
        n: {
            "definition": work.recipe.wanted[n],
            "resolved": resolved.get(n, {}),
            "higher_is_better": scores[n].higher_is_better,
            **({"files": work.recipe.files[n]} if work.recipe.files[n] else {}),
            **settings_of(scores[n]),
        }
        for n in work.missing
    }
    meta = {
        "fingerprint": work.recipe.fingerprint,
        "resolved": resolved.get("explainer", {}),
        "scores": {**work.meta.get("scores", {}), **definitions},
        **makers(work.meta),
    }
    write_tensors(work.path, tensors, meta)


def makers(had: Mapping[str, Any]) -> dict[str, Any]:
    """Which code made a shard's maps, and under `also` which other code added scores to them."""
    now = lit_xai.made_by()
    maps = {k: had[k] for k in now if k in had} or now
    also = [m for m in (*had.get("also", []), *([now] if maps != now else []))]
    unique = [m for i, m in enumerate(also) if m not in also[:i]]
    return {**maps, "also": unique} if unique else maps


def settings_of(score: Score) -> dict[str, Any]:
    """What the columns of a score with several are."""
    return {"settings": list(score.settings())} if hasattr(score, "settings") else {}


def explained_by(
    explainer: Explainer, model: nn.Module, images: Tensor, targets: Tensor, rng: SampleRng
) -> tuple[Tensor, dict[str, Tensor]]:
    """Maps, and what the method knows about them."""
    if hasattr(explainer, "with_details"):
        return explainer.with_details(model, images, targets, rng)
    return explainer(model, images, targets, rng).detach(), {}


def check_maps(maps: Tensor, images: Tensor, rng: SampleRng, work: Work) -> None:
    """Refuse maps of the wrong shape and maps with NaN, before anything is written."""
    expected = (len(images), *images.shape[-2:])
    if tuple(maps.shape) != expected:
        raise UsageError(f"explainer {work.name} gave maps of shape {tuple(maps.shape)}, expected {expected}")
    bad = torch.nonzero(~torch.isfinite(maps).flatten(1).all(1))[:, 0].tolist()
    if bad:
        raise UsageError(
            f"explainer {work.name} gave NaN for sample {rng.samples[bad[0]]} (fold {work.job.store.fold}): "
            f"check the checkpoint (train again with another model.lr) or leave the explainer out"
        )


# --------------------------------------------------------------------------------------------------------- predictions


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted class, its softmax, and -log p(label) (float64, NaN without a label) for every sample.

    Ranks share the work and all get the whole result. A class may have the logit -inf (probability 0).

    Raises:
        UsageError: an image has no probabilities.
    """
    mine: list[tuple[int, Tensor, Tensor, Tensor]] = []
    starts = range(0, len(samples), batch_size)[rank::world]
    with torch.inference_mode():
        for start in tqdm(starts, desc="predict", unit="batch", disable=not progress, leave=False):
            x = images.images(samples[start : start + batch_size].tolist())
            logits = model(x.to(device, memory_format=torch.channels_last)).float()
            p = logits.softmax(-1)
            if torch.isnan(p).any():
                raise UsageError("the model predicts NaN: train again with another model.lr=, or check the checkpoint")
            confidence, predicted = p.max(-1)
            # in float64: a probability that float32 rounds to 0 is not 0
            loss = -logits.cpu().double().log_softmax(-1)
            label = labels[start : start + batch_size]
            known = (label >= 0) & (label < loss.shape[1])
            own = loss.gather(1, torch.where(known, label, 0)[:, None])[:, 0].where(known, torch.nan)
            mine.append((start, predicted.cpu(), confidence.cpu(), own))
    parts = [mine]
    if world > 1:
        parts = [[] for _ in range(world)]
        torch.distributed.all_gather_object(parts, mine)
    everything = sorted((row for part in parts for row in part), key=lambda row: row[0])
    predicted, confidence, loss = (torch.cat(column) for column in list(zip(*everything, strict=True))[1:])
    return predicted, confidence, loss


def predictions_of(
    job: Explained, split: Split, fold: int, rank: int = 0, world: int = 1, progress: bool = False
) -> Predictions:
    """The store's predictions if they are this checkpoint's, else new ones (written by rank 0)."""
    meta = {**job.identity, "checkpoint": job.checkpoint, **lit_xai.made_by()}
    if job.store.predictions_file.exists():
        with contextlib.suppress(DamagedFile):  # a damaged file is written anew
            found = job.store.read_predictions()
            there, here = ({k: m.get(k) for k in meta if k not in lit_xai.made_by()} for m in (found.meta, meta))
            difference = differences(there, here)
            if not difference:
                return found
            if job.store.explainers() or job.store.explainers(DISAGREEMENTS):
                raise UsageError(
                    f"{job.store.root} holds explanations of another run ({'; '.join(difference[:3])}): delete its maps/, "
                    f"disagreements/ and {job.store.predictions_file.name}, or choose another name="
                )
    predicted, confidence, loss = predict(
        job.model, job.images, split.samples, split.labels, job.device, rank, world, progress=progress
    )
    own = loss[split.fold_of == fold].mean()
    if not torch.isnan(own):
        meta["loss"] = float(own) if torch.isfinite(own) else None  # JSON knows no infinity
    held = split.held_out(fold)[:128].tolist()
    if split.k > 1:
        meta["lipschitz"] = float(local_lipschitz(job.model, job.images.images(held).to(job.device)).max())
    out = Predictions(split, fold, predicted, confidence, meta)
    if rank == 0:
        job.store.write_predictions(out)
    return out


# --------------------------------------------------------------------------------------------------------- calibration


# fields that decide how many passes a method takes: the first that helps is named where it shall be cheaper
COUNTS = ("stride", "step", "masks", "samples", "cap", "steps", "points", "subsets", "draws", "repeats")
LEAST = 10  # no smaller count is proposed
ENOUGH = 1.5  # seconds that a trial may take


@dataclass(frozen=True)
class Cost:
    """What one explainer or score will take.

    Attributes:
        name: as on the command line, `explainer.rise`.
        passes: of the model, for all images.
        minutes: what they take.
        cheaper: options that cost less.
    """

    name: str
    passes: Passes
    minutes: float
    cheaper: tuple[str, ...] = ()

    def __str__(self) -> str:
        passes = " and ".join(f"{n:,} {way}" for n, way in zip(self.passes, ("forward", "backward"), strict=True) if n)
        if not passes:
            return f"{self.name}: no passes"
        mend = ", ".join(self.cheaper) or "leave it out"
        return f"{self.name}: {passes} passes, about {self.minutes:.1f} min; cheaper: {mend}"


@dataclass(frozen=True)
class Plan:
    """Model passes to come and what they will take.

    Attributes:
        shards, maps: how many are missing.
        passes, minutes: of all of them.
        costs: of every explainer and score, the dearest first.
        device: where the model was timed, `cpu` or `cuda`.
    """

    shards: int
    maps: int
    passes: Passes
    minutes: float
    costs: tuple[Cost, ...] = ()
    device: str = "cpu"

    def __str__(self) -> str:
        return (
            f"{self.maps:,} maps in {self.shards:,} shards, {self.passes.forward:,} forward and "
            f"{self.passes.backward:,} backward passes of one image, about {self.minutes:.1f} min on this {unit(self.device)}"
        )


def unit(device: str) -> str:
    """What a device is called."""
    return "CPU" if device == "cpu" else "GPU"


def plan(
    job: Explained,
    explainers: Mapping[str, Explainer],
    scores: Mapping[str, Score],
    part: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Plan:
    """Count what is missing and time one forward and one backward batch."""
    works = work_list(job, explainers, scores, part)
    device = job.device.type
    if not works:
        return Plan(0, 0, Passes(0), 0.0, device=device)
    images, targets, _ = job.batch(0)
    height, width = images.shape[-2:]
    things = {f"explainer.{n}": fit_fillers(e, job.trained_on) for n, e in explainers.items()}
    things.update({f"score.{n}": s for n, s in scores.items()})
    each = {name: passes_of(thing, height, width) for name, thing in things.items()}
    asked: dict[str, Passes] = {}
    seen = set()
    for w in works:
        names = [] if w.meta else [f"explainer.{w.name}"]
        for n in w.missing:
            if not hasattr(scores[n], "observe") or (n, w.shard) not in seen:
                names.append(f"score.{n}")
                seen.add((n, w.shard))
        for name in names:
            asked[name] = asked.get(name, Passes(0)) + Passes(*(n * len(w.shard) for n in each[name]))
    seconds, fewer, costs = seconds_per_image(job.model, images, targets, progress=progress), fewer_probes(job), []
    for name, passes in asked.items():
        minutes = sum(n * s for n, s in zip(passes, seconds, strict=True)) / 60
        if isinstance(things[name], SlidingPatch):
            minutes *= things[name].share(job.model, images)
        mends = () if begun(job, name) else (setting(name, things[name], height, width), fewer)
        costs.append(Cost(name, passes, minutes, tuple(m for m in mends if m)))
    costs.sort(key=lambda c: -c.minutes)
    total = sum((c.passes for c in costs), Passes(0))
    maps = sum(len(w.shard) for w in works)
    return Plan(len(works), maps, total, sum(c.minutes for c in costs), tuple(costs), device)


def begun(job: Explained, name: str = "*") -> bool:
    """Whether a fold of this experiment has maps of an explainer (else: of any), whose settings another one would refuse."""
    group, _, explainer = name.partition(".")
    explainer = explainer if group == "explainer" else "*"
    return any(job.store.root.parent.glob(f"fold=*/{job.kind}/{explainer}/*.safetensors"))


def setting(name: str, thing: Any, height: int, width: int) -> str | None:
    """The option of an explainer or score that brings its passes down to about a quarter; None where none halves them."""
    known = {f.name for f in fields(thing)} if is_dataclass(thing) else set()
    now = sum(passes_of(thing, height, width))
    for count in (n for n in COUNTS if n in known):
        value = getattr(thing, count)
        if not isinstance(value, int):
            continue
        cheaper = {"stride": [value * 2**i for i in range(1, 7)], "step": [4 * (value or max(height, width))]}
        for other in cheaper.get(count, [max(LEAST, value // 4)]):
            if 2 * sum(passes_of(replace(thing, **{count: other}), height, width)) <= now:
                return f"{name}.{count}={other}"
    return None


def fewer_probes(job: Explained) -> str | None:
    """The option that brings the number of explained images down to a quarter; None where maps of them are there."""
    each = len(job.samples) // job.identity["folds"]
    option = "cap" if job.kind == DISAGREEMENTS else "data.probes_per_fold"
    return None if each < 2 or begun(job) else f"{option}={max(1, each // 4)}"


def trial(
    try_it: Callable[[int], None], most: int, least: int = 1, enough: float = ENOUGH, progress: bool = False
) -> float:
    """Seconds an item of `try_it(items)`: the least of tries that grow from `least` to `most`, or until `enough` seconds are over.

    The first try warms up and does not count; a machine that does something else besides slows single ones.
    """
    first = min(least, most)
    sizes = [first, *(first * 2**i for i in range(most.bit_length()) if first * 2**i < most), most]
    best, spent = math.inf, 0.0
    bar = tqdm(sizes, "timing", unit="batch", disable=not progress, dynamic_ncols=True, leave=False)
    for i, size in enumerate(bar):
        began = time.perf_counter()
        try_it(size)
        took = time.perf_counter() - began
        if i:
            best, spent = min(best, took / size), spent + took
            if spent >= enough:
                break
    bar.close()
    return best


def seconds_per_image(
    model: nn.Module, images: Tensor, targets: Tensor, enough: float = ENOUGH, progress: bool = False
) -> tuple[float, float]:
    """Seconds of one image's forward pass, and of its backward pass to the image, by a short `trial`."""

    def forward(size: int) -> None:
        with torch.inference_mode():
            model(images[:size])[0, 0].item()

    def both(size: int) -> None:
        x = images[:size].clone().requires_grad_()
        torch.autograd.grad(model(x).gather(1, targets[:size, None]).sum(), x)[0].sum().item()

    one, two = (trial(f, len(images), enough=enough, progress=progress) for f in (forward, both))
    return one, max(two - one, 0.0)

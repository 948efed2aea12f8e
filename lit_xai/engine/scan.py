"""What is missing in a store, shard by shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from lit_xai.core import Explainer, Score
from lit_xai.data.sources import digest
from lit_xai.data.threads import side_by_side
from lit_xai.data.truth import Truth
from lit_xai.engine.job import Explained, files_of, read_from
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.fitting import TrainedOn
from lit_xai.store.fold import check_shard, differences
from lit_xai.store.names import shard_name
from lit_xai.store.shards import Identity, identity_of, is_settled, read_head, verify

BLOCK = 32  # shards that one thread looks at


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

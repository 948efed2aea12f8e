"""What is missing in a store, shard by shard: every shard is looked at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from jaxtyping import Int
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_xai.core import Explainer, Score, TrainedOn
from lit_xai.data.plant import SHORTCUT
from lit_xai.data.threads import side_by_side
from lit_xai.data.truth import Truth, file_of, unsaying
from lit_xai.engine.job import Job, files_of, noise_of, read_from
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.store.fold import check_shard, differences
from lit_xai.store.names import shard_name
from lit_xai.store.shards import read_head, verify

BLOCK = 32  # shards that one thread looks at
NAMED = 5  # masks that a line names


class OtherNoise(UsageError):
    """The maps of a shard were drawn with another version of the noise, which is all that differs."""


@dataclass(frozen=True)
class Spec:
    """What all shards of one explainer must agree in, computed once for all of them.

    Attributes:
        job: the predictor and its probes.
        name: the explainer's.
        explainer: itself.
        fingerprint: what its maps depend on.
        wanted: every score's definition.
        files: the digests of the files that every score reads.
    """

    job: Job
    name: str
    explainer: Explainer
    fingerprint: dict[str, Any]
    wanted: dict[str, dict[str, Any]]
    files: dict[str, dict[str, str]]

    def path(self, shard: range) -> Path:
        """Where a shard is kept."""
        return self.job.store.shard(self.job.kind, self.name, shard.start, shard.stop)

    def refuse_other(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse what another configuration left; which version of the code did it is no difference."""
        ours = self.fingerprint
        if not self.job.checkpoint:  # not trained yet: a repeated training gives the same weights
            ours = {**ours, "checkpoint": meta["fingerprint"]["checkpoint"]}
        theirs = meta["fingerprint"]
        if ours != theirs and {**ours, "noise": None} == {**theirs, "noise": None}:
            raise OtherNoise(*differences(theirs, ours))
        difference = [] if ours == theirs else differences(theirs, ours)
        for name, wanted in self.wanted.items():
            if name in meta["scores"]:
                had = meta["scores"][name]
                if not self.outdated(name, meta):
                    difference += differences(had["definition"], wanted, f"score.{name}.")
                difference += differences(had.get("files", {}), self.files[name], f"score.{name}.")
        if difference:
            raise UsageError(
                f"{path.parent} was computed otherwise ({'; '.join(difference[:3])}): "
                f"choose another name=, restore the setting, or delete that folder"
            )

    def outdated(self, name: str, meta: Mapping[str, Any]) -> bool:
        """Whether a shard's score differs from what is wanted in the version of its noise alone: it is computed anew from the maps."""
        had, wanted = meta["scores"][name]["definition"], self.wanted[name]
        return had != wanted and {**had, "noise": None} == {**wanted, "noise": None}

    def task(self, shard: range, there: bool = True) -> Task | None:
        """What is missing in a shard, None if nothing is; every byte of its file is read once.

        A file that is cut or altered is as good as none. Threads may call this side by side.

        Args:
            shard: its probes.
            there: whether there is a file at all.

        Raises:
            UsageError: another configuration left it, or (`OtherNoise`) another version of the noise.
        """
        if not there:
            return Task(self, shard)
        path = self.path(shard)
        try:
            meta = check_shard(path, verify(path)).meta
        except DamagedFile:
            return Task(self, shard)
        self.refuse_other(path, meta)
        task = Task(self, shard, meta)
        return task if task.missing else None


@dataclass(frozen=True)
class Task:
    """What is missing in one shard of one explainer.

    Attributes:
        spec: what the shard must agree in.
        shard: its probes.
        meta: of what an earlier run left; its tensors are read again when they are used. Empty: there are no maps.
    """

    spec: Spec
    shard: range
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The predictor and its probes."""
        return self.spec.job

    @property
    def name(self) -> str:
        """The name of the task's explainer."""
        return self.spec.name

    @property
    def path(self) -> Path:
        """Where the shard is kept."""
        return self.spec.path(self.shard)

    @property
    def missing(self) -> list[str]:
        """The scores to compute; all of them where there are no maps."""
        had = self.meta.get("scores", {})
        return [n for n in self.spec.wanted if n not in had or self.spec.outdated(n, self.meta)]


@dataclass(frozen=True)
class Tasks(Sequence[Task]):
    """What one part of a job has to do: shard by shard, explainer by explainer; finished shards are left out.

    Attributes:
        job: the predictor and its probes.
        explainers, scores: by name.
        part: which share of the shards, `(0, 4)`.
        tasks: themselves.
    """

    job: Job
    explainers: Mapping[str, Explainer]
    scores: Mapping[str, Score]
    part: tuple[int, int]
    tasks: tuple[Task, ...]

    @staticmethod
    def of(
        job: Job, explainers: Mapping[str, Explainer], scores: Mapping[str, Score], part: tuple[int, int] = (0, 1)
    ) -> Tasks:
        """Look at every shard of a part.

        Raises:
            UsageError: another configuration left one, or a score wants masks that the data do not have.
        """
        refuse_other_ranges(job, explainers)
        there = {name: {p.name for p in job.store.shards(job.kind, name)} for name in explainers}
        every = specs(job, explainers, scores)
        todo = [(spec, shard) for shard in job.ranges(part) for spec in every]

        other: dict[str, str] = {}

        def missing(block: Sequence[tuple[Spec, range]]) -> list[Task]:
            found = []
            for spec, s in block:
                try:
                    found.append(spec.task(s, shard_name(s.start, s.stop) in there[spec.name]))
                except OtherNoise as e:
                    other[spec.name] = str(e)
            return [task for task in found if task is not None]

        blocks = (todo[i : i + BLOCK] for i in range(0, len(todo), BLOCK))
        tasks = tuple(task for found in side_by_side(missing, blocks) for task in found)
        if other:
            names = ",".join(n for n in explainers if n in other)
            folders = job.store.root / job.kind / (f"{{{names}}}" if len(other) > 1 else names)
            raise UsageError(
                f"{folders} was drawn by another version of the noise ({next(iter(other.values()))}), and maps of both do not mix: "
                f"choose another name=, or rm -r {folders}"
            )
        return Tasks(job, explainers, scores, part, tasks)

    def share(self, rank: int, world: int) -> Tasks:
        """What one process of several has to do of this part."""
        index, of = self.part
        part = index + of * rank, of * world
        own = set(self.job.ranges(part))
        return replace(self, part=part, tasks=tuple(t for t in self.tasks if t.shard in own))

    def others_finished(self) -> bool:
        """Whether the shards of all other parts are there with all scores, by names and heads; stops at the first that is not."""
        own, names = ({shard_name(r.start, r.stop) for r in self.job.ranges(p)} for p in (self.part, (0, 1)))
        folders = [self.job.store.root / self.job.kind / e for e in self.explainers]
        if not all(names <= {p.name for p in self.job.store.shards(self.job.kind, e)} for e in self.explainers):
            return False
        try:
            heads = (read_head(folder / name) for name in sorted(names - own, reverse=True) for folder in folders)
            return all(set(self.scores) <= set(head.meta.get("scores", {})) for head in heads)
        except DamagedFile:
            return False

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: Any) -> Any:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)


def specs(job: Job, explainers: Mapping[str, Explainer], scores: Mapping[str, Score]) -> list[Spec]:
    """What the shards of every explainer must agree in."""
    for name, score in scores.items():
        refuse_without_masks(name, score, job.truth)
    files = {n: files_of(s, job.trained_on) for n, s in scores.items()}
    masks = {w: masks_digest(job.truth, w, job.samples) for s in scores.values() if job.truth and (w := s.truth)}
    wanted = {n: definition_of(s, job.trained_on, masks) for n, s in scores.items()}
    return [Spec(job, n, e, job.fingerprint(e), wanted, files) for n, e in explainers.items()]


def definition_of(score: Score, trained_on: TrainedOn, masks: Mapping[str, str]) -> dict[str, Any]:
    """What a score's number means; of a score against masks also which masks (their digests), so that mended ones are noticed."""
    wants, fitted = score.truth, read_from(score, trained_on).get("fitted")
    meaning = {**score.meaning(), **({"fitted": fitted} if fitted else {}), **noise_of(score)}
    return {**meaning, "masks": masks[wants]} if wants is not None and wants in masks else meaning


def masks_digest(truth: Truth, name: str, samples: Int[Tensor, "p"]) -> str:
    """A digest of these samples' masks.

    A line names those that are empty or full: scores against them are undefined.

    Raises:
        UsageError: one cannot be read.
    """
    h, out = hashlib.blake2b(digest_size=8), []
    for part in samples.split(64):
        masks = truth.masks(name, part.tolist())
        wrong = unsaying(masks)
        out += [
            f"{'full' if m.any() else 'empty'}: {file_of(truth, int(s))}"
            for m, s in zip(masks[wrong], part[wrong], strict=True)
        ]
        h.update(masks.numpy().tobytes())
    if out:
        more = f"; and {len(out) - NAMED} more" if out[NAMED:] else ""
        say_once(
            f"note: {len(out)} of {len(samples)} masks of the {name} are empty or full (after the crop), and scores against them "
            f"NaN ({'; '.join(out[:NAMED])}{more})"
        )
    return h.hexdigest()


@cache
def say_once(line: str) -> None:
    """A line on the terminal, from rank 0, once in a process."""
    rank_zero_only(print)("".join(c if c.isprintable() else "?" for c in line), flush=True)


def refuse_without_masks(name: str, score: Score, truth: Truth | None) -> None:
    """Refuse a score against masks that the data do not have."""
    wants = score.truth
    if wants is None or (truth is not None and wants in truth.names):
        return
    have = f"has masks of: {', '.join(truth.names)}" if truth else "has no masks"
    mend = {
        "tag": "set data.tag= above 0 (of data.plant=, the score is truth/mass_on_shortcut)",
        SHORTCUT: "set data.plant=tag or watermark (a colour has no place)",
    }.get(wants, "choose data=shapes, or masks beside the pictures (data.masks=)")
    raise UsageError(f"score {name} needs a mask of the {wants} and the data {have}: {mend}, or leave the score out")


def refuse_other_ranges(job: Job, explainers: Mapping[str, Explainer]) -> None:
    """Refuse a folder whose shards were cut with another shard size: their ranges would overlap."""
    expected = {shard_name(r.start, r.stop) for r in job.ranges()}
    for name in explainers:
        other = [p for p in job.store.shards(job.kind, name) if p.name not in expected]
        if other:
            raise UsageError(
                f"{other[0].parent} holds shards of another shard_size or probe count ({other[0].name}): "
                f"restore shard_size= and data.probes_per_fold=, choose another name=, or delete that folder"
            )

"""Predictions, maps and scores of one predictor on disk.

    fold=3/predictions.safetensors                                    all training samples
    fold=3/maps/<explainer>/000000000-000000063.safetensors           random probes 0..63: maps and scores
    fold=3/disagreements/<explainer>/000000000-000000063.safetensors  disagreements: maps
    fold=3/test-predictions.safetensors  test/<explainer>/...         test probes: images that no fold saw
    fold=3/probabilities.safetensors                                  of every class, of samples that it never saw
    fold=3/thumbnails.safetensors                                     small copies of its held-out probes

Every file is written under a temporary name and renamed, carries a checksum and a fingerprint, and runs no code when it
is read. The bytes of a shard depend on what was computed alone, not on when, where or by how many processes.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lit_xai.data.folds import Split
from lit_xai.data.threads import side_by_side
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.store.files import write_atomically
from lit_xai.store.names import DISAGREEMENTS as DISAGREEMENTS
from lit_xai.store.names import (
    PREDICTIONS,
    PROBABILITIES,
    RANDOM,
    TEST_PREDICTIONS,
    THUMBNAILS,
    explainers_in,
    shard_name,
    shard_paths,
)
from lit_xai.store.plans import damaged, mend, plan_file
from lit_xai.store.shards import Head, Said, read_open_head
from lit_xai.store.tensors import DTYPES, read_tensors, read_whole, tensor_at, write_tensors

KEPT = 1 << 23  # bytes of one explainer's shards in one fold that are read at once and stay in memory


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: a's value, b's value` for everything in which two descriptions differ."""
    out = []
    for key in sorted(set(a) | set(b)):
        left, right, name = a.get(key), b.get(key), f"{prefix}{key}"
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            out += differences(left, right, f"{name}.")
        elif left != right:
            out.append(f"{name}: {left} there, {right} here")
    return out


def meaning(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score's definition without the version of its noise: with other numbers of the same law it means the same."""
    return {k: v for k, v in score["definition"].items() if k != "noise"}


@dataclass(frozen=True)
class Predictions:
    """What one predictor says of every training sample, and the split it belongs to."""

    split: Split
    fold: int
    predicted: Int[Tensor, "n"]
    confidence: Float[Tensor, "n"]
    meta: dict[str, Any]

    @property
    def correct(self) -> Bool[Tensor, "n"]:
        """Where the prediction is the label."""
        return self.predicted == self.split.labels

    @property
    def held_out(self) -> Bool[Tensor, "v"]:
        """Whether each sample of V_i is predicted rightly."""
        return self.correct[self.split.fold_of == self.fold]

    def of(self, samples: Int[Tensor, "p"]) -> Int[Tensor, "p"]:
        """The predicted class of some samples."""
        return self.predicted[torch.searchsorted(self.split.samples, samples)]

    def has(self, samples: Int[Tensor, "p"]) -> bool:
        """Whether it says something of all of these."""
        return bool(torch.isin(samples, self.split.samples).all())

    def right(self, samples: Int[Tensor, "p"]) -> Bool[Tensor, "p"]:
        """Which of some samples are predicted rightly."""
        return self.correct[torch.searchsorted(self.split.samples, samples)]

    def wrong_of(self, samples: Int[Tensor, "p"]) -> Int[Tensor, "w"]:
        """Those of some samples that are predicted wrongly."""
        return samples[~self.right(samples)]


@dataclass(frozen=True)
class FoldStore:
    """The files of one predictor; `root` is `checkpoints/<name>/fold=<i>`."""

    root: Path

    @property
    def fold(self) -> int:
        """The number of the fold."""
        return int(self.root.name.removeprefix("fold="))

    @property
    def predictions_file(self) -> Path:
        """Where the predictions lie."""
        return self.root / PREDICTIONS

    @property
    def test_file(self) -> Path:
        """Where the predictions of test probes are."""
        return self.root / TEST_PREDICTIONS

    def write_predictions(self, p: Predictions, file: Path | None = None) -> None:
        """All training samples at once, or the test probes into `test_file`."""
        tensors = {
            "sample": p.split.samples,
            "fold_of": p.split.fold_of,
            "label": p.split.labels,
            "predicted": p.predicted,
            "confidence": p.confidence,
        }
        meta = {**p.meta, "fold": p.fold, "folds": p.split.k, "split_seed": p.split.seed}
        write_tensors(file or self.predictions_file, tensors, meta)

    def read_predictions(self, file: Path | None = None) -> Predictions:
        """Predictions and split, or of `test_file` those of the test probes, whose folds are -1.

        Raises:
            UsageError: they are not there; DamagedFile: they are not whole.
        """
        file = file or self.predictions_file
        if not file.exists():
            raise UsageError(f"{file} is missing: {mend(file)}")
        t, meta = read_tensors(file)
        split = Split(t["sample"], t["fold_of"], t["label"], meta["folds"], meta["split_seed"])
        return Predictions(split, meta["fold"], t["predicted"], t["confidence"], meta)

    def write_probabilities(
        self, samples: Int[Tensor, "v"], probabilities: Float[Tensor, "v k"], checkpoint: str | None
    ) -> None:
        """What the predictor gives every class, of samples that it never saw."""
        tensors = {"sample": samples, "probability": probabilities}
        write_tensors(self.root / PROBABILITIES, tensors, {"checkpoint": checkpoint})

    def read_probabilities(self, samples: Int[Tensor, "v"], checkpoint: str) -> Float[Tensor, "v k"] | None:
        """Those of these samples; None where they are not there, not whole, or another checkpoint's."""
        with contextlib.suppress(DamagedFile, KeyError):
            t, meta = read_tensors(self.root / PROBABILITIES)
            if meta["checkpoint"] == checkpoint and torch.equal(t["sample"], samples):
                return t["probability"]
        return None

    def write_thumbnails(self, samples: Int[Tensor, "p"], images: UInt8[Tensor, "p c h w"]) -> None:
        """Small copies of images, so that maps can be looked at where the data are not."""
        write_tensors(self.root / THUMBNAILS, {"sample": samples, "images": images}, {})

    def read_thumbnails(self) -> tuple[Int[Tensor, "p"], UInt8[Tensor, "p c h w"]]:
        """Samples, ascending, and their small copies; none where nobody kept any, or the file is not whole or of another kind."""
        with contextlib.suppress(DamagedFile, KeyError):
            t, _ = read_tensors(self.root / THUMBNAILS)
            samples, images = t["sample"], t["images"]
            if images.ndim == 4 and images.dtype == torch.uint8 and len(samples) == len(images):
                order = samples.argsort()
                return samples[order], images[order]
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, 0, 0, 0, dtype=torch.uint8)

    def shard(self, kind: str, explainer: str, start: int, stop: int) -> Path:
        """The file of probes start..stop-1."""
        return self.root / kind / explainer / shard_name(start, stop)

    def shards(self, kind: str, explainer: str) -> list[Path]:
        """The files that are there, in order."""
        return shard_paths(self.root / kind / explainer)

    def explainers(self, kind: str = RANDOM) -> list[str]:
        """The explainers of which anything is there."""
        return explainers_in(self.root / kind)

    def write_plans(self, kind: str, texts: Mapping[str, str]) -> None:
        """Say what there is to do, by explainer, so that others can see how much of it is done (see `status.plan_text`)."""
        for name, text in texts.items():
            file = plan_file(self.root, kind, name)
            if not file.exists() or file.read_text() != text:
                write_atomically(file, text)

    def remove_temporary(self) -> None:
        """Delete what writers on this machine that no longer live left behind."""
        for stale in self.root.rglob(f".*.{platform.node()}.*.tmp"):
            pid = stale.name.split(".")[-2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                with contextlib.suppress(OSError):
                    stale.unlink()


def read_shard(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A shard with `sample`, `maps`, its scores (`score/<name>`, of the whole image `reference/<name>`) and details."""
    tensors, head = read_whole(path)
    check_shard(path, head)
    return tensors, head.meta


def check_shard(path: Path, head: Head) -> Head:
    """The head itself, if it is a shard's.

    Raises:
        DamagedFile: it is of another kind.
    """
    if not {"sample", "maps"} <= set(head.tensors) or not {"fingerprint", "scores"} <= set(head.meta):
        raise DamagedFile(f"{path} is not a shard of maps: {mend(path)}")
    return head


class MapReader:
    """Maps and scores of one predictor and one explainer by sample.

    Opening it reads heads and sample numbers. A shard is read whole and checked when rows of it are asked for; its maps go
    when the next shard comes, its scores and details stay (a number a map and score). Small stores (`KEPT` bytes) are read
    whole at once and kept, so that every file is opened once.

    Attributes:
        files: the shards.
        said: what each says of itself: its scores, and which code made it.
        samples: `[n]` what they hold, ascending.
        fingerprint, meta: of all of them; the scores are those that every shard has.
        extra: names of the details and references (`detail/...`, `reference/...`) that every shard has.
    """

    def __init__(self, store: FoldStore, kind: str, explainer: str) -> None:
        self.files = store.shards(kind, explainer)
        self.fingerprint: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}
        self.extra: set[str] = set()
        self.said: dict[Path, Said] = {}
        heads, samples, whole = [], [], []
        small = sum(path.stat().st_size for path in self.files) <= KEPT
        read = partial(read_if_whole, otherwise=read_samples) if small else read_samples
        for path, (head, tensors) in zip(self.files, side_by_side(read, self.files), strict=True):
            self.take_over(path, head)
            self.said[path] = Said.of(head)
            heads.append({n: t for n, t in head.tensors.items() if n not in ("sample", "maps")})
            samples.append(tensors["sample"])
            whole.append(tensors if "maps" in tensors else None)
        sizes = torch.tensor([len(s) for s in samples], dtype=torch.long)
        self.begins = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])  # row of a shard's first sample
        everything = torch.cat(samples) if samples else torch.zeros(0, dtype=torch.long)
        self.samples, self.place = everything.sort(stable=True)
        keep = torch.ones(len(everything), dtype=torch.bool)
        keep[:-1] = self.samples[1:] != self.samples[:-1]
        self.samples, self.place = self.samples[keep], self.place[keep]
        self.columns: dict[str, Tensor] = {}
        for name in set.intersection(*(set(h) for h in heads)) if heads else ():
            kinds = {(h[name].dtype, h[name].shape[1:]) for h in heads}
            if len(kinds) == 1:
                dtype, tail = kinds.pop()
                self.columns[name] = torch.empty(len(everything), *tail, dtype=DTYPES[dtype])
        self.known = torch.zeros(len(self.files), dtype=torch.bool)  # whose columns have been read
        self.open: tuple[int, Tensor] = (-1, everything)
        self.kept = {n: self.take_columns(n, t) for n, t in enumerate(whole) if t is not None}

    def take_over(self, path: Path, head: Head) -> None:
        """One more shard's description; refuse it if another run left it."""
        meta = head.meta
        own = {k for k in head.tensors if k.startswith(("detail/", "reference/"))}
        self.extra = self.extra & own if self.meta else own
        if self.meta:
            mine = self.meta["scores"]
            common = {n: s for n, s in mine.items() if n in meta["scores"]}
            difference = []
            if self.fingerprint != meta["fingerprint"]:
                difference = differences(self.fingerprint, meta["fingerprint"])
            for n, s in common.items():
                if s["definition"] != meta["scores"][n]["definition"]:
                    difference += differences(meaning(s), meaning(meta["scores"][n]), f"score.{n}.")
            if difference:
                raise UsageError(f"{path.parent} holds shards of different runs ({difference[0]}): {mend(path)}")
            meta = {**meta, "scores": common}
        self.fingerprint, self.meta = meta["fingerprint"], meta

    def __contains__(self, sample: int) -> bool:
        return self.has(torch.tensor([sample]))

    def holds(self, samples: Int[Tensor, "p"]) -> Bool[Tensor, "p"]:
        """Which of these samples are there."""
        return torch.from_numpy(self.find(samples)[1])

    def find(self, samples: Int[Tensor, "p"]) -> tuple[np.ndarray, np.ndarray]:
        """Where each sample lies, shard after shard (anywhere if it is not there), and whether it is there."""
        mine, theirs = self.samples.numpy(), samples.numpy()  # in NumPy: torch wakes all its threads for a look-up
        if not len(mine):
            return np.zeros(len(theirs), dtype=np.int64), np.zeros(len(theirs), dtype=bool)
        index = np.searchsorted(mine, theirs).clip(max=len(mine) - 1)
        return self.place.numpy()[index], mine[index] == theirs

    def has(self, samples: Int[Tensor, "p"]) -> bool:
        """Whether all of these samples are there."""
        return bool(self.holds(samples).all())

    def read(self, number: int) -> Tensor:
        """The maps of a shard, read whole and checked; what lies beside them is kept."""
        if number in self.kept:
            return self.kept[number]
        tensors, head = read_whole(self.files[number])
        check_shard(self.files[number], head)
        return self.take_columns(number, tensors)

    def take_columns(self, number: int, tensors: Mapping[str, Tensor]) -> Tensor:
        """Keep what lies beside a shard's maps; its maps."""
        begin, end = self.begins[number : number + 2].tolist()
        parts = {name: column[begin:end] for name, column in self.columns.items()}
        if len(tensors["sample"]) != end - begin or any(
            n not in tensors or tensors[n].shape != p.shape for n, p in parts.items()
        ):
            raise DamagedFile(f"{self.files[number]} was replaced while it was read: run the same command again")
        for name, part in parts.items():
            part.copy_(tensors[name])
        self.known[number] = True
        return tensors["maps"]

    def rows(self, samples: Int[Tensor, "p"], key: str = "maps") -> Tensor:
        """`maps`, `score/<name>`, `reference/<name>` or `detail/<name>` of these samples, in this order.

        Raises:
            KeyError: a sample is not there; DamagedFile: a shard is not whole.
        """
        place, there = self.find(samples)
        if not there.all():
            raise KeyError(f"sample {int(samples[~torch.from_numpy(there)][0])} is not in {self.files[:1]}")
        number = np.searchsorted(self.begins.numpy(), place, side="right") - 1
        if key != "maps":
            missing = [n for n in np.unique(number).tolist() if not self.known[n]]
            for _ in side_by_side(self.read, missing):
                pass
            return self.columns[key][torch.from_numpy(place)]
        order = number.argsort(kind="stable")
        shards, counts = np.unique(number, return_counts=True)
        wanted = [n for n in shards.tolist() if n != self.open[0]]
        fresh = side_by_side(self.read, wanted) if len(wanted) > 1 else map(self.read, wanted)
        out: np.ndarray | None = None
        done = 0
        for n, count in zip(shards.tolist(), counts.tolist(), strict=True):
            tensor = self.open[1] if n == self.open[0] else next(fresh)
            maps = tensor.numpy()
            if out is None:
                out = np.empty((len(place), *maps.shape[1:]), dtype=maps.dtype)
            to = order[done : done + count]
            out[as_slice(to)] = maps[as_slice(place[to] - int(self.begins[n]))]
            done += count
        if out is None:
            return torch.empty(0)
        self.open = (n, tensor)
        return torch.from_numpy(out)

    def scores(self) -> list[str]:
        """Names of the scores that every shard holds."""
        return sorted(self.meta.get("scores", {}))


def as_slice(index: Int[np.ndarray, "p"]) -> Int[np.ndarray, "p"] | slice:
    """An index of consecutive rows as a slice, which copies nothing."""
    consecutive = len(index) > 0 and (index[1:] - index[:-1] == 1).all()
    return slice(int(index[0]), int(index[-1]) + 1) if consecutive else index


def read_if_whole(
    path: Path, otherwise: Callable[[Path], tuple[Head, dict[str, Tensor]]]
) -> tuple[Head, dict[str, Tensor]]:
    """A shard's head and tensors; where it is not whole, what `otherwise` reads: somebody may want no row of it."""
    try:
        tensors, head = read_whole(path)
        return check_shard(path, head), tensors
    except DamagedFile:
        return otherwise(path)


def read_samples(path: Path) -> tuple[Head, dict[str, Tensor]]:
    """A shard's head and sample numbers, without its maps.

    Raises:
        DamagedFile: it is cut, or no shard.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = check_shard(path, read_open_head(path, file))
            where = head.tensors["sample"]
            file.seek(where.start)
            data = bytearray(where.stop - where.start)
            if file.readinto(data) != len(data):
                raise damaged(path, "cut")
    except OSError as e:
        raise damaged(path, e) from None
    return head, {"sample": tensor_at(data, where._replace(start=0, stop=len(data)))}


def common_samples(readers: Iterable[MapReader]) -> Int[Tensor, "p"]:
    """What every reader holds, ascending."""
    common: Tensor | None = None
    for reader in readers:
        common = reader.samples if common is None else common[reader.holds(common)]
    return torch.zeros(0, dtype=torch.long) if common is None else common

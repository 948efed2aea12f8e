"""Predictions, maps and scores of one predictor on disk.

    fold=3/predictions.safetensors                                    all training samples
    fold=3/maps/<explainer>/000000000-000000063.safetensors           random probes 0..63: maps and scores
    fold=3/disagreements/<explainer>/000000000-000000063.safetensors  disagreements: maps

Every file is written under a temporary name and renamed, carries a checksum and a fingerprint, and runs no code when it
is read. The bytes of a shard depend on what was computed alone, not on when, where or by how many processes.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save as save_bytes
from torch import Tensor

from lit_xai.core import UsageError
from lit_xai.data.folds import Split
from lit_xai.errors import DamagedFile
from lit_xai.files import write_atomically
from lit_xai.shards import DISAGREEMENTS as DISAGREEMENTS
from lit_xai.shards import (
    FORMAT,
    PREDICTIONS,
    RANDOM,
    Entry,
    Head,
    checksum_of,
    damaged,
    explainers_in,
    mend,
    meta_checksum,
    parse_head,
    shard_name,
    shard_paths,
)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


# --------------------------------------------------------------------------------------------------------------- files


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all tensors by name."""
    return checksum_of({n: t.contiguous().flatten().view(torch.uint8).numpy() for n, t in tensors.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Tensors and their JSON description, atomically."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    description = json.loads(json.dumps({**meta, "format": FORMAT, "checksum": checksum(plain)}))
    text = json.dumps({**description, "meta_checksum": meta_checksum(description)}, sort_keys=True)
    write_atomically(path, save_bytes(plain, metadata={"lit_xai": text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a whole, unaltered file.

    Raises:
        DamagedFile: the file is cut, altered, or not one of ours.
    """
    tensors, head = read_whole(path)
    return tensors, head.meta


def read_whole(path: Path) -> tuple[dict[str, Tensor], Head]:
    """Tensors and head of a whole, unaltered file, read once and not copied.

    Raises:
        DamagedFile: the file is cut, altered, or not one of ours.
    """
    try:
        data = bytearray(path.stat().st_size)
        with open(path, "rb", buffering=0) as file:
            got = file.readinto(data)
    except OSError as e:
        raise damaged(path, e) from None
    head = parse_head(path, data, got)
    view = memoryview(data)
    if head.meta.get("checksum") != checksum_of({n: view[t.start : t.stop] for n, t in head.tensors.items()}):
        raise damaged(path, "checksum or format differs")
    return {n: tensor_at(data, t) for n, t in head.tensors.items()}, head


def tensor_at(data: bytearray, entry: Entry) -> Tensor:
    """A tensor that shares a file's bytes."""
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    number = math.prod(entry.shape)
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype], count=number, offset=entry.start).view(entry.shape)


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


# --------------------------------------------------------------------------------------------------------------- store


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


@dataclass(frozen=True)
class FoldStore:
    """The files of one predictor; `root` is `checkpoints/<name>/fold=<i>`."""

    root: Path

    @property
    def fold(self) -> int:
        """The fold's index."""
        return int(self.root.name.removeprefix("fold="))

    @property
    def predictions_file(self) -> Path:
        """Where predictions are."""
        return self.root / PREDICTIONS

    def write_predictions(self, p: Predictions) -> None:
        """All training samples at once."""
        tensors = {
            "sample": p.split.samples,
            "fold_of": p.split.fold_of,
            "label": p.split.labels,
            "predicted": p.predicted,
            "confidence": p.confidence,
        }
        meta = {**p.meta, "fold": p.fold, "folds": p.split.k, "split_seed": p.split.seed}
        write_tensors(self.predictions_file, tensors, meta)

    def read_predictions(self) -> Predictions:
        """Predictions and split.

        Raises:
            UsageError: they are not there; DamagedFile: they are not whole.
        """
        if not self.predictions_file.exists():
            raise UsageError(f"{self.predictions_file} is missing: {mend(self.predictions_file)}")
        t, meta = read_tensors(self.predictions_file)
        split = Split(t["sample"], t["fold_of"], t["label"], meta["folds"], meta["split_seed"])
        return Predictions(split, meta["fold"], t["predicted"], t["confidence"], meta)

    def shard(self, kind: str, explainer: str, start: int, stop: int) -> Path:
        """The file of probes start..stop-1."""
        return self.root / kind / explainer / shard_name(start, stop)

    def shards(self, kind: str, explainer: str) -> list[Path]:
        """The files that are there, in order."""
        return shard_paths(self.root / kind / explainer)

    def explainers(self, kind: str = RANDOM) -> list[str]:
        """The explainers of which anything is there."""
        return explainers_in(self.root / kind)

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
    """Maps and scores of one predictor and one explainer by sample, holding one shard at a time."""

    def __init__(self, store: FoldStore, kind: str, explainer: str) -> None:
        self.files = store.shards(kind, explainer)
        self.where: dict[int, tuple[int, int]] = {}
        self.fingerprint: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}
        self.extra: set[str] = set()
        for number, path in enumerate(self.files):
            tensors, meta = read_shard(path)
            if self.meta:
                common = {n: s for n, s in self.meta["scores"].items() if n in meta["scores"]}
                theirs = {n: meta["scores"][n]["definition"] for n in common}
                difference = differences(self.fingerprint, meta["fingerprint"])
                difference += differences({n: s["definition"] for n, s in common.items()}, theirs, "score.")
                if difference:
                    raise UsageError(f"{path.parent} holds shards of different runs ({difference[0]}): {mend(path)}")
                meta = {**meta, "scores": common}
            self.fingerprint, self.meta = meta["fingerprint"], meta
            own = {k for k in tensors if k.startswith(("detail/", "reference/"))}
            self.extra = own if number == 0 else self.extra & own
            for row, sample in enumerate(tensors["sample"].tolist()):
                self.where[sample] = (number, row)
        self.open: tuple[int, dict[str, Tensor]] = (-1, {})

    def __contains__(self, sample: int) -> bool:
        return sample in self.where

    def has(self, samples: Int[Tensor, "p"]) -> bool:
        """Whether all of these samples are there."""
        return all(s in self.where for s in samples.tolist())

    def rows(self, samples: Int[Tensor, "p"], key: str = "maps") -> Tensor:
        """`maps`, `score/<name>`, `reference/<name>` or `detail/<name>` of these samples, in this order."""
        out: list[Tensor] = []
        for s in samples.tolist():
            number, row = self.where[s]
            if self.open[0] != number:
                self.open = (number, read_shard(self.files[number])[0])
            out.append(self.open[1][key][row])
        return torch.stack(out)

    def scores(self) -> list[str]:
        """Names of the scores that every shard holds."""
        return sorted(self.meta.get("scores", {}))

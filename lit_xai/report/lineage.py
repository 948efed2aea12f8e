"""Artifacts of W&B, data -> model -> maps -> summary: what each is and what it is made from. Large files are named, not copied."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_xai.report.dashboard import Dashboard
from lit_xai.report.runs import artifact_name
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import RANDOM
from lit_xai.store.shards import meta_checksum

DATA = "dataset"
MANY = 2000  # shards above which their folder alone is named


@dataclass(frozen=True)
class Made:
    """An artifact.

    Attributes:
        kind: `dataset`, `model`, `maps` or `summary`.
        name: of the artifact; its versions are told apart by `about` and the files.
        about: its description, also in the file `about.json`.
        sources: the names of those that it is made from.
        files: sent.
        places: files that stay where they are.
    """

    kind: str
    name: str
    about: Mapping[str, Any]
    sources: Sequence[str] = ()
    files: Sequence[Path] = ()
    places: Sequence[Path] = ()


def data_of(shared: Mapping[str, Any]) -> Made:
    """A data set, by what stores say of it (`FoldData.shared`, the description of predictions)."""
    about = {"name": shared["data"], "digest": shared["content"], "samples": shared["samples"]}
    return Made(DATA, artifact_name("data", str(shared["data"])), about)


def of_fold(kind: str, store: FoldStore) -> str:
    """The name of a fold's artifact."""
    return artifact_name(kind, store.root.parent.name, store.root.name)


def model_of(store: FoldStore, checkpoint: Path, shared: Mapping[str, Any], digest: str | None) -> Made:
    """The predictor that never saw one fold; `digest` is that of its weights."""
    about = {"fold": store.fold, "folds": shared["folds"], "digest": digest}
    return Made("model", of_fold("model", store), about, [data_of(shared).name], places=[checkpoint])


def maps_of(store: FoldStore, readers: Mapping[str, MapReader]) -> Made:
    """The maps of one predictor; the digest of what decides them stands for their content."""
    explainers = {
        name: {
            "probes": len(reader.samples),
            "scores": sorted(reader.scores()),
            "digest": f"{meta_checksum(reader.fingerprint):08x}",
        }
        for name, reader in readers.items()
    }
    places = [file for reader in readers.values() for file in reader.files]
    about = {"folder": str((store.root / RANDOM).resolve()), "explainers": explainers}
    return Made("maps", of_fold("maps", store), about, [of_fold("model", store)], places=places[: MANY + 1])


def summary_of(folder: Path, stores: Sequence[FoldStore], head: Mapping[str, Any]) -> Made:
    """What `evaluate` says of an experiment."""
    files = [f for n in ("summary.json", "report.html", "audit.html") if (f := folder / n).exists()]
    about = {"name": folder.name, "folds": head["folds_present"], "alarms": head["alarms"]}
    return Made("summary", artifact_name("summary", folder.name), about, [of_fold("maps", s) for s in stores], files)


def log(dashboard: Dashboard, *everything: Made) -> None:
    """To every run of W&B, in order. Of a run that is sent, W&B is told what it used: data, and what an earlier run has made."""
    own: set[str] = set()
    for made in everything:
        dashboard.artifact(lambda wandb, made=made: build(wandb, made), made.kind == DATA, set(made.sources) - own)
        own.add(made.name)


def build(wandb: Any, made: Made) -> Any:
    """The artifact itself, with what it was made from."""
    about = {**made.about, "made_from": list(made.sources)}
    artifact = wandb.Artifact(made.name, made.kind, metadata=about)
    with artifact.new_file("about.json", encoding="utf-8") as file:
        json.dump(about, file, indent=1, sort_keys=True, default=str)
    for path in made.files:
        artifact.add_file(str(path))
    for path in made.places if len(made.places) <= MANY else ():
        artifact.add_reference(path.resolve().as_uri(), name="/".join(path.parts[-2:]), checksum=False)
    return artifact

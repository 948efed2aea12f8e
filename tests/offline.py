"""Reading runs of Weights & Biases that were kept offline."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Offline:
    """What an offline run's file holds.

    Attributes:
        place: its folder.
        run: what identifies it.
        config, summary, history: by key; of the history every value.
        metrics: by name or pattern, what its summary keeps: `max` or `min`.
        artifacts: in order.
        said: what its command printed, if anybody kept it.
    """

    place: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    said: str = ""

    @staticmethod
    def read(place: Path) -> Offline:
        """Of a folder `offline-run-...`."""
        found = Offline(place)
        for record in whole(place):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                for key, value in values(record.history.item).items():
                    found.history.setdefault(key, []).append(value)
            elif kind == "summary":
                found.summary |= values(record.summary.update)
            elif kind == "run":
                found.run = record.run
                found.config |= values(record.run.config.update)
            elif kind == "metric":
                keeps = [name for name in ("max", "min") if getattr(record.metric.summary, name)]
                found.metrics[record.metric.name or record.metric.glob_name] = ",".join(keeps)
            elif kind in ("artifact", "request") and (kind == "artifact" or record.request.HasField("log_artifact")):
                found.artifacts.append(record.artifact if kind == "artifact" else record.request.log_artifact.artifact)
        return found

    def table(self, key: str) -> tuple[list[str], list[list[Any]], dict[str, Path]]:
        """Columns and rows of a table that was logged, and the files that its cells name."""
        (of,) = (a for a in self.artifacts if a.type == "run_table" and a.name.endswith(f"-{key}"))
        files = {e.path: Path(e.local_path) for e in of.manifest.contents}
        table = json.loads(files.pop(f"{key}.table.json").read_text())
        return table["columns"], table["data"], files


def whole(place: Path) -> list[Any]:
    """The records of a run that has ended; its file is complete a moment later."""
    from wandb.proto import wandb_internal_pb2 as pb

    (file,) = place.glob("*.wandb")
    for _ in range(200):
        found = [pb.Record.FromString(data) for data in records(file.read_bytes())]
        if found and found[-1].HasField("exit"):
            break
        time.sleep(0.05)
    return found


def values(items: Any) -> dict[str, Any]:
    """Values by key; what is a picture or a table is a dictionary."""
    found: dict[str, Any] = {}
    for item in items:
        first, *rest = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        if rest:
            found.setdefault(first, {})[".".join(rest)] = value
        else:
            found[first] = value
    return found


def records(data: bytes) -> list[bytes]:
    """The records of W&B's log: LevelDB's format, blocks of 32 KiB, after a header of 7 bytes."""
    found, pending, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        pending += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            found.append(pending)
            pending = b""
    return found

"""What an experiment lacks of what it was to be: folds, probes, disagreements, scores, and the commands that complete it.

The number of probes is what the shards themselves say: each bears a digest of all probes of its pass, and these are a function
of the split and their number per fold. Plans (`lit_xai.cluster.status`) can be lost; they say what was planned and not begun, and
which commands go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lit_xai.cluster.status import Status, status
from lit_xai.data.folds import Split
from lit_xai.data.images import digest
from lit_xai.store.fold import MapReader
from lit_xai.store.names import DECISIONS, DISAGREEMENTS, RANDOM, TEST, range_of
from lit_xai.store.plans import plan_file, read_plan
from lit_xai.store.shards import Said

NO_RESULT = "not a result"


class Share(NamedTuple):
    """How many of how many."""

    present: int
    planned: int


@dataclass
class Unfinished:
    """What is missing; nothing is, where `message` is empty.

    Attributes:
        folds: that are there, of how many.
        probes: random probes that all folds have explained, by explainer, where it is fewer than planned.
        left_out: explainers that no table shows, and the folds that have them.
        disagreements: maps of the pass over disagreements, by explainer, where it was begun and not ended.
        decisions: of what wrong predictors say on them, likewise.
        tests: of test probes, likewise.
        unscored: shards without a score that others of the same explainer have, by explainer and fold.
        running: processes that are at work on it.
        commands: what completes it, in order.
        message: all this in a line.
    """

    folds: Share
    probes: dict[str, Share] = field(default_factory=dict)
    left_out: dict[str, list[int]] = field(default_factory=dict)
    disagreements: dict[str, Share] = field(default_factory=dict)
    decisions: dict[str, Share] = field(default_factory=dict)
    tests: dict[str, Share] = field(default_factory=dict)
    unscored: dict[str, dict[int, int]] = field(default_factory=dict)
    running: int = 0
    commands: list[str] = field(default_factory=list)
    message: str = ""

    def plain(self) -> dict[str, Any]:
        """What `summary.json` holds of it."""

        def named(value: Any) -> Any:
            if isinstance(value, Share):
                return value._asdict()
            return {k: named(v) for k, v in value.items()} if isinstance(value, dict) else value

        return {name: named(value) for name, value in vars(self).items()}


def planned_probes(split: Split, reader: MapReader) -> int | None:
    """How many random probes the shards of one explainer were cut from; None if they are no probes of this split.

    The place of the last sample that is there leaves a few numbers per fold, the digest of all probes one of them.
    """
    shard = range_of(reader.files[-1].name) if reader.files else None
    if shard is None:
        return None
    last = int(reader.samples[reader.place == reader.begins[-1] - 1])
    for number in split.per_fold(last, shard.stop - 1):
        probes = split.probes(number)
        if digest(probes) == reader.fingerprint.get("probes"):
            return len(probes)
    return None


def planned_by_command(found: Status, kind: str, explainer: str) -> list[int]:
    """How many probes the plans of every fold say."""
    plans = (read_plan(plan_file(found.folder / f"fold={f}", kind, explainer)) for f in found.folds)
    return [int(plan["probes"]) for plan in plans if "probes" in plan]


def unfinished(
    root: Path,
    folds: Share,
    probes: Mapping[str, tuple[int, int | None]],
    have: Mapping[str, Sequence[int]],
    disagreements: Mapping[str, Share],
    decisions: Mapping[str, Share],
    tests: Mapping[str, int],
    only: Sequence[str] | None = None,
    said: Mapping[Path, Said] = MappingProxyType({}),
) -> Unfinished | None:
    """What is missing of a table; None if nothing is.

    Args:
        root: `checkpoints/<name>`.
        folds: that are there, of how many.
        probes: by explainer of the table, how many it rests on and how many were planned; None = not known.
        have: of every explainer of which there is anything, the folds that have it.
        disagreements: by explainer whose pass over disagreements was begun, its maps.
        decisions: its maps of what wrong predictors say on them.
        tests: of every explainer, how many maps of test probes there are.
        only: explainers that were asked for; None = all.
        said: by shards that were read before.
    """
    found, out = status(root, said), Unfinished(folds)
    for name, (present, planned) in probes.items():
        planned = max(planned_by_command(found, RANDOM, name), default=present) if planned is None else planned
        if present < planned:
            out.probes[name] = Share(present, planned)
    wanted = set(found.counts[RANDOM]) | set(have) if only is None else set(only)
    out.left_out = {name: list(have.get(name, ())) for name in sorted(wanted - set(probes))}
    for name in probes:
        share = disagreements.get(name) or Share(0, sum(planned_by_command(found, DISAGREEMENTS, name)))
        if share.present < share.planned:
            out.disagreements[name] = share
        own = decisions.get(name, Share(0, 0))
        if own.present < own.planned and (own.present or any(planned_by_command(found, DECISIONS, name))):
            out.decisions[name] = own  # a folder that an earlier version left has none of them
        planned = folds.planned * max(planned_by_command(found, TEST, name), default=0)
        if tests.get(name, 0) < planned:
            out.tests[name] = Share(tests.get(name, 0), planned)
        lacking = {f: c.unscored for f, c in found.counts[RANDOM].get(name, {}).items() if c.unscored}
        if lacking:
            out.unscored[name] = lacking
    out.message = message(out, list(probes))
    if not out.message:
        return None
    out.running = sum(map(len, found.processes.values()))
    out.commands = [c for c in found.commands if not c.startswith("python -m lit_xai.evaluate")]
    return out


def message(of: Unfinished, every: Sequence[str]) -> str:
    """What is missing in a line; empty if nothing is."""
    parts = [f"{s.present} of {s.planned} probes{names}" for s, names in grouped(of.probes, every)]
    if of.folds.present < of.folds.planned:
        parts.append(f"{of.folds.present} of {of.folds.planned} folds")
    there = {name: len(folds) for name, folds in of.left_out.items()}
    parts += [f"explained in {n} of {of.folds.present} folds, left out{names}" for n, names in grouped(there, ())]
    parts += [
        f"{s.present} of {s.planned} maps of disagreements{names}" for s, names in grouped(of.disagreements, every)
    ]
    parts += [f"{s.present} of {s.planned} maps of wrong decisions{names}" for s, names in grouped(of.decisions, every)]
    parts += [f"{s.present} of {s.planned} maps of test probes{names}" for s, names in grouped(of.tests, every)]
    shards = {name: sum(lacking.values()) for name, lacking in of.unscored.items()}
    parts += [f"a score is missing in {n} shards{names}" for n, names in grouped(shards, ())]
    return f"{', '.join(parts)}: {NO_RESULT}" if parts else ""


def grouped(values: Mapping[str, Any], every: Iterable[str]) -> list[tuple[Any, str]]:
    """Each value with the names that have it in brackets; without them where all of `every` have it."""
    names: dict[Any, list[str]] = {}
    for name, value in values.items():
        names.setdefault(value, []).append(name)
    return [(v, "" if set(n) == set(every) else f" ({', '.join(n)})") for v, n in names.items()]

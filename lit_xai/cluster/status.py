"""How far an experiment is: shards done, running and missing by fold and explainer, and the commands that complete them.

Names and heads of files alone are read, by the standard library: ten thousand shards take a second or two. What is in the
shards is checked where it is used (`lit_xai.evaluate`) and where a command looks for what is left to do.

    fold=3/plans/train.json         the command that trains this fold
    fold=3/plans/maps/rise.json     how many probes rise explains here, in shards of which size, with which scores, by which
                                    command; and rise's own part of the configuration
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lit_xai.cluster.heartbeat import Beat, alive
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.store.names import (
    CHECKS,
    DECISIONS,
    DISAGREEMENTS,
    KINDS,
    PREDICTIONS,
    PROBES,
    RANDOM,
    RANDOMISED,
    REPEATED,
    TEST,
    explainers_in,
    fold_paths,
    is_name,
    range_of,
    shard_paths,
)
from lit_xai.store.plans import LIBRARY, PLANS, called_again, plan_file, read_plan
from lit_xai.store.shards import Said, read_head

UNTRAINED = ("absent", "begun", "training")


@dataclass
class Count:
    """Shards of one explainer in one fold.

    Attributes:
        done, running, missing: how many; a damaged one counts as missing, and so does one that is `unscored`.
        damaged: names of files that are cut or not ours.
        unscored: how many lack a score that is planned, or that other shards of this explainer have.
        known: whether the number of all shards is known; else `missing` is at least this.
    """

    done: int = 0
    running: int = 0
    missing: int = 0
    damaged: list[str] = field(default_factory=list)
    unscored: int = 0
    known: bool = True

    def __str__(self) -> str:
        running = f" (+{self.running})" if self.running else ""
        return f"{self.done}{running}/{self.done + self.running + self.missing if self.known else '?'}"


@dataclass
class Status:
    """The state of one experiment.

    Attributes:
        folder: `checkpoints/<name>`.
        folds: of every fold `absent`, `begun` (a training was interrupted), `training`, `trained`, or `predicted` (by a model
            that is not trained here).
        counts: `{kind: {explainer: {fold: Count}}}`.
        processes: that live, by fold.
        commands: what completes the experiment, in order.
        sampler: it is trained for fillers and explains nothing.
    """

    folder: Path
    folds: dict[int, str]
    counts: dict[str, dict[str, dict[int, Count]]]
    processes: dict[int, list[Beat]]
    commands: list[str]
    sampler: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing is left but evaluating."""
        every = [c for kind in self.counts.values() for row in kind.values() for c in row.values()]
        unexplained = not every and not self.sampler
        there = not set(UNTRAINED) & set(self.folds.values())
        return there and not unexplained and not any(c.missing or c.running or not c.known for c in every)

    def plain(self) -> dict[str, Any]:
        """What `--status --json` prints."""
        return {
            "folder": str(self.folder),
            "folds": self.folds,
            "shards": {
                kind: {e: {f: asdict(c) for f, c in row.items()} for e, row in rows.items()}
                for kind, rows in self.counts.items()
            },
            "processes": {f: [asdict(b) for b in beats] for f, beats in self.processes.items()},
            "commands": self.commands,
            "complete": self.complete,
        }

    def __str__(self) -> str:
        lines = [f"{self.folder}: {'complete' if self.complete else 'incomplete'}", ""]
        titles = {
            RANDOM: "random probes",
            DISAGREEMENTS: "disagreements",
            DECISIONS: "wrong decisions on them",
            RANDOMISED: "probes by fresh weights",
            REPEATED: "probes with other noise",
            TEST: "test probes",
        }
        names = [e for rows in self.counts.values() for e in rows]
        first = max(map(len, [*names, *titles.values()]), default=0)
        cells = {f: f"fold {f}" for f in self.folds}
        texts = [*cells.values(), *self.folds.values()]
        texts += [str(c) for rows in self.counts.values() for row in rows.values() for c in row.values()]
        width = max(map(len, texts), default=0)

        def row(name: str, values: Sequence[str]) -> str:
            return "  ".join([f"{name:<{first}}", *(f"{v:>{width}}" for v in values)]).rstrip()

        lines += [row("", list(cells.values())), row("predictor", list(self.folds.values()))]
        for kind, rows in self.counts.items():
            if rows:
                lines += ["", row(titles[kind], [])]
            lines += [row(e, [str(found.get(f, "-")) for f in self.folds]) for e, found in rows.items()]
        lines += [
            "",
            "shards done (+ running) / all; a damaged file counts as missing, and one without a score that others have",
        ]
        for kind, rows in self.counts.items():
            for e, found in rows.items():
                lines += [f"damaged: fold={f}/{kind}/{e}/{n}" for f, c in found.items() for n in c.damaged]
        for fold, beats in self.processes.items():
            lines += [b.line(f"fold={fold}") for b in beats]
        if self.commands:
            lines += ["", "what completes it" + (", once the processes above have ended:" if self.processes else ":")]
            lines += [f"  {c}" for c in self.commands]
        return "\n".join(lines)


def status(folder: Path, said: Mapping[Path, Said] = MappingProxyType({})) -> Status:
    """The state of one experiment, from names and heads of its files; `said` is what was read before.

    Raises:
        UsageError: there is no such experiment.
    """
    paths = fold_paths(folder)
    if not paths:
        raise UsageError(f"no fold=* in {folder}: set name= or root=, or run python -m lit_xai.train first")
    every = range(max(folds_of(p) for p in paths.values()))
    folds = {f: state_of(paths.get(f, folder / f"fold={f}")) for f in sorted({*every, *paths})}
    processes = {f: beats for f, p in paths.items() if (beats := alive(p))}
    for f, beats in processes.items():
        if folds[f] in UNTRAINED and any(b.task == "train" for b in beats):
            folds[f] = "training"
    counts: dict[str, dict[str, dict[int, Count]]] = {}
    for kind in KINDS:
        planned = {p.stem for path in paths.values() for p in (path / PLANS / kind).glob("*.json") if is_name(p.stem)}
        names = planned.union(*(explainers_in(path / kind) for path in paths.values()))
        sizes = {f: read_size(paths.get(f), kind) for f in folds} if names else {}
        shared = (
            next((s for s in sizes.values() if s), None) if kind in (RANDOM, TEST) else None
        )  # the same probes in all folds
        counts[kind] = {}
        for name in sorted(names):
            there = {f: scores_by_shard(folder / f"fold={f}" / kind / name, said) for f in folds}
            scores = frozenset().union(*(s for shards in there.values() for s in shards.values() if s))
            counts[kind][name] = {
                f: count(folder / f"fold={f}", kind, name, there[f], scores, shared, processes.get(f, []))
                for f in folds
            }
    sampler = any(read_plan(p / PLANS / "train.json").get("sampler") for p in paths.values())
    found = Status(folder, folds, counts, processes, [], sampler)
    found.commands = commands(found)
    return found


def folds_of(fold: Path) -> int:
    """How many folds the experiment has, by what lies in one of them."""
    try:
        return int(read_head(fold / PREDICTIONS).meta["folds"])
    except (DamagedFile, KeyError, ValueError):
        plan = read_plan(fold / PLANS / "train.json")
        return max(int(plan.get("folds", 0)), int(fold.name.removeprefix("fold=")) + 1)


def state_of(fold: Path) -> str:
    """How far the predictor of a fold is."""
    if (fold / "model.ckpt").exists():
        return "trained"
    if (fold / "last.ckpt").exists():
        return "begun"
    return "predicted" if (fold / PREDICTIONS).exists() else "absent"


def read_size(fold: Path | None, kind: str) -> tuple[int, int] | None:
    """Number of probes and shard size of a pass, by any of its plans."""
    for file in sorted((fold / PLANS / kind).glob("*.json")) if fold else []:
        plan = read_plan(file)
        if "probes" in plan and plan.get("shard_size", 0) > 0:
            return plan["probes"], plan["shard_size"]
    return None


def scores_by_shard(folder: Path, said: Mapping[Path, Said]) -> dict[str, frozenset[str] | None]:
    """The names of the scores that every shard in a folder has; None for a damaged one."""
    out: dict[str, frozenset[str] | None] = {}
    for path in shard_paths(folder):
        try:
            out[path.name] = (said.get(path) or Said.of(read_head(path))).scores
        except DamagedFile:
            out[path.name] = None
    return out


def count(
    fold: Path,
    kind: str,
    explainer: str,
    files: dict[str, frozenset[str] | None],
    every: frozenset[str],
    shared: tuple[int, int] | None,
    beats: Sequence[Beat],
) -> Count:
    """The shards of one explainer in one fold: of `files` and their scores, of which there are `every`."""
    plan = read_plan(plan_file(fold, kind, explainer))
    size = (plan["probes"], plan["shard_size"]) if {"probes", "shard_size"} <= set(plan) else shared
    wanted = {s for s in range(0, size[0], size[1])} if size else None
    every = every | set(plan.get("scores", ()))
    out, there = Count(known=size is not None), set()
    for name, scores in files.items():
        shard = range_of(name)
        if shard is None or (wanted is not None and shard.start not in wanted):
            continue
        if scores is None:
            out.damaged.append(name)
        elif every - scores:
            out.unscored += 1
        else:
            there.add(shard.start)
    out.done = len(there)
    now = {b.at for b in beats if b.task == f"explain {kind}" and b.at.endswith(f" of {explainer}")}
    starts = {int(at[:9]) for at in now if at[:9].isdigit()} - there
    out.running = len(starts)
    out.missing = len(wanted - there - starts) if wanted is not None else len(out.damaged) + out.unscored
    return out


def commands(found: Status) -> list[str]:
    """What completes an experiment, in the order in which it must be done."""
    folder, out = found.folder, []
    commanded = any((folder / f"fold={f}" / "config.yaml").exists() for f in found.folds)  # every command leaves one
    place = [f"root={folder.parent}", f"name={folder.name}"]

    def line(plan: dict[str, Any], command: str, fold: int, *more: str) -> str:
        if "withheld" in plan:
            key, where = plan["withheld"], folder / f"fold={fold}" / PLANS
            return f"# a plan in {where} holds {key}=, which a file may not decide: type that lit_xai.{command} command yourself"
        if plan.get("door") == LIBRARY or not commanded:
            return called_again(folder)
        own = [
            o for o in plan.get("overrides", []) if o.lstrip("+~").split("=")[0] not in {m.split("=")[0] for m in more}
        ]
        return shlex.join(["python", "-m", f"lit_xai.{plan.get('door', command)}", *own, *place, *more, f"fold={fold}"])

    def plan_of(fold: int, *name: str) -> dict[str, Any]:
        """This fold's, else any fold's."""
        for f in [fold, *found.folds]:
            if plan := read_plan(folder / f"fold={f}" / PLANS / Path(*name)):
                return plan
        return {}

    for f, state in found.folds.items():
        if state in UNTRAINED:
            out.append(line(plan_of(f, "train.json"), "train", f))
    for kind, rows in found.counts.items():
        for f, state in found.folds.items():
            goes_on = state in UNTRAINED and kind in (RANDOM, *CHECKS) and plan_of(f, "train.json").get("explains")
            if not rows and kind == RANDOM and not found.sampler and not goes_on:
                out.append(line({**plan_of(f, "train.json"), "door": "explain"}, "explain", f))
            groups: dict[str, list[str]] = {}
            for name, row in rows.items():
                if row[f].missing or row[f].running or not row[f].known:
                    # a fold without a score was explained before that was asked for, by a command that does not know it
                    late = row[f].unscored and not row[f].done
                    like = next((g for g in found.folds if row[g].done), f) if late else f
                    plan = plan_of(like, kind, f"{name}.json")
                    plan.pop("node", None)
                    if not (goes_on and plan.get("door") == "train"):  # training goes on to explain
                        groups.setdefault(json.dumps(plan), []).append(name)
            for text, names in groups.items():
                plan = json.loads(text)
                more = [f"explainer=[{','.join(names)}]"] if not plan else []
                more += [f"probes={PROBES[kind]}"] if kind in PROBES else []
                out.append(line(plan, "explain", f, *more))
    return list(dict.fromkeys(out)) or (["python -m lit_xai.evaluate " + shlex.join(place)] if outdated(found) else [])


def outdated(found: Status) -> bool:
    """Whether the table is older than anything it rests on."""
    table = found.folder / "summary.json"
    if not any(found.counts.values()):
        return False
    if not table.exists():
        return True
    made = table.stat().st_mtime
    folders = (
        found.folder / f"fold={f}" / kind / e for kind, rows in found.counts.items() for e in rows for f in found.folds
    )
    return any(d.stat().st_mtime > made for d in folders if d.is_dir())


def show(folder: Path, as_json: bool = False) -> None:
    """Print how far a folder is, as text or as JSON."""
    began = time.perf_counter()
    found = status(folder)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
        return
    number = sum(c.done for rows in found.counts.values() for row in rows.values() for c in row.values())
    print(found)
    print(f"\n{number:,} shards looked at in {time.perf_counter() - began:.1f} s")

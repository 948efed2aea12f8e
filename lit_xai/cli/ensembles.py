"""From a command line to the ensembles that it means and the steps that are left to do for each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lit_xai.cli.build import plain, read_config
from lit_xai.cli.command import in_quotes, search_path, searched
from lit_xai.cli.complete import complete, targets_in
from lit_xai.cli.compose import compose
from lit_xai.cli.keys import keys_of
from lit_xai.cli.run import Run
from lit_xai.cli.saved import decided_by, with_saved
from lit_xai.cli.schema import GROUPS, experiment_name, typed
from lit_xai.cli.side_by_side import DONE, Step
from lit_xai.cluster.status import UNTRAINED, Status, status
from lit_xai.errors import UsageError
from lit_xai.store.names import CHECKS, DECISIONS, DISAGREEMENTS, RANDOM, REPEATED, fold_paths
from lit_xai.store.plans import PLANS, plan_file, plan_text, read_plan

OURS = ("filler", "fold", "name", "dry_run", "progress")  # what a step is not told, or told anew
REVEALED = (DISAGREEMENTS, DECISIONS)
TRAIN, EXPLAIN, REVEAL = "train and explain", "explain", "explain disagreements"  # what steps are called


@dataclass(frozen=True)
class Ensemble:
    """The predictors of one model on one data set.

    Attributes:
        cfg: the whole configuration; `fold` is that of no step.
        flags: hydra's own, as typed.
        overrides: of every step.
        folds: which.
        saved: data and model are those of its folder, which the command line names alone.
    """

    cfg: Any
    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    folds: tuple[int, ...]
    saved: bool = False

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return Path(self.cfg.root) / experiment_name(self.cfg)

    @cached_property
    def run(self) -> Run:
        """The run of its first fold."""
        cfg: Any = OmegaConf.create(OmegaConf.to_container(self.cfg))
        cfg.fold = self.folds[0]
        return Run(cfg, "train")

    @property
    def trained_by(self) -> list[str]:
        """The overrides of a training: of a folder that is named alone, those of the folds that are there.

        Raises:
            UsageError: no fold says how it was trained.
        """
        if not self.saved:
            return list(self.overrides)
        files = [p / PLANS / "train.json" for p in fold_paths(self.folder).values()]
        said = next((plan for f in files if (plan := read_plan(f)).get("door") == "train"), None)
        if said is None or "withheld" in said:
            raise UsageError(
                f"{self.folder} does not say how it was trained: give data= and model= of its missing folds"
            )
        mine = typed(self.overrides)
        return [*said["overrides"], *mine]

    def steps(self, reveal: bool = True) -> list[Step]:
        """Train and explain every fold; with `reveal`, when all predictions are there, explain what they disagree on.

        Steps of which nothing is left to do are `done` from the start.
        """
        state = status(self.folder) if fold_paths(self.folder) else None
        out: list[Step] = []
        for fold in self.folds:
            trained = state is not None and state.folds.get(fold, "absent") not in UNTRAINED
            mine = []
            if self.run.trainable and not (self.saved and trained):
                mine.append(self.step("train", fold, TRAIN, self.trained_by))
            if not self.run.is_sampler and (self.saved or not self.run.trainable):
                mine.append(self.step("explain", fold, EXPLAIN, self.overrides, mine))
            out += mine
        there = {f for f, s in state.folds.items() if s not in UNTRAINED} if state is not None else set()
        all_there = there | set(self.folds) == set(range(self.cfg.data.folds))
        if reveal and all_there and self.cfg.data.folds > 1 and not self.run.is_sampler and self.run.explainers:
            last = list(out)
            for fold in self.folds:
                typed = (*self.overrides, "probes=disagreements")
                out.append(self.step("explain", fold, REVEAL, typed, last))
        for step in out:
            if state is not None and all(a.state == DONE for a in step.after) and self.nothing_left(step, state):
                step.state = DONE
        return out

    def step(self, command: str, fold: int, title: str, overrides: Iterable[str], after: Iterable[Step] = ()) -> Step:
        """One command on one fold."""
        place = [f"root={self.cfg.root}", f"name={experiment_name(self.cfg)}", f"fold={fold}", "progress=false"]
        own = [o for o in overrides if key_of(o) not in {"root", "name", "fold", "progress"}]
        path = self.folder / f"fold={fold}"
        return Step(command, [*self.flags, *own, *place], path, title, list(after))

    def nothing_left(self, step: Step, state: Status) -> bool:
        """Whether the same step has been done, by plans, names and heads of its files; if in doubt, it has not."""
        fold = int(step.fold.name.removeprefix("fold="))
        if state.folds.get(fold, "absent") in UNTRAINED:
            return False
        revealed = "probes=disagreements" in step.arguments
        mine = typed(o for o in step.arguments if o not in self.flags)
        told = json.loads(plan_text(step.command, mine))["overrides"]
        as_saved = self.saved and not {key_of(o) for o in told} - {"probes", "logger", "progress"}
        nodes = plain(self.run.cfg.get("explainer") or {})
        if not revealed and not (step.fold / "scores.csv").exists():
            return False
        both = self.run.cfg.target == "label" and self.run.data.source.labelled
        again = (REPEATED,) if self.run.cfg.checks else ()
        kinds = (REVEALED if both else (DISAGREEMENTS,)) if revealed else (RANDOM, *again)
        for kind in kinds:
            for name, node in nodes.items():
                said = read_plan(plan_file(step.fold, kind, name))
                if (said.get("overrides") != told and not as_saved) or not same(said.get("node"), node):
                    return False
        looked_at = kinds if revealed else (RANDOM, *CHECKS)
        counts = [row[fold] for kind in looked_at for name, row in state.counts.get(kind, {}).items() if name in nodes]
        return not any(c.missing or c.running or not c.known for c in counts)


def same(said: Any, node: Any) -> bool:
    """Whether a plan's node is ours, which has the defaults of its classes; no class is imported that ours does not name."""
    return said == node or (targets_in(said) <= targets_in(node) and complete(said) == node)


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def ensembles(cfg: Any, command: str, flags: Iterable[str] = ()) -> list[Ensemble]:
    """The ensembles that a command line means: one a model.

    Raises:
        UsageError: folds or models that do not exist, or do not fit the rest.
    """
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    known = {*GROUPS, *keys_of("train"), "hydra"} - set(OURS)
    told = [o for o in typed if re.split("[.@]", key_of(o))[0] in known]
    models = [str(m) for m in plain(cfg.get("models")) or []]
    saved = not models and named_alone(cfg, typed)
    if saved:
        own = with_saved(cfg)
        return [Ensemble(own, tuple(flags), tuple(told), folds_of(own), saved=True)]
    if not models:
        return [Ensemble(cfg, tuple(flags), tuple(told), folds_of(cfg))]
    out, places = [], searched(list(flags))
    own_places = search_path(places)
    for model in dict.fromkeys(models):
        theirs = [o for o in typed if key_of(o) not in ("models", "model", "name")] + [f"model={model}", *own_places]
        if cfg.name:
            theirs.append(f"name={in_quotes(f'{cfg.name}-{model}')}")
        own = compose(command, theirs)
        kept = [o for o in told if key_of(o) != "model"]
        out.append(Ensemble(own, tuple(flags), (*kept, f"model={model}"), folds_of(own)))
    return out


def named_alone(cfg: Any, typed: list[str]) -> bool:
    """Whether the command line names a folder with results and decides neither data nor model."""
    choices: Mapping[str, Any] = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    experiment = choices.get("experiment")
    decided = {key_of(o).split(".")[0] for o in typed if key_of(o) not in ("data.root", "data.path")}
    decided |= decided_by(experiment) if experiment else set()
    if decided & {"data", "model"}:
        return False
    paths = fold_paths(Path(cfg.root) / experiment_name(cfg)).values()
    file = next((f for p in paths if (f := p / "config.yaml").is_file()), None)
    return file is not None and bool(read_config(file))


def folds_of(cfg: Any) -> tuple[int, ...]:
    """The folds that are asked for, ascending.

    Raises:
        UsageError: they are no list of folds that exist.
    """
    asked, k = plain(cfg.get("folds", "all")), cfg.data.folds
    if asked == "all":
        return tuple(range(k))
    asked = [asked] if isinstance(asked, int) else asked
    whole = isinstance(asked, list) and all(isinstance(f, int) and not isinstance(f, bool) for f in asked)
    if not whole or not asked or not set(asked) <= set(range(k)):
        raise UsageError(f"folds must be all or some of 0..{k - 1} (data.folds={k}), as in folds=[0,1], found {asked}")
    return tuple(sorted(set(asked)))

"""What a command leaves open is taken from the folder it names: how it was trained, by what it was explained and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lit_xai.cli.build import ELSEWHERE, HOW, config_places, read_config
from lit_xai.cli.offered import refuse_other_code
from lit_xai.cli.schema import chosen_by, experiment_name, left_open, read_experiment
from lit_xai.errors import UsageError
from lit_xai.store.names import RANDOM, explainers_in, fold_paths, is_name
from lit_xai.store.plans import PLANS, read_plan

SETTING = (
    "data",
    "model",
    "seed",
    "train_seed",
    "label_noise",
    "weight_noise",
    "hide",
    "hide_cells",
    "calibrate",
    "target",
    "cap",
    "checks",
    "batch_size",
    "shard_size",
)


def with_saved(cfg: Any) -> Any:
    """The configuration, with everything the command line leaves open taken from the folder it names.

    Where data or model are given, they are taken as given (and refused later if the folder holds others). Where no explainers
    are given, they are those that the folder is explained by.

    Raises:
        UsageError: what the folder says is damaged, or names code that a file may not.
    """
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    given = {o.lstrip("+~").split("=")[0] for o in overrides}
    folder = Path(cfg.root) / experiment_name(cfg)
    file = next((f for p in fold_paths(folder).values() if (f := p / "config.yaml").is_file()), None)
    if file is None:
        return cfg
    saved = read_config(file)
    mine: Any = OmegaConf.to_container(cfg)  # unresolved: places may depend on the name of the data
    experiment = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    places = {f"data.{k}" for k in ELSEWHERE}
    chosen = {g.split(".")[0] for g in given if g not in places} | (decided_by(experiment) if experiment else set())
    same_setting = not chosen & {"data", "model"}
    if same_setting:
        take_setting(mine, saved, given, file)
        mine["name"] = folder.name
    for group in ("explainer", "score"):
        typed = {n for n in mine.get(group) or {} if any(f"{g}.".startswith(f"{group}.{n}.") for g in given)}
        known = {n: (node, file) for n, node in (saved.get(group) or {}).items()} if same_setting else {}
        names = list(mine.get(group) or {})
        if left_open(group, overrides):
            if group == "explainer":
                planned = planned_explainers(folder)
                known = {**known, **{n: p for n, p in planned.items() if p[0] is not None}}
                names = [*planned, *(typed - set(planned))] or names
            elif known:
                names = [*known, *(typed - set(known))]
        else:
            typed |= {
                n for n in known if outside(known[n][0]) and same_target(known[n][0], (mine.get(group) or {}).get(n))
            }
        mine[group] = {n: node_of(group, n, mine, {} if n in typed else known, folder) for n in names}
    return OmegaConf.create(mine)


def outside(node: Any) -> bool:
    """Whether a node is code of the user's own."""
    return isinstance(node, dict) and not str(node.get("_target_")).startswith("lit_xai.")


def same_target(one: Any, other: Any) -> bool:
    """Whether two nodes name the same code: then the command line has named what the folder was made with."""
    return isinstance(one, dict) and isinstance(other, dict) and one.get("_target_") == other.get("_target_")


def take_setting(mine: dict[str, Any], saved: dict[str, Any], given: set[str], file: Path) -> None:
    """Data, model and all that decides weights and maps, but for what the command line gives."""
    refuse_other_code(saved, file, (*SETTING, "trainer"))
    for key in SETTING:
        if key not in given and key in saved:
            kept = {k: v for k, v in mine["data"].items() if f"data.{k}" in given} if key == "data" else {}
            mine[key] = {**saved[key], **kept} if key == "data" else saved[key]
    if "download" in mine["data"] and "data.download" not in given:
        mine["data"]["download"] = False  # a file starts none
    for key, value in saved["trainer"].items():
        if f"trainer.{key}" not in given and key not in HOW:
            mine["trainer"][key] = value


def planned_explainers(folder: Path) -> dict[str, tuple[Any, Path]]:
    """The explainers of which any fold has maps or a plan; what the plan says of each (None: nothing), and its file."""
    found: dict[str, tuple[Any, Path]] = {}
    for fold in fold_paths(folder).values():
        for file in (f for f in sorted((fold / PLANS / RANDOM).glob("*.json")) if is_name(f.stem)):
            found.setdefault(file.stem, (read_plan(file).get("node"), file))
        for name in explainers_in(fold / RANDOM):
            found.setdefault(name, (None, fold / RANDOM / name))
    return found


def node_of(group: str, name: str, mine: dict[str, Any], known: dict[str, tuple[Any, Path]], folder: Path) -> Any:
    """One explainer's or score's part of the configuration: the folder's where it is known, else the command line's.

    Raises:
        UsageError: the folder's names code that a file may not; neither says anything of this name.
    """
    if name in known:
        node, file = known[name]
        if not is_name(str(name)):
            raise UsageError(
                f"{file} names a {group} {str(name)[:40]!r}, which is no name: give {group}= on the command line"
            )
        refuse_other_code({group: {name: node}}, file, (group,))
        return node
    if name not in (mine.get(group) or {}):
        raise UsageError(f"{folder} does not say how {name} explains: give the explainers by explainer=[...]")
    return mine[group][name]


def decided_by(experiment: str) -> set[str]:
    """Which of data and model an experiment's file decides."""
    contents = read_experiment(experiment, config_places())
    return {"data", "model"} & chosen_by(contents).union(*contents)

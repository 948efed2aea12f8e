"""The groups of `configs/` and what a command line takes where it gives none, by the standard library and yaml alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_xai.cli.keys import keys_of
from lit_xai.errors import UsageError

GROUPS = {
    "data": "data sets",
    "model": "models",
    "explainer": "explainers (a list; all of the first level if not given)",
    "score": "scores (a list; all of the first level if not given)",
    "filler": "fillers (a list; explain, and evaluate as samplers=)",
    "conditions": "conditions (audit, and evaluate with compare=)",
    "trainer": "trainers",
    "logger": "loggers",
    "experiment": "experiments",
    "launcher": "launchers",
}
LISTS = ("explainer", "score")
OPEN = (*LISTS, "filler")  # whose members have names
ANYWHERE = ("experiment", "launcher", "tuned")  # whose yamls set keys of any group


def config_dir() -> Path:
    """`configs/` in the wheel, else in the checkout."""
    here = Path(__file__).resolve().parents[1]
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def options(group: str) -> dict[str, str]:
    """Every choice of a config group and its one-line description (the yaml's first plain comment)."""
    found = {}
    folder = config_dir() / group
    for file in sorted(f for f in folder.rglob("*.yaml") if not f.name.startswith("_")):  # not what others are made of
        comments = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
        text = next((c for c in comments if c and not c.startswith("@")), "")
        found[str(file.relative_to(folder).with_suffix(""))] = text
    return found


def top_level(group: str) -> list[str]:
    """The choices that are taken when none is given."""
    return [file.stem for file in sorted((config_dir() / group).glob("*.yaml"))]


def help_text(command: str, about: str, sweeps: bool = True) -> str:
    """`--help`: usage, every choice of every group, every key of the command's own file."""
    many = " [-m for a multirun]" if sweeps else ""
    lines = [about.strip(), "", f"usage: python -m lit_xai.{command} [key=value ...]{many}", ""]
    for group, title in GROUPS.items():
        lines.append(f"{title}: {group}=")
        found = options(group)
        width = max((len(n) for n in found), default=0)
        lines += [f"  {n:<{width}}  {text}" for n, text in found.items()]
        lines.append("")
    lines += ["keys and defaults:", *(f"  {key.line}" for key in keys_of(command).values())]
    lines += [
        "",
        "Any key below a choice may be set too, e.g. trainer.max_epochs=3 data.train_subset=6000 explainer.rise.masks=300.",
        "The whole composed configuration: --cfg job. Hydra's own options: --hydra-help.",
    ]
    return "\n".join(lines)


def every(group: str) -> str:
    """The override that takes every choice of the first level."""
    return f"{group}=[{','.join(top_level(group))}]"


def typed(overrides: Iterable[str]) -> list[str]:
    """A command line (after `with_lists`) without the lists that are the default."""
    defaults = {every(group) for group in LISTS}
    return [o for o in overrides if o not in defaults]


def left_open(group: str, overrides: list[str]) -> bool:
    """Whether a command line (after `with_lists`) leaves it open which explainers or scores there are."""
    return every(group) in overrides


NULL = "random"  # the explainer that every table compares with
NULLS = (NULL, "image", "edges", "centre", "image_random")  # those that a verdict asks for
NO_TABLE = ("image", "sanity", "filler")  # keys of `explain` that ask for something else than maps for a table


def with_null(override: str, nulls: Sequence[str] = (NULL,)) -> str:
    """A list of explainers with the nulls behind them; as it is where it names one of them."""
    found = re.fullmatch(r"explainer=(?:\[([^\[\]]+)\]|([\w/]+))", override.replace(" ", ""))
    names = (found[1] or found[2]).split(",") if found else []
    if not names or {"null", *nulls} & set(names):
        return override
    return f"explainer=[{','.join([*names, *nulls])}]"


def with_lists(overrides: list[str], places: Sequence[str] = (), nulls: Sequence[str] = (NULL,)) -> list[str]:
    """The overrides, with every explainer and score that has a config where neither they nor the experiment give a list.

    The null explainers join every list of explainers, unless no table is asked for. `samplers=` is short for the fillers of
    that name, which hydra then composes. `places` are folders of configurations of the user's own.
    """
    keys = {o.split("=", 1)[0] for o in overrides if not o.endswith("=null")}
    if not keys & {*NO_TABLE, "samplers"}:
        overrides = [with_null(o, nulls) for o in overrides]
    named = [o.startswith("samplers=") and o != "samplers=[]" for o in overrides]
    overrides = [f"filler={o.removeprefix('samplers=')}" if n else o for o, n in zip(overrides, named, strict=True)]
    given = {o.split("=", 1)[0] for o in overrides if not o.startswith(("+", "~"))}
    chosen = [o.split("=", 1)[1].strip('"') for o in overrides if o.startswith("experiment=")]
    if any(o.split("=", 1)[0] == "filler" for o in overrides):  # nothing is explained
        given |= set(LISTS)
    if chosen:
        given |= chosen_by(read_experiment(chosen[-1], [*map(Path, places), config_dir()]))
    return [*(every(g) for g in LISTS if g not in given), *overrides]


def read_experiment(name: str, places: Sequence[Path], above: Sequence[str] = ()) -> list[dict[str, Any]]:
    """An experiment's yaml and those of the experiments that it builds on; empty where there is none that can be read.

    Of several folders of configurations, the first that has a file is taken.
    """
    import yaml

    file = next((f for p in places if (f := p / "experiment" / f"{name}.yaml").is_file()), None)
    try:
        content = yaml.safe_load(file.read_text()) if file else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []  # hydra says what is wrong with it
    if not isinstance(content, dict):
        return []
    entries = content.get("defaults")
    content["defaults"] = entries if isinstance(entries, list) else []
    below = [d.rpartition("/")[2] for d in content["defaults"] if isinstance(d, str)]
    above = (*above, name, "_self_")
    return [content, *(c for n in below if n not in above for c in read_experiment(n, places, above))]


def chosen_by(contents: Iterable[Mapping[str, Any]]) -> set[str]:
    """The groups of which experiments choose something."""
    entries = [d for content in contents for d in content["defaults"] if isinstance(d, dict)]
    keys = [key for entry in entries for key in map(str, entry) if key.startswith("override ")]
    return {key.removeprefix("override ").strip().lstrip("/").partition("@")[0] for key in keys}


def experiment_name(cfg: Any) -> str:
    """`name=`, or `<data>-<model>` with the degradations that are on, and what else its training had.

    Raises:
        UsageError: the name leads out of the root folder.
    """
    parts = [f"{cfg.data.name}-{cfg.model.name}"]
    parts += [f"{k}={cfg[k]}" for k in ("label_noise", "weight_noise", "hide") if cfg[k]]
    parts += [f"train_seed={cfg.train_seed}"] if cfg.train_seed is not None else []
    parts += ["calibrated"] if cfg.calibrate else []
    parts += [f"plant={cfg.data.plant}"] if cfg.data.get("plant") else []
    name = str(cfg.name or "-".join(parts))
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts or "\0" in name:
        raise UsageError(
            f"name={name} leads out of root={cfg.root}: give a name below it, and set root= for another place"
        )
    return name

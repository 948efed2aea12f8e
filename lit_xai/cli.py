"""What the three doors share: `--help`, a check of the command line before anything heavy loads, one-line errors.

Only hydra is imported here; torch loads when the configuration is composed and found right.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lit_xai
from lit_xai.errors import UsageError

GROUPS = {
    "data": "data sets",
    "model": "models",
    "explainer": "explainers (a list; all of the first level if not given)",
    "score": "scores (a list; all of the first level if not given)",
    "filler": "fillers (a list; explain, and evaluate as samplers=)",
    "trainer": "trainers",
    "logger": "loggers",
    "experiment": "experiments",
    "launcher": "launchers",
}
LISTS = ("explainer", "score")
OPEN = (*LISTS, "filler")


def config_dir() -> Path:
    """`configs/` in the wheel, else in the checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def options(group: str) -> dict[str, str]:
    """Every choice of a config group and its one-line description (the yaml's first plain comment)."""
    found = {}
    folder = config_dir() / group
    for file in sorted(folder.rglob("*.yaml")):
        comments = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
        text = next((c for c in comments if c and not c.startswith("@")), "")
        found[str(file.relative_to(folder).with_suffix(""))] = text
    return found


def top_level(group: str) -> list[str]:
    """The choices that are taken when none is given."""
    return [name for name in options(group) if "/" not in name]


def help_text(door: str, about: str) -> str:
    """`--help`: usage, every choice of every group, every key of the door's own file."""
    lines = [about.strip(), "", f"usage: python -m lit_xai.{door} [key=value ...] [-m for a multirun]", ""]
    for group, title in GROUPS.items():
        lines.append(f"{title}: {group}=")
        found = options(group)
        width = max((len(n) for n in found), default=0)
        lines += [f"  {n:<{width}}  {text}" for n, text in found.items()]
        lines.append("")
    lines.append("keys and defaults:")
    for file in lineage(door):
        for line in (config_dir() / f"{file}.yaml").read_text().splitlines():
            if re.match(r"^[a-z_]+:", line) and not line.startswith(("defaults:", "hydra:")):
                lines.append(f"  {line}")
    lines += [
        "",
        "Any key below a choice may be set too, e.g. trainer.max_epochs=3 data.train_subset=6000 explainer.rise.masks=300.",
        "The whole composed configuration: --cfg job. Hydra's own options: --hydra-help.",
    ]
    return "\n".join(lines)


class CommandError(Exception):
    """A command line that cannot be composed; the message is one line."""


def every(group: str) -> str:
    """The override that takes every choice of the first level."""
    return f"{group}=[{','.join(top_level(group))}]"


def left_open(group: str, overrides: list[str]) -> bool:
    """Whether a command line (after `with_lists`) leaves it open which explainers or scores there are."""
    return every(group) in overrides


NULL = "random"  # the explainer that every table compares with
NO_TABLE = ("image", "sanity", "filler")  # keys of `explain` that ask for something else than maps for a table


def with_null(override: str) -> str:
    """A list of explainers, with the null among them."""
    found = re.fullmatch(r"explainer=(?:\[([^\[\]]+)\]|([\w/]+))", override.replace(" ", ""))
    names = (found[1] or found[2]).split(",") if found else []
    return (
        f"explainer=[{','.join([*names, NULL])}]" if names and NULL not in names and "null" not in names else override
    )


def with_lists(overrides: list[str], places: Sequence[str] = ()) -> list[str]:
    """The overrides, with every explainer and score that has a config where neither they nor the experiment give a list.

    The null explainer joins every list of explainers, unless no table is asked for. `samplers=` is short for the fillers of
    that name, which hydra then composes. `places` are folders of configurations of the user's own.
    """
    keys = {o.split("=", 1)[0] for o in overrides if not o.endswith("=null")}
    if not keys & {*NO_TABLE, "samplers"}:
        overrides = [with_null(o) for o in overrides]
    named = [o.startswith("samplers=") and o != "samplers=[]" for o in overrides]
    overrides = [f"filler={o.removeprefix('samplers=')}" if n else o for o, n in zip(overrides, named, strict=True)]
    given = {o.split("=", 1)[0] for o in overrides if not o.startswith(("+", "~"))}
    chosen = [o.split("=", 1)[1] for o in overrides if o.startswith("experiment=")]
    files = [p / "experiment" / f"{chosen[-1]}.yaml" for p in [*map(Path, places), config_dir()]] if chosen else []
    file = next((f for f in files if f.exists()), None)
    if any(o.split("=", 1)[0] == "filler" for o in overrides):  # nothing is explained
        given |= set(LISTS)
    if file is not None:
        given |= {g for g in LISTS if f"override /{g}:" in file.read_text()}
    return [*(every(g) for g in LISTS if g not in given), *overrides]


def compose(door: str, overrides: list[str], hydra_config: bool = False) -> Any:
    """The door's configuration; sweeps are represented by their first value.

    Raises:
        CommandError: an unknown key or choice, a value that cannot be read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        flat = []
        for o in parsed:
            if o.is_sweep_override():
                first = next(iter(o.sweep_string_iterator()))
                flat.append(f"{o.key_or_group}={first}")
            else:
                flat.append(o.input_line or "")
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = hydra_compose(door, overrides=flat, return_hydra_config=hydra_config)
    except (HydraException, OmegaConfBaseException) as e:
        raise CommandError(one_line(e, overrides, door)) from None
    check_added(cfg, parsed)
    known = set(GROUPS) | {key for file in lineage(door) for key in keys_of(file)} | {"hydra"}
    for key in map(str, cfg):
        if key not in known:
            raise CommandError(f"unknown key {key} (in an experiment's file?){did_you_mean(key, door, [])}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise CommandError(f"{missing[0]} is needed: give {missing[0]}=...")
    return cfg


def lineage(door: str) -> list[str]:
    """The door's own file and those it builds on, the lowest first."""
    text = (config_dir() / f"{door}.yaml").read_text()
    below = re.findall(r"^  - ([a-z]+)$", text, re.M)
    return [*(file for name in below for file in lineage(name)), door]


def keys_of(door: str) -> list[str]:
    """The top-level keys of a door's own file."""
    lines = (config_dir() / f"{door}.yaml").read_text().splitlines()
    return [line.split(":")[0] for line in lines if re.match(r"^[a-z_]+:", line)]


def one_line(error: Exception, overrides: list[str], door: str) -> str:
    """Hydra's message as one line that names the mend."""
    text = str(error)
    key = re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", text)
    wanted = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if wanted:
        group, _, choice = wanted.group(1).partition("/")
        if group in GROUPS:
            return f"{group}={choice} is not there; choose one of: {', '.join(options(group))}"
    if key:
        full = re.search(r"Could not override '([^']+)'", text)
        wrong = full.group(1) if full else key.group(1)
        return f"unknown key {wrong}{did_you_mean(wrong, door, overrides)}"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{first} (see python -m lit_xai.{door} --help)"


def did_you_mean(wrong: str, door: str, overrides: list[str]) -> str:
    """The nearest keys of the configuration that the command line chooses."""
    from omegaconf import OmegaConf

    choices = [o for o in overrides if o.split("=", 1)[0] in GROUPS]
    try:
        cfg = compose(door, choices)
    except CommandError:
        return f": see python -m lit_xai.{door} --help"
    known: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for k, v in node.items() if isinstance(node, dict) else ():
            known.append(f"{prefix}{k}")
            walk(v, f"{prefix}{k}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"see python -m lit_xai.{door} --help"
    return f": {hint}"


def experiment_name(cfg: Any) -> str:
    """`name=`, or `<data>-<model>` with the degradations that are on.

    Raises:
        UsageError: the name leads out of the root folder.
    """
    parts = [f"{cfg.data.name}-{cfg.model.name}"]
    parts += [f"{k}={cfg[k]}" for k in ("label_noise", "weight_noise") if cfg[k]]
    name = str(cfg.name or "-".join(parts))
    if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts or "\0" in name:
        raise UsageError(
            f"name={name} leads out of root={cfg.root}: give a name below it, and set root= for another place"
        )
    return name


def check_added(cfg: Any, parsed: list[Any]) -> None:
    """`+key=` may only add what the thing it is added to takes (hydra itself would accept anything)."""
    from omegaconf import DictConfig, OmegaConf

    for o in parsed:
        if not o.is_add() and not o.is_force_add():
            continue
        key = o.key_or_group
        if (
            key.split("@")[0].split(".")[0] in ("hydra", "hydra/launcher")
            or (config_dir() / key.split("@")[0]).is_dir()
        ):
            continue
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else None
        if parent.rpartition(".")[2] == "options":
            continue  # keyword arguments of a third party's method
        added = OmegaConf.select(cfg, key)
        if parent in OPEN and isinstance(added, DictConfig) and "_target_" in added:
            continue  # one more explainer, score or filler under a name of its own
        if isinstance(node, DictConfig) and "_target_" in node:
            known = parameters(node["_target_"])
            if known is None or leaf in known:
                continue
            raise CommandError(f"unknown key {key}: {node['_target_']} takes {', '.join(sorted(known))}")
        raise CommandError(f"unknown key {key}: nothing reads it; leave it out (see --help for the keys there are)")


def parameters(target: str) -> set[str] | None:
    """The keyword names of a `_target_`; None if it takes any."""
    from hydra.utils import get_object

    from lit_xai.core import accepts

    return accepts(get_object(target))


def fail(message: str) -> None:
    """One clear line and a non-zero exit (of an error in a loader process: its own last line)."""
    if "Original Traceback" in message:
        message = message.strip().splitlines()[-1].partition("UsageError: ")[2]
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def door(
    name: str, about: str, status: Callable[[list[str]], None] | None = None, sweeps: bool = True
) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Make a function of the composed configuration into a command; `status` answers `--status`, `sweeps` allows `-m`."""

    def decorate(task: Callable[[Any], None]) -> Callable[[], None]:
        def main() -> None:
            try:
                command(sys.argv[1:])
            except KeyboardInterrupt:
                print("interrupted by SIGINT: finished work is kept; run the same command to go on", flush=True)
                raise SystemExit(128 + signal.SIGINT) from None

        def command(arguments: list[str]) -> None:
            if any(a in ("-h", "--help") for a in arguments):
                print(help_text(name, about))
                return
            if "--version" in arguments:
                print(f"lit_xai {lit_xai.__version__}")
                return
            if "--status" in arguments:
                if status is None:
                    fail("--status belongs to python -m lit_xai.evaluate")
                else:
                    status([a for a in arguments if a != "--status"])
                return
            overrides, flags = parted(arguments)
            multirun = bool({"-m", "--multirun"} & set(flags))
            if multirun and not sweeps:
                fail(
                    f"python -m lit_xai.{name} measures one experiment a command and takes no {flags[0]}: run it once for each"
                )
            overrides = [quoted(o, multirun) for o in overrides]
            if "--hydra-help" not in arguments:
                try:
                    places = searched([*flags, *overrides])
                    overrides = with_lists(overrides, places)
                    check_tuned(places)
                    own = [f"hydra.searchpath=[{','.join(f'file://{p}' for p in places)}]"] if places else []
                    compose(name, [*own, *(o for o in overrides if not o.startswith("hydra.searchpath="))])
                except (CommandError, UsageError) as e:
                    fail(str(e))
                sys.argv[1:] = [*flags, *overrides]
            run(name, task)

        return main

    return decorate


TAKE_A_VALUE: tuple[str, ...] = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun")
TAKE_A_VALUE += ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` overrides, and hydra's own flags with their values."""
    overrides: list[str] = []
    flags: list[str] = []
    for a, before in zip(arguments, ["", *arguments], strict=False):
        (flags if a.startswith("-") or before in TAKE_A_VALUE else overrides).append(a)
    return overrides, flags


def searched(arguments: list[str]) -> list[str]:
    """The folders of configurations that the user adds by `--config-dir` or `hydra.searchpath=`."""
    named = [value for flag, value in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    named += [a.partition("=")[2] for a in arguments if a.startswith(("--config-dir=", "-cd="))]
    lists = [a.partition("=")[2].strip("[]") for a in arguments if a.startswith("hydra.searchpath=")]
    named += [place.strip(" '\"") for text in lists for place in text.split(",")]
    return [str(Path(place.removeprefix("file://")).resolve()) for place in named if place and "pkg://" not in place]


def check_tuned(places: list[str]) -> None:
    """Files of `tuned/` are chosen by the names of data and model, not by the user: those outside the package name no code.

    Raises:
        UsageError: one does.
    """
    files = [file for place in places for file in sorted(Path(place, "tuned").glob("*.yaml"))]
    for file in files:
        from omegaconf import OmegaConf

        from lit_xai.offered import refuse_other_code

        try:
            content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except Exception as e:
            raise UsageError(f"{file} cannot be read ({type(e).__name__}): mend or remove it") from None
        if isinstance(content, dict):
            refuse_other_code({str(k): v for k, v in content.items()}, file)


def drop_replaced(cfg: Any, overrides: list[str]) -> None:
    """Where the command line gives a node another `_target_`, drop the old one's keys that the new one does not take."""
    from omegaconf import DictConfig, OmegaConf

    given = {o.lstrip("+").split("=", 1)[0] for o in overrides}
    for key in given:
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if leaf == "_target_" else None
        known = parameters(node["_target_"]) if isinstance(node, DictConfig) else None
        if known is None or node is None:
            continue
        OmegaConf.set_struct(node, False)
        for name in [n for n in map(str, node) if n not in known and n != "_target_" and f"{parent}.{n}" not in given]:
            del node[name]


# keys whose values are names of files and folders
PLACES = ("root", "name", "image", "checkpoint", "path", "masks", "boxes", "weights", "inception")


def quoted(override: str, sweeps: bool = False) -> str:
    """The override with its value in quotes where hydra would read more into it than a user means.

    That is an `=` in it, as in `checkpoint=x/fold=0`, and any of hydra's own characters in the name of a file, as in
    `image=photo (1).jpg`; in a multirun, commas part its values.
    """
    key, equals, value = override.partition("=")
    if not equals or re.fullmatch(r"'.*'|\".*\"", value) or "${" in value or value in ("null", "???"):
        return override
    if key.lstrip("+").rpartition(".")[2] in PLACES and not (sweeps and re.search(r",|\w+\(", value)):
        # hydra takes a backslash for itself, unless it stands before a quote
        text = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ("\\" if m[2] else "") + m[2], value)
        return f'{key}{equals}"{text}"' if re.search(r"[^\w./-]", value, re.ASCII) else override
    return override if "=" not in value or value.startswith(("{", "[")) or "(" in value else f'{key}{equals}"{value}"'


def run(name: str, task: Callable[[Any], None]) -> None:
    """Hand over to hydra (single run, multirun, launchers), with one-line errors."""
    import hydra

    def job(cfg: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        quiet()
        if str(HydraConfig.get().mode).endswith("MULTIRUN"):
            # a process that is started again for another rank must run this job, not the sweep
            sys.argv[1:] = list(HydraConfig.get().overrides.task)
        from lit_xai.core import UsageError

        drop_replaced(cfg, list(HydraConfig.get().overrides.task))
        try:
            task(cfg)
        except UsageError as e:
            fail(str(e))
        except OSError as e:
            if e.errno not in (27, 28, 122):  # file too large, disk full, quota
                fail(f"{type(e).__name__}: {e} (HYDRA_FULL_ERROR=1 shows where)")
            fail(f"{e.strerror} while writing {e.filename or 'results'}: make room, then run the same command again")
        except Exception as e:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            if isinstance(e.__cause__, UsageError):  # hydra wraps what an object's constructor refuses
                fail(str(e.__cause__))
            fail(f"{type(e).__name__}: {str(e)[:400]} (HYDRA_FULL_ERROR=1 shows where)")

    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(job)()


def quiet() -> None:
    """Third parties' chatter off; what lit_xai says itself stays."""
    import warnings

    import pytorch_lightning  # noqa: F401  (it sets its loggers' levels when it is imported)

    for logger in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "exists and is not empty",
        "treespec",
        "sync_dist",
        "`srun` command",
        "not resumable",
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")

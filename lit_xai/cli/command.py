"""What the three commands share: `--help`, a check of the command line before anything heavy loads, one-line errors.

Only hydra is imported here; torch loads when the configuration is composed and found right.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lit_xai
from lit_xai.cli.compose import CommandError, check_tuned, one_line
from lit_xai.cli.schema import NULL, NULLS, help_text, with_lists
from lit_xai.errors import UsageError


def fail(message: str) -> None:
    """One clear line and a non-zero exit (of an error in a loader process: its own last line)."""
    if "Original Traceback" in message:
        message = message.strip().splitlines()[-1].partition("UsageError: ")[2]
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))  # it may quote a file
    print(f"error: {line}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def command(
    name: str,
    about: str,
    status: Callable[[list[str]], None] | None = None,
    sweeps: bool = True,
    read: Callable[[list[str]], list[str]] = lambda arguments: arguments,
    ahead: Callable[[list[str]], None] = lambda overrides: None,
) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Make a function of the composed configuration into a command.

    Args:
        name: its file in `configs/`.
        about: what `--help` says of it.
        status: answers `--status`.
        sweeps: whether it takes `-m`.
        read: what the arguments mean, where they are not all `key=value`.
        ahead: what begins beside the loading of torch once the command line is found right.
    """

    def decorate(task: Callable[[Any], None]) -> Callable[[], None]:
        def main() -> None:
            try:
                obey(sys.argv[1:])
            except KeyboardInterrupt:
                print("interrupted by SIGINT: finished work is kept; run the same command to go on", flush=True)
                raise SystemExit(128 + signal.SIGINT) from None

        def obey(arguments: list[str]) -> None:
            if any(a in ("-h", "--help") for a in arguments):
                print(help_text(name, about, sweeps))
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
            try:
                overrides, flags = parted(read(arguments))
            except UsageError as e:
                fail(str(e))
            unknown = [f for f in flags if f.startswith("-") and f.partition("=")[0] not in KNOWN]
            if unknown:
                fail(f"unknown option {unknown[0]}: see python -m lit_xai.{name} --help")
            multirun = bool({"-m", "--multirun"} & set(flags))
            if multirun and not sweeps:
                fail(
                    f"python -m lit_xai.{name} measures one experiment a command and takes no {flags[0]}: run it once for each"
                )
            overrides = [quoted(o, multirun) for o in overrides]
            if "--hydra-help" not in arguments:
                try:
                    places = searched([*flags, *overrides])
                    overrides = with_lists(overrides, places, NULLS if name == "audit" else (NULL,))
                    check_tuned(places)
                except UsageError as e:
                    fail(str(e))
                sys.argv[1:] = [*flags, *overrides]
            run(name, task, overrides, flags, lambda: ahead(overrides))

        return main

    return decorate


TAKE_A_VALUE: tuple[str, ...] = ("--cfg", "-c", "--package", "-p", "--info", "-i")
TAKE_A_VALUE += ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` overrides, and hydra's own flags with their values."""
    overrides: list[str] = []
    flags: list[str] = []
    for a, before in zip(arguments, ["", *arguments], strict=False):
        (flags if a.startswith("-") or before in TAKE_A_VALUE else overrides).append(a)
    return overrides, flags


# hydra's own options; it would take any beginning of a long one, and read a pickled run for --experimental-rerun
KNOWN = {*TAKE_A_VALUE, "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
KNOWN |= {"--shell-completion", "-sc", "--status", "--json"}


def searched(arguments: list[str]) -> list[str]:
    """The folders of configurations that the user adds by `--config-dir` or `hydra.searchpath=`."""
    flags = ("--config-dir", "-cd", "--config-path", "-cp")
    named = [value for flag, value in pairwise(arguments) if flag in flags]
    named += [a.partition("=")[2] for a in arguments if a.partition("=")[0] in flags and "=" in a]
    lists = [a.partition("=")[2].strip("[]") for a in arguments if a.startswith("hydra.searchpath=")]
    named += [place.strip(" '\"") for text in lists for place in text.split(",")]
    return [str(Path(place.removeprefix("file://")).resolve()) for place in named if place and "pkg://" not in place]


def search_path(places: Sequence[str]) -> list[str]:
    """The override that adds folders of configurations."""
    return [f"hydra.searchpath=[{','.join(in_quotes(f'file://{p}') for p in places)}]"] if places else []


# keys whose values are names of files and folders
PLACES: tuple[str, ...] = (
    "root",
    "name",
    "image",
    "checkpoint",
    "path",
    "masks",
    "boxes",
    "weights",
    "inception",
    "groups",
    "fold_column",
)
PLACES += ("experiment",)
WORDS = ("root", "name", "image", "checkpoint", "path")  # those that are never numbers; hydra would take these:
NO_WORD = r"(?i:true|false|nan|[+-]?inf|[+-]?[\d_.]+(e[+-]?\d+)?)"
SWEEP = r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)"


def quoted(override: str, sweeps: bool = False) -> str:
    """The override with its value in quotes where hydra would read more into it than a user means.

    That is an `=` in it, as in `checkpoint=x/fold=0`, and any of hydra's own characters in the name of a file, as in
    `image=photo (1).jpg`; in a multirun, commas part its values.
    """
    key, equals, value = override.partition("=")
    if not equals or re.fullmatch(r"'.*'|\".*\"", value) or "${" in value or value in ("null", "???"):
        return override
    leaf = key.lstrip("+").rpartition(".")[2]
    if leaf in PLACES and not (sweeps and is_sweep(value)):
        value = value if leaf in ("name", "experiment") else os.path.expanduser(value)
        plain = re.fullmatch(r"[\w./-]+", value, re.ASCII) and not (leaf in WORDS and re.fullmatch(NO_WORD, value))
        return f"{key}{equals}{value}" if plain else f"{key}{equals}{in_quotes(value)}"
    return override if "=" not in value or value.startswith(("{", "[")) or "(" in value else f'{key}{equals}"{value}"'


def in_quotes(text: str) -> str:
    """A text as hydra reads it back: it takes a backslash for itself, unless it stands before a quote."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ("\\" if m[2] else "") + m[2], text)
    return f'"{escaped}"'


def is_sweep(value: str) -> bool:
    """Whether a multirun takes a value for several; not the name of what is there."""
    return bool("," in value or re.fullmatch(SWEEP, value)) and not os.path.exists(os.path.expanduser(value))


def run(
    name: str, task: Callable[[Any], None], overrides: list[str], flags: list[str], ahead: Callable[[], None]
) -> None:
    """Compose and run by hydra (single run, multirun, launchers), with one-line errors."""
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lit_xai.cli.loader import application

    args = get_args_parser().parse_args(flags)
    config = args.config_name or name
    if args.config_dir and not Path(args.config_dir).is_dir():
        fail(f"--config-dir={args.config_dir} is no folder: give one that holds explainer/, experiment/ or the like")
    many = args.multirun or "hydra.mode=MULTIRUN" in overrides
    places = [p for p in searched([*flags, *overrides]) if p]
    own = search_path(places) if args.config_dir else []
    given = [*own, *(o for o in overrides if not (own and o.startswith("hydra.searchpath=")))]
    try:
        with application(name, ahead, Path(args.config_path).resolve() if args.config_path else None) as hydra:
            if args.hydra_help:
                hydra.hydra_help(config, get_args_parser(), args)
            elif args.shell_completion:
                hydra.shell_completion(config, given)
            elif args.cfg:
                hydra.show_cfg(config, given, args.cfg, args.package, args.resolve)
            elif args.info:
                hydra.show_info(args.info, config, given)
            elif many:
                hydra.multirun(config, partial(job, task), [*given, "hydra.mode=MULTIRUN"])
            else:
                hydra.run(config, partial(job, task), given)
    except (HydraException, OmegaConfBaseException, CommandError) as e:
        fail(one_line(e, overrides, name))


def job(task: Callable[[Any], None], cfg: Any) -> None:
    """One run of a command, with one-line errors."""
    from hydra.core.hydra_config import HydraConfig

    quiet()
    if str(HydraConfig.get().mode).endswith("MULTIRUN"):
        # a process that is started again for another rank must run this job, not the sweep
        sys.argv[1:] = list(HydraConfig.get().overrides.task)
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

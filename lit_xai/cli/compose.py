"""A command line composed, or one line that says what is wrong with it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from lit_xai.cli.checks import CommandError as CommandError
from lit_xai.cli.schema import GROUPS, OPEN, options
from lit_xai.errors import UsageError


def compose(command: str, overrides: list[str]) -> Any:
    """The command's configuration; sweeps are represented by their first value.

    Raises:
        CommandError: an unknown key or choice, a value that cannot be read.
    """
    from hydra import compose as hydra_compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lit_xai.cli.loader import application

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        flat = [
            f"{o.key_or_group}={next(iter(o.sweep_string_iterator()))}" if o.is_sweep_override() else o.input_line or ""
            for o in parsed
        ]
        with application(command):
            return hydra_compose(command, overrides=flat)
    except (HydraException, OmegaConfBaseException, CommandError) as e:
        raise CommandError(one_line(e, overrides, command)) from None


def one_line(error: Exception, overrides: list[str], command: str) -> str:
    """What is wrong with a command line, in one line that names the mend."""
    if isinstance(error, CommandError):
        return f"{error}{did_you_mean(error.key, command, [])}" if error.key else str(error)
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
        return f"unknown key {wrong}{did_you_mean(wrong, command, overrides)}"
    several = re.search(r"Ambiguous value for argument '(([^=]+)=(.*))'", text)
    if several:
        return f"{several[1]} are several values: add -m for a run of each, or write {several[2]}=[{several[3]}] for a list"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{first} (see python -m lit_xai.{command} --help)"


def did_you_mean(wrong: str, command: str, overrides: list[str]) -> str:
    """The nearest keys of the configuration that the command line chooses."""
    from omegaconf import OmegaConf

    here = wrong.partition(".")[0] in OPEN  # else no class need be imported
    choices = [o for o in overrides if (group := o.split("=", 1)[0]) in GROUPS and (here or group not in OPEN)]
    if overrides and choices == overrides:  # they are what cannot be composed
        return f": see python -m lit_xai.{command} --help"
    try:
        cfg = compose(command, choices)
    except CommandError:
        return f": see python -m lit_xai.{command} --help"
    known = list(GROUPS)

    def walk(node: Any, prefix: str) -> None:
        for k, v in node.items() if isinstance(node, dict) else ():
            known.append(f"{prefix}{k}")
            walk(v, f"{prefix}{k}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"see python -m lit_xai.{command} --help"
    return f": {hint}"


def check_tuned(places: list[str]) -> None:
    """Files of `tuned/` are chosen by the names of data and model, not by the user: those outside the package name no code.

    Raises:
        UsageError: one does.
    """
    files = [file for place in places for file in sorted(Path(place, "tuned").rglob("*.yaml"))]
    for file in files:
        from omegaconf import OmegaConf

        from lit_xai.cli.offered import refuse_other_code

        try:
            content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except Exception as e:
            raise UsageError(f"{file} cannot be read ({type(e).__name__}): mend or remove it") from None
        if isinstance(content, dict):
            refuse_other_code({str(k): v for k, v in content.items()}, file)

"""A command line composed, or one line that says what is wrong with it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from lit_xai.cli.schema import GROUPS, OPEN, config_dir, keys_of, lineage, options
from lit_xai.errors import UsageError


class CommandError(Exception):
    """A command line that cannot be composed; the message is one line."""


def compose(command: str, overrides: list[str], hydra_config: bool = False) -> Any:
    """The command's configuration; sweeps are represented by their first value.

    Raises:
        CommandError: an unknown key or choice, a value that cannot be read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    outer = GlobalHydra.instance().hydra  # of the command that asks
    GlobalHydra.instance().clear()
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
            cfg = hydra_compose(command, overrides=flat, return_hydra_config=hydra_config)
    except (HydraException, OmegaConfBaseException) as e:
        raise CommandError(one_line(e, overrides, command)) from None
    finally:
        GlobalHydra.instance().hydra = outer
    check_added(cfg, parsed)
    known = set(GROUPS) | {key for file in lineage(command) for key in keys_of(file)} | {"hydra"}
    for key in map(str, cfg):
        if key not in known:
            raise CommandError(f"unknown key {key} (in an experiment's file?){did_you_mean(key, command, [])}")
    expand_variants(cfg)
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException as e:  # a value that names another key, which is missing or not there
        needed = re.search(r"Missing mandatory value: (\S+)", str(e))
        if needed is None:
            raise CommandError(f"{one_line(e, overrides, command)}: ${{...}} stands for the value of a key") from None
        missing = [needed[1]]
    if missing:
        raise CommandError(f"{missing[0]} is needed: give {missing[0]}=...")
    return cfg


def expand_variants(cfg: Any) -> None:
    """Of what has `variants: {key: [values]}`, one a value in its place, called `<name>__<value>`.

    Raises:
        CommandError: there are none, or of several keys.
    """
    from omegaconf import OmegaConf

    for group in OPEN:
        nodes = OmegaConf.to_container(cfg[group], resolve=False) if cfg.get(group) else {}
        if not isinstance(nodes, dict) or not any(isinstance(n, dict) and "variants" in n for n in nodes.values()):
            continue
        found: dict[Any, Any] = {}
        for name, node in ((str(n), node) for n, node in nodes.items()):
            variants = node.pop("variants", None) if isinstance(node, dict) else None
            if variants is None:
                found[name] = node
                continue
            values = next(iter(variants.values())) if isinstance(variants, dict) and len(variants) == 1 else None
            if (
                not isinstance(values, list)
                or not values
                or any(isinstance(v, dict | list) for v in values)
                or len(set(map(str, values))) < len(values)
            ):
                raise CommandError(
                    f"{group}.{name}.variants must be one key with a list of different values, as in {{repeat: [0, 1]}}, found {variants}"
                )
            found |= {f"{name}__{value}": {**node, next(iter(variants)): value} for value in values}
        cfg[group] = found


def one_line(error: Exception, overrides: list[str], command: str) -> str:
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
        return f"unknown key {wrong}{did_you_mean(wrong, command, overrides)}"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{first} (see python -m lit_xai.{command} --help)"


def did_you_mean(wrong: str, command: str, overrides: list[str]) -> str:
    """The nearest keys of the configuration that the command line chooses."""
    from omegaconf import OmegaConf

    choices = [o for o in overrides if o.split("=", 1)[0] in GROUPS]
    try:
        cfg = compose(command, choices)
    except CommandError:
        return f": see python -m lit_xai.{command} --help"
    known: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for k, v in node.items() if isinstance(node, dict) else ():
            known.append(f"{prefix}{k}")
            walk(v, f"{prefix}{k}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    near = difflib.get_close_matches(wrong, known, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"see python -m lit_xai.{command} --help"
    return f": {hint}"


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
        if leaf == "variants" and parent.rpartition(".")[0] in OPEN:
            continue
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

    from lit_xai.fitting import accepts

    return accepts(get_object(target))


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
        headers = re.findall(r"^#\s*@package\s+(\S*)", file.read_text(), re.M)
        if any(header != "_global_" for header in headers):
            raise UsageError(f"{file} is put at {headers[0]}: let its first line be `# @package _global_`")
        if isinstance(content, dict):
            refuse_other_code({str(k): v for k, v in content.items()}, file)

"""What may stand in a composed configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lit_xai.cli.keys import KEYS, keys_of
from lit_xai.cli.schema import GROUPS, OPEN, config_dir
from lit_xai.errors import UsageError


class CommandError(UsageError):
    """A command line that cannot be composed; the message is one line.

    Attributes:
        key: that nothing reads, where this is wrong.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


def check_keys(cfg: Any, parsed: Sequence[Any], command: str) -> None:
    """Refuse keys of the root that nothing reads, and values that they do not take.

    Raises:
        CommandError: naming the first.
    """
    known = {*GROUPS, *keys_of(command), "hydra"}
    typed = {o.key_or_group.partition(".")[0] for o in parsed}  # those are looked at by `check_added`
    for key in map(str, cfg):
        if key not in known | typed:
            raise CommandError(f"unknown key {key} (in an experiment's file?)", key)
    check_types(cfg)


def check_types(cfg: Any) -> None:
    """Refuse values of the commands' own keys that are of another type, no choice, or outside.

    Raises:
        CommandError: naming the first.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for name in (k for k in cfg if k in KEYS):
        try:
            value = OmegaConf.to_container(cfg[name], resolve=True) if OmegaConf.is_config(cfg[name]) else cfg[name]
        except OmegaConfBaseException:  # it stands for what is not there; `check` says so
            continue
        if wrong := KEYS[name].refused(value):
            raise CommandError(wrong)


def check(cfg: Any, parsed: Sequence[Any], command: str) -> None:
    """Refuse what nothing reads and what is missing; put the variants of a node in its place.

    Args:
        cfg: complete, with hydra's own part.
        parsed: hydra's overrides.
        command: whose keys are known.

    Raises:
        CommandError: in one line.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    check_added(cfg, parsed)
    expand_variants(cfg)
    try:
        missing = sorted(OmegaConf.missing_keys(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"])))
    except OmegaConfBaseException as e:  # a value that names another key, which is missing or not there
        needed = re.search(r"Missing mandatory value: (\S+)", str(e))
        if needed is None:
            first = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
            raise CommandError(
                f"{first} (see python -m lit_xai.{command} --help): ${{...}} stands for the value of a key"
            ) from None
        missing = [needed[1]]
    if missing:
        raise CommandError(f"{missing[0]} is needed: give {missing[0]}=...")


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


def check_added(cfg: Any, parsed: Sequence[Any]) -> None:
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
    """The keyword names of a `_target_`; None if it takes any.

    Raises:
        CommandError: it cannot be imported.
    """
    from pkgutil import resolve_name

    from lit_xai.fitting import accepts

    try:
        return accepts(resolve_name(target))
    except Exception as e:
        raise CommandError(f"_target_={target} cannot be imported ({type(e).__name__}: {e})") from None

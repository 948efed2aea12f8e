"""What a node of a configuration leaves out: a yaml says `_target_` and what differs, the defaults of the class are the rest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lit_xai.cli.checks import parameters
from lit_xai.cli.schema import OPEN

PLAIN = (bool, int, float, str, type(None))
AS_CALLED = ("_args_", "_partial_")  # values that come without names would meet the defaults of theirs
READ = ("variants", "_args_", "_partial_", "_convert_", "_recursive_")  # keys of a node that are no parameters


def complete(node: Any) -> Any:
    """A node with the defaults of its class, also in the nodes below it; one whose `_target_` cannot be imported as it is.

    So is one that is given values without names, now (`_args_`) or later (`_partial_`).
    What is built from it is what is built from the node itself: a node below it that names its own `_target_` has the
    defaults of that one alone.
    """
    if isinstance(node, list):
        return [complete(n) for n in node]
    if not isinstance(node, Mapping):
        return node
    target = node.get("_target_")
    default = defaults(target) if isinstance(target, str) and not any(node.get(k) for k in AS_CALLED) else {}
    return {k: complete(v) for k, v in under(node, default).items()}


def under(node: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What a node says, and the default where it says nothing."""
    both = {k: v for k, v in node.items() if isinstance(v, Mapping) and "_target_" not in v}
    both = {k: under(v, d) for k, v in both.items() if isinstance(d := default.get(k), Mapping) and "_target_" in d}
    return {**node, **both, **{k: v for k, v in default.items() if k not in node}}


@cache
def defaults(target: str) -> Mapping[str, Any]:
    """The parameters of a `_target_` that have a default, which a yaml can say."""
    try:
        found = resolve_name(target)
        parameters = inspect.signature(found).parameters
    except Exception:  # `check_targets` says what is wrong with it
        return {}
    by_name = [p for p in parameters.values() if p.kind is not p.POSITIONAL_ONLY and p.name not in READ]
    given: dict[str, Callable[[], Any]] = {p.name: (lambda d=p.default: d) for p in by_name if p.default is not p.empty}
    for f in fields(found) if isinstance(found, type) and is_dataclass(found) else ():
        if f.default_factory is not MISSING and f.name in given:
            given[f.name] = f.default_factory
        if not f.metadata.get("said", True):
            given.pop(f.name, None)
    said = {}
    for name, value in given.items():
        with suppress(Exception):  # of code that is not ours: what cannot be said is left to it
            said[name] = as_said(value(), found)
    return said


def as_said(value: Any, owner: Any) -> Any:
    """A default as a yaml of its owner says it.

    Raises:
        TypeError: no yaml can: it is no word, number, list or mapping of them, nor a dataclass that is its fields; or hydra would
            read more into it.
    """
    if isinstance(value, str) and ("${" in value or value == "???"):
        raise TypeError(f"{value!r} stands for another value")
    if type(value) in PLAIN:
        return value
    if isinstance(value, list) or (
        isinstance(value, tuple) and owner.__module__.startswith("lit_xai.")
    ):  # ours take both
        return [as_said(v, owner) for v in value]
    if isinstance(value, dict) and "_target_" not in value and all(isinstance(k, str) for k in value):
        return {k: as_said(v, owner) for k, v in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{value!r} cannot be said")
    kind, kept = type(value), [f.name for f in fields(value) if f.init and f.metadata.get("said", True)]
    if kind(**{name: vars(value)[name] for name in kept}) != value:
        raise TypeError(f"{value!r} is more than its fields")
    return {"_target_": name_of(kind, owner)} | {name: as_said(vars(value)[name], kind) for name in kept}


def name_of(kind: type, owner: Any) -> str:
    """Where a class is offered: by its package, else beside what it is a default of, else in its own module."""
    places = (".".join(kind.__module__.split(".")[:2]), str(owner.__module__), kind.__module__)
    found = [f"{p}.{kind.__name__}" for p in places if vars(import_module(p)).get(kind.__name__) is kind]
    if not found:
        raise TypeError(f"{kind} has no name")
    return found[0]


def targets_in(node: Any) -> set[str]:
    """Every `_target_` in plain containers."""
    if isinstance(node, Mapping):
        own = {str(node["_target_"])} if "_target_" in node else set()
        return own.union(*map(targets_in, node.values()))
    return set().union(*map(targets_in, node)) if isinstance(node, list | tuple) else set()


def fill_in(cfg: DictConfig) -> None:
    """Complete the explainers, scores and fillers of a configuration, in place."""
    for group in (g for g in OPEN if isinstance(cfg.get(g), DictConfig)):
        nodes: Any = OmegaConf.to_container(cfg[group], resolve=False)
        whole = {name: complete(node) for name, node in nodes.items()}
        if whole != nodes:
            cfg[group] = whole


def make_room(cfg: DictConfig, path: str, value: Mapping[str, Any], yaml: Any) -> bool:
    """Where a value gives the node of a path another `_target_`, drop what the yaml did not say or the new class does not take.

    Returns:
        Whether there is a node.
    """
    node, yaml = OmegaConf.select(cfg, path), yaml if isinstance(yaml, Mapping) else {}
    if not isinstance(node, DictConfig):
        return False
    target = value.get("_target_", node.get("_target_"))
    if target != node.get("_target_"):
        known = parameters(target)
        with open_dict(node):
            for key in [
                k for k in map(str, node) if k != "_target_" and not (k in yaml and (known is None or k in known))
            ]:
                del node[key]
    for key, below in value.items():
        if isinstance(below, Mapping):
            make_room(cfg, f"{path}.{key}", below, yaml.get(key))
    return True


def at(nodes: Any, path: str) -> Any:
    """What plain containers hold at a path; None where they hold nothing."""
    for key in path.split("."):
        nodes = nodes.get(key) if isinstance(nodes, Mapping) else None
    return nodes

"""What a file may name as a `_target_`: the classes and functions that lit_xai and torchvision's transforms offer.

A saved configuration or a checkpoint says which objects a command builds. What the user types may name any code; what lies
in a folder may have come from anybody. So a file's targets are looked up here, by the object that a name leads to: a module
that lit_xai imports for itself (`lit_xai.models.pretrained.torch.load`) is none of what it offers.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from lit_xai.errors import UsageError

# what each kind of node may hold: methods, scores and fillers are made of each other
PARTS = r"lit_xai\.(core|explainers|fillers|metrics|segments)(\.\w+)*"
PLACES = {
    "data": r"lit_xai\.data(\.\w+)*|torchvision\.transforms(\.v2)?",
    "model": r"lit_xai\.(models|fillers)(\.\w+)*",
    "trainer": r"pytorch_lightning",
    "logger": r"lit_xai\.report\.dashboard",
    "explainer": PARTS,
    "score": PARTS,
    "filler": PARTS,
}
RUNS_ITS_ARGUMENT = ("Lambda",)  # transforms that call what they are given


def is_part(found: Any) -> bool:
    """A frozen dataclass of ours (an explainer, a score, a filler, or what they are made of), or a function that gives one."""
    if inspect.isfunction(found):
        return found is importlib.import_module("lit_xai.explainers").pomelo
    return isinstance(found, type) and is_dataclass(found) and found.__dataclass_params__.frozen  # type: ignore[attr-defined]


def is_model(found: Any) -> bool:
    """A module that is trained or explained here, or the function that makes its network."""
    import pytorch_lightning as pl

    models = vars(importlib.import_module("lit_xai.models"))
    network = any(found is models[name] for name in models["__all__"])
    return network or (isinstance(found, type) and issubclass(found, pl.LightningModule))


def is_data(found: Any) -> bool:
    """The data module, a function that gives a data set, or a transform of images."""
    if isinstance(found, type):
        transform = found.__module__.startswith("torchvision.transforms.") and found.__name__ not in RUNS_ITS_ARGUMENT
        return transform or found is importlib.import_module("lit_xai.data").FoldData
    source = importlib.import_module("lit_xai.data.images").Source
    return inspect.isfunction(found) and get_type_hints(found).get("return") is source


def is_trainer(found: Any) -> bool:
    """Whether it is Lightning's Trainer."""
    import pytorch_lightning as pl

    return found is pl.Trainer


def is_logger(found: Any) -> bool:
    """A function that makes a logger of one run."""
    return inspect.isfunction(found) and found.__name__.endswith("_logger")


KINDS: dict[str, Callable[[Any], bool]] = {
    "data": is_data,
    "model": is_model,
    "trainer": is_trainer,
    "logger": is_logger,
    "explainer": is_part,
    "score": is_part,
    "filler": is_part,
}


def offered(target: Any, kind: str) -> bool:
    """Whether a node of this kind (a group of `configs/`) may name this target in a file.

    Nothing is imported but modules of the packages that offer something of the kind.
    """
    module, _, name = str(target).rpartition(".") if isinstance(target, str) else ("", "", "")
    place = PLACES.get(kind)
    if place is None or not re.fullmatch(place, module) or not name.isidentifier() or name.startswith("_"):
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    own = str(getattr(found, "__module__", ""))
    return own.split(".")[0] == module.split(".")[0] and KINDS[kind](found)


def refuse_other_code(nodes: Mapping[str, Any], file: Path, keys: Iterable[str] | None = None) -> None:
    """Every `_target_` below these keys of a file's configuration is offered, and no text in it stands for another one.

    Args:
        nodes: a configuration, plain and unresolved: `{"model": {...}, "explainer": {...}}`.
        file: where it lies, for the message.
        keys: which of its groups are looked at; None takes all.

    Raises:
        UsageError: in one line, the first that is not.
    """
    for key in nodes if keys is None else keys:
        if key in ("_target_", "defaults") or key.startswith("hydra"):
            raise UsageError(f"{key} in {file} is not read from there: give it on the command line")
        walk(nodes.get(key), key, key, file)


def walk(node: Any, kind: str, path: str, file: Path) -> None:
    """`refuse_other_code` below one node."""
    if isinstance(node, str) and "${" in node:
        raise UsageError(
            f"{path} in {file} is an interpolation, which a saved file may not hold: write its value there"
        )
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            walk(item, kind, f"{path}[{i}]", file)
    if not isinstance(node, Mapping):
        return
    if "_target_" in node and not offered(node["_target_"], kind):
        raise UsageError(
            f"{path}._target_={str(node['_target_'])[:80]} in {file} is not run: a file may only name what lit_xai offers there; "
            f"give {path.split('.')[0]}= with your own code on the command line, or build it yourself and pass it"
        )
    for name, value in node.items():
        walk(value, kind, f"{path}.{name}", file)

"""What a thing is: descriptions, digests of code."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_xai.core import PlainExplainer, PlainFiller
from lit_xai.core import TrainedOn as TrainedOn

UNDESCRIBED = ("max_batch", "incremental", "checkpoint", "trained_on")


def describe(thing: Any) -> dict[str, Any]:
    """The plain, comparable description of a frozen dataclass: its name and its parameters, nested ones included.

    `max_batch` and `incremental` are left out: they change how something is computed, not what. So are the place of a `checkpoint` and
    what `fitted` adds: what lies there is told by `contents`. A function, or an object of another class, is described by its code
    and its attributes.
    """
    if isinstance(thing, PlainExplainer | PlainFiller):
        return describe(thing.function)
    if not is_dataclass(thing) or isinstance(thing, type):
        return describe_code(thing)
    out: dict[str, Any] = {"name": type(thing).__name__}
    for f in fields(thing):
        if f.name in UNDESCRIBED or not f.metadata.get("described", True):
            continue
        value = getattr(thing, f.name)
        if is_dataclass(value) or callable(value):
            value = describe(value)
        elif isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = {str(k): v for k, v in value.items()}
        out[f.name] = value
    return out


def describe_code(thing: Any) -> dict[str, Any]:
    """The same for a function, or an object that is no dataclass: its name, a digest of its code, its attributes."""
    if isinstance(thing, functools.partial):
        return {**describe_code(thing.func), "arguments": plain_value([list(thing.args), dict(thing.keywords)])}
    kind = thing if inspect.isroutine(thing) or isinstance(thing, type) else type(thing)
    own = vars(thing) if kind is type(thing) and "__dict__" in dir(thing) else {}
    return {"name": kind.__qualname__, "code": code_digest([kind]), **{k: plain_value(v) for k, v in own.items()}}


def plain_value(value: Any) -> Any:
    """A value as JSON holds it: numbers and texts as they are, tensors and arrays by digest, code by its own, the rest by type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_value(v) for v in value]
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return f"{array.dtype}{list(array.shape)} {hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()}"
    return describe(value) if is_dataclass(value) or callable(value) else type(value).__qualname__


def code_digest(things: Iterable[Any]) -> str:
    """A digest of the code of functions and classes, whatever their comments and layout; in order, each once."""
    h = hashlib.blake2b(digest_size=8)
    for thing in dict.fromkeys(things):
        try:
            text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(thing))))
        except (
            OSError,
            TypeError,
            SyntaxError,
        ):  # no source, or a lambda within a line: names, constants and byte code
            members = list(vars(thing).values()) if isinstance(thing, type) else [thing]
            codes = [inspect.unwrap(m).__code__ for m in members if inspect.isfunction(m)]
            text = repr([(c.co_names, c.co_code, [k for k in c.co_consts if not inspect.iscode(k)]) for c in codes])
        h.update(f"{thing.__qualname__}\0{text}\0".encode())
    return h.hexdigest()


def model_hash(model: nn.Module) -> str:
    """A digest of a model's parameters and buffers."""
    h = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode())
        h.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return h.hexdigest()


def accepts(target: Callable[..., Any]) -> set[str] | None:
    """The keyword names `target` takes, or None if it takes any."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters}

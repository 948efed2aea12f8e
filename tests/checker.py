"""The run-time type checker of the tests: arguments and results of every function of the package fit their annotations.

Shapes that are annotated agree within a call. Annotations are resolved once for a piece of code, when it is first called
(jaxtyping's own import hook makes four functions of every function, anew wherever an inner one is defined: a third of the
tests' time).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import jaxtyped

PACKAGE = "lit_xai"
TOWER = BeartypeConf(is_pep484_tower=True)  # an int is a float
ANYTHING = (Any, object, inspect.Parameter.empty)


MOST = 8  # calls of a function that are checked in a test: those of a loop differ in nothing that is annotated


class Switch:
    """Whether calls are checked, and the number of the test that makes them."""

    on = True
    test = 0


@dataclasses.dataclass(slots=True)
class Annotated:
    """What one piece of code announces: hints by the names of parameters, and which names take the surplus."""

    code: CodeType  # keeps its id from being given away
    names: tuple[str, ...]
    surplus: str
    keywords: str
    hints: dict[str, Any]
    test: int = -1
    calls: int = 0

    def skip(self) -> bool:
        """Whether this call is not to be checked; it is counted."""
        if self.test != Switch.test:
            self.test, self.calls = Switch.test, 0
        self.calls += 1
        return self.calls > MOST or not Switch.on


SEEN: dict[int, Annotated] = {}  # by id: equal code of two dataclasses has different annotations


def resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """A hint as an object; anything goes for what cannot be resolved (names that are imported for mypy alone)."""

    def holder() -> None: ...

    holder.__annotations__ = {"hint": annotation}
    try:
        hint = typing.get_type_hints(holder, names, include_extras=True)["hint"]
    except Exception:
        return Any
    return resolved(hint.__bound__, names) if isinstance(hint, typing.TypeVar) else hint


def annotated(function: FunctionType) -> Annotated:
    """The hints of a function, from now on known by its code."""
    code = function.__code__
    found = SEEN.get(id(code))
    if found is None:
        kinds = {p.kind: p.name for p in inspect.signature(function).parameters.values()}
        hints = {name: resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
        found = SEEN[id(code)] = Annotated(
            code,
            code.co_varnames[: code.co_argcount],
            kinds.get(inspect.Parameter.VAR_POSITIONAL, ""),
            kinds.get(inspect.Parameter.VAR_KEYWORD, ""),
            {name: hint for name, hint in hints.items() if hint not in ANYTHING},
        )
    return found


def given(about: Annotated, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, hint and value of every annotated argument."""
    hints = about.hints
    for name, value in zip(about.names, args, strict=False):
        if name in hints:
            yield name, hints[name], value
    if about.surplus in hints:
        for value in args[len(about.names) :]:
            yield about.surplus, hints[about.surplus], value
    for name, value in kwargs.items():
        known = name if name in hints else about.keywords if name not in about.names else ""
        if known in hints:
            yield name, hints[known], value


def check(function: FunctionType, name: str, hint: Any, value: Any) -> None:
    __tracebackhide__ = True
    if not is_bearable(value, hint, conf=TOWER):
        shape = getattr(value, "shape", None)
        text = f"{value.dtype} {tuple(shape)}" if shape is not None else repr(value)[:300]
        raise TypeError(f"{function.__module__}.{function.__qualname__}: {name} is not {hint}: {text}")


def checked(thing: Any) -> Any:
    """A function whose calls are checked, or a class whose construction is if it is a dataclass."""
    if isinstance(thing, type):
        if dataclasses.is_dataclass(thing) and isinstance(vars(thing).get("__init__"), FunctionType):
            thing.__init__ = checked(thing.__init__)
        return thing
    if hasattr(thing, "__wrapped__") or not isinstance(thing, FunctionType):
        return thing

    @functools.wraps(thing)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        about = SEEN.get(id(thing.__code__)) or annotated(thing)
        if not about.hints or about.skip():
            return thing(*args, **kwargs)
        with jaxtyped("context"):
            for name, hint, value in given(about, args, kwargs):
                check(thing, name, hint, value)
            out = thing(*args, **kwargs)
            if "return" in about.hints:
                check(thing, "return", about.hints["return"], out)
            return out

    return call


class Decorate(ast.NodeTransformer):
    """Functions get the checker as their first decorator, classes as their last (when they are dataclasses already)."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list.append(self.decorator(node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list.insert(0, self.decorator(node))
        return self.generic_visit(node)

    def decorator(self, node: ast.stmt) -> ast.expr:
        return ast.copy_location(ast.parse("__import__('checker').checked", mode="eval").body, node)


class Loader(SourceFileLoader):
    """Compiles the decorated source; it neither reads nor leaves a cache, which would be of other code."""

    def get_code(self, fullname: str) -> CodeType:
        tree = Decorate().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the package's modules for this loader."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on the package's modules are checked where they are imported."""
    sys.meta_path.insert(0, Finder())

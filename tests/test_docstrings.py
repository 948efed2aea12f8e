"""Docstrings say something: more than a name, the shapes of tensors, where a method was published."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "lit_xai"
# `[b, c, h, w]`, `{name: [b]}`, `[...]` of any shape; a range of numbers is none
SHAPE = re.compile(r"`[^`]*\[(?:(?=[^\]]*[a-z])[\w.,*+/ -]+|\.\.\.)\][^`]*`")
HINTS = {"Float", "Int", "Bool", "UInt8", "Num", "Shaped", "Complex"}  # jaxtyping's: they hold the shape themselves
SOURCE = re.compile(r"\b(19|20)\d\d\b|et al\.|[A-Z][a-zé]+ & [A-Z]|\bsource = |docs/\w+\.md")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Found(NamedTuple):
    """A function, class or module, and the classes around it."""

    place: str
    node: ast.AST
    owners: tuple[ast.ClassDef, ...]
    local: bool = False  # inside a function

    @property
    def text(self) -> str:
        return ast.get_docstring(self.node) or ""  # type: ignore[arg-type]


def found_in(source: str, place: str) -> Iterator[Found]:
    """Everything that may have a docstring, with where it stands."""

    def below(node: ast.AST, owners: tuple[ast.ClassDef, ...], local: bool) -> Iterator[Found]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                continue  # nothing is defined in an expression
            if isinstance(child, Function | ast.ClassDef):
                yield Found(f"{place}:{child.lineno} {child.name}", child, owners, local)
            inner = (*owners, child) if isinstance(child, ast.ClassDef) else owners
            yield from below(child, inner, local or isinstance(child, Function))

    tree = ast.parse(source)
    yield Found(place, tree, ())
    yield from below(tree, (), False)


@cache
def library() -> list[Found]:
    return [
        f for file in sorted(PACKAGE.rglob("*.py")) for f in found_in(file.read_text(), str(file.relative_to(PACKAGE)))
    ]


def bases(kind: ast.ClassDef, known: dict[str, Found], seen: tuple[str, ...] = ()) -> Iterator[ast.ClassDef]:
    """The classes of the library that a class inherits, nearest first."""
    for base in kind.bases:
        name = ast.unparse(base).split("[")[0].rpartition(".")[2]
        if name in known and name not in seen:
            parent = known[name].node
            assert isinstance(parent, ast.ClassDef)
            yield parent
            yield from bases(parent, known, (*seen, name))


def bare(annotation: ast.AST) -> bool:
    """Whether it names a Tensor without its shape; what a callable is given is its own matter."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return bare(ast.parse(annotation.value, mode="eval").body)
        except SyntaxError:
            return False
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).rpartition(".")[2] in {
        *HINTS,
        "Callable",
    }:
        return False
    named = isinstance(annotation, ast.Name | ast.Attribute) and ast.unparse(annotation).rpartition(".")[2] == "Tensor"
    return named or any(bare(child) for child in ast.iter_child_nodes(annotation))


def is_public(f: Found) -> bool:
    if f.local:
        return False
    names = [f.node.name] + [o.name for o in f.owners]  # type: ignore[attr-defined]
    return not any(n.startswith("_") and n != "__call__" for n in names)


def without_shapes(every: list[Found]) -> list[str]:
    """Public functions that are given tensors and say their shapes neither in a hint nor in words, as their class does not."""
    known, wrong = {f.node.name: f for f in every if isinstance(f.node, ast.ClassDef)}, []
    for f in every:
        if not isinstance(f.node, Function) or not is_public(f):
            continue
        a = f.node.args
        given = [
            x.annotation for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x and x.annotation
        ]
        if not any(map(bare, given)) or SHAPE.search(f.text):
            continue
        owner = f.owners[-1] if f.owners else None
        around = [owner, *bases(owner, known)] if owner else []
        methods = [m for c in around for m in c.body if isinstance(m, Function) and m.name == f.node.name]
        if not any(SHAPE.search(ast.get_docstring(n) or "") for n in (*around[:1], *methods)):
            wrong.append(f.place)
    return wrong


def without_words(every: list[Found]) -> list[str]:
    """Docstrings of three words or fewer."""
    return [f"{f.place}: {f.text}" for f in every if f.text and len(f.text.split()) <= 3]


def test_no_docstring_has_three_words_or_fewer() -> None:
    assert without_words(library()) == []


def test_public_functions_that_take_tensors_say_their_shapes() -> None:
    assert without_shapes(library()) == []


def test_explainers_and_scores_say_where_they_were_published() -> None:
    classes = {f.node.name: f for f in library() if isinstance(f.node, ast.ClassDef)}
    wrong, inherited = [], {b.name for f in classes.values() for b in bases(f.node, classes)}  # type: ignore[arg-type]
    modules = {f.place: f for f in library() if isinstance(f.node, ast.Module)}
    for name, f in classes.items():
        kind = f.node
        assert isinstance(kind, ast.ClassDef)
        file, above = f.place.partition(":")[0], [kind, *bases(kind, classes)]
        asks = {"Explainer", "Score"} & {c.name for c in above[1:]} and file.partition("/")[0] in (
            "explainers",
            "metrics",
        )
        null = any(ast.unparse(s) == "null: ClassVar[bool] = True" for s in kind.body)
        if not asks or null or name in inherited or not any(isinstance(s, Function) for s in kind.body):
            continue
        texts = [ast.unparse(c) for c in above if c.name not in ("Explainer", "Score", "Component")]
        if not any(SOURCE.search(text) for text in [modules[file].text, *texts]):
            wrong.append(f"{f.place} ({name})")
    assert wrong == []


def test_what_lacks_words_or_shapes_is_found() -> None:
    source = '''
"""A module of some words."""

class Kind:
    """What it is: a kind."""
    def told(self, x: Tensor):
        """Of images `[b, c, h, w]`, what they are."""
    def hinted(self, x: Float[Tensor, "b"], f: Callable[[Tensor], Tensor]): ...
    def silent(self, x: Tensor | None): ...
    def _private(self, x: Tensor): ...

class Heir(Kind):
    """Of images `[b]`, too: said for all."""
    def silent(self, x: "Tensor"): ...

class Other(Kind):
    """It says nothing of them."""
    def told(self, x: Tensor): ...
    def hinted(self, x: dict[str, Tensor]): """One, two, three."""
'''
    every = list(found_in(source, "m"))
    assert without_shapes(every) == ["m:9 silent", "m:19 hinted"]
    assert without_words(every) == ["m:19 hinted: One, two, three."]

"""The site of these pages: `make docs` builds it into docs/_build; nothing that it loads lies elsewhere."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import lit_xai  # noqa: E402
from lit_xai.cli.keys import keys_of, shown  # noqa: E402
from lit_xai.cli.schema import GROUPS, help_text, options  # noqa: E402

project = "lit_xai"
version = release = lit_xai.__version__
project_copyright = "the authors of lit_xai"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "README.md"]  # index.rst includes README.md
html_theme = "furo"
html_title = "lit_xai"
html_copy_source = False
myst_heading_anchors = 4
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 110
add_module_names = False
toc_object_entries_show_parents = "hide"

REFERENCE = HERE / "_reference"
COMMANDS = ("audit", "train", "explain", "evaluate", "degradation")
# a page of the reference: its title, and the names of some modules (all of `__all__` where none is said)
API: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "crossval": (
        "Audit, cross-validate, load",
        {
            "lit_xai.crossval": ("audit", "explain_folds", "explain_model", "load"),
            "lit_xai.report.audit": ("Audit",),
            "lit_xai.report.answers": ("Verdict", "Answer"),
            "lit_xai.report.summarise": ("summarise",),
            "lit_xai.report.summary": ("Summary", "Row"),
        },
    ),
    "explainers": (
        "Explainers",
        {
            "lit_xai.explainers": (),
            "lit_xai.explainers.contrasts": ("ProbabilityDifference", "LogOddsDifference", "PMI", "KL"),
            "lit_xai.segments": ("Grid", "Quickshift", "Slic"),
        },
    ),
    "fillers": ("Fillers and samplers", {"lit_xai.fillers": (), "lit_xai.quality": ()}),
    "metrics": (
        "Scores and measures",
        {
            "lit_xai.metrics": (),
            "lit_xai.metrics.measures": ("measure",),
            "lit_xai.metrics.pairs": ("Pairs",),
            "lit_xai.metrics.certificates": ("Question", "certified_radius", "certified_share", "attack_radius"),
            "lit_xai.metrics.calibration": (),
            "lit_xai.metrics.conformal": (),
        },
    ),
    "models": ("Models", {"lit_xai.models": (), "lit_xai.models.bounds": ()}),
    "data": ("Data", {"lit_xai.data": ()}),
    "writing": (
        "To write one of your own",
        {
            "lit_xai.core": ("Component", "Explainer", "Filler", "Score", "Legend", "Passes", "TrainedOn"),
            "lit_xai.rng": ("SampleRng", "Noise"),
            "lit_xai.calls": ("evaluate_rows", "walk", "chunks", "Chunk", "gradients", "select_output"),
            "lit_xai.incremental": ("WindowLogits",),
            "lit_xai.errors": ("UsageError",),
        },
    ),
}


def api(title: str, modules: dict[str, tuple[str, ...]]) -> str:
    """A page of docstrings, as reStructuredText."""
    lines = [title, "=" * len(title), ""]
    for module, names in modules.items():
        thing = importlib.import_module(module)
        names = names or tuple(getattr(thing, "__all__", ())) or own_names(thing)
        lines += [module, "-" * len(module), "", f".. automodule:: {module}", ""]
        for name in names:
            kind = getattr(thing, name)
            if not callable(kind):
                continue
            directive = "autoclass" if inspect.isclass(kind) else "autofunction"
            lines += [f".. {directive}:: {module}.{name}"] + ["   :members:"] * inspect.isclass(kind) + [""]
    return "\n".join(lines)


def own_names(module: Any) -> tuple[str, ...]:
    """Public classes and functions that a module defines itself, in its order."""
    own = [
        n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == module.__name__
    ]
    return tuple(n for n in own if callable(getattr(module, n)))


def commands() -> str:
    """What every command says of itself, without the choices that all share."""
    page = ["# Commands", "", "`python -m lit_xai.<command> --help` prints this, and the [choices](choices.md)."]
    for name in COMMANDS:
        text = help_text(name, importlib.import_module(f"lit_xai.{name}").ABOUT, name not in ("audit", "evaluate"))
        about, usage, *_ = text.split("\n\n")
        page += ["", f"## {name}", "", f"`{usage.removeprefix('usage: ')}`", "", plain(about), ""]
        page += ["| key | default | |", "|---|---|---|"]
        page += [f"| `{key.name}` | `{shown(key.default)}` | {plain(key.about)} |" for key in keys_of(name).values()]
    return "\n".join(page)


def choices() -> str:
    """Every yaml of every group, with its comment."""
    page = ["# Choices", "", "What a command takes by name: every yaml of `configs/`, and its first comment."]
    for group, title in GROUPS.items():
        page += ["", f"## {group}=", "", f"{title[0].upper()}{title[1:]}.", "", "| choice | |", "|---|---|"]
        page += [f"| `{name}` | {plain(text)} |" for name, text in options(group).items()]
    return "\n".join(page)


def plain(text: str) -> str:
    """Markdown in which no sign means more than itself."""
    return re.sub(r"([<>*_|\\`])", r"\\\1", text)


def write(_: Any) -> None:
    """The reference, before Sphinx looks for pages; a page that is as it was is not read again."""
    REFERENCE.mkdir(exist_ok=True)
    pages = {f"{name}.rst": api(*about) for name, about in API.items()}
    pages |= {"commands.md": commands(), "choices.md": choices()}
    for name, text in pages.items():
        file = REFERENCE / name
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


SENTENCES: dict[str, list[str]] = {}  # of properties, whose docstrings napoleon would part at a colon


def marked(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain sentences with code in backticks: the rest of reStructuredText's marks are none."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        lines[i] = "".join(f"`{p}`" if re.fullmatch(r"`[^`]+`", p) else escaped(p) for p in parts)
    source = vars(thing).get("source") if inspect.isclass(thing) else None
    lines += ["", f"Source: {escaped(source)}", ""] if isinstance(source, str) and source else []
    SENTENCES[name] = list(lines)


def whole(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """After napoleon: what it took for the type of a property is put back."""
    if what == "property":
        lines[:] = SENTENCES[name]


def escaped(text: str) -> str:
    """Text in which no star, bar or underscore means more than itself."""
    return re.sub(r"([*|_\\])", r"\\\1", text)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", marked, priority=100)
    app.connect("autodoc-process-docstring", whole, priority=900)

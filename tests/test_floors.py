"""The floors of docs/architecture.md: a module imports only modules of lower floors, or of its own room, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lit_xai"
FLOORS = [
    {"errors"},
    {"cli.keys", "cli.schema", "cli.offered", "store.names"},
    {"rng", "cache", "store.shards", "store.plans"},
    {"core"},
    {"fitting"},
    {"calls", "data"},
    {"segments", "incremental", "sequential", "store"},
    {"cluster"},
    {"models"},
    {"fillers"},
    {"explainers", "metrics"},
    {"engine", "quality"},
    {"report"},
    {"callbacks"},
    {"cli"},
    {"crossval", "train", "evaluate"},
    {"audit", "explain"},
    {"degradation"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
FILES = sorted(f for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py")


def module_of(file: Path) -> str:
    """A file's dotted name below the package; a room's own file has the room's."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(f): f for f in FILES}


def floor_of(module: str) -> int:
    """The floor of a module, else that of its room."""
    return FLOOR[module] if module in FLOOR else FLOOR[module.split(".")[0]]


def imported(file: Path) -> set[str]:
    """Modules of lit_xai that a file imports when it is imported itself, or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lit_xai":
            below = node.module.removeprefix("lit_xai").lstrip(".")
            for name in node.names:
                whole = f"{below}.{name.name}".lstrip(".")
                found.add(whole if whole in MODULES else below)
    return found - {""}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_floors(file: Path) -> None:
    module = module_of(file)
    for other in imported(file):
        same_room = other.split(".")[0] == module.split(".")[0]
        assert floor_of(other) < floor_of(module) or (same_room and floor_of(other) == floor_of(module)), (
            f"{module} imports {other}"
        )


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imported(file) - {module} for module, file in MODULES.items() if file.name != "__init__.py"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(f"a circle: {' -> '.join(e.args[1])}")


def test_every_room_has_its_floor() -> None:
    rooms = {module.split(".")[0] for module in MODULES}
    assert rooms == {name.split(".")[0] for name in FLOOR}
    assert {name for name in FLOOR if "." in name} <= set(MODULES)


def test_the_root_is_no_larger_than_it_must_be() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 14


def test_no_file_is_longer_than_a_reader_stays_with_it() -> None:
    assert [f.name for f in FILES if len(f.read_text().splitlines()) > 450] == []


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (["lit_xai"], ("torch", "numpy", "wandb", "hydra")),
        (["lit_xai.cli.schema", "lit_xai.cli.command"], ("torch", "numpy", "wandb", "pytorch_lightning")),
        (["lit_xai.cluster.status", "lit_xai.cluster.heartbeat"], ("torch", "numpy", "wandb", "hydra")),
    ],
)
def test_nothing_heavy_is_loaded_early(modules: list[str], without: tuple[str, ...]) -> None:
    check = f"import {', '.join(modules)}, sys; sys.exit(sum(m in sys.modules for m in {without}))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0

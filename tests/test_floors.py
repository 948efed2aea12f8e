"""The floors of docs/architecture.md: a module imports only modules of lower floors, or of its own room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lit_xai"
FLOORS = [
    {"errors"},
    {"shards", "heartbeat", "offered"},
    {"core", "cli", "status"},
    {"files", "cache", "training"},
    {"cluster", "incremental"},
    {"data", "models", "segments", "fillers"},
    {"explainers", "metrics"},
    {"store"},
    {"unfinished"},
    {"engine", "ensemble"},
    {"draw", "dashboard"},
    {"draw_samplers"},
    {"callbacks", "report"},
    {"runs"},
    {"picture", "saved_config"},
    {"crossval", "train", "evaluate"},
    {"explain"},
    {"degradation"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(f for f in PACKAGE.rglob("*.py") if f != PACKAGE / "__init__.py")


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def rooms_imported(file: Path) -> set[str]:
    """First-level rooms of lit_xai that a file imports when it is imported itself, or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lit_xai":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
    return found & set(FLOOR)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_floors(file: Path) -> None:
    room = room_of(file)
    for other in rooms_imported(file) - {room}:
        assert other in {"cli", "core"} or FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def test_every_room_has_its_floor() -> None:
    assert {room_of(f) for f in FILES} == set(FLOOR)


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    check = "import lit_xai, sys; sys.exit(sum(m in sys.modules for m in ('torch', 'numpy', 'wandb', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0

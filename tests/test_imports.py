"""Imports point one way, from the command line to the metrics, without a circle and on at most eleven floors."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import retrieval_bench

ROOT = Path(retrieval_bench.__file__).parent
NAMES = {
    ".".join(["retrieval_bench", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
LAYERS = (
    ("__main__",),
    ("cli",),
    ("run_command", "experiments"),
    ("report",),
    ("figures",),
    ("run",),
    ("measure",),
    ("comparison",),
    ("deploy", "details"),
    ("leaderboard",),
    ("reported", "records", "trackers"),
    ("columns", "tables"),
    ("training",),
    ("validation", "identity"),
    ("config",),
    ("strategies",),
    ("losses", "models"),
    ("data", "cost"),
    ("evaluation",),
    ("device", "strategy_list", "parsing"),
    ("files", "seeding"),
    ("progress", "sections", "errors"),
)
"""Rooms (modules and folders of the package) from the top down; a module imports from its own room and from rooms below
its line."""


@cache
def imported(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The modules of the package that a module imports, anywhere in it, and those of them that it imports inside a
    function or an ``if``."""
    tree = ast.parse(NAMES[name].read_text(encoding="utf-8"))
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for node in ast.walk(tree):
        for target in targets(node):
            if target in NAMES and target != name:
                found[node in tree.body].add(target)
    return frozenset(found[True] | found[False]), frozenset(found[False])


def targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
        return [module if module in NAMES else node.module for module in modules]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def room(name: str) -> str:
    return f"{name}.".split(".")[1] or "__init__"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_imports_of_the_package_stand_at_the_top_of_the_file(name: str) -> None:
    assert not imported(name)[1]


def test_every_room_has_a_layer_and_imports_only_from_below() -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    rooms = {room(name) for name in NAMES} - {"__init__"}
    assert rooms == layer.keys()
    upward = {
        f"{name} imports {other}"
        for name in NAMES
        for other in imported(name)[0]
        if room(other) not in ("__init__", room(name)) and layer[room(other)] <= layer[room(name)]
    }
    assert not upward


def test_no_circle_among_modules_and_at_most_eleven_floors_of_rooms() -> None:
    def depth(name: str, arrows: dict[str, set[str]], path: tuple[str, ...] = ()) -> int:
        assert name not in path, " -> ".join([*path, name])
        return 1 + max((depth(other, arrows, (*path, name)) for other in arrows[name]), default=0)

    modules = {name: set(imported(name)[0]) for name in NAMES}
    order: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in order:
            for other in modules[name]:
                visit(other, (*path, name))
            order[name] = len(order)

    for name in modules:
        visit(name, ())
    rooms: dict[str, set[str]] = {room(name): set() for name in NAMES}
    for name, others in modules.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name), "__init__"}
    floors = {name: depth(name, rooms) for name in rooms}
    assert max(floors.values()) <= 11, floors

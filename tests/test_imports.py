"""Imports point one way, from the command line to the metrics, without a circle and on at most eleven floors; a class
name means one thing."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
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
    ("leaderboard_command", "loss_list", "run_command", "reproduce", "experiments", "soup"),
    ("report", "refit"),
    ("figures",),
    ("run",),
    ("measure",),
    ("comparison",),
    ("deploy", "details"),
    ("answer",),
    ("leaderboard",),
    ("groups",),
    ("reported", "records", "trackers"),
    ("columns", "tables"),
    ("training",),
    ("validation", "identity"),
    ("config",),
    ("strategies",),
    ("losses", "models"),
    ("data", "cost"),
    ("evaluation",),
    ("strategy_list",),
    ("device", "parsing", "presets"),
    ("plugins",),
    ("files", "seeding"),
    ("progress", "sections"),
    ("errors",),
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
    TopologicalSorter({name: imported(name)[0] for name in NAMES}).prepare()  # raises for a circle
    rooms: dict[str, set[str]] = {room(name): set() for name in NAMES}
    for name in NAMES:
        rooms[room(name)] |= {room(other) for other in imported(name)[0]} - {room(name), "__init__"}
    floors: dict[str, int] = {}
    for name in TopologicalSorter(rooms).static_order():
        floors[name] = 1 + max((floors[other] for other in rooms[name]), default=0)
    assert max(floors.values()) <= 11, floors


def test_every_class_name_means_one_thing() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in NAMES.values()]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []

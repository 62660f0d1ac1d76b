"""The command ``strategies``, from the text of the strategies' files: it answers at once, since nothing imports
torch."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from retrieval_bench.parsing import wrapped
from retrieval_bench.plugins import entry_points

FOLDER = Path(__file__).parent / "strategies"


@dataclass(frozen=True)
class Strategies:
    """List the fine-tuning strategies and their options."""

    def execute(self) -> None:
        print("\n".join(wrapped(line, len(line) - len(line.lstrip().split(None, 1)[1])) for line in strategy_lines()))


def strategy_lines() -> Iterator[str]:
    """A line per strategy, in the order of the registry, and below it a line per option: flag, default, and what a
    search tries; then a line per entry point of installed packages."""
    classes, registry = _parsed()
    width = max(map(len, registry)) + 2
    for name, kind in registry.items():
        module, node = classes[kind]
        yield f"{name:{width}}{(ast.get_docstring(module) or '').splitlines()[0]}"
        for option, call in _options(node, classes).items():
            search = next((keyword.value for keyword in call.keywords if keyword.arg == "search"), None)
            tried = f"; searched {_range(search, module)}" if search else ""
            default = ast.literal_eval(call.args[0])
            yield f"{'':{width}}--{name}.{option}".replace("_", "-") + f" (default {default}{tried})"
    for name, entry in entry_points("strategies").items():
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
        hidden = " (not usable: the name is taken)" if name in registry else ""
        yield f"{name:{width}}{entry.value} of {package}{hidden}: `run --strategy {name} --help` shows its options"


@cache
def frozen_strategies() -> set[str]:
    """The strategies that train nothing of the backbone (``Strategy.trains_backbone``)."""
    classes, registry = _parsed()
    lines = {name: map(ast.unparse, classes[kind][1].body) for name, kind in registry.items()}
    return {name for name, body in lines.items() if "trains_backbone = False" in body}


def _parsed() -> tuple[dict[str, tuple[ast.Module, ast.ClassDef]], dict[str, str]]:
    """The classes of the strategies' files by name, with their modules; and the registry."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")]
    nodes = [(module, node) for module in modules for node in module.body]
    (registry,) = (
        node.value for _, node in nodes if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "STRATEGIES"
    )
    assert isinstance(registry, ast.Dict)
    kinds = zip(registry.keys, registry.values, strict=True)
    classes = {node.name: (module, node) for module, node in nodes if isinstance(node, ast.ClassDef)}
    return classes, {ast.literal_eval(key): ast.unparse(kind) for key, kind in kinds if key}


def _options(kind: ast.ClassDef, classes: dict[str, tuple[ast.Module, ast.ClassDef]]) -> dict[str, ast.Call]:
    """The calls of ``option`` in a strategy's ``Options`` and in those that it inherits, by the option's name."""
    own = next((node for node in kind.body if isinstance(node, ast.ClassDef) and node.name == "Options"), None)
    names = [ast.unparse(base).removesuffix(".Options") for base in (own or kind).bases]
    found = {
        option: call
        for name in names
        if name in classes
        for option, call in _options(classes[name][1], classes).items()
    }
    for node in own.body if own else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            found[ast.unparse(node.target)] = node.value
    return found


def _range(node: ast.expr, module: ast.Module) -> str:
    """What a search tries, as text: an expression of ``Range``, ``Categorical`` and constants of the module."""
    names: dict[str, Any] = {
        "Range": lambda low, high, log=False, **_: f"{low:g} to {high:g}{', log' if log else ''}",
        "Categorical": lambda values, **_: ", ".join(map(str, values)),
    }
    for line in module.body:
        if isinstance(line, ast.Assign):
            with contextlib.suppress(NameError):
                names[ast.unparse(line.targets[0])] = eval(ast.unparse(line.value), {}, names)
    return eval(ast.unparse(node), {}, names)

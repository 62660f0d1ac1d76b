"""The command ``strategies``, from the text of the strategies' files: it answers at once, since nothing imports
torch."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_bench.plugins import entry_points

FOLDER = Path(__file__).parent / "strategies"


@dataclass(frozen=True)
class Strategies:
    """List the fine-tuning strategies and their options."""

    def execute(self) -> None:
        print("\n".join(strategy_lines()))


def strategy_lines() -> Iterator[str]:
    """A line per strategy, in the order of the registry, and below it a line per option: flag, default, and what a
    search tries; then a line per entry point of installed packages."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")]
    classes = {
        node.name: (module, node) for module in modules for node in module.body if isinstance(node, ast.ClassDef)
    }
    (registry,) = (
        node.value
        for module in modules
        for node in module.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "STRATEGIES"
    )
    assert isinstance(registry, ast.Dict)
    names = [ast.literal_eval(key) for key in registry.keys if key]
    width = max(map(len, names)) + 2
    for name, value in zip(names, registry.values, strict=True):
        module, node = classes[ast.unparse(value)]
        yield f"{name:{width}}{(ast.get_docstring(module) or '').splitlines()[0]}"
        for option, call in _options(node, classes).items():
            search = next((keyword.value for keyword in call.keywords if keyword.arg == "search"), None)
            tried = f"; searched {_range(search, module)}" if search else ""
            default = ast.literal_eval(call.args[0])
            yield f"{'':{width}}--{name}.{option}".replace("_", "-") + f" (default {default}{tried})"
    for name, entry in entry_points("strategies").items():
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
        hidden = " (not usable: the name is taken)" if name in names else ""
        yield f"{name:{width}}{entry.value} of {package}{hidden}: `run --strategy {name} --help` shows its options"


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

"""Code of the user's own: strategies, losses and backbones that are named as ``package.module:Class``, or by an entry
point of an installed package.

An entry point stands in the group ``retrieval_bench.strategies``, ``.losses`` or ``.backbones``. Nothing is imported
before it is named on the command line, in a configuration that is run, or in the recipe of an embedder that is loaded;
tables, reports and figures are made from records and import nothing.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.files import digest

Group = Literal["strategies", "losses", "backbones"]
FLAGS: dict[Group, str] = {"strategies": "--strategy", "losses": "--loss", "backbones": "--backbone"}


@dataclass(frozen=True)
class Plugin:
    """A class or function of the user's.

    Attributes:
        name: what tables and flags call it (:func:`name_of`).
        source: ``module:Class sha256:...``: what a record says of it; the digest is that of the file that holds it.
        version: of the package that it comes from; empty if there is none.
    """

    name: str
    target: Any
    source: str
    version: str


@cache
def entry_points(group: Group) -> dict[str, metadata.EntryPoint]:
    """The entry points of installed packages, by name."""
    return {entry.name: entry for entry in metadata.entry_points(group=f"retrieval_bench.{group}")}


@cache
def load(group: Group, word: str) -> Plugin | None:
    """What `word` names, imported once; None if it is neither ``module:Class`` nor an entry point.

    Raises:
        UserError: in one line, a module that is not found or that fails, with file and line, or a name that is not in
            it.
    """
    entry = entry_points(group).get(word)
    path = entry.value if entry else word
    match = re.fullmatch(r"([\w.]+):(\w+)", path)
    if match is None:
        return None
    flag, (module, attribute) = f"{FLAGS[group]} {word}", match.groups()
    found = _import(flag, module)
    if not hasattr(found, attribute):
        public = (name for name, value in vars(found).items() if callable(value) and not name.startswith("_"))
        raise UserError(f"{flag}: {unknown(f'name in {module}', attribute, public)}")
    target = getattr(found, attribute)
    try:
        file = inspect.getsourcefile(inspect.unwrap(target))
    except TypeError:
        file = None
    if not callable(target) or file is None or not Path(file).is_file():
        raise UserError(f"{flag}: is no class or function of a Python file")
    package = module.partition(".")[0]
    try:
        version = entry.dist.version if entry and entry.dist else metadata.version(package)
    except metadata.PackageNotFoundError:
        version = str(getattr(sys.modules[package], "__version__", ""))
    return Plugin(name_of(word), target, f"{path} sha256:{digest(Path(file))}", version)


def name_of(word: str) -> str:
    """What tables, flags and files call a strategy, perhaps a chain: ``half_rate`` for ``package.module:HalfRate``."""
    classes = re.sub(r"[\w.]+:(?=\w)", "", word.replace(" ", ""))
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", classes).lower()


def _import(flag: str, module: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:  # as with `python -m`, for the installed command too
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            where = f"in {os.getcwd()} or among the installed packages"
            hint = "; leave out .py" if module.endswith(".py") else ""
            raise UserError(f"{flag}: there is no module {error.name} {where}{hint}") from None
        raise UserError(f"{flag}: {module} cannot be imported: {place_of(error)}") from None


def place_of(error: BaseException) -> str:
    """An exception of the user's code in one line, with file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    file, line = (own[-1].filename, own[-1].lineno) if own else ("?", 0)
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno or line
    return f"{type(error).__name__}: {first_line(error)} ({file}, line {line})"

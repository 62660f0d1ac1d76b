"""retrieval_bench: which way of fine-tuning a pretrained network gives the best retrieval embeddings, at which cost?

The names in ``__all__`` are the public API. Each is loaded when it is first used, so that importing the package is
cheap; ``__init__.pyi`` has their types.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    "RunConfig": "config",
    "RuntimeConfig": "config",
    "Record": "records",
    "evaluate": "evaluation.evaluate",
    "leaderboard": "leaderboard",
    "load_embedder": "deploy.saved",
    "load_records": "records",
    "run": "run",
}
__all__ = ["Record", "RunConfig", "RuntimeConfig", "evaluate", "leaderboard", "load_embedder", "load_records", "run"]

if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    # Threads of the OpenMP that torch brings (libgomp) wait for each other in a loop of 300,000 turns, which keeps the
    # core from the thread they wait for where other processes need it too. Read when torch is loaded; inherited by
    # workers.
    os.environ["GOMP_SPINCOUNT"] = "1000"


class _Package(ModuleType):
    """The package: where a module and its main function share a name (``run``, ``leaderboard``), the name is the
    function's."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_submodule = isinstance(value, ModuleType) and _MODULES.get(name) == name
        super().__setattr__(name, getattr(value, name) if is_submodule else value)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'retrieval_bench' has no attribute '{name}'")
    return getattr(importlib.import_module(f"retrieval_bench.{_MODULES[name]}"), name)


sys.modules[__name__].__class__ = _Package

"""The command ``losses``: losses and miners with what ``--loss-options`` and ``--miner-options`` may set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pytorch_metric_learning import losses, miners
from torch import nn

from retrieval_bench.losses import LOSSES, MINERS
from retrieval_bench.parsing import wrapped

SET_BY_THE_RUN = ("self", "num_classes", "embedding_size", "args", "kwargs")
BASES = (losses.BaseMetricLossFunction, losses.GenericPairLoss, losses.WeightRegularizerMixin, miners.BaseMiner)
BASES = (*BASES, nn.Module)


@dataclass(frozen=True)
class Losses:
    """List the losses and miners with their options and defaults."""

    def execute(self) -> None:
        kinds = {"pairs": "compares the images of a batch", "proxies": "has a proxy or weights per class"}
        print("\n".join(f"{kind:9}{about}" for kind, about in kinds.items()))
        print("\nlosses (--loss, --loss-options NAME VALUE ...):")
        for name, loss in LOSSES.items():
            print(_line(f"{name}, {'pairs' if loss.needs_pairs else 'proxies'}", loss.make))
        print("\nminers (--miner, --miner-options NAME VALUE ...):")
        for name, make in {"default": lambda: None, "none": lambda: None, **MINERS}.items():
            print(_line(name, make))
        shared = ", ".join(name for name in _options(losses.BaseMetricLossFunction, ()) if name != "collect_stats")
        print(wrapped(f"\nmost losses also take objects of the library: {shared} (distance CosineSimilarity)"))


def _line(name: str, make: Callable[..., Any]) -> str:
    options = " ".join(f"{option}={_text(value)}" for option, value in _options(make, BASES).items())
    return wrapped(f"  {name}{options and ': '}{options}", 6)


def _options(make: Callable[..., Any], bases: tuple[type, ...]) -> dict[str, Any]:
    """Names and defaults of what a class takes that the run does not set, without those of its `bases`."""
    given = make.keywords if isinstance(make, partial) else {}
    made: Any = make.func if isinstance(make, partial) else make
    found: dict[str, Any] = {}
    for kind in made.__mro__ if inspect.isclass(made) else [made]:
        if kind in bases:
            break
        own = inspect.signature(vars(kind).get("__init__", kind) if inspect.isclass(kind) else kind).parameters
        found = {name: value.default for name, value in own.items() if name not in SET_BY_THE_RUN} | found
    return {name: given.get(name, value) for name, value in found.items() if name != "options"}


def _text(value: Any) -> str:
    return "?" if value is inspect.Parameter.empty else getattr(value, "__name__", None) or str(value)

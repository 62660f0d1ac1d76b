"""Several strategies as one, and which of them go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import EpochState, ParameterGroup, Strategy, TrainOnce


def refuse_clashes(parts: Mapping[str, type[Strategy]]) -> None:
    """Raises :class:`UserError` if strategies cannot be combined in this order: only one may decide when an epoch is
    accepted, rebuild blocks, remove channels or average weights, and first of all blocks are removed, then channels."""
    owners = [name for name, kind in parts.items() if kind.run_epoch is not Strategy.run_epoch]
    rebuilding = [name for name, kind in parts.items() if kind.rebuilds_blocks]
    pruning = [name for name, kind in parts.items() if kind.prunes == "channels"]
    averaging = [name for name, kind in parts.items() if kind.averages]
    clashes = {
        "decide how an epoch is run": owners,
        "remove channels": pruning,
        "rebuild the blocks": rebuilding,
        "deploy other weights than the trained ones": averaging,
    }
    for what, names in clashes.items():
        if len(names) > 1:
            raise UserError(f"strategies {' and '.join(names)} both {what} and cannot be combined; keep one of them")
    first = sorted((name for name, kind in parts.items() if kind.prunes), key=lambda name: parts[name].prunes)
    if list(parts)[: len(first)] != first:
        others = [name for name in parts if name not in first]
        raise UserError(f"{' and then '.join(first)} must come first: --strategy {'+'.join([*first, *others])}")


class Chain(Strategy):
    """Runs its parts in order: edits follow one another, regularization is added up, info is filed by part's name.

    Parts behind one that removes channels wait until it has: they are prepared for the network that is left, with the
    random numbers that they would have had before.
    """

    def __init__(self, parts: dict[str, Strategy]):
        super().__init__()
        refuse_clashes({name: type(part) for name, part in parts.items()})
        self.parts = parts
        cutting = [number for number, part in enumerate(parts.values(), 1) if part.prunes == "channels"]
        self._active = list(parts.values())[: cutting[0] if cutting else None]
        self._waiting = list(parts.values())[len(self._active) :]

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        for part in self._active:
            model = part.prepare(model, example_images)
        self._example_images, self._random_state = example_images, torch.get_rng_state()
        return model

    def _prepare_waiting(self, model: Embedder) -> list[Strategy]:
        """Prepares in place the parts that have waited for the cut, and returns them."""
        waiting, self._waiting = self._waiting, []
        with torch.random.fork_rng():
            torch.set_rng_state(self._random_state)
            for part in waiting:
                part.prepare(model, self._example_images)
        self._active += waiting
        return waiting

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        for part in self._active:
            groups = part.parameter_groups(model, groups)
        return groups

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        for part in self._active.copy():
            part.before_training(train_once, state)
        if waiting := self._prepare_waiting(state.model):
            state.rebuild()
            for part in waiting:
                part.before_training(train_once, state)

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        owners = [part for part in self.parts.values() if type(part).run_epoch is not Strategy.run_epoch]
        return owners[0].run_epoch(train_once, state) if owners else train_once()

    def end_epoch(self, state: EpochState) -> None:
        for part in self.parts.values():
            part.end_epoch(state)

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        terms = [term for part in self._active if (term := part.regularization(model, images)) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def after_step(self, model: Embedder) -> None:
        for part in self._active:
            part.after_step(model)

    def finalize(self, model: Embedder) -> Embedder:
        for part in sorted(self.parts.values(), key=lambda part: not part.averages):
            model = part.finalize(model)
        return model

    def eval_modes(self, model: Embedder) -> Iterator[tuple[str, Embedder]]:
        for part in self.parts.values():
            yield from part.eval_modes(model)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        for name, part in self.parts.items():
            if part in self._waiting:
                self._prepare_waiting(model)
            part.load_state_dict(state[name], model)

    def info(self) -> dict[str, Any]:
        return {name: info for name, part in self.parts.items() if (info := part.info())}

"""The protocol of a fine-tuning strategy: what is tuned, how fast, and what is removed; and how it declares options.

Every hook has a default that does nothing, so a strategy's file holds only what its paper changes. The training loop
calls the hooks in this order: ``prepare``, ``parameter_groups`` and ``before_training`` once, then for each epoch
``run_epoch`` (inside it ``regularization`` and ``after_step`` at every step) and ``end_epoch``, and ``finalize`` once.
A strategy never sees the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypedDict

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import TAIL
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import check_bounds
from retrieval_bench.sections import option as option


@dataclass(frozen=True)
class Look:
    """How plots show a strategy: a hexadecimal colour and a marker of matplotlib."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Range:
    """Numbers that a search tries, from `low` to `high`, both included; whole numbers if both bounds are.

    `log` draws evenly over orders of magnitude; `blocks` marks a number of blocks, which the backbone limits.
    """

    low: float
    high: float
    log: bool = False
    blocks: bool = False

    @property
    def integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def within(self, count: int) -> Range:
        """The same for a backbone of `count` blocks: a number of blocks stays below it."""
        return replace(self, high=min(self.high, max(self.low, count - 1))) if self.blocks else self

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int if self.integer else int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Categorical:
    """Values without an order that a search tries; with `blocks`, value n (from 0) is about n blocks."""

    values: tuple[str | int | float, ...]
    blocks: bool = False

    def within(self, count: int) -> Categorical:
        """The same for a backbone of `count` blocks."""
        return replace(self, values=self.values[:count]) if self.blocks and count else self

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


class ParameterGroup(TypedDict):
    """One optimiser group. `name` is that of a block, ``embedding`` or ``loss``; `lr` is before the schedule."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class EpochState(Protocol):
    """What strategies may see and change of :class:`retrieval_bench.training.loop.Training`."""

    epoch: int
    epochs: int
    images_seen: int
    model: Embedder
    optimizer: torch.optim.Optimizer

    @property
    def criterion(self) -> nn.Module: ...

    def snapshot(self) -> dict[str, Any]:
        """A copy of the state dictionaries (``model``, ``criterion``, ``optimizer``) and the ``skipped`` batches."""
        ...

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Puts a snapshot back, bit for bit, learning rates included, any number of times."""

    def lrs(self) -> dict[str, float]:
        """Learning rate by group name, before the schedule's factor."""
        ...

    def set_lrs(self, rates: dict[str, float]) -> None:
        """Sets the rates of the named groups, before the schedule's factor; an unknown name is a KeyError."""

    def rebuild(self) -> None:
        """Makes loss and optimiser anew, for a model whose parameters have become others."""

    def search(self, kind: str, count: int, found: dict[str, list[Any]]) -> Iterator[int]:
        """The numbers of `count` passes before the training, from 0, without those that were finished before the run
        was stopped: then `found`, lists that each pass adds to, and all that was trained are as they were after them.
        A strategy with several searches gives each a `kind`."""
        ...

    def example_batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of at least `count` training images, or of all: uint8 (B, 3, H, W) and int64 labels (B,), drawn as
        those of a pass, the same at every call and counted as cost."""
        ...

    def holding_out(self, share: float) -> AbstractContextManager[Callable[[], float]]:
        """A block whose passes leave out this share of the training classes; yields Recall@1 on them, as a function."""
        ...


class TrainOnce(Protocol):
    """One pass over the training data; returns its mean loss. Each attempt draws its own order and augmentation.

    Attempts -1, -2 and so on, before the training, are at the full rate, or with `epochs` at that of the schedule over
    so many of them.
    """

    def __call__(self, attempt: int = 0, epochs: int = 0) -> float: ...


class Strategy:
    """Base of all strategies; the hooks below are the whole protocol."""

    @dataclass(frozen=True)
    class Options:
        """Options of the strategy, each declared by :func:`option`: flags of the command line, values of the record."""

        def check(self) -> None:
            """Raises :class:`UserError` for values that do not go together; the bounds of each are checked before."""

        @property
        def epochs_needed(self) -> int:
            """The fewest epochs that make sense."""
            return 0

        @property
        def in_phases(self) -> bool:
            """Whether what is deployed depends on all epochs, so that none before the last can take its place."""
            return False

        def without_downloads(self) -> Any:
            """The same options for a network whose weights come from a file: nothing pretrained is fetched."""
            return self

        def candidates(self) -> list[Any]:
            """The options to choose from on validation classes, preferred ones first; mostly these alone."""
            return [self]

    look: ClassVar[Look] = Look("#848490", "h")
    """Colours lie as far apart as they can in OKLab, also for those who see no red or no green (Machado et al. 2009),
    with a contrast of 3 to 1 or more on white and on dark pages. Two strategies of distant colours share a marker."""

    space: ClassVar[dict[str, Range | Categorical]] = {}
    """What a search tries, by the option's name; collected from the options."""

    trains_backbone: ClassVar[bool] = True
    """Whether the learning rate has anything to act on in the backbone."""

    prunes: ClassVar[str] = ""
    """Removes ``blocks``, in ``prepare``, or ``channels``, in ``before_training``: others of a chain wait for that."""

    rebuilds_blocks: ClassVar[bool] = False
    """Puts other modules in the place of blocks: one such strategy per chain."""

    averages: ClassVar[bool] = False
    """Deploys other weights than the trained ones (``finalize``), in the same modules: one such strategy per chain,
    which does it before others replace modules."""

    options: Any

    def __init_subclass__(cls) -> None:
        searched = {part.name: part.metadata.get("search") for part in fields(cls.Options)}
        cls.space = {name: values for name, values in searched.items() if values is not None}

    def __init__(self, options: Any = None):
        self.options = self.Options() if options is None else options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        """Edits the network in place before the optimiser sees it: freeze, drop blocks, add gates, twin blocks.
        `example_images` are a few training images, uint8 (B, 3, H, W), for shapes and statistics."""
        return model

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        """Edits the optimiser's groups. They arrive one per block, every trainable parameter in exactly one; a
        parameter that is taken out of all groups is not trained. Names must stay distinct."""
        return groups

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        """Called once before the first epoch. Passes made here count as cost; their attempts are -1, -2 and so on.
        What changes the parameters here calls ``state.rebuild()``."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        """Runs one epoch and returns the mean loss of the pass that is kept.

        A strategy may call `train_once` several times, restoring `state` between: every pass counts as cost. A pass
        with a non-finite loss raises :class:`retrieval_bench.errors.Diverged`, which a strategy may catch to reject it.
        """
        return train_once()

    def end_epoch(self, state: EpochState) -> None:
        """Called after each epoch, once its pass is accepted."""

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        """A term added to the loss of this step, or None. In place of `images` there may be int64 (B,) positions, where
        features of a frozen prefix are kept."""
        return None

    def after_step(self, model: Embedder) -> None:
        """Called after every optimiser step (to clamp gates, for example)."""

    def finalize(self, model: Embedder) -> Embedder:
        """The model that is deployed, evaluated and counted: gates folded, pruned channels removed."""
        return model

    def eval_modes(self, model: Embedder) -> Iterator[tuple[str, Embedder]]:
        """Other ways to use the finished model, each measured beside it; several of one name are draws of one way.

        The model that is yielded may be `model`, changed until the next step of the iterator, which changes it back.
        """
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """What is needed to resume after an epoch, beside network, loss and optimiser: numbers, strings, tensors, and
        lists and dictionaries of them. If blocks stay rebuilt after ``finalize``, it also goes into the recipe of the
        saved network (``retrieval_bench.deploy``): JSON types, with all that decides what the network does."""
        return {}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        """Takes back what :meth:`state_dict` gave, in place of ``before_training``.

        `model` is as ``prepare`` left it: what was removed since then must be removed again. Weights are loaded later.
        """

    def info(self) -> dict[str, Any]:
        """What the strategy learned, for the record (JSON types): kept blocks, rates, trials, routes."""
        return {}


def check_options(strategy: str, options: Strategy.Options) -> None:
    """Raises :class:`UserError` for the first option that is out of its bounds or conflicts with another."""
    check_bounds(options, f"--{strategy}.".replace("_", "-"))
    options.check()


def block_names(model: Embedder, strategy: str) -> list[str]:
    """Names of the repeated blocks in order; raises :class:`UserError` for `strategy` if the backbone names none."""
    names = [block.name for block in model.backbone.body]
    if not names:
        raise UserError(f"{strategy} needs a backbone that names its blocks; use standard or frozen with this one")
    return names


def freeze_other_blocks(model: Embedder, tuned: Collection[str]) -> None:
    """Freezes the stem and all blocks but those in `tuned`; what follows the last block is trained with them. The loop
    keeps modules without trained parameters in eval mode."""
    for block in model.backbone.blocks:
        if block.name not in (*tuned, TAIL):
            for parameter in model.backbone.block_parameters(block):
                parameter.requires_grad_(False)


def scale_lrs(groups: Iterable[ParameterGroup], factors: Mapping[str, float]) -> list[ParameterGroup]:
    """`groups` with the learning rates of those that `factors` names multiplied."""
    return [{**group, "lr": group["lr"] * factors.get(group["name"], 1.0)} for group in groups]

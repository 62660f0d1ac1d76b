"""The protocol of a fine-tuning strategy: what is tuned, how fast, and what is thrown away; and how a strategy declares its options.

Every hook has a default that does nothing, so a strategy's file holds only what its paper changes. The training loop calls the hooks in
this order: ``prepare``, ``parameter_groups`` and ``before_training`` once, then for each epoch ``run_epoch`` (inside it
``regularization`` and ``after_step`` at every step) and ``end_epoch``, and ``finalize`` once. A strategy never sees the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, TypedDict

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError, unknown
from retrieval_bench.models.embedder import Embedder


@dataclass(frozen=True)
class Range:
    """Numbers that a search tries, from `low` to `high`, both included; whole numbers if both are.

    `log` draws evenly over orders of magnitude; `blocks` says that it is a number of blocks, which a backbone limits.
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
    """Values without an order that a search tries; with `blocks`, value n (from 0) concerns n blocks, which a backbone limits."""

    values: tuple[str | int | float, ...]
    blocks: bool = False

    def within(self, count: int) -> Categorical:
        """The same for a backbone of `count` blocks."""
        return replace(self, values=self.values[:count]) if self.blocks and count else self

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[str] = (),
    search: Range | Categorical | None = None,
    shown: bool = False,
) -> Any:
    """A field of a strategy's ``Options``: one line declares the flag, its help, its bounds and what a search tries.

    Args:
        default: never changes, since runs are named by what differs from it.
        help: of the flag.
        low, high: bounds, both allowed.
        above, below: bounds, both not allowed.
        choices: the allowed words.
        search: the values that a search tries. What sets the size of the network or the length of the training is not searched.
        shown: part of the strategy's label in tables even at its default.
    """
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    return field(
        default=default, metadata={"help": help, **bounds, "choices": choices, "search": search, "shown": shown}
    )


@dataclass(frozen=True)
class Look:
    """How plots show a strategy: a hexadecimal colour and a marker of matplotlib, the same in every figure."""

    colour: str
    marker: str


class ParameterGroup(TypedDict):
    """One optimiser group. `name` is a block's name, ``embedding`` or ``loss``; `lr` is the rate before the schedule's factor."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class EpochState(Protocol):
    """What ``run_epoch`` may see and change. Implemented by :class:`retrieval_bench.training.loop.Training`."""

    epoch: int
    epochs: int
    model: Embedder
    optimizer: torch.optim.Optimizer

    @property
    def criterion(self) -> nn.Module: ...

    def snapshot(self) -> dict[str, Any]:
        """A copy of weights, buffers (BN statistics included) and optimiser state, as state dictionaries.

        Its keys are ``model``, ``criterion``, ``optimizer`` and ``skipped`` (batches that were left out).
        """
        ...

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Puts a snapshot back, bit for bit, learning rates included; it may be restored any number of times."""

    def lrs(self) -> dict[str, float]:
        """Learning rate per group name, before the schedule's factor."""
        ...

    def rebuild(self) -> None:
        """A fresh loss and a fresh optimiser, for a model whose parameters have become others."""

    def holding_out(self, share: float) -> AbstractContextManager[Callable[[], float]]:
        """A block in which passes leave out this share of the training classes; what it gives scores the model on them (Recall@1)."""
        ...

    def set_lrs(self, rates: dict[str, float]) -> None:
        """Sets the rate of the named groups, before the schedule's factor; an unknown name is a KeyError."""


class TrainOnce(Protocol):
    """One pass over the training data, returning the mean loss. Each attempt of an epoch draws its own order and augmentation."""

    def __call__(self, attempt: int = 0) -> float: ...


class Strategy:
    """Base of all strategies; the hooks below are the whole protocol."""

    @dataclass(frozen=True)
    class Options:
        """Options of the strategy, each declared by :func:`option`: command-line flags and part of the record."""

        def check(self) -> None:
            """Raises :class:`UserError` for values that cannot work together; bounds of single values are checked already."""

    look: ClassVar[Look] = Look("#848490", "h")
    """Colours lie as far apart as they can in OKLab, also for those who see no red or no green (Machado et al. 2009), with a contrast of 3
    to 1 or more on white and on dark pages. Two strategies of distant colours share a marker."""

    space: ClassVar[dict[str, Range | Categorical]] = {}
    """What a search tries, by the option's name; made from the options."""

    trains_backbone: ClassVar[bool] = True
    """Whether the learning rate has anything to act on in the backbone."""

    cuts: ClassVar[bool] = False
    """Removes blocks or channels, and so comes before the others in a chain."""
    rebuilds_blocks: ClassVar[bool] = False
    """Puts other modules in the place of blocks: one such strategy per chain."""

    options: Any

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        searched = {part.name: part.metadata.get("search") for part in fields(cls.Options)}
        cls.space = {name: values for name, values in searched.items() if values is not None}

    def __init__(self, options: Any = None):
        self.options = self.Options() if options is None else options

    @classmethod
    def candidates(cls, options: Any) -> list[Any]:
        """The options to choose from on validation classes (see ``retrieval_bench.selection``), preferred ones first.

        Mostly `options` alone.
        """
        return [options]

    @classmethod
    def epochs_needed(cls, options: Any) -> int:
        """The fewest epochs that make sense."""
        del options
        return 0

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        """Edits the network before the optimiser sees it: freeze, cut blocks, add gates, twin blocks.

        Args:
            model: the embedder with its pretrained weights.
            example_images: a few training images, uint8 (B, 3, H, W), for shapes and statistics.
        """
        del example_images
        return model

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        """Edits the optimiser's groups. They arrive one per block, every trainable parameter in exactly one; a parameter that is taken out
        of all groups is not trained. Names must stay distinct."""
        del model
        return groups

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        """Called once before the first epoch. Passes made here are counted as cost; give them attempts of their own (-1, -2...). What
        changes the parameters here calls ``state.rebuild()``."""
        del train_once, state

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        """Runs one epoch and returns the mean loss of the pass that is kept.

        A strategy may call `train_once` several times, restoring `state` between: every pass is counted as cost. A pass whose loss stops
        being a number raises :class:`retrieval_bench.errors.Diverged`, which a strategy may catch to reject it.
        """
        del state
        return train_once()

    @property
    def goes_on_within_epochs(self) -> bool:
        """Whether a pass that was stopped in the middle can be gone on with: an epoch is a single pass and nothing else."""
        return type(self).run_epoch is Strategy.run_epoch

    def end_epoch(self, state: EpochState) -> None:
        """Called after each epoch, once its pass is accepted."""
        del state

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        """A term added to the loss of this step, or None."""
        del model, images
        return None

    def after_step(self, model: Embedder) -> None:
        """Called after every optimiser step (to clamp gates, for example)."""
        del model

    def finalize(self, model: Embedder) -> Embedder:
        """The model that is deployed, evaluated and counted: gates folded, dead channels gone."""
        return model

    def eval_modes(self, model: Embedder) -> Iterator[tuple[str, Embedder]]:
        """Other ways to use the finished model, which are measured beside it; several of one name are draws of one way.

        The model that is yielded may be `model`, changed until the next step of the iterator, which changes it back.
        """
        del model
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """What the strategy must know to go on after an epoch, beside what network, loss and optimiser hold: numbers, strings, tensors, and
        lists and dictionaries of them. Of a strategy whose blocks stay rebuilt after ``finalize`` it also goes into the recipe of the saved
        network, as JSON types, with all that decides what the network does and is no weight (``retrieval_bench.deploy.saved``)."""
        return {}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        """Takes back what :meth:`memory` gave, in place of ``before_training``.

        `model` is as ``prepare`` left it: blocks and channels that went since then must go again. Its weights are loaded afterwards.
        """

    def info(self) -> dict[str, Any]:
        """What the strategy learned, for the record (JSON types only): kept blocks, rates, trials, routes."""
        return {}


def check_options(strategy: str, options: Strategy.Options) -> None:
    """Raises :class:`UserError` for the first option of `strategy` that is out of its bounds or does not go with another."""
    is_within = {
        "at least": lambda value, bound: value >= bound,
        "above": lambda value, bound: value > bound,
        "at most": lambda value, bound: value <= bound,
        "below": lambda value, bound: value < bound,
    }
    for part in fields(options):
        flag, value = f"--{strategy}.{part.name}".replace("_", "-"), getattr(options, part.name)
        bounds = {words: bound for words in is_within if (bound := part.metadata[words]) is not None}
        if not all(is_within[words](value, bound) for words, bound in bounds.items()):
            raise UserError(
                f"{flag} {value}: must be {' and '.join(f'{words} {bound}' for words, bound in bounds.items())}"
            )
        if (choices := part.metadata["choices"]) and value not in choices:
            raise unknown(f"value of {flag}", value, choices)
    options.check()


def freeze(parameters: Iterable[nn.Parameter]) -> None:
    """Takes `parameters` out of training; the loop keeps a module with no trainable parameter in eval mode (no BN drift)."""
    for parameter in parameters:
        parameter.requires_grad_(False)


def block_names(model: Embedder, strategy: str) -> list[str]:
    """Names of the repeated blocks in order; raises :class:`UserError` on behalf of `strategy` if the backbone names none."""
    names = [block.name for block in model.backbone.body]
    if not names:
        raise UserError(f"{strategy} needs a backbone that names its blocks; use standard or frozen with this one")
    return names


def freeze_other_blocks(model: Embedder, tuned: Collection[str]) -> None:
    """Freezes the stem and all blocks but those named in `tuned`; what follows the last block is trained with them."""
    for block in model.backbone.blocks:
        if block.name not in tuned and block.name != "tail":
            freeze(model.backbone.block_parameters(block))


def scale_rates(groups: Iterable[ParameterGroup], factors: Mapping[str, float]) -> list[ParameterGroup]:
    """`groups` with the learning rates of those that `factors` names multiplied."""
    return [{**group, "lr": group["lr"] * factors.get(group["name"], 1.0)} for group in groups]

"""AutoLR: repeats every epoch with other layer-wise rates until weight variations ascend from first to last block.

Ro and Choi, AutoLR: Layer-wise Pruning and Auto-tuning of Learning Rates in Fine-tuning of Deep Networks (AAAI 2021,
arXiv 2002.06048), algorithm 2. An epoch is a loop of passes from the same weights. After each, the variation v_k of
every block is measured and with it the sorting quality Q (``weight_variation.py``). If Q reaches the threshold the pass
is kept. If not it is undone, and the rates become ``rate_k * target_k / v_k`` for ascending targets
(``autolr_rules.py``): a line in the first epoch, the sorted variations later. The stem gets half of the first block's
rate, a tail that of the last block; embedding and loss keep theirs. Pair it with ``layer_pruning``.

Defaults are those of the authors' code: low 2, high 0.4, threshold 0.94 times 0.99 per epoch while above 0.8, a fresh
momentum for every pass, new order and augmentation for every pass. ``--autolr.rules paper`` takes the paper's letter
where it differs: the first line starts at min v, Q has to exceed the threshold, and the target is renewed after every
failed pass (the code keeps that of the first).

Deviations. The original's loop may never end, and its rates may turn negative. Here: at most ``max_trials`` passes an
epoch and ``max_rejected`` undone ones in all, after which the pass with the best Q is repeated and kept (``converged``
false); a first line that would descend is replaced, targets stay above 0, rates within bounds; blocks that do not move
keep their rates and are left out of the sorting; a pass that diverged is undone and all rates halved. ``bounds`` in the
record counts each. The code resets the head's rate when a pass fails after the drop of the schedule; not here.

Equation 15 takes v_k for proportional to the rate, as under SGD. Adam(W) moves every weight by about its rate and does
not endure what sorts them: a line warns, and ``rise`` 3 scales all rates down together, which keeps their order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np
from torch import Tensor

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import logger
from retrieval_bench.strategies.autolr_rules import (
    Rules,
    initial_target,
    is_sorted_enough,
    later_target,
    raised,
    target_rates,
    threshold_at,
)
from retrieval_bench.strategies.base import EpochState, Look, Range, Strategy, TrainOnce, option
from retrieval_bench.strategies.weight_variation import (
    NORMALIZER_HELP,
    History,
    Normalizer,
    sorting_quality,
    weight_variation,
)

SMALLEST_RATE = 1e-3
"""Least rate of a block, as a share of the rate that it began with."""
BOUNDS = ("bounded_rates", "descending_targets", "diverged", "lifted_targets", "still_blocks")
"""What the record counts: rates that a bound changed, first lines that were replaced, passes that diverged, targets
that were lifted above 0, and blocks that did not move."""


@dataclass(frozen=True)
class Pass:
    """One pass over the data: its rates and outcome (NaN and empty if it diverged).

    `measured` has the variation of every block, `variation` that of the blocks that moved.
    """

    number: int
    rates: dict[str, float]
    loss: float
    measured: dict[str, float]
    variation: dict[str, float]
    quality: float

    @property
    def diverged(self) -> bool:
        return not isfinite(self.quality)


class AutoLR(Strategy):
    """Tunes the learning rate of every block. Raises :class:`UserError` for a backbone with fewer than two blocks."""

    look = Look("#d80018", "o")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        low: float = option(
            2.0,
            "the first target begins at this multiple of the smallest variation (the code's min_f, the paper's alpha)",
            above=0,
            search=Range(1.0, 4.0, log=True),
        )
        high: float = option(
            0.4,
            "the first target ends at this multiple of the largest variation (max_f, beta)",
            above=0,
            search=Range(0.1, 1.0, log=True),
        )
        threshold: float = option(
            0.94, "sorting quality that the first epoch must reach", high=1, search=Range(0.7, 0.98)
        )
        threshold_decay: float = option(0.99, "factor on the threshold per later epoch", above=0, high=1)
        threshold_floor: float = option(0.8, "the threshold is lowered as long as it is above this")
        stem_factor: float = option(0.5, "the stem's rate as a multiple of the first block's", above=0)
        normalizer: Normalizer = option("n", NORMALIZER_HELP)
        rules: Rules = option("code", "where the paper and its code differ: code or paper")
        optimizer_state: Literal["fresh", "kept"] = option(
            "fresh", "momentum at the beginning of a pass: none (fresh), or what the last kept pass left"
        )
        paired_trials: bool = option(False, "repeat an epoch with the same order and augmentation")
        max_trials: int = option(10, "most passes per epoch, the repetition of the best aside", low=1)
        max_rejected: int = option(200, "most passes that are undone in the whole training")
        max_ratio: float = option(100.0, "a rate changes at most by this factor from one pass to the next", low=1)
        max_rise: float = option(
            100.0,
            "highest rate of a block, as a multiple of the rate that it began with",
            low=1,
            search=Range(1.0, 100.0, log=True),
        )
        rise: float = option(0.0, "the same, but all rates are scaled down together (3 suits Adam); 0 for none", low=0)

        def check(self) -> None:
            if self.rules == "paper" and self.threshold >= 1:
                raise UserError(
                    f"--autolr.threshold {self.threshold}: must be below 1 with --autolr.rules paper, since the "
                    "sorting quality, at most 1, must exceed it"
                )

    options: Options

    def __init__(self, options: Options | None = None):
        super().__init__(options)
        self._history = History(self.options.normalizer)
        self._initial_lrs: dict[str, float] = {}
        self._rejected = 0
        self._bounds = Counter(dict.fromkeys(BOUNDS, 0))

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        if len(model.backbone.body) < 2:
            raise UserError("autolr needs a backbone that names two or more blocks; use standard with this one")
        return model

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        if "betas" in state.optimizer.defaults and not self.options.rise:  # Adam and its kin
            logger.info(
                "warning: autolr assumes SGD; under Adam(W) its rates may rise until they destroy the network: add "
                "--autolr.rise 3, or take --optimizer sgd"
            )

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        options = self.options
        self._initial_lrs = self._initial_lrs or state.lrs()
        threshold = threshold_at(state.epoch, options.threshold, options.threshold_decay, options.threshold_floor)
        # all passes may be undone, for the best to be repeated
        limit = max(1, min(options.max_trials, options.max_rejected - self._rejected))
        if options.optimizer_state == "fresh":
            state.optimizer.state.clear()  # before the snapshot: all passes of the epoch start without
        before = state.snapshot()
        target: dict[str, float] = {}
        trials = [self._try(train_once, state, before, 0)]
        while not (enough := is_sorted_enough(trials[-1].quality, threshold, options.rules)) and len(trials) < limit:
            if not target or options.rules == "paper":
                target = self._target(trials[-1], state.epoch)
            rates = self._next_rates(trials[-1], target)
            state.restore(before)
            state.set_lrs(rates)
            trials.append(self._try(train_once, state, before, len(trials)))
        kept = trials[-1] if enough else self._best(trials)
        if kept is not trials[-1]:
            state.restore(before)
            state.set_lrs(kept.rates)
            kept = self._try(train_once, state, before, kept.number)
            if kept.diverged:
                raise Diverged("a repeated pass did not give the same result: lower --lr or --loss-lr")
        passes = len(trials) + (kept.number < len(trials) - 1)
        self._rejected += passes - 1
        self._history.add(
            kept.measured,
            kept.rates,
            quality=kept.quality,
            threshold=threshold,
            target=[target.get(name) for name in kept.measured],
            trials=len(trials),
            passes=passes,
            qualities=[None if trial.diverged else trial.quality for trial in trials],
            converged=enough,
        )
        return kept.loss

    def state_dict(self) -> dict[str, Any]:
        bounds = {name: int(count) for name, count in self._bounds.items()}
        rejected = {"rejected": self._rejected, "bounds": bounds}
        return {"epochs": self._history.epochs, "initial_lrs": self._initial_lrs, **rejected}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._history.epochs = state["epochs"]
        self._initial_lrs, self._rejected = state["initial_lrs"], state["rejected"]
        self._bounds = Counter(state["bounds"])

    def info(self) -> dict[str, Any]:
        return {**self._history.info(), "rejected": self._rejected, "bounds": dict(sorted(self._bounds.items()))}

    def _try(self, train_once: TrainOnce, state: EpochState, before: dict[str, Any], number: int) -> Pass:
        """One pass with the rates that are set."""
        rates = state.lrs()
        measured: dict[str, float] = {}
        moving: dict[str, float] = {}
        try:
            loss = train_once(0 if self.options.paired_trials else number)
        except Diverged:
            loss = quality = float("nan")
        else:
            measured = weight_variation(before["model"], state.model, self.options.normalizer)
            moving = {name: value for name, value in measured.items() if value != 0}
            quality = sorting_quality(list(moving.values()))
        self._bounds["still_blocks"] += len(measured) - len(moving)
        self._bounds["diverged"] += not isfinite(quality)
        return Pass(number, rates, loss, measured, moving, quality)

    def _target(self, trial: Pass, epoch: int) -> dict[str, float]:
        """What the next passes of the epoch aim at; nothing after a pass that diverged."""
        if trial.diverged:
            return {}
        variation = np.array(list(trial.variation.values()))
        if epoch == 0:
            target, replaced = initial_target(variation, self.options.low, self.options.high, self.options.rules)
            self._bounds["descending_targets"] += replaced
        else:
            target = later_target(variation)
        target, lifted = raised(target, variation)
        self._bounds["lifted_targets"] += lifted
        return dict(zip(trial.variation, target.tolist(), strict=True))

    def _next_rates(self, trial: Pass, target: dict[str, float]) -> dict[str, float]:
        """The rates of the next pass: by target, or half of all after a pass that diverged."""
        if trial.diverged:
            return {name: rate / 2 for name, rate in trial.rates.items()}
        names = [name for name in trial.variation if name in target]
        rates, variation, aims, initial = (
            np.array([values[name] for name in names])
            for values in (trial.rates, trial.variation, target, self._initial_lrs)
        )
        lowest, highest = SMALLEST_RATE * initial, self.options.max_rise * initial
        ceiling = self.options.rise * initial if self.options.rise else np.inf
        new, bounded = target_rates(rates, variation, aims, lowest, highest, self.options.max_ratio, ceiling)
        self._bounds["bounded_rates"] += bounded
        by_name = {**trial.rates, **dict(zip(names, new.tolist(), strict=True))}
        blocks = list(trial.measured)
        ends = {"stem": self.options.stem_factor * by_name[blocks[0]], "tail": by_name[blocks[-1]]}
        return by_name | {name: rate for name, rate in ends.items() if name in trial.rates}

    def _best(self, trials: list[Pass]) -> Pass:
        """The pass with the best quality; raises :class:`Diverged` if all diverged."""
        finite = [trial for trial in trials if not trial.diverged]
        if not finite:
            raise Diverged(
                f"all {len(trials)} passes of an epoch diverged, rates halved each time: lower --lr or --loss-lr"
            )
        return max(finite, key=lambda trial: trial.quality)

"""One strategy's search: what was tried, what is tried next, and what is best; kept in a file, so that it can be gone on with.

The next values depend on what was tried and on nothing else: an interrupted search ends as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import locked
from retrieval_bench.seeding import derive
from retrieval_bench.strategies.base import Categorical, Range
from retrieval_bench.tune.spaces import Objective, space_of, tidy, values_of, with_values

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 4
"""Trials before the sampler has enough to learn from; the first of them has the values that were given."""


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        number: from 0.
        values: what was tried, by flag.
        images_seen: in its training, rejected passes included; those of a plain run if it failed, since that leaves no record.
        metrics: of its record, on the validation classes; empty if it failed.
        record: id of its record.
        error: why it failed.
    """

    number: int
    values: dict[str, Any]
    images_seen: int
    metrics: dict[str, float]
    record: str = ""
    error: str = ""


class Search:
    """The search of one strategy.

    Args:
        config: on the ``zero_shot_val`` split; its own values are the first to be tried.
        path: of the journal.
        objective: the metric that is maximised.
        plain_images: images that a run sees which makes one pass per epoch.
        blocks: that the backbone has, if that is known.

    Raises:
        UserError: optuna is missing, a journal that cannot be read or is of another space, or a split whose tested classes are not for
            making choices.
    """

    def __init__(
        self, config: RunConfig, path: Path, objective: Objective, plain_images: int, blocks: int | None = None
    ):
        if config.data.split != "zero_shot_val":
            raise UserError(f"--split {config.data.split}: a search is scored on the split zero_shot_val")
        self.config, self.path, self.objective, self.plain_images = config, path, objective, plain_images
        self.space = space_of(config, blocks)
        self._study = open_study(path, {name: str(values) for name, values in self.space.items()})

    @property
    def trials(self) -> list[Trial]:
        """What was tried, in order."""
        return [
            Trial(trial.number, trial.params, **trial.user_attrs) for trial in self._study.get_trials(deepcopy=False)
        ]

    @property
    def images_seen(self) -> int:
        """By all trials."""
        return sum(trial.images_seen for trial in self.trials)

    def wants_more(self, trials: int) -> bool:
        """Whether another trial is due: fewer than `trials` were made, and one like those so far would not exceed the budget of
        `trials` plain runs. What has no space is tried once."""
        made = len(self.trials)
        if not made or not self.space:
            return not made
        return made < trials and self.images_seen * (made + 1) <= trials * self.plain_images * made

    def ask(self) -> RunConfig:
        """The next configuration: the one that was given first, then what the tree-structured Parzen estimator proposes (Bergstra et
        al., NeurIPS 2011), the first few at random."""
        import optuna

        past = self._study.get_trials(deepcopy=False)
        if not past:
            return self.config
        seed = derive(self.config.seed, "search", self.config.strategy, len(past)) % 2**32
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        )
        study.add_trials(past)
        values = study.ask({name: _distribution(values) for name, values in self.space.items()}).params
        return with_values(self.config, {name: tidy(value) for name, value in values.items()})

    def tell(self, config: RunConfig, record: dict[str, Any] | None, error: str = "") -> None:
        """Keeps what came of a configuration: its record, or why it failed."""
        import optuna

        metrics = {} if record is None else {name: record["metrics"][name] for name in ("recall_at_1", "map_at_r")}
        seen = self.plain_images if record is None else record["cost"]["images_seen"]
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if metrics else optuna.trial.TrialState.FAIL,
            value=metrics.get(self.objective),
            params=values_of(config, self.space),
            distributions={name: _distribution(values) for name, values in self.space.items()},
            user_attrs={
                "images_seen": seen,
                "metrics": metrics,
                "record": record["id"] if record else "",
                "error": error,
            },
        )
        self._study.add_trial(trial)

    def best(self, trials: int) -> Trial | None:
        """The first `trials` trials' best by the objective, of equal ones by the other metric, then the earlier; None if all failed.

        Trials from the one on that exceeds the budget do not count, but for the first.
        """
        found, spent = [], 0
        for trial in self.trials[:trials]:
            spent += trial.images_seen
            if trial.metrics and (trial.number == 0 or spent <= trials * self.plain_images):
                found.append(trial)
        return max(found, key=lambda trial: (trial.metrics[self.objective], sum(trial.metrics.values())), default=None)

    def chosen(self, trials: int) -> RunConfig | None:
        """The configuration of :meth:`best`, to be trained on all training classes and tested."""
        best = self.best(trials)
        if best is None:
            return None
        return with_values(replace(self.config, data=replace(self.config.data, split="zero_shot")), best.values)


def open_study(path: Path, space: dict[str, str]) -> optuna.Study:
    """The Optuna study in the journal at `path`, which is made if there is none; `space` says what it searches, in words."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError('a search needs Optuna: pip install "retrieval_bench[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    words = json.dumps(space, sort_keys=True)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(study_name=path.stem, storage=storage, direction="maximize", load_if_exists=True)
        if study.user_attrs.setdefault("space", words) != words:
            raise UserError(
                f"{path}: searches {study.user_attrs['space']}, not {words}; remove the file to search anew"
            )
        study.set_user_attr("space", words)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a journal of a search ({first_line(error)}); remove the file, recorded trials cost no time"
        ) from None
    return study


@contextmanager
def holding(paths: list[Path]) -> Iterator[None]:
    """Keeps other processes from the same searches."""
    with ExitStack() as stack:
        for path in sorted(paths):
            stack.enter_context(locked(path, f"searching {path.stem}", "--results"))
        yield


def _distribution(values: Range | Categorical) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Categorical):
        return CategoricalDistribution(values.values)
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)

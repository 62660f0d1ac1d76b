"""The search of one strategy: trials in a journal (Optuna's JournalStorage), of which the best is chosen.

The next values depend on what was tried and on nothing else.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from retrieval_bench.columns import column
from retrieval_bench.config import RunConfig, to_command
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.experiments.experiment import Objective, Row
from retrieval_bench.experiments.search_space import rounded, values_of, values_text, with_values
from retrieval_bench.experiments.workers import JobResult
from retrieval_bench.files import write_text
from retrieval_bench.seeding import derive
from retrieval_bench.strategies.base import Categorical, Range
from retrieval_bench.tables import TextTable

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 4
"""Trials before the sampler has enough to learn from; the first of them has the values that were given."""
SCORES = ("recall_at_1", "map_at_r")
"""Metrics that a journal keeps of each trial."""


@dataclass
class StrategySearch:
    """The search of one strategy.

    Attributes:
        config: on the ``zero_shot_val`` split; its own values are the first to be tried.
        space: what is searched.
        path: of the journal.
        objective: the metric that is maximised.
        budget: number of trials, and of plain runs whose images they may see.
        plain_images: images that a run sees which makes one pass per epoch.
        also_test: other data sets, on which only the choice is measured.

    Raises:
        UserError: optuna is missing, or a journal that cannot be read or is of another space.
    """

    config: RunConfig
    space: Mapping[str, Range | Categorical]
    path: Path
    objective: Objective
    budget: int
    plain_images: int
    also_test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._study = open_study(self.path, {name: str(values) for name, values in self.space.items()})
        self._distributions = {name: distribution(values) for name, values in self.space.items()}

    @property
    def budget_images(self) -> int:
        return self.budget * self.plain_images

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What was tried, in order: ``params``, and in ``user_attrs`` the ``metrics`` on the validation classes (empty
        if it failed), ``images_seen`` in its training, rejected passes included (those of a plain run if it failed,
        since that leaves no record), the id of its ``record``, and its ``error``."""
        return self._study.get_trials(deepcopy=False)

    @property
    def images_seen(self) -> int:
        """By all trials."""
        return sum(trial.user_attrs["images_seen"] for trial in self.trials)

    @property
    def wants_more(self) -> bool:
        """Whether another trial is due: the number is not reached, and one like those so far would not exceed the
        budget of images. What has no space is tried once."""
        made = len(self.trials)
        if not made or not self.space:
            return not made
        return made < self.budget and self.images_seen * (made + 1) <= self.budget_images * made

    def ask(self) -> RunConfig:
        """The next configuration: the one that was given first, then what the tree-structured Parzen estimator proposes
        (Bergstra et al., NeurIPS 2011), the first few at random."""
        import optuna

        past = self.trials
        if not past:
            return self.config
        seed = derive(self.config.seed, "search", self.config.strategy, len(past)) % 2**32
        sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(past)
        values = study.ask(self._distributions).params
        return with_values(self.config, {name: rounded(value) for name, value in values.items()})

    def tell(self, result: JobResult) -> None:
        """Keeps what came of a configuration: its record, or why it failed."""
        from optuna.trial import TrialState, create_trial

        record = result.record
        metrics = {name: record.metrics[name] for name in SCORES} if record else {}
        attributes = {
            "images_seen": record.cost["images_seen"] if record else self.plain_images,
            "metrics": metrics,
            "record": record.id if record else "",
            "error": result.error or "",
        }
        trial = create_trial(
            state=TrialState.COMPLETE if metrics else TrialState.FAIL,
            value=metrics.get(self.objective),
            params=values_of(result.config, self.space),
            distributions=self._distributions,
            user_attrs=attributes,
        )
        self._study.add_trial(trial)

    @property
    def best(self) -> optuna.trial.FrozenTrial | None:
        """The best trial within the budget by the objective, of equal ones by the other metric, then the earlier; None
        if all failed.

        Trials from the one on that exceeds the budget of images do not count, but for the first.
        """
        able, spent = [], 0
        for trial in self.trials[: self.budget]:
            spent += trial.user_attrs["images_seen"]
            metrics = trial.user_attrs["metrics"]
            if metrics and (trial.number == 0 or spent <= self.budget_images):
                able.append((metrics[self.objective], sum(metrics.values()), -trial.number, trial))
        return max(able)[-1] if able else None

    @property
    def chosen(self) -> RunConfig | None:
        """The configuration of :meth:`best`, to be trained on all training classes and tested."""
        best = self.best
        tested = self.config.changed(data__split="zero_shot", evaluation__also_test=self.also_test)
        return None if best is None else with_values(tested, best.params)

    @property
    def row(self) -> Row | None:
        """The choice as a row of a table, with what the search cost and chose; None if every trial failed."""
        best, config, made = self.best, self.chosen, self.trials
        if best is None or config is None:
            return None
        columns = {
            "chosen": values_text(best.params),
            "objective": self.objective,
            "validation": best.user_attrs["metrics"][self.objective],
            "trials": len(made),
            "failed_trials": sum(not trial.user_attrs["metrics"] for trial in made),
            "search_images_seen": self.images_seen,
        }
        return Row(config.strategy, config, more=("map_at_r",), columns=columns)

    def write(self) -> None:
        """The trials in Markdown, beside the journal; the chosen one is marked."""
        best, config, lines = self.best, self.chosen, []
        for trial in self.trials:
            attributes = trial.user_attrs
            outcome = "chosen" if best is not None and trial.number == best.number else attributes["error"]
            scores = {column(name).title: column(name).text(attributes["metrics"].get(name)) for name in SCORES}
            lines.append({"trial": str(trial.number + 1), "values": values_text(trial.params), **scores})
            lines[-1] |= {"images seen": f"{attributes['images_seen']:,}", "": outcome}
        space = "; ".join(f"{name}: {values}" for name, values in self.space.items()) or "nothing"
        text = [
            f"# {self.path.stem}",
            f"{self.config.strategy}: {self.budget} trials or {self.budget_images:,} images, whichever comes first; "
            f"{column(self.objective).title} on validation classes inside the training classes decides. "
            "The first trial has the values that were given, then a tree-structured Parzen estimator proposes. "
            "In percent.",
            f"Searched: {space}.",
            TextTable("", pd.DataFrame(lines)).to_markdown(),
            f"Chosen: `{run_command(config)}`" if config else "Every trial failed.",
        ]
        write_text(self.path.with_suffix(".md"), "\n\n".join(text) + "\n")


def distribution(values: Range | Categorical) -> optuna.distributions.BaseDistribution:
    """The same as Optuna calls it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, Categorical):
        return CategoricalDistribution(values.values)
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def run_command(config: RunConfig) -> str:
    """The command that trains and tests `config`."""
    return shlex.join(["python", "-m", "retrieval_bench", "run", *to_command(config)])


def open_study(path: Path, space: dict[str, str]) -> optuna.Study:
    """The Optuna study in the journal at `path`, which is made if there is none; `space` says what it searches, in
    words."""
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

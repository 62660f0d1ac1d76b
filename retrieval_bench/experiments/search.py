"""Fair search: every strategy's options are chosen on validation classes, with the same number of trials and the same
compute.

The next values of a search depend on what was tried and on nothing else, and every trial is kept in a journal (Optuna's
JournalStorage): a search that was interrupted ends as one that was not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from retrieval_bench.columns import column
from retrieval_bench.config import RunConfig, RuntimeConfig, flat_values, to_command, unflatten
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.experiments.experiment import Objective, Row, recorded_hashes, rehearse, row_hashes
from retrieval_bench.experiments.workers import JobResult
from retrieval_bench.files import locked, write_text
from retrieval_bench.identity import open_images
from retrieval_bench.models.build import build_backbone
from retrieval_bench.progress import logger
from retrieval_bench.records import Record
from retrieval_bench.seeding import derive
from retrieval_bench.strategies import STRATEGIES, only_used, split_names
from retrieval_bench.strategies.base import Categorical, Range
from retrieval_bench.tables import TextTable

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 4
"""Trials before the sampler has enough to learn from; the first of them has the values that were given."""
RATE_SPAN = 10.0
"""The learning rate is searched from the configuration's own, divided by this, to that times this."""
SCORES = ("recall_at_1", "map_at_r")
"""Metrics that a journal keeps of each trial."""


def search_space(config: RunConfig, blocks: int | None = None) -> dict[str, Range | Categorical]:
    """What is searched, by flag without its dashes: ``lr`` for everything that trains, and what the strategy's parts
    declare (``l2sp.alpha``). Empty for a frozen backbone without an embedding layer, which trains nothing.

    Numbers of blocks stay below `blocks`, those that the backbone has, so that no trial is lost on what it cannot do.
    The loss, its learning rate and the length of the training are the same for all strategies and are not searched.

    Raises:
        UserError: a value that `config` has, which is the first to be tried, lies outside.
    """
    names = split_names(config.strategy)
    if not all(STRATEGIES[name].trains_backbone for name in names) and not config.model.embedding_dim:
        return {}
    lr = config.train.lr
    space: dict[str, Range | Categorical] = {}
    if lr:
        space["lr"] = Range(rounded(lr / RATE_SPAN), rounded(lr * RATE_SPAN), log=True)
    space |= {f"{name}.{option}": values for name in names for option, values in STRATEGIES[name].space.items()}
    space = space if blocks is None else {name: values.within(blocks) for name, values in space.items()}
    for name, value in values_of(config, space).items():
        if value not in space[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value} is not among the values that are searched ({space[name]})")
    return space


def rounded(value: Any) -> Any:
    """A float with three significant digits, so that what was chosen can be typed; anything else as it is."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def dotted(name: str) -> str:
    """The dotted name in a configuration of what is searched."""
    return f"options.{name}" if "." in name else f"train.{name}"


def values_of(config: RunConfig, names: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `config` has."""
    values = dict(flat_values(config))
    return {name: values[dotted(name)] for name in names}


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`config` with the values of a trial."""
    return unflatten({dotted(name): value for name, value in values.items()}, config)


def values_text(values: Mapping[str, Any]) -> str:
    """Values for a table: ``lr 0.0003, l2sp.alpha 0.1``."""
    texts = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(texts) or "-"


class StrategySearch:
    """The search of one strategy.

    Args:
        config: on the ``zero_shot_val`` split; its own values are the first to be tried.
        path: of the journal.
        objective: the metric that is maximised.
        plain_images: images that a run sees which makes one pass per epoch.
        blocks: that the backbone has, if that is known.

    Raises:
        UserError: optuna is missing, a journal that cannot be read or is of another space, or a split whose tested
            classes are not for making choices.
    """

    def __init__(
        self, config: RunConfig, path: Path, objective: Objective, plain_images: int, blocks: int | None = None
    ):
        if config.data.split != "zero_shot_val":
            raise UserError(f"--split {config.data.split}: a search is scored on the split zero_shot_val")
        self.config, self.path, self.objective, self.plain_images = config, path, objective, plain_images
        self.space = search_space(config, blocks)
        self._study = open_study(path, {name: str(values) for name, values in self.space.items()})

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

    def wants_more(self, trials: int) -> bool:
        """Whether another trial is due: fewer than `trials` were made, and one like those so far would not exceed the
        budget of `trials` plain runs. What has no space is tried once."""
        made = len(self.trials)
        if not made or not self.space:
            return not made
        return made < trials and self.images_seen * (made + 1) <= trials * self.plain_images * made

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
        values = study.ask(self._distributions()).params
        return with_values(self.config, {name: rounded(value) for name, value in values.items()})

    def tell(self, config: RunConfig, record: Record | None, error: str = "") -> None:
        """Keeps what came of a configuration: its record, or why it failed."""
        from optuna.trial import TrialState, create_trial

        metrics = {name: record.metrics[name] for name in SCORES} if record else {}
        attributes = {
            "images_seen": record.cost["images_seen"] if record else self.plain_images,
            "metrics": metrics,
            "record": record.id if record else "",
            "error": error,
        }
        self._study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if metrics else TrialState.FAIL,
                value=metrics.get(self.objective),
                params=values_of(config, self.space),
                distributions=self._distributions(),
                user_attrs=attributes,
            )
        )

    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        return {
            name: CategoricalDistribution(values.values)
            if isinstance(values, Categorical)
            else IntDistribution(int(values.low), int(values.high), log=values.log)
            if values.integer
            else FloatDistribution(values.low, values.high, log=values.log)
            for name, values in self.space.items()
        }

    def best(self, trials: int) -> optuna.trial.FrozenTrial | None:
        """The first `trials` trials' best by the objective, of equal ones by the other metric, then the earlier; None
        if all failed.

        Trials from the one on that exceeds the budget do not count, but for the first.
        """
        able, spent = [], 0
        for trial in self.trials[:trials]:
            spent += trial.user_attrs["images_seen"]
            if trial.user_attrs["metrics"] and (trial.number == 0 or spent <= trials * self.plain_images):
                able.append(trial)

        def score(trial: optuna.trial.FrozenTrial) -> tuple[float, float]:
            metrics = trial.user_attrs["metrics"]
            return metrics[self.objective], sum(metrics.values())

        return max(able, key=score, default=None)

    def chosen(self, trials: int) -> RunConfig | None:
        """The configuration of :meth:`best`, to be trained on all training classes and tested."""
        best = self.best(trials)
        return None if best is None else with_values(self.config.changed(data__split="zero_shot"), best.params)

    def row(self, trials: int) -> Row | None:
        """The choice as a row of a table, with what the search cost and chose; None if every trial failed."""
        best, config, made = self.best(trials), self.chosen(trials), self.trials
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

    def write(self, trials: int) -> None:
        """The trials in Markdown, beside the journal; the chosen one is marked."""
        best, config, lines = self.best(trials), self.chosen(trials), []
        for trial in self.trials:
            attributes = trial.user_attrs
            outcome = "chosen" if best is not None and trial.number == best.number else attributes["error"]
            scores = {column(name).title: column(name).text(attributes["metrics"].get(name)) for name in SCORES}
            lines.append({"trial": str(trial.number + 1), "values": values_text(trial.params), **scores})
            lines[-1] |= {"images seen": f"{attributes['images_seen']:,}", "": outcome}
        space = "; ".join(f"{name}: {values}" for name, values in self.space.items()) or "nothing"
        chosen = f"Chosen: `{run_command(config)}`" if config else "Every trial failed."
        text = [
            f"# {self.path.stem}",
            f"{self.config.strategy}: {trials} trials or {trials * self.plain_images:,} images, whichever comes first; "
            f"{column(self.objective).title} on validation classes inside the training classes decides. "
            "The first trial has the values that were given, then a tree-structured Parzen estimator proposes. "
            "In percent.",
            f"Searched: {space}.",
            TextTable("", pd.DataFrame(lines)).to_markdown(),
            chosen,
        ]
        write_text(self.path.with_suffix(".md"), "\n\n".join(text) + "\n")


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


def validation_configs(base: RunConfig, strategies: Sequence[str]) -> list[RunConfig]:
    """The first trial of each strategy: `base` on validation classes.

    Raises:
        UserError: a strategy twice or none, another split than ``zero_shot``, Recall@1 not measured.
    """
    if not strategies or len(set(strategies)) < len(strategies):
        raise UserError(f"strategies {' '.join(strategies)}: give at least one, each once")
    if base.data.split != "zero_shot":
        raise UserError(
            f"--split {base.data.split}: a search is scored on zero_shot_val and its choices are tested on zero_shot; "
            "leave it out"
        )
    if 1 not in base.ks:
        raise UserError(f"--k {' '.join(map(str, base.ks))}: choices are made by Recall@1, so 1 must be among them")
    base = base.changed(data__split="zero_shot_val")
    return [replace(base, strategy=strategy, options=only_used(strategy, base.options)) for strategy in strategies]


def search_runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """Where trials are recorded: in a results folder of their own, ``<results>/search``, so that tables of results do
    not show them."""
    return replace(runtime, results=runtime.results / "search", keep=False, keep_new=False)


def plain_images(config: RunConfig, train_images: int) -> int:
    """Images that a run sees which makes one pass per epoch over so many."""
    size = config.train.batch_size
    return config.train.epochs * (max(1, train_images // size) * size if config.samples_per_class else train_images)


def open_searches(
    base: RunConfig,
    strategies: Sequence[str],
    objective: Objective,
    runtime: RuntimeConfig,
    records: Sequence[Record] | None = None,
) -> list[StrategySearch]:
    """A search per strategy, new or resumed, once the first trial of each has passed all checks that need no training.

    Args:
        base: what all trials share but for what is searched.
        strategies: one search for each.
        objective: what is maximised.
        runtime: where data and results are.
        records: of trials; if they are given, what they know takes the place of the data.

    Raises:
        UserError: anything that cannot work.
    """
    rows = [Row(config.strategy, config) for config in validation_configs(base, strategies)]
    if records is None:
        rehearse(rows, runtime)
        hashes, train_images = (
            row_hashes(rows, runtime),
            len(open_images(rows[0].config.data, runtime.data_root)[1].train),
        )
    else:
        hashes = recorded_hashes(rows, records)
        sizes = [record.data["train_images"] for record in records if record.config_hash in hashes.values()]
        if not sizes:
            raise UserError(f"{search_runtime(runtime).results}: no trials of {', '.join(strategies)} to rebuild from")
        train_images = sizes[0]
    blocks = len(build_backbone(replace(base.model, weights="none"), base.data.image_size).body)
    for row in rows:
        search_space(row.config, blocks)  # values that cannot be searched are refused before anything is written
    kind, searches = resolve_device(runtime.device), []
    for row in rows:
        name = f"{base.data.dataset}-{row.name}-{hashes[row.name]}-s{base.seed}-{kind}-{objective}"
        path, images = search_runtime(runtime).results / f"{name}.journal", plain_images(row.config, train_images)
        searches.append(StrategySearch(row.config, path, objective, images, blocks))
    return searches


def search(
    searches: Sequence[StrategySearch], trials: int, run_all: Callable[[list[RunConfig]], list[JobResult]]
) -> None:
    """Makes trials, one of each strategy per round, until every search has had its number or its compute, whichever
    comes first; other processes are kept from the same searches. Trials are written as Markdown, whatever ends them.

    Args:
        searches: the strategies.
        trials: for each, and the budget: images seen by so many plain runs.
        run_all: makes the runs of a round.

    Raises:
        UserError: fewer than one trial.
    """
    if trials < 1:
        raise UserError(f"--trials {trials}: must be at least 1")
    with ExitStack() as stack:
        for path in sorted(entry.path for entry in searches):
            stack.enter_context(locked(path, f"searching {path.stem}", "--results"))
        try:
            while waiting := [entry for entry in searches if entry.wants_more(trials)]:
                number = max(len(entry.trials) for entry in waiting) + 1
                logger.info(f"search: trial {number} of {trials}, {len(waiting)} strategies")
                results = run_all([entry.ask() for entry in waiting])
                for entry, result in zip(waiting, results, strict=True):
                    entry.tell(result.config, result.record, result.error or "")
                    if result.record is None:
                        again = f"to try it again, remove {entry.path}"
                        logger.info(f"{entry.config.strategy}: a trial failed ({result.error}); {again}")
        finally:
            for entry in searches:
                if entry.trials:
                    entry.write(trials)

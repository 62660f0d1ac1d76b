"""Fair search: declared spaces, equal budgets, failed trials, resuming after a stop, and that test classes are never
used."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.experiment import Objective
from retrieval_bench.experiments.registry import EXPERIMENTS
from retrieval_bench.experiments.search import plain_images, search, validation_configs
from retrieval_bench.experiments.search_space import rounded, search_space, values_of, values_text, with_values
from retrieval_bench.experiments.strategy_search import RANDOM_TRIALS
from retrieval_bench.experiments.workers import JobResult
from retrieval_bench.strategies import STRATEGIES, build_strategy, only_used
from retrieval_bench.strategies.base import Categorical, Range
from retrieval_bench.validation import validate
from tests.experiments.helpers import PLAIN, FakeRuns, record_of, searches_of
from tests.training.helpers import embedder_for, random_images, run_config

CHAINS = ("layer_pruning+autolr", "l2sp+autolr", "channel_pruning+l2sp")


def config_of(strategy: str, dim: int = 0) -> RunConfig:
    """Defaults, but for what the tiny network cannot do."""
    config = run_config(epochs=5).changed(strategy=strategy, model__embedding_dim=dim)
    for name in ("channel_gates", "channel_pruning", "network_slimming"):
        config = config.changed(**{f"options__{name}__budget": 0.9})
    return replace(config, options=only_used(strategy, config.options))


def corners(space: Mapping[str, Range | Categorical]) -> Iterator[dict[str, Any]]:
    """Each option at each of its ends (or values), the others as they are."""
    for name, values in space.items():
        for end in values.values if isinstance(values, Categorical) else (values.low, values.high):
            yield {name: end}


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_declared_holds_the_default_and_is_no_size_or_length(name: str) -> None:
    defaults = {part.name: part.default for part in fields(STRATEGIES[name].Options)}
    for option, values in STRATEGIES[name].space.items():
        assert defaults[option] in values
        assert isinstance(values, Categorical) or values.low < values.high
        assert type(defaults[option]) is not int or isinstance(values, Categorical) or values.integer
    assert not {"budget", "epochs", "search_epochs", "sparse_epochs", "max_trials"} & set(STRATEGIES[name].space)


@pytest.mark.parametrize("strategy", [*STRATEGIES, *CHAINS])
def test_every_corner_of_the_space_can_begin(strategy: str) -> None:
    config, images, model = config_of(strategy), random_images(4), embedder_for(strategy)
    for values in corners(search_space(config)):
        changed = with_values(config, values)
        validate(changed)
        assert values_of(changed, values) == values
        torch.manual_seed(0)
        built = build_strategy(changed.strategy, changed.options)
        built.parameter_groups(built.prepare(copy.deepcopy(model), images), [])


def test_what_trains_shares_the_learning_rate_and_chains_have_the_union() -> None:
    for strategy in STRATEGIES:
        assert ("lr" in search_space(config_of(strategy))) == (strategy != "frozen")
    chain = set(search_space(config_of("layer_pruning+autolr")))
    assert chain == {"lr", "layer_pruning.drop", *(f"autolr.{option}" for option in STRATEGIES["autolr"].space)}
    assert set(search_space(config_of("frozen", dim=64))) == {"lr"}, "the embedding layer is trained"
    for lr in (1e-5, 3e-4, 0.1, 0.000123456):
        rates = search_space(config_of("standard").changed(train__lr=lr))["lr"]
        assert isinstance(rates, Range)
        assert lr in rates
        assert rates.high / rates.low == pytest.approx(100, rel=0.02)


def test_values_outside_are_refused_and_numbers_of_blocks_stay_below_the_backbone_s() -> None:
    with pytest.raises(UserError, match=r"--layer-pruning.drop auto:3 is not among .* \(last:0, last:1"):
        search_space(config_of("layer_pruning").changed(options__layer_pruning__drop="auto:3"))
    spaces = {name: search_space(config_of(name), blocks=4) for name in ("last_k", "random_policy", "layer_pruning")}
    assert str(spaces["last_k"]["last_k.k"]) == "1 to 3"
    assert str(spaces["random_policy"]["random_policy.last"]) == "0 to 3"
    assert str(spaces["layer_pruning"]["layer_pruning.drop"]) == "last:0, last:1, last:2, last:3"


def test_values_can_be_typed() -> None:
    assert [rounded(value) for value in (0.000214159, 2.0, 3, "last:2")] == [0.000214, 2.0, 3, "last:2"]
    values = {"lr": 3e-4, "last_k.k": 3, "layer_pruning.drop": "last:2"}
    assert values_text(values) == "lr 0.0003, last_k.k 3, layer_pruning.drop last:2"
    assert values_text({}) == "-"


@pytest.mark.parametrize("profile", EXPERIMENTS["reality_check"].profiles)
def test_every_profile_of_the_reality_check_can_be_searched(profile: str) -> None:
    check = EXPERIMENTS["reality_check"].profiles[profile]
    for config in validation_configs(check.base, check.axes["strategy"]):
        for values in [{}, *corners(search_space(config))]:
            validate(with_values(config, values))


def test_a_plain_run_sees_whole_batches_where_classes_are_drawn() -> None:
    config = run_config(epochs=3)
    assert plain_images(config, 533) == 3 * 533
    assert plain_images(config.changed(loss__loss="triplet"), 533) == 3 * 33 * 16
    assert plain_images(config.changed(loss__loss="triplet"), 5) == 3 * 16


def test_equal_effort_and_the_first_trial_has_the_given_values(tmp_path: Path) -> None:
    searches, runs = searches_of(tmp_path, 6, "frozen", "standard", "autolr"), FakeRuns({"autolr": 170})
    search(searches, runs)
    assert [len(entry.trials) for entry in searches] == [1, 6, 3], "a fourth of autolr would make 680 images of 600"
    strategies = [[config.strategy for config in configs] for configs in runs.rounds]
    names = ["frozen", "standard", "autolr"]
    assert strategies == [names, names[1:], names[1:], ["standard"], ["standard"], ["standard"]]
    assert runs.rounds[0] == [entry.config for entry in searches]
    rates = [config.train.lr for configs in runs.rounds for config in configs if config.strategy == "standard"]
    assert len(set(rates)) == 6
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 400), min_size=8, max_size=8), st.integers(1, 8))
def test_no_search_spends_more_than_so_many_plain_runs(
    tmp_path_factory: pytest.TempPathFactory, costs: list[int], trials: int
) -> None:
    """A trial is made only if one like those so far fits; the chosen one lies within the budget."""
    (entry,) = searches_of(tmp_path_factory.mktemp("costs"), trials, "autolr")
    runs, left = FakeRuns(), iter(costs)

    def run_all(configs: list[RunConfig]) -> list[Any]:
        runs.images["autolr"] = next(left)
        return runs(configs)

    search([entry], run_all)
    best, made = entry.best, [trial.user_attrs["images_seen"] for trial in entry.trials]
    assert best is not None
    assert 1 <= len(made) <= trials
    assert best.number == 0 or sum(made[: best.number + 1]) <= trials * PLAIN
    assert len(made) == 1 or sum(made[:-1]) * len(made) <= trials * PLAIN * (len(made) - 1)


def test_only_validation_classes_are_used(tmp_path: Path) -> None:
    searches, runs = searches_of(tmp_path, 4, "standard", "layer_pruning+autolr", "frozen"), FakeRuns()
    search(searches, runs)
    assert {config.data.split for configs in runs.rounds for config in configs} == {"zero_shot_val"}
    chosen = [entry.chosen for entry in searches]
    assert [config and config.data.split for config in chosen] == ["zero_shot"] * 3
    for change, message in (
        ({"data__split": "kfold"}, "--split kfold: a search is scored on zero_shot_val"),
        ({"evaluation__k": (5, 10)}, "--k 5 10: choices are made by Recall@1"),
    ):
        with pytest.raises(UserError, match=message):
            validation_configs(run_config().changed(**change), ["standard"])


@pytest.mark.parametrize("stopped_after", [0, 1, 4, 7])
def test_a_stopped_search_ends_as_one_that_was_not(stopped_after: int, tmp_path: Path) -> None:
    names, images = ("standard", "autolr", "l2sp"), {"autolr": 130}
    whole, parts = (searches_of(tmp_path / folder, 8, *names) for folder in ("whole", "parts"))
    at_once, before, after = FakeRuns(images), FakeRuns(images, stop_after=stopped_after), FakeRuns(images)
    search(whole, at_once)
    with pytest.raises(KeyboardInterrupt):
        search(parts, before)
    again = searches_of(tmp_path / "parts", 8, *names)
    search(again, after)
    assert before.rounds + after.rounds == at_once.rounds, "nothing is repeated, nothing differs"
    for one, other in zip(again, whole, strict=True):
        assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]
        assert [trial.user_attrs for trial in one.trials] == [trial.user_attrs for trial in other.trials]
        assert one.chosen == other.chosen


def test_more_trials_continue_the_same_search_and_the_sampler_learns(tmp_path: Path) -> None:
    (few,), (many,) = searches_of(tmp_path, 3, "standard"), searches_of(tmp_path / "many", 25, "standard")
    search([few], FakeRuns())
    (longer,) = searches_of(tmp_path, 25, "standard")
    for entry in (longer, many):
        search([entry], FakeRuns())
    assert [trial.params for trial in longer.trials] == [trial.params for trial in many.trials]
    (again,) = searches_of(tmp_path / "many", 3, "standard")
    first, again, best = few.best, again.best, many.best
    assert first is not None
    assert again is not None
    assert best is not None
    assert first.params == again.params, "fewer trials choose as before"
    assert best.user_attrs["metrics"]["recall_at_1"] > 0.9
    scores = [trial.user_attrs["metrics"]["recall_at_1"] for trial in many.trials]
    assert sum(scores[15:]) / 10 > sum(scores[1:RANDOM_TRIALS]) / (RANDOM_TRIALS - 1), "later ones are not random"


def test_failed_trials_are_listed_and_cost_a_plain_run(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, 6, "autolr")
    search([entry], FakeRuns({"autolr": 50}, fails=lambda config: config.train.lr == 1e-3))
    first, *others = [trial.user_attrs for trial in entry.trials]
    assert (first["metrics"], first["error"], first["images_seen"]) == ({}, "the loss became nan", PLAIN)
    assert [bool(trial["metrics"]) for trial in others] == [True] * 5
    row = entry.row
    assert row is not None
    assert (row.columns["trials"], row.columns["failed_trials"]) == (6, 1)
    assert "the loss became nan" in entry.path.with_suffix(".md").read_text()
    (entry,) = searches_of(tmp_path, 2, "standard")
    search([entry], FakeRuns(fails=lambda config: True))
    assert (entry.best, entry.chosen, entry.row) == (None, None, None)
    assert "Every trial failed." in entry.path.with_suffix(".md").read_text()


@pytest.mark.parametrize(("objective", "number"), [("recall_at_1", 2), ("map_at_r", 4)])
def test_the_objective_decides_then_the_other_metric_then_the_earlier(
    objective: Objective, number: int, tmp_path: Path
) -> None:
    (entry,) = searches_of(tmp_path, 5, "standard", objective=objective)
    for recall, map_at_r in [(0.5, 0.1), (0.8, 0.2), (0.8, 0.3), (0.8, 0.3), (0.7, 0.4)]:
        config = entry.ask()
        entry.tell(JobResult(config, "", record_of(config, recall, map_at_r, PLAIN)))
    best = entry.best
    assert best is not None
    assert best.number == number


def test_what_was_chosen_is_written_as_a_command(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, 3, "l2sp")
    search([entry], FakeRuns())
    text, best = entry.path.with_suffix(".md").read_text(), entry.best
    assert best is not None
    assert "Chosen: `python -m retrieval_bench run --strategy l2sp --dataset synthetic" in text
    assert f" --lr {best.params['lr']} " in text
    assert "--split" not in text
    assert text.count("| chosen") == 1
    assert "l2sp.alpha: 0.001 to 1, log" in text


def test_a_journal_of_something_else_and_no_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = searches_of(tmp_path, 1, "standard")
    search([entry], FakeRuns())
    with pytest.raises(UserError, match=r"standard.journal: searches .* remove the file to search anew"):
        replace(entry, space=search_space(entry.config.changed(train__lr=1e-2)))
    entry.path.write_text("no journal\n" * 2)
    with pytest.raises(UserError, match="not a journal of a search"):
        searches_of(tmp_path, 1, "standard")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"a search needs Optuna: pip install"):
        searches_of(tmp_path, 1, "standard")

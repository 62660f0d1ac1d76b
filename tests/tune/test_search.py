"""The search: equal budgets, failed trials, going on after a stop, and that the test classes are never looked at."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.sections import EvalConfig
from retrieval_bench.tune.journal import RANDOM_TRIALS, Search
from retrieval_bench.tune.report import trials_frame, write_search
from retrieval_bench.tune.search import in_turn, search, validation_configs
from retrieval_bench.tune.spaces import Objective
from tests.training.helpers import run_config
from tests.tune.fakes import PLAIN, Runs, record_of, searches_of


def test_same_trials_and_the_first_has_the_given_values(tmp_path: Path) -> None:
    searches, runs = searches_of(tmp_path, "frozen", "standard", "l2sp"), Runs()
    search(searches, 6, runs)
    assert [len(entry.trials) for entry in searches] == [1, 6, 6], "frozen has nothing to search"
    assert [[config.strategy for config in configs] for configs in runs.rounds] == [
        ["frozen", "standard", "l2sp"],
        *[["standard", "l2sp"]] * 5,
    ]
    assert runs.rounds[0] == [entry.config for entry in searches]
    rates = [config.train.lr for configs in runs.rounds for config in configs if config.strategy == "standard"]
    assert len(set(rates)) == 6
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)


def test_what_costs_more_gets_fewer_trials(tmp_path: Path) -> None:
    searches = searches_of(tmp_path, "standard", "autolr")
    search(searches, 6, Runs({"autolr": 170}))
    assert [len(entry.trials) for entry in searches] == [6, 3], "a fourth would make 680 images of 600"
    assert searches[1].images_seen == 510


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(costs=st.lists(st.integers(1, 400), min_size=8, max_size=8), trials=st.integers(1, 6))
def test_nothing_beyond_the_budget_is_chosen(
    costs: list[int], trials: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (entry,) = searches_of(tmp_path_factory.mktemp("budget"), "standard")
    while entry.wants_more(trials):
        config, number = entry.ask(), len(entry.trials)
        entry.tell(config, record_of(config, number / 10, 0.0, costs[number]))
    best, made = entry.best(trials), entry.trials
    assert best is not None
    assert 1 <= len(made) <= trials
    assert best.number == 0 or sum(trial.images_seen for trial in made[: best.number + 1]) <= trials * PLAIN
    assert len(made) == 1 or sum(costs[: len(made) - 1]) * len(made) <= trials * PLAIN * (len(made) - 1)


def test_only_validation_classes_are_looked_at(tmp_path: Path) -> None:
    searches, runs = searches_of(tmp_path, "standard", "layer_pruning+autolr", "frozen"), Runs()
    search(searches, 4, runs)
    assert {config.data.split for configs in runs.rounds for config in configs} == {"zero_shot_val"}
    chosen = [entry.chosen(4) for entry in searches]
    assert [config and config.data.split for config in chosen] == ["zero_shot"] * 3
    with pytest.raises(UserError, match="scored on the split zero_shot_val"):
        Search(run_config(), tmp_path / "test.journal", "recall_at_1", PLAIN)
    base = run_config()
    with pytest.raises(UserError, match="--split kfold: a search is scored on zero_shot_val"):
        validation_configs(replace(base, data=replace(base.data, split="kfold")), ["standard"])


def test_a_search_without_recall_at_1_is_refused() -> None:
    with pytest.raises(UserError, match="--k 5 10: choices are made by Recall@1"):
        validation_configs(replace(run_config(), evaluation=EvalConfig(k=(5, 10))), ["standard"])


@pytest.mark.parametrize("stopped_after", [0, 1, 4, 7])
def test_a_stopped_search_ends_as_one_that_was_not(stopped_after: int, tmp_path: Path) -> None:
    whole, parts = (searches_of(tmp_path / name, "standard", "autolr", "l2sp") for name in ("whole", "parts"))
    all_at_once, before, after = (
        Runs({"autolr": 130}),
        Runs({"autolr": 130}, stop_after=stopped_after),
        Runs({"autolr": 130}),
    )
    search(whole, 8, all_at_once)
    with pytest.raises(KeyboardInterrupt):
        search(parts, 8, before)
    again = searches_of(tmp_path / "parts", "standard", "autolr", "l2sp")
    search(again, 8, after)
    assert before.rounds + after.rounds == all_at_once.rounds, "nothing is repeated, nothing differs"
    assert [entry.trials for entry in again] == [entry.trials for entry in whole]
    assert [entry.chosen(8) for entry in again] == [entry.chosen(8) for entry in whole]


def test_more_trials_go_on_with_the_same_search(tmp_path: Path) -> None:
    few, many = searches_of(tmp_path, "standard"), searches_of(tmp_path / "many", "standard")
    search(few, 3, Runs())
    search(few, 7, Runs())
    search(many, 7, Runs())
    assert few[0].trials == many[0].trials
    assert few[0].best(3) == max(many[0].trials[:3], key=lambda trial: trial.metrics["recall_at_1"]), (
        "fewer trials choose as before"
    )


def test_the_sampler_learns(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, "standard")
    search([entry], 25, Runs())
    best = entry.best(25)
    assert best is not None
    assert best.metrics["recall_at_1"] > 0.9
    scores = [trial.metrics["recall_at_1"] for trial in entry.trials]
    assert sum(scores[15:]) / 10 > sum(scores[1:RANDOM_TRIALS]) / (RANDOM_TRIALS - 1), (
        "later trials are better than random ones"
    )


def test_failed_trials_are_told_and_cost_a_plain_run(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, "autolr")
    search([entry], 6, Runs({"autolr": 50}, fails=lambda config: config.train.lr == 1e-3))
    first, *others = entry.trials
    assert (first.metrics, first.error, first.images_seen) == ({}, "the loss became nan", PLAIN)
    assert all(trial.metrics for trial in others)
    assert len(others) == 5
    best = entry.best(6)
    assert best is not None
    assert best.number > 0
    assert "the loss became nan" in trials_frame(entry, 6).to_string()


def test_a_search_in_which_all_fails_chooses_nothing(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, "standard")
    search([entry], 2, Runs(fails=lambda config: True))
    assert entry.best(2) is None
    assert entry.chosen(2) is None
    write_search(entry, 2)
    assert "Every trial failed." in entry.path.with_suffix(".md").read_text()


def test_the_objective_decides_and_ties_go_to_the_other_metric_then_to_the_earlier(tmp_path: Path) -> None:
    results = [(0.5, 0.1), (0.8, 0.2), (0.8, 0.3), (0.8, 0.3), (0.7, 0.4)]
    cases: list[tuple[Objective, int]] = [("recall_at_1", 2), ("map_at_r", 4)]
    for objective, number in cases:
        (entry,) = searches_of(tmp_path / objective, "standard", objective=objective)
        for recall, map_at_r in results:
            config = entry.ask()
            entry.tell(config, record_of(config, recall, map_at_r, PLAIN))
        best = entry.best(5)
        assert best is not None
        assert best.number == number


def test_what_was_found_is_written_as_a_command(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, "l2sp")
    search([entry], 3, Runs())
    write_search(entry, 3)
    text, best = entry.path.with_suffix(".md").read_text(), entry.best(3)
    assert best is not None
    assert "Chosen: `python -m retrieval_bench run --strategy l2sp --dataset synthetic" in text
    assert f" --lr {best.values['lr']} " in text
    assert "--split" not in text
    assert text.count("| chosen |") == 1
    assert "l2sp.alpha: 0.001 to 1, log" in text


def test_a_journal_of_something_else(tmp_path: Path) -> None:
    (entry,) = searches_of(tmp_path, "standard")
    search([entry], 1, Runs())
    other = replace(entry.config, train=replace(entry.config.train, lr=1e-2))
    with pytest.raises(UserError, match=r"standard.journal: searches .* remove the file to search anew"):
        Search(other, entry.path, "recall_at_1", PLAIN)
    entry.path.write_text("no journal\n" * 2)
    with pytest.raises(UserError, match="not a journal of a search"):
        Search(entry.config, entry.path, "recall_at_1", PLAIN)


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"a search needs Optuna: pip install"):
        searches_of(tmp_path, "standard")


def test_no_trials(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--trials 0: must be at least 1"):
        search(searches_of(tmp_path, "standard"), 0, Runs())


def test_a_trial_that_breaks_in_this_process_is_one_failed_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: RunConfig, machine: RuntimeConfig) -> None:
        raise RuntimeError(f"no {config.strategy}")

    monkeypatch.setattr("retrieval_bench.run.run", broken)
    (outcome,) = in_turn([run_config()], RuntimeConfig(results=tmp_path))
    assert outcome.record is None
    assert outcome.error == "no standard"


def test_too_few_trials_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["tune", "--strategy", "standard"], ["reality-check", "smoke"]):
        assert main([*command, "--trials", "0", "--results", str(tmp_path)]) == 2
        assert "--trials 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

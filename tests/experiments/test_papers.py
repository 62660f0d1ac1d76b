"""The experiments that there are: every run is valid, and settings and reported values are those of the papers."""

from __future__ import annotations

import pytest

from retrieval_bench.experiments import autolr, pruning, spottune, strategy_table
from retrieval_bench.experiments.experiment import Row, runs_of
from retrieval_bench.experiments.registry import EXPERIMENTS
from retrieval_bench.experiments.search import validation_configs
from retrieval_bench.strategies import STRATEGIES, only_used, split_names
from retrieval_bench.validation import validate

PROFILES = [(name, profile) for name, experiment in EXPERIMENTS.items() for profile in experiment.profiles]


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_run_of_every_experiment_is_valid_and_its_own(name: str, profile: str) -> None:
    size = EXPERIMENTS[name].profiles[profile]
    rows = EXPERIMENTS[name].rows_of(size)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {row.against for row in rows} <= {*names, ""}
    runs = runs_of(rows, size.seeds)
    assert len(runs) == sum(not row.eval_mode for row in rows) * len(size.seeds), "evaluation modes share their runs"
    for config in runs:
        validate(config)
        assert config.options == only_used(config.strategy, config.options)


def test_setting_and_reported_values_of_autolr() -> None:
    base = autolr.PROFILES["paper"].base
    data, train, loss = base.data, base.train, base.loss
    assert (data.image_size, data.resize_to, data.preprocessing, base.evaluation.flip_sum) == (224, 256, "squash", True)
    assert (train.epochs, train.batch_size, train.optimizer, train.lr) == (50, 40, "sgd", 0.001)
    assert (train.schedule, train.decay_at, train.decay_factor, train.freeze_bn) == ("step", 0.8, 0.2, False)
    assert (loss.loss, loss.head, loss.loss_lr) == ("softmax", "autolr", 0.01)
    assert loss.loss_weight_decay == train.weight_decay == 5e-4
    rows = autolr.ablation(base)
    recalls = [round(100 * row.reported["recall_at_1"], 2) for row in rows[:7]]
    assert recalls == [63.49, 66.95, 67.00, 51.00, 67.15, 67.29, 68.33]
    assert rows[2].reported == {
        "recall_at_1": 0.67,
        "recall_at_2": 0.7849,
        "recall_at_4": 0.8685,
        "recall_at_8": 0.9207,
    }
    assert not any(row.reported for row in autolr.ablation(base.changed(data__dataset="sop")))


def test_setting_of_spottune() -> None:
    base = spottune.PROFILES["paper"].base
    train = base.train
    assert (base.data.split, base.loss.loss, base.loss.head) == ("closed_set", "softmax", "linear")
    assert (train.epochs, train.batch_size, train.optimizer, train.lr, train.freeze_bn) == (40, 32, "sgd", 0.01, False)
    assert (train.decay_at * 40, train.second_decay_at * 40, train.decay_factor) == (15, 30, 0.1)
    assert base.options.spottune.policy_lr == base.options.global_k.policy_lr == 1e-4


def rows_of(dataset: str) -> dict[str, Row]:
    return {row.name: row for row in spottune.table(spottune.PROFILES["paper"].base.changed(data__dataset=dataset))}


@pytest.mark.parametrize(
    ("dataset", "row", "accuracy"),
    [
        ("cub", "SpotTune", 0.8403),
        ("cars", "L2-SP", 0.9108),
        ("wikiart", "SpotTune, tuned blocks only", 0.6727),
        ("flowers", "SpotTune Global-k", 0.9660),
        ("sketches", "Feature extractor", 0.7550),
    ],
)
def test_reported_values_of_spottune(dataset: str, row: str, accuracy: float) -> None:
    rows = rows_of(dataset)
    assert rows[row].reported == {"accuracy": accuracy}
    assert [name for name, entry in rows.items() if not entry.reported] == ["Rollback"], "the paper has no such row"
    assert not any(entry.reported for entry in rows_of("folder").values())


def test_the_deeper_network_is_compared_where_its_weights_can_be_had() -> None:
    assert rows_of("cub")["ResNet-101"].config.model.backbone == "torchvision/resnet101"
    file = spottune.table(spottune.PROFILES["paper"].base.changed(model__weights="resnet50.pth"))
    assert "ResNet-101" not in {row.name for row in file}


def test_every_strategy_is_compared_also_one_that_is_new() -> None:
    """But for weight_variation, which trains as standard does."""
    named = set(STRATEGIES) - {"weight_variation"}
    for profile in strategy_table.PROFILES.values():
        rows = strategy_table.strategies(profile.base)
        assert {name for row in rows for name in split_names(row.config.strategy)} == named
        assert all(row.optional for row in rows)
    profiles = strategy_table.PROFILES
    also = {name: profile.base.evaluation.also_test for name, profile in profiles.items()}
    assert (also["emoji"], also["cpu_full"]) == (("cub:1000",), ("emoji",))
    assert len(profiles["emoji"].seeds) == len(profiles["cpu_full"].seeds) == 3
    assert profiles["cpu_full"].base.data.classes == 0
    for name in ("cpu", "paper"):
        profile = EXPERIMENTS["reality_check"].profiles[name]
        assert set(profile.axes["strategy"]) == {*named, "layer_pruning+autolr"}
        firsts = validation_configs(profile.base, profile.axes["strategy"], profile.own)
        for config in firsts:
            validate(config)
        assert {config.train.freeze_bn for config in firsts if config.strategy == "network_slimming"} == {False}


def test_every_budget_is_met_by_every_way_and_random_weights_train_for_longer() -> None:
    for profile in pruning.PROFILES.values():
        options = {row.name: row.config.options for row in pruning.curve(profile.base)}
        for budget in pruning.BUDGETS:
            assert options[f"Gates {budget}"].channel_gates.budget == budget
            assert options[f"SNIP {budget}"].channel_pruning.scores == "snip"
            matched = options[f"Uniform {budget}"].channel_pruning.statistics == "matched"
            assert matched == (profile.base.model.weights != "none" or profile.base.train.freeze_bn)
    rows = {row.name: row.config for row in pruning.curve(pruning.PROFILES["paper"].base)}
    epochs = [rows[name].train.epochs for name in ("Whole network", "Gates 0.5", "Gates 0.3")]
    assert epochs == [160, 320, 533]
    assert rows["Gates 0.5"].options.channel_gates.regime == "from_scratch"
    emoji = pruning.curve(pruning.PROFILES["cpu"].base)
    assert {row.config.train.epochs for row in emoji if "longer" not in row.name} == {3}
    assert {row.config.train.epochs for row in emoji if "longer" in row.name} == {3 + 6}, "as gates search and train"

"""Declared search spaces: every option exists, defaults lie inside, and every corner makes a run that can begin."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.reality_check import CHECKS
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import STRATEGIES, StrategyOptions, build_strategy, only_used
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.layer_pruning import LayerPruning
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.strategies.base import Categorical, Range
from retrieval_bench.tune.search import validation_configs
from retrieval_bench.tune.spaces import shown, space_of, tidy, values_of, with_values
from retrieval_bench.validation import validate
from tests.training.helpers import random_images, run_config, tiny_embedder

OPTIONS = StrategyOptions(
    channel_gates=ChannelGates.Options(budget=0.9),
    channel_pruning=ChannelPruning.Options(budget=0.9),
    network_slimming=NetworkSlimming.Options(budget=0.9),
)
"""Defaults, but for what the tiny network cannot do."""
CHAINS = ("layer_pruning+autolr", "l2sp+autolr", "channel_pruning+l2sp")
each = pytest.mark.parametrize("strategy", [*STRATEGIES, *CHAINS])


def config_of(strategy: str, dim: int = 0) -> RunConfig:
    base = run_config(epochs=5)
    return replace(base, strategy=strategy, options=only_used(strategy, OPTIONS), model=ModelConfig(embedding_dim=dim))


def corners(space: dict[str, Range | Categorical]) -> Iterator[dict[str, Any]]:
    """Each option at each of its ends (or choices), the others as they are."""
    for name, values in space.items():
        ends = values.values if isinstance(values, Categorical) else (values.low, values.high)
        for end in ends:
            yield {name: end}


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_declared_exists_and_holds_the_default(name: str) -> None:
    options = {part.name: part.default for part in fields(STRATEGIES[name].Options)}
    for option, values in STRATEGIES[name].space.items():
        assert options[option] in values
        assert isinstance(values, Categorical) or values.low < values.high
        assert type(options[option]) is not int or isinstance(values, Categorical) or values.integer, (
            "whole numbers stay whole"
        )
    assert not {"budget", "epochs", "search_epochs", "sparse_epochs", "max_trials"} & set(STRATEGIES[name].space), (
        "size and length"
    )


@each
def test_every_corner_of_the_space_can_begin(strategy: str) -> None:
    config, probe, model = config_of(strategy), random_images(4), tiny_embedder()
    for values in corners(space_of(config)):
        tried = with_values(config, values)
        validate(tried)
        assert values_of(tried, values) == values
        torch.manual_seed(0)
        built = build_strategy(tried.strategy, tried.options)
        built.parameter_groups(built.prepare(copy.deepcopy(model), probe), [])


def test_all_that_train_share_the_learning_rate_and_chains_have_the_union() -> None:
    for strategy in STRATEGIES:
        assert ("lr" in space_of(config_of(strategy))) == (strategy != "frozen")
    chain = set(space_of(config_of("layer_pruning+autolr")))
    assert chain == {"lr", "layer_pruning.drop", *(f"autolr.{option}" for option in STRATEGIES["autolr"].space)}


def test_a_frozen_backbone_is_searched_only_where_there_is_something_to_train() -> None:
    assert not space_of(config_of("frozen"))
    assert set(space_of(config_of("frozen", dim=64))) == {"lr"}


def test_the_rate_is_searched_around_the_run_s_own() -> None:
    for lr in (1e-5, 3e-4, 0.1, 0.000123456):
        config = config_of("standard")
        rates = space_of(replace(config, train=replace(config.train, lr=lr)))["lr"]
        assert isinstance(rates, Range)
        assert lr in rates
        assert rates.high / rates.low == pytest.approx(100, rel=0.02)


def test_values_that_are_not_searched_cannot_be_the_first_to_be_tried() -> None:
    config = replace(
        config_of("layer_pruning"), options=StrategyOptions(layer_pruning=LayerPruning.Options(drop="auto:3"))
    )
    with pytest.raises(
        UserError, match=r"--layer-pruning.drop auto:3 is not among the values that are searched \(last:0, last:1"
    ):
        space_of(config)


def test_values_can_be_typed() -> None:
    assert [tidy(value) for value in (0.000214159, 2.0, 3, "last:2")] == [0.000214, 2.0, 3, "last:2"]
    assert (
        shown({"lr": 3e-4, "last_k.k": 3, "layer_pruning.drop": "last:2"})
        == "lr 0.0003, last_k.k 3, layer_pruning.drop last:2"
    )
    assert shown({}) == "-"


@pytest.mark.parametrize("profile", CHECKS)
def test_every_profile_can_be_searched(profile: str) -> None:
    check = CHECKS[profile]
    for config in validation_configs(check.base, check.strategies):
        for values in [{}, *corners(space_of(config))]:
            validate(with_values(config, values))


def test_numbers_of_blocks_stay_below_those_of_the_backbone() -> None:
    def space(strategy: str) -> dict[str, str]:
        return {
            name: str(values) for name, values in space_of(replace(run_config(), strategy=strategy), blocks=4).items()
        }

    assert space("last_k")["last_k.k"] == "1 to 3"
    assert space("random_policy")["random_policy.last"] == "0 to 3"
    assert space("layer_pruning")["layer_pruning.drop"] == "last:0, last:1, last:2, last:3"
    assert space("l2sp") == {
        name: str(values) for name, values in space_of(replace(run_config(), strategy="l2sp")).items()
    }

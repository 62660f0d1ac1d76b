"""The configuration: validation, stable hash, and the command that gives it back."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.cli import parse
from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import BENCHES
from retrieval_bench.identity import config_hash, to_command, to_dict
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.validation import validate


def test_hash_is_the_same_in_every_process() -> None:
    code = "from retrieval_bench.config import *; from retrieval_bench.identity import *; print(config_hash(to_dict(RunConfig())))"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env(seed))
        for seed in "01"
    ]
    assert runs[0].stdout == runs[1].stdout == config_hash(to_dict(RunConfig())) + "\n"


def env(hash_seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": hash_seed}


def test_hash_of_the_default_run_never_changes() -> None:
    """If this fails, a default was changed or a field added with a default that differs from what was done before: give it that one."""
    assert config_hash(to_dict(RunConfig())) == "44136fa3", "the hash of an empty difference"
    assert config_hash(to_dict(RunConfig(strategy="last_k", train=TrainConfig(lr=1e-5)))) == "cc8db8d8"


def test_hash_is_of_values_not_of_spelling() -> None:
    assert config_hash(to_dict(RunConfig(train=TrainConfig(lr=1)))) == config_hash(
        to_dict(RunConfig(train=TrainConfig(lr=1.0)))
    )
    assert config_hash(to_dict(RunConfig(strategy=" frozen + last_k"))) == config_hash(
        to_dict(RunConfig(strategy="frozen+last_k"))
    )


def test_hash_leaves_out_the_seed_and_the_options_of_other_strategies() -> None:
    base = config_hash(to_dict(RunConfig()))
    assert config_hash(to_dict(RunConfig(seed=5))) == base
    assert config_hash(to_dict(RunConfig(options=StrategyOptions(last_k=LastK.Options(k=1))))) == base
    assert config_hash(
        to_dict(RunConfig(strategy="last_k", options=StrategyOptions(last_k=LastK.Options(k=1))))
    ) != config_hash(to_dict(RunConfig(strategy="last_k")))


def test_hash_depends_on_every_other_choice() -> None:
    changed = [
        RunConfig(strategy="frozen"),
        RunConfig(data=DataConfig(image_size=96)),
        RunConfig(model=ModelConfig(embedding_dim=8)),
        RunConfig(loss=LossConfig(loss_options=(("margin", 0.3),))),
        RunConfig(train=TrainConfig(lr=1e-5)),
        RunConfig(evaluation=EvalConfig(k=(1,))),
    ]
    assert len({config_hash(to_dict(config)) for config in [RunConfig(), *changed]}) == len(changed) + 1


configs = st.builds(
    RunConfig,
    strategy=st.sampled_from(["frozen", "last_k"]),
    seed=st.integers(0, 99),
    data=st.builds(
        DataConfig,
        image_size=st.integers(8, 500),
        flip=st.booleans(),
        split=st.sampled_from(["zero_shot", "zero_shot_val", "kfold", "closed_set"]),
        fold=st.integers(0, 3),
        folds=st.integers(4, 9),
        stored=st.integers(0, 256),
        reader=st.sampled_from(["pil", "cache"]),
    ),
    model=st.builds(
        ModelConfig,
        embedding_dim=st.integers(0, 512),
        mean=st.none() | st.just((0.1, 0.2, 0.3)),
        weights=st.just("a b.pth"),
    ),
    loss=st.builds(
        LossConfig, loss_options=st.sampled_from([(), (("margin", 0.25),), (("margin", 0.1), ("alpha", 16.0))])
    ),
    train=st.builds(
        TrainConfig, lr=st.floats(0, 1), freeze_bn=st.booleans(), optimizer=st.sampled_from(["adamw", "sgd"])
    ),
    evaluation=st.builds(EvalConfig, k=st.sampled_from([(), (1,), (1, 10, 100)]), flip_sum=st.booleans()),
    options=st.builds(StrategyOptions, last_k=st.builds(LastK.Options, k=st.integers(0, 9))),
)


@settings(max_examples=25, deadline=None)
@given(configs)
def test_the_recorded_command_gives_the_configuration_back(config: RunConfig) -> None:
    assert parse(["run", *to_command(config)]).config == config


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_is_a_valid_grid_of_one_protocol(name: str) -> None:
    runs = BENCHES[name][1].runs()
    for config in runs:
        validate(config)
    assert len({(config.strategy, config.seed) for config in runs}) == len(runs)
    assert {replace(config, strategy="standard", seed=0) for config in runs} == {
        replace(runs[0], strategy="standard", seed=0)
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(strategy="standart"), "unknown strategy 'standart': did you mean 'standard'"),
        (RunConfig(data=DataConfig(dataset="cup")), "unknown data set 'cup': did you mean 'cub'"),
        (RunConfig(loss=LossConfig(loss="tripled")), "unknown loss 'tripled': did you mean 'triplet'"),
        (RunConfig(loss=LossConfig(loss="triplet", miner="semi")), "unknown miner 'semi'"),
        (RunConfig(loss=LossConfig(miner="hard")), "uses no pairs"),
        (RunConfig(loss=LossConfig(head="autolr")), "belongs to --loss softmax"),
        (RunConfig(loss=LossConfig(loss="triplet"), train=TrainConfig(samples_per_class=1)), "2 or more"),
        (RunConfig(train=TrainConfig(batch_size=10, samples_per_class=4)), "not a multiple"),
        (RunConfig(train=TrainConfig(epochs=-1)), "--epochs -1: must be at least 0"),
        (RunConfig(train=TrainConfig(lr=float("nan"))), "--lr nan"),
        (
            RunConfig(loss=LossConfig(loss_options=(("margin", float("nan")),))),
            "--loss-options margin nan: must be finite",
        ),
        (RunConfig(loss=LossConfig(loss_lr=float("inf"))), "--loss-lr inf: must be finite"),
        (RunConfig(model=ModelConfig(std=(1.0, 0.0, 1.0))), "--std 1.0 0.0 1.0: must be above 0"),
        (RunConfig(data=DataConfig(crop_scale=0)), "--crop-scale 0"),
        (RunConfig(data=DataConfig(resize=10)), "--resize 10 is smaller"),
        (RunConfig(evaluation=EvalConfig(k=(0,))), "--k 0"),
        (RunConfig(evaluation=EvalConfig(k=(1, 1))), "--k 1 1: give distinct"),
        (RunConfig(data=DataConfig(stored=-1)), "--stored -1: must be at least 0"),
        (RunConfig(data=DataConfig(split="kfold", fold=4)), r"--fold 4: must be from 0 to 3 \(--folds 4\)"),
        (RunConfig(data=DataConfig(split="kfold", fold=-1)), "--fold -1: must be from 0"),
        (RunConfig(data=DataConfig(split="kfold", folds=1)), "--folds 1: must be at least 2"),
        (RunConfig(data=DataConfig(fold=1)), "belong to --split kfold; --split is zero_shot"),
        (RunConfig(data=DataConfig(split="closed_set", folds=5)), "belong to --split kfold; --split is closed_set"),
        (RunConfig(options=StrategyOptions(last_k=LastK.Options(k=1))), "--last-k options are set"),
    ],
)
def test_bad_values_get_one_line(config: RunConfig, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        validate(config)
    assert "\n" not in str(error.value)


def test_pair_losses_get_batches_with_several_images_per_class() -> None:
    assert RunConfig(loss=LossConfig(loss="triplet")).samples_per_class == 4
    assert RunConfig(loss=LossConfig(loss="proxy_anchor")).samples_per_class == 0
    assert to_dict(RunConfig())["train"]["samples_per_class"] == 0


def test_k_is_what_papers_report_on_the_data_set_unless_asked() -> None:
    expected = {
        "emoji_mini": [1, 2, 4, 8],
        "cub": [1, 2, 4, 8],
        "sop": [1, 10, 100, 1000],
        "inshop": [1, 10, 20, 30, 40, 50],
    }
    for name, ks in expected.items():
        config = RunConfig(data=DataConfig(dataset=name))
        assert list(config.ks) == to_dict(config)["evaluation"]["k"] == ks
        assert to_dict(replace(config, evaluation=EvalConfig(k=(5, 3))))["evaluation"]["k"] == [5, 3]


def test_asking_for_the_default_k_is_the_same_run() -> None:
    sop = RunConfig(data=DataConfig(dataset="sop"))
    assert config_hash(to_dict(sop)) == config_hash(to_dict(replace(sop, evaluation=EvalConfig(k=(1, 10, 100, 1000)))))
    assert config_hash(to_dict(RunConfig(evaluation=EvalConfig(k=(1, 2, 4, 8))))) == config_hash(to_dict(RunConfig()))


def test_folds_and_readers_are_runs_of_their_own() -> None:
    choices = [DataConfig(split="kfold", fold=fold) for fold in range(4)] + [
        DataConfig(reader="cache"),
        DataConfig(stored=64),
    ]
    for data in choices:
        validate(RunConfig(data=data))
    assert len({config_hash(to_dict(RunConfig(data=data))) for data in [DataConfig(), *choices]}) == 7

"""The configuration: flat values and back, validation, stable hash, and the command that gives it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.cli import parse
from retrieval_bench.config import (
    RunConfig,
    RuntimeConfig,
    config_hash,
    flatten,
    nest,
    recorded_config,
    to_command,
    unflatten,
    unnest,
)
from retrieval_bench.errors import UserError
from retrieval_bench.records import load_records
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.validation import validate

DEFAULT = RunConfig()


def hash_of(config: RunConfig) -> str:
    return config_hash(flatten(config))


def test_hash_of_the_default_run_never_changes() -> None:
    """In no process, whatever its PYTHONHASHSEED. If this fails, a default was changed, or a field was added whose
    default is not what was done before."""
    assert hash_of(DEFAULT) == "44136fa3", "the hash of an empty difference"
    assert hash_of(DEFAULT.changed(strategy="last_k", train__lr=1e-5)) == "cc8db8d8"


@pytest.mark.parametrize(
    "same",
    [
        DEFAULT.changed(seed=5),
        DEFAULT.changed(options__last_k__k=1),
        DEFAULT.changed(evaluation__k=(1, 2, 4, 8)),
        DEFAULT.changed(train__samples_per_class=0),
        DEFAULT.changed(train__epochs=4),
    ],
)
def test_hash_is_of_what_takes_part_not_of_spelling(same: RunConfig) -> None:
    assert hash_of(same) == hash_of(DEFAULT)
    assert hash_of(DEFAULT.changed(train__lr=1)) == hash_of(DEFAULT.changed(train__lr=1.0))
    assert hash_of(RunConfig(strategy=" frozen + last_k")) == hash_of(RunConfig(strategy="frozen+last_k"))


def test_hash_depends_on_every_other_choice() -> None:
    changes = [
        {"strategy": "frozen"},
        {"strategy": "last_k"},
        {"strategy": "last_k", "options.last_k.k": 1},
        {"data.image_size": 96},
        {"data.stored": 64},
        {"data.reader": "cache"},
        *({"data.split": "kfold", "data.fold": fold} for fold in range(4)),
        {"model.embedding_dim": 8},
        {"loss.loss_options": [["margin", 0.3]]},
        {"train.lr": 1e-5},
        {"evaluation.k": [1]},
    ]
    configs = [unflatten(change) for change in changes]
    assert len({hash_of(config) for config in [DEFAULT, *configs]}) == len(changes) + 1
    for config in configs:
        validate(config)


configs = st.builds(
    RunConfig,
    strategy=st.sampled_from(["frozen", "last_k", "frozen+last_k"]),
    seed=st.integers(0, 99),
    data=st.builds(
        DataConfig,
        image_size=st.integers(8, 500),
        flip=st.booleans(),
        split=st.sampled_from(["zero_shot", "kfold"]),
        fold=st.integers(0, 3),
        reader=st.sampled_from(["pil", "cache"]),
    ),
    model=st.builds(ModelConfig, mean=st.none() | st.just((0.1, 0.2, 0.3)), weights=st.just("a b.pth")),
    loss=st.builds(LossConfig, loss_options=st.sampled_from([(), (("margin", 0.1), ("distance", "LpDistance"))])),
    train=st.builds(TrainConfig, lr=st.floats(0, 1), optimizer=st.sampled_from(["adamw", "sgd"])),
    evaluation=st.builds(EvalConfig, k=st.sampled_from([(), (1,), (1, 10, 100)]), flip_sum=st.booleans()),
    options=st.builds(StrategyOptions, last_k=st.builds(LastK.Options, k=st.integers(1, 9))),
)


@settings(max_examples=25, deadline=None)
@given(configs)
def test_command_and_record_give_the_configuration_back(config: RunConfig) -> None:
    assert parse(["run", *to_command(config)]).config == config
    values = flatten(config)
    assert unnest(nest(values)) == values
    assert flatten(recorded_config(nest({**values, "data.files_fingerprint": "x"}), "")) == values


def test_records_of_choices_that_there_are_no_more_are_read() -> None:
    old = {**flatten(DEFAULT), "train.out_of_memory": "stop"}
    assert config_hash(old) == hash_of(DEFAULT)
    assert recorded_config(nest(old), "") == replace(
        DEFAULT, evaluation=EvalConfig((1, 2, 4, 8)), train=TrainConfig(samples_per_class=0)
    )
    with pytest.raises(UserError, match=r"unknown choice 'train.lrr': did you mean 'train.lr'"):
        unflatten({"train.lrr": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "standart"}, "unknown strategy 'standart': did you mean 'standard'"),
        ({"data.dataset": "cup"}, "unknown data set 'cup': did you mean 'cub'"),
        ({"loss.loss": "tripled"}, "unknown loss 'tripled': did you mean 'triplet'"),
        ({"loss.loss": "triplet", "loss.miner": "semi"}, "unknown miner 'semi'"),
        ({"loss.miner": "hard"}, "uses no pairs"),
        ({"loss.miner_options": [["margin", 0.1]]}, "--miner-options are set but there is no miner"),
        (
            {"loss.loss": "CrossBatchMemory"},
            "--loss CrossBatchMemory: this class holds embeddings or losses of earlier",
        ),
        ({"loss.loss": "CosFaceLos"}, "unknown loss 'CosFaceLos': did you mean 'CosFaceLoss'"),
        ({"loss.loss": "triplet", "loss.proxy_warmup": 1}, "--proxy-warmup 1: triplet has no proxies, so give"),
        ({"loss.head": "autolr"}, "belongs to --loss softmax"),
        ({"loss.loss": "triplet", "train.samples_per_class": 1}, "2 or more"),
        ({"train.batch_size": 10, "train.samples_per_class": 4}, "not a multiple"),
        *(
            ({"loss.loss": name, "train.batch_size": 3, "train.samples_per_class": 3}, "is one class per batch")
            for name in ("triplet", "contrastive", "multi_similarity")
        ),
        ({"train.epochs": -1}, "--epochs -1: must be at least 0"),
        ({"train.lr": float("nan")}, "--lr nan: must be finite"),
        ({"train.lr": float("inf")}, "--lr inf: must be finite"),
        ({"loss.loss_options": [["margin", float("nan")]]}, "--loss-options margin nan: must be finite"),
        ({"model.std": (1.0, 0.0, 1.0)}, "--std 1.0 0.0 1.0: must be above 0"),
        ({"data.crop_scale": 0}, "--crop-scale 0: must be above 0 and at most 1"),
        ({"data.resize": 10}, "--resize 10 is smaller"),
        ({"evaluation.k": (0,)}, "--k 0"),
        ({"evaluation.k": (1, 1)}, "--k 1 1"),
        ({"data.stored": -1}, "--stored -1: must be at least 0"),
        ({"train.schedule": "step", "train.decay_at": 1.5}, "--decay-at 1.5: must be at least 0 and at most 1"),
        ({"train.cycles": 2}, "--cycles 2 belongs to --schedule triangular or warm_restarts; --schedule is cosine"),
        ({"train.skip_batches": 1, "train.freeze_bn": False}, "--skip-batches needs frozen batch norms"),
        ({"train.keep_statistics": True}, "--keep-statistics belongs to --no-freeze-bn"),
        ({"train.warmup": 4.5}, "--warmup 4.5 is longer than --epochs 4"),
        ({"train.grad_checkpointing": True, "train.freeze_bn": False}, "--grad-checkpointing needs frozen batch norms"),
        ({"train.grad_checkpointing": True, "train.fused": True}, "--grad-checkpointing and --fused"),
        ({"model.drop_path": 1.0}, "--drop-path 1.0: must be at least 0 and below 1"),
        ({"data.split": "kfold", "data.fold": 4}, r"--fold 4: must be from 0 to 3 \(--folds 4\)"),
        ({"data.split": "kfold", "data.folds": 1}, "--folds 1: must be at least 2"),
        ({"data.fold": 1}, "belong to --split kfold; --split is zero_shot"),
        ({"options.last_k.k": 1}, "--last-k options are set"),
        ({"strategy": "last_k", "options.last_k.k": -1}, "--last-k.k -1: must be at least"),
        ({"strategy": "rollback", "train.epochs": 1}, "--epochs 1: rollback needs at least"),
    ],
)
def test_bad_values_get_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        validate(unflatten(values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "ks"), [("cub", (1, 2, 4, 8)), ("sop", (1, 10, 100, 1000)), ("inshop", (1, 10, 20, 30, 40, 50))]
)
def test_k_is_what_papers_report_on_the_data_set_unless_asked(dataset: str, ks: tuple[int, ...]) -> None:
    config = DEFAULT.changed(data__dataset=dataset)
    assert config.ks == tuple(flatten(config)["evaluation.k"]) == ks
    assert hash_of(config) == hash_of(config.changed(evaluation__k=ks))
    assert flatten(config.changed(evaluation__k=(5, 3)))["evaluation.k"] == [5, 3]


def test_pair_losses_get_batches_with_several_images_per_class() -> None:
    for loss in ("proxy_anchor", "softmax"):  # need no second class in a batch
        validate(DEFAULT.changed(loss__loss=loss, train__batch_size=3, train__samples_per_class=3))
    validate(DEFAULT.changed(loss__loss="triplet", train__batch_size=4, train__samples_per_class=2))
    assert DEFAULT.changed(loss__loss="triplet").samples_per_class == 4
    assert flatten(DEFAULT)["train.samples_per_class"] == 0


def test_paths_of_the_home_folder_are_those_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    runtime = RuntimeConfig(results=Path("~/x"), data_root=Path("~/y"))
    assert (runtime.results, runtime.data_root, runtime.resume) == (tmp_path / "x", tmp_path / "y", None)
    assert load_records("~/x") == []

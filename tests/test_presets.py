"""Presets: flags in place of a name, which flags that are given win over; each builds its network and records flags."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from retrieval_bench.cli import main, parse
from retrieval_bench.config import RunConfig, flatten
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.presets import PRESETS, expand_preset
from retrieval_bench.records import load_records
from retrieval_bench.sections import ModelConfig
from retrieval_bench.validation import validate


@pytest.mark.parametrize("name", PRESETS)
def test_each_is_an_ordinary_configuration_whose_network_can_be_built(name: str) -> None:
    config: RunConfig = parse(["run", "--preset", name]).config
    validate(config)
    assert flatten(config) == flatten(parse(["run", *PRESETS[name].split()]).config)
    assert {key.split(".")[0] for key, value in flatten(config).items() if value != flatten(RunConfig()).get(key)} <= {
        "data",
        "model",
        "train",
    }
    with torch.device("meta"):
        model = build_embedder(config.changed(model__weights="none").model, config.data.image_size)
        assert model(torch.zeros(2, 3, config.data.image_size, config.data.image_size)).shape == (2, model.dim)
    assert model.backbone.body


@pytest.mark.parametrize(
    "words",
    [
        ["--lr", "2e-4", "--preset", "resnet50"],
        ["--preset=resnet50", "--lr=2e-4"],
        ["--preset", "resnet50", "--lr", "2e-4", "--image_size", "224"],
    ],
)
def test_flags_that_are_given_win_wherever_they_stand(words: list[str]) -> None:
    config = parse(["run", *words]).config
    assert (config.train.lr, config.model.backbone, config.data.image_size) == (2e-4, "resnet50.tv_in1k", 224)


def test_experiments_take_them_behind_their_names() -> None:
    assert parse(["bench", "synthetic", "--preset", "vit_s16_dino"]).base.train.lr == 1e-5
    assert parse(["tune", "--strategy", "lora", "--preset", "vit_b16_clip"]).base.train.weight_decay == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset"], "^--preset: give the name of one preset: efficientnet_lite0"),
        (["--preset", "--lr", "1"], "^--preset: give the name of one"),
        (["--preset", "resnet50", "--preset=convnext_tiny"], "^--preset: give the name of one"),
        (["--preset", "resnet"], "unknown preset 'resnet': did you mean 'resnet50'"),
    ],
)
def test_what_names_no_preset_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand_preset(words)


def test_a_run_with_weights_of_a_local_file(tmp_path: Path) -> None:
    """The preset's network replaced by a tiny one of its family, which learns with the same flags."""
    torch.manual_seed(0)
    net = build_embedder(ModelConfig(backbone="test_vit", weights="none"), 32).backbone.net
    save_file(net.state_dict(), tmp_path / "vit.safetensors")
    words = (
        f"run --preset vit_s16_dino --dataset synthetic --backbone test_vit --weights {tmp_path / 'vit.safetensors'}"
    )
    more = "--image-size 32 --epochs 1 --drop-path 0.1 --grad-checkpointing --precision float32 --device cpu --results"
    assert main([*words.split(), *more.split(), str(tmp_path)]) == 0
    (record,) = load_records(tmp_path)
    assert record.config["train"]["lr"] == 1e-5
    assert record.config["model"]["drop_path"] == 0.1
    assert "preset" not in str(record.config) + record.command

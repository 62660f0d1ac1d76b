"""What a configuration is called: JSON in one spelling, a stable hash, and the command that gives it back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.strategies import StrategyOptions, split_names


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON types in one spelling: defaults resolved, floats as floats, only options that take part."""
    names = split_names(config.strategy)
    plain = _plain(config)
    plain["strategy"] = "+".join(names)
    plain["train"]["samples_per_class"] = config.samples_per_class
    plain["evaluation"]["k"] = list(config.ks)
    plain["options"] = {name: values for name, values in plain["options"].items() if name in names}
    return plain


def map_weight_files(config: RunConfig, change: Callable[[Path], str]) -> RunConfig:
    """The configuration with `change` of each path of a weight file in its place: the backbone's, and those of policy networks."""

    def changed(weights: str) -> str:
        return weights if weights in ("imagenet", "none") else change(Path(weights).expanduser())

    options: Any = {
        part.name: replace(values, policy_weights=changed(values.policy_weights))
        for part in fields(config.options)
        if hasattr(values := getattr(config.options, part.name), "policy_weights")
    }
    model = replace(config.model, weights=changed(config.model.weights))
    return replace(config, model=model, options=replace(config.options, **options))


def portable(config: RunConfig) -> RunConfig:
    """The configuration with the names of weight files in place of their paths."""
    return map_weight_files(config, lambda path: path.name)


def _plain(value: Any, kind: Any = None) -> Any:
    if is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name), part.type) for part in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item, "float" if "float" in str(kind) else None) for item in value]
    return float(value) if isinstance(value, int) and kind in (float, "float") else value


def config_hash(identity: dict[str, Any]) -> str:
    """Eight hexadecimal digits that name a configuration, independent of key order, machine and Python version.

    Only what differs from the defaults is hashed, so that a new field or strategy changes no hash; therefore a default never changes (a
    test holds the hash of the default run): a new choice is a new field whose default is what was done before. ``seed`` is left out, so
    that the runs of several seeds share the hash.

    Args:
        identity: :func:`to_dict` with paths replaced by content (see ``retrieval_bench.run.identify``).
    """
    default = {**to_dict(RunConfig()), "options": _plain(RunConfig())["options"], "seed": identity.get("seed")}
    changed = json.dumps(_difference(identity, default), sort_keys=True)
    return hashlib.sha256(changed.encode()).hexdigest()[:8]


def _difference(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            if inner := _difference(value, default.get(key) or {}):
                changed[key] = inner
        elif key not in default or value != default[key]:
            changed[key] = value
    return changed


def to_command(config: RunConfig, default: RunConfig | None = None) -> list[str]:
    """The `run` arguments that give `config`: the flags of every value that differs from `default` (a fresh RunConfig)."""
    return [word for flag in changed_flags(config, default or RunConfig()) for word in flag]


def machine_words(machine: RuntimeConfig) -> list[str]:
    """The `run` arguments that give `machine`."""
    usual = RuntimeConfig(keep_new=True)  # `run` keeps embedders unless told otherwise
    return [word for flag in _flags(machine, usual, "") for word in flag]


def changed_flags(config: RunConfig, default: RunConfig) -> list[list[str]]:
    """The same flag by flag, each with its values."""
    return _flags(config, default, "")


def _flags(value: Any, default: Any, prefix: str) -> list[list[str]]:
    words: list[list[str]] = []
    for part in fields(value):
        new, old = getattr(value, part.name), getattr(default, part.name)
        flag = f"{prefix}{part.name}".replace("_", "-")
        if new == old:
            continue
        if hasattr(new, "__dataclass_fields__"):
            nested = f"{part.name}." if isinstance(value, StrategyOptions) else ""
            words += _flags(new, old, nested)
        elif isinstance(new, bool):
            words.append([f"--{flag}" if new else f"--no-{flag}"])
        elif isinstance(new, tuple):
            flat = [str(x) for item in new for x in (item if isinstance(item, tuple) else (item,))]
            words.append([f"--{flag}", *flat])
        else:
            words.append([f"--{flag}", str(new)])
    return words

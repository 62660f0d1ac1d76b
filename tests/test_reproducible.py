"""The same seed on the same machine gives the same numbers: no part of the package reads a generator that somebody else may have moved."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import retrieval_bench
from retrieval_bench.cli import main

NUMPY = r"np\.random\.(?!Generator|PCG64|default_rng|SeedSequence)\w+"
GLOBAL = re.compile(rf"^\s*(import random\b|from random import)|{NUMPY}|torch\.(initial_seed|seed)\(", re.M)
"""Python's and numpy's shared generators, and seeds that come from the clock."""
FILES = sorted(Path(retrieval_bench.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_reads_a_shared_generator(path: Path) -> None:
    found = GLOBAL.search(path.read_text(encoding="utf-8"))
    assert found is None, f"{found[0].strip()}: use retrieval_bench.seeding.generator" if found else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_duration_is_measured_with_a_clock_that_can_jump(path: Path) -> None:
    assert not re.search(r"\btime\.time\(", path.read_text(encoding="utf-8")), "use time.perf_counter"


@pytest.mark.parametrize("text", ["import random\n", "x = np.random.rand(3)", "np.random.seed(0)", "torch.seed()"])
def test_the_search_finds_them(text: str) -> None:
    assert GLOBAL.search(text)


def measured(results: Path, disturbance: int) -> dict[str, Any]:
    torch.manual_seed(disturbance)
    np.random.seed(disturbance)  # noqa: NPY002
    random.seed(disturbance)
    words = [
        "run",
        "--dataset",
        "synthetic",
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--epochs",
        "1",
    ]
    words += [
        "--strategy",
        "spottune",
        "--loss",
        "softmax",
        "--embedding-dim",
        "16",
        "--no-freeze-bn",
        "--deterministic",
    ]
    assert main([*words, "--results", str(results), "--device", "cpu"]) == 0
    (path,) = (results / "runs").glob("*.json")
    record = json.loads(path.read_text())
    return {name: record[name] for name in ("metrics", "training", "facts")}


def test_shared_generators_may_be_in_any_state(tmp_path: Path) -> None:
    try:
        assert measured(tmp_path / "one", 1) == measured(tmp_path / "two", 2)
    finally:
        torch.use_deterministic_algorithms(False)

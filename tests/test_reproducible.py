"""The same seed on the same machine gives the same numbers: nothing reads a generator that somebody else may have
moved."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import retrieval_bench
from retrieval_bench.cli import main
from retrieval_bench.records import load_records, write_record
from tests.board_records import RUN

NUMPY = r"np\.random\.(?!Generator|PCG64|default_rng|SeedSequence)\w+"
GLOBAL = re.compile(rf"^\s*(import random\b|from random import)|{NUMPY}|torch\.(initial_seed|seed)\(", re.M)
"""Python's and numpy's shared generators, and seeds that come from the clock."""


def test_no_file_reads_a_shared_generator_or_a_clock_that_can_jump() -> None:
    for text in ("import random\n", "x = np.random.rand(3)", "np.random.seed(0)", "torch.seed()"):
        assert GLOBAL.search(text)
    for path in Path(retrieval_bench.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not GLOBAL.search(text), f"{path}: use retrieval_bench.seeding"
        assert "time.time(" not in text, f"{path}: use time.perf_counter"


def test_shared_generators_may_be_in_any_state(tmp_path: Path) -> None:
    words = "run --dataset synthetic --backbone resnet10t --weights none --image-size 32 --epochs 1 --strategy spottune"
    more = "--loss softmax --embedding-dim 16 --no-freeze-bn --deterministic --device cpu --results"
    try:
        for disturbance in (1, 2):
            torch.manual_seed(disturbance)
            np.random.seed(disturbance)  # noqa: NPY002
            random.seed(disturbance)
            assert main([*words.split(), *more.split(), str(tmp_path / str(disturbance))]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    (one,), (two,) = (load_records(tmp_path / name) for name in "12")
    assert (one.metrics, one.training, one.info) == (two.metrics, two.training, two.info)


def test_reproduce_says_what_came_out_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), "--strategy", "frozen", "--results", str(tmp_path)]) == 0
    (record,) = load_records(tmp_path)
    capsys.readouterr()
    words = ["reproduce", record.id, "--results", str(tmp_path)]
    assert main(words) == 0
    assert "+0.00" in capsys.readouterr().out
    assert load_records(tmp_path) == [record], "the record stays as it was"
    metrics = {**record.metrics, "recall_at_1": 0.0}
    environment = {**record.environment, "threads": 99}
    write_record(tmp_path / "runs" / f"{record.id}.json", replace(record, metrics=metrics, environment=environment))
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert f"+{100 * record.metrics['recall_at_1']:.2f}" in printed
    assert f"threads: 99 | {record.environment['threads']}" in printed
    assert main(["reproduce", "nothing", "--results", str(tmp_path)]) == 2

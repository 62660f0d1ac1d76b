"""Every committed table is what the committed records give."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.cli import main

COMMITTED = Path(__file__).parents[2] / "results"
CAFFE = ["--backbone", "resnet50_caffe", "--weights", "resnet50-imagenet-stride-in-conv1.safetensors"]
COMMANDS = {
    "ablation_pruning-cpu": CAFFE,
    "curve_pruning-cpu": [],
    "figure_routes-cpu": CAFFE,
    "figure_structure_similarity-cifar": ["--seeds", *map(str, range(10))],
    "figure_structure_similarity-cpu": [],
    "figure_weight_variation-cpu-epochs-4": [*CAFFE, "--epochs", "4"],
    "reality_check-cpu": [],
    "table_autolr-cpu": CAFFE,
    "table_cifar-cpu": [],
    "table_spottune-cpu": CAFFE,
    "table_strategies-cpu": [],
    "table_strategies-emoji": [],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuilt")
    (folder / "runs").symlink_to(COMMITTED / "runs")
    shutil.copytree(COMMITTED / "search", folder / "search")
    return folder


def test_every_committed_table_is_rebuilt_here() -> None:
    assert {path.stem for path in (COMMITTED / "studies").glob("*.csv")} == COMMANDS.keys()


@pytest.mark.parametrize("table", COMMANDS)
def test_numbers_and_text_are_those_of_the_records(
    table: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, profile = table.split("-")[:2]
    words = ["experiment", name, profile, *COMMANDS[table], "--rebuild", "--device", "cpu", "--results", str(results)]
    assert main(words) == 0
    built, committed = (pd.read_csv(folder / "studies" / f"{table}.csv") for folder in (results, COMMITTED))
    assert list(built) == list(committed)
    for column in committed:
        if committed[column].dtype.kind == "f":
            np.testing.assert_array_equal(built[column], committed[column], err_msg=column)
        else:
            assert built[column].equals(committed[column]), column
    printed = capsys.readouterr().out.strip()
    assert printed == (COMMITTED / "studies" / f"{table}.md").read_text(encoding="utf-8").strip()
    assert len(re.findall(r"^\| ", printed, re.MULTILINE)) == len(committed) + 1

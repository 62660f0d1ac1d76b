"""A recorded run with its embedder, made once, and a folder of the images that it was tested on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from retrieval_bench.cli import main
from tests.training.helpers import Data

MADE: dict[str, Path] = {}


@pytest.fixture
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one run whose embedder is kept, and one whose embedder is not; tests do not change it."""
    if "results" not in MADE:
        folder = tmp_path_factory.mktemp("results")
        command = [
            "run",
            "--dataset",
            "synthetic",
            "--backbone",
            "test_resnet",
            "--weights",
            "none",
            "--embedding-dim",
            "8",
        ]
        command += [
            "--image-size",
            "32",
            "--epochs",
            "1",
            "--batch-size",
            "16",
            "--no-freeze-bn",
            "--results",
            str(folder),
        ]
        assert main([*command, "--flip-sum"]) == 0
        assert main([*command, "--strategy", "frozen", "--no-keep-new"]) == 0
        MADE["results"] = folder
    return MADE["results"]


@pytest.fixture
def pictures(synthetic: Data, tmp_path: Path) -> Path:
    """The test images of the synthetic set, a folder per class, with files that are none of ours."""
    table, split = synthetic
    folder = tmp_path / "pictures"
    for row in split.test:
        target = folder / table.class_names[table.labels[row]] / "deep" / Path(table.paths[row]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(table.root / table.paths[row], target)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder

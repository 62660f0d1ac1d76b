"""A recorded run with its embedder, made once, and a folder of the images that it was tested on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, EvalConfig, ModelConfig, TrainConfig
from tests.training.helpers import Data

CONFIG = RunConfig(
    data=DataConfig(dataset="synthetic", image_size=32),
    model=ModelConfig(backbone="test_resnet", weights="none", embedding_dim=8),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
    evaluation=EvalConfig(flip_sum=True),
)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one run whose embedder is kept, and one whose embedder is not; tests do not change it."""
    folder = tmp_path_factory.mktemp("results")
    run(CONFIG, RuntimeConfig(results=folder, keep_new=True))
    run(CONFIG.changed(strategy="frozen"), RuntimeConfig(results=folder))
    return folder


@pytest.fixture(scope="session")
def exported(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, since an export takes seconds."""
    folder = tmp_path_factory.mktemp("exported") / "mine"
    assert main(["export", "synthetic-standard", "--results", str(results), "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def pictures(synthetic: Data, tmp_path: Path) -> Path:
    """The test images of the synthetic set, a folder per class, one image in none, with files that are none of ours."""
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

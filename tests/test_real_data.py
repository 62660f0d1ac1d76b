"""The real CUB-200-2011 files and ResNet-50 weights, where ``RETRIEVAL_BENCH_REAL_DATA`` names their folder.

The folder holds ``cub-200-2011/*.tar`` (the official layout in parts, images scaled to 256 pixels) and
``weights/resnet50-imagenet-stride-in-conv1.safetensors``. The known answers were computed apart from this package, on
the same files.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.loading import Batches
from retrieval_bench.models.build import build_embedder, efficientnet_lite0_weights
from retrieval_bench.models.embedder import embed, unit
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, ModelConfig

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("RETRIEVAL_BENCH_REAL_DATA" not in os.environ, reason="RETRIEVAL_BENCH_REAL_DATA is not set"),
]


@pytest.fixture(scope="module")
def cub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cub")
    for part in sorted(real("cub-200-2011").glob("*.tar")):
        with tarfile.open(part) as tar:
            tar.extractall(folder, filter="data")
    return folder


def real(name: str) -> Path:
    return Path(os.environ["RETRIEVAL_BENCH_REAL_DATA"]) / name


def resnet50() -> ModelConfig:
    return ModelConfig(
        backbone="resnet50_caffe", weights=str(real("weights") / "resnet50-imagenet-stride-in-conv1.safetensors")
    )


def test_cub_has_the_published_counts_and_the_committed_manifest(cub: Path) -> None:
    table, split = open_dataset("cub", cub)
    assert (len(table), len(split.train), len(split.test)) == (11_788, 5_864, 5_924)
    table.fingerprint()
    closed = open_dataset("cub", cub, "closed_set")[1]
    assert (len(closed.train), len(closed.test), len(closed.train_classes)) == (5_994, 5_794, 200)


def test_pretrained_features_tell_two_species_apart(cub: Path) -> None:
    table, _ = open_dataset("cub", cub)
    rows = np.concatenate([np.flatnonzero(table.labels == label)[:6] for label in (100, 130)])
    config = DataConfig(dataset="cub", image_size=112)
    vectors = unit(embed(build_embedder(resnet50(), 112), Batches(table, rows, table.labels[rows], config, workers=0)))
    similarity = torch.from_numpy(vectors @ vectors.T)
    assert similarity[:6, :6].mean() > similarity[:6, 6:].mean() + 0.05


KNOWN = {
    "resnet50_caffe": (44.50, 57.82, 69.77, 80.49),
    "efficientnet_lite0": (56.20, 68.18, 78.85, 87.41),
}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", KNOWN)
def test_known_answers_within_0_3_points(
    backbone: str, cub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen features of all 5,924 test images: Resize 256, CenterCrop 224, float32."""
    if backbone == "efficientnet_lite0":
        monkeypatch.delenv("RETRIEVAL_BENCH_CACHE")
        efficientnet_lite0_weights()
    torch.set_num_threads(os.cpu_count() or 1)
    model = resnet50() if backbone == "resnet50_caffe" else ModelConfig(backbone=backbone)
    config = RunConfig(strategy="frozen", data=DataConfig(dataset="cub", image_size=224), model=model)
    metrics = run(config, RuntimeConfig(data_root=cub, results=tmp_path)).metrics
    found = [100 * metrics[f"recall_at_{k}"] for k in (1, 2, 4, 8)]
    assert found == pytest.approx(KNOWN[backbone], abs=0.3)

"""Shared fixtures: a cache of the tests' own, and the synthetic data set in it. No test reaches the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's cache, one per test session and worker; never the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def synthetic() -> tuple[ImageTable, Split]:
    """16 classes of 8 drawn images; the first 8 classes train."""
    return open_dataset("synthetic", None)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run side by side in processes; threads inside each, or inside what they start, would only fight over the
    cores, and sums over several threads have other bits."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("MKL_NUM_THREADS", None)

"""A fixture for the data sets' own tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.dataset import Counts
from tests.data.sets.layouts import Miniature


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """Gives a data set other published counts and no manifest, so that a small copy of it can be opened."""

    def shrink(name: str, counts: Counts) -> None:
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], counts=counts, manifests={}))

    return shrink

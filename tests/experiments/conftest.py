"""One Ray for all tests that need one: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.experiments.helpers import small_ray


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    pytest.importorskip("ray")
    with small_ray() as started:
        yield started

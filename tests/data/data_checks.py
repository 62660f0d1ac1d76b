"""What several data tests check or make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.errors import UserError


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """The block must raise a UserError of one line that holds every one of `words`."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def files_below(folder: Path) -> list[str]:
    """Everything below `folder`, hidden names and folders too; a folder that does not exist holds nothing."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


def noise(size: int) -> bytes:
    """The same incompressible bytes each time."""
    return np.random.default_rng(0).bytes(size)


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))

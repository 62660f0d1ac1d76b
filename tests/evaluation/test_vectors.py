"""Embeddings of any number type and size as rows whose products rank neighbours; what is refused, and what is read of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.evaluation import vectors as module
from retrieval_bench.evaluation.evaluate import evaluate_in_detail
from retrieval_bench.evaluation.vectors import Distance, as_pair, as_vectors
from tests.data.data_checks import refused
from tests.evaluation.retrieval_cases import EVERY, TOP, floats, formed, integers, pieces

DISTANCES = pytest.mark.parametrize("distance", ["cosine", "l2"])
GIVEN = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6).flatmap(lambda size: floats(9, size, 1)))
def test_products_are_cosines_or_fall_with_the_distance(given: np.ndarray) -> None:
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    cosine = as_vectors(given)
    np.testing.assert_allclose(cosine.left(slice(None)) @ cosine.right(slice(None)).T, unit @ unit.T, atol=1e-14)
    l2 = as_vectors(given, "l2")
    apart = ((given[:, None] - given) ** 2).sum(axis=2)
    found = l2.left(slice(None)) @ l2.right(slice(None)).T
    np.testing.assert_allclose(found, -0.5 * apart * l2_scale(given), atol=1e-14)


def l2_scale(given: np.ndarray) -> float:
    """What squared distances are multiplied by so that the row farthest from the centre has length 1."""
    return 1 / (((given - given.mean(axis=0)) ** 2).sum(axis=1).max() or 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 64, 1024]), st.sampled_from(["cosine", "l2"]), st.booleans())
def test_float32_products_stay_within_the_bound(seed: int, size: int, distance: Distance, positive: bool) -> None:
    rng = np.random.default_rng(seed)
    given = rng.normal(size=(30, size)) + 0.01
    found = as_vectors(np.abs(given) if positive else given, distance)
    left, right = found.left(slice(None)), found.right(slice(None))
    single = left.astype(np.float32) @ right.astype(np.float32).T
    in_turn = np.zeros((30, 30), dtype=np.float32)  # the worst order of a sum
    for column in range(left.shape[1]):
        in_turn += np.outer(left[:, column].astype(np.float32), right[:, column].astype(np.float32))
    for product in (single, in_turn):
        assert np.abs(product - left @ right.T).max() <= found.error


@DISTANCES
@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-30, 1e30, 1e200, 1e300])
def test_tiny_and_huge_vectors_keep_their_direction(size: float, distance: Distance) -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(20, 3))
    one, other = as_vectors(given, distance), as_vectors(given * size, distance)
    np.testing.assert_allclose(other.left(slice(None)), one.left(slice(None)), atol=1e-14)


@pytest.mark.parametrize("size", [1e-310, 1e308])
def test_the_smallest_and_the_largest_numbers_have_a_direction(size: float) -> None:
    np.testing.assert_allclose(
        as_vectors(GIVEN * size).rows(slice(None)), as_vectors(GIVEN).rows(slice(None)), atol=1e-12
    )


@DISTANCES
@settings(max_examples=20, deadline=None)
@given(
    integers(8, 3),
    st.sampled_from([np.int8, np.int64, np.float16, np.float32, ">f4", "<f8", 1e200, 1e-200]),
    st.booleans(),
)
def test_every_number_type_and_layout_gives_the_same_rows(
    distance: Distance, given: np.ndarray, form: Any, columns_first: bool
) -> None:
    other = formed(given, form)
    other = np.asfortranarray(other) if columns_first else other
    found = as_vectors(np.repeat(other, 2, axis=0)[::2], distance).rows(slice(None))
    np.testing.assert_allclose(found, as_vectors(given, distance).rows(slice(None)), atol=1e-13)


def test_unsigned_integers_and_the_most_negative_one() -> None:
    np.testing.assert_allclose(as_vectors(np.array([[3, 4]], np.uint8)).rows(slice(None)), [[0.6, 0.8]])
    np.testing.assert_allclose(as_vectors(np.array([[-128, 0]], np.int8)).rows(slice(None)), [[-1.0, 0.0]])


def with_row(row: int, value: float, rows: int = 4) -> np.ndarray:
    given = np.ones((rows, 3))
    given[row] = value
    return given


@DISTANCES
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_no_numbers_are_named(value: float, distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 6)
    given = with_row(3, value, 9)
    given[7, 1] = value
    with refused("embeddings: row 3 has NaN or infinite values", "2 such rows"):
        as_vectors(given, distance)
    with refused("query_embeddings: row 3"):
        as_pair(given.astype(np.float32), np.ones((2, 3)), distance)
    with refused("embeddings: row 3"):
        as_pair(np.ones((2, 3)), given, distance)


def test_zero_rows_are_named_under_cosine_and_fine_under_l2() -> None:
    with refused("embeddings: row 2 is a zero vector"):
        as_vectors(with_row(2, 0.0))
    with refused("query_embeddings: row 0 is a zero vector"):
        as_pair(with_row(0, 0.0), np.ones((2, 3)))
    assert np.isfinite(as_vectors(with_row(2, 0.0), "l2").rows(slice(None))).all()
    assert not as_vectors(np.zeros((3, 2)), "l2").rows(slice(None)).any()


@pytest.mark.parametrize(
    "given",
    [
        np.ones(3),
        np.ones((2, 2, 2)),
        np.ones((3, 0)),
        np.full((2, 2), "a"),
        np.ones((2, 2), bool),
        np.ones((2, 2), complex),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(given: np.ndarray) -> None:
    with refused("embeddings: expected numbers of shape (images, dimensions)"):
        as_vectors(given)


def test_queries_and_gallery_of_other_dimensions_are_refused() -> None:
    with refused("query_embeddings have 3 dimensions, embeddings have 2"):
        as_pair(np.ones((4, 3)), GIVEN)


class Watched(np.memmap):
    """A memory-mapped file that notes how many rows are asked for at once."""

    most: list[int]

    def __array_finalize__(self, obj: Any) -> None:
        super().__array_finalize__(obj)
        self.most = getattr(obj, "most", [])

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.most.append(len(found) if np.ndim(found) else 1)
        return found


def stored(path: Path, rows: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, rows // 4, rows)
    given = (rng.normal(size=(rows, 6))[labels] + rng.normal(size=(rows, 6))).astype(np.float32)
    np.save(path, given)
    return given, labels


@DISTANCES
def test_a_memory_mapped_file_gives_the_same_and_stays_one(distance: Distance, tmp_path: Path) -> None:
    given, labels = stored(tmp_path / "e.npy")
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r")
    assert isinstance(as_vectors(mapped, distance).raw, np.memmap)
    one, other = (evaluate_in_detail(rows, labels, metrics=TOP, distance=distance) for rows in (given, mapped))
    assert one.metrics == other.metrics
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])


@DISTANCES
@pytest.mark.parametrize("metrics", [("recall",), TOP, EVERY])
def test_a_memory_mapped_file_is_never_read_as_a_whole(
    metrics: Any, distance: Distance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, labels = stored(tmp_path / "e.npy")
    mapped = np.load(tmp_path / "e.npy", mmap_mode="r").view(Watched)
    monkeypatch.setattr(module, "PIECE", 6 * 100)
    monkeypatch.setattr("retrieval_bench.evaluation.matching.ROWS", 100)
    with pieces(100):
        found = evaluate_in_detail(mapped, labels, metrics=metrics, distance=distance, memory_gb=0.0, device="cpu")
    assert 0 < max(mapped.most) <= 520, "rows at once; 512 are the sample that gives positives up"
    assert found.metrics == pytest.approx(
        evaluate_in_detail(given, labels, metrics=metrics, distance=distance).metrics, abs=1e-12
    )

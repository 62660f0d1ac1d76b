"""Details of a test: neighbours against slow definitions, galleries by hand, files, and what a real run writes."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval_bench import details as module
from retrieval_bench.config import RuntimeConfig
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.details import NEIGHBOURS, Details, describe, nearest, read_details, thumbnail, write_details
from retrieval_bench.records import ResultsFolder
from retrieval_bench.run import run
from tests.board_records import FAST, details_of
from tests.data.data_checks import files_below, refused


def unit_rows(seed: int, count: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(seed=st.integers(0, 999), count=st.integers(2, 12), data=st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_nearest_is_what_sorting_all_images_gives(seed: int, count: int, data: st.DataObject) -> None:
    """Queries and gallery are any subsets: the same images, some in common, none in common as in In-Shop."""
    vectors = unit_rows(seed, count, 5)
    rows = st.lists(st.integers(0, count - 1), min_size=1, unique=True).map(sorted)
    queries, gallery = (np.array(data.draw(rows)) for _ in range(2))
    neighbours, similarity = nearest(vectors, queries, gallery)
    assert neighbours.shape == similarity.shape == (len(queries), NEIGHBOURS)
    for query, images, values in zip(queries, neighbours, similarity, strict=True):
        others = sorted((-float(vectors[query] @ vectors[image]), int(image)) for image in gallery if image != query)
        others = others[:NEIGHBOURS]
        assert images.tolist() == [image for _, image in others] + [-1] * (NEIGHBOURS - len(others))
        assert values[: len(others)] == pytest.approx([-value for value, _ in others], abs=1e-6)
        assert not values[len(others) :].any()


def test_the_gallery_shows_the_worst_two_of_a_class_and_some_that_are_right() -> None:
    ranks = [9, 8, 7, 1, 1, 0, 2, 1, 3, 1, 1, 1]
    rows = details_of(ranks, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]).gallery_queries().tolist()
    assert rows[:4] == [0, 1, 8, 6], "not the third of class 0, nor a query without a positive"
    assert rows[4:] == [3, 7, 9, 11], "from all over those that are right"
    worst = details_of([5] * 40, list(range(40)))
    assert worst.gallery_queries().tolist() == list(range(module.WORST)), "of equal ranks the first"
    assert Counter(worst.labels[worst.gallery_queries()].tolist()).most_common(1)[0][1] <= module.PER_CLASS
    assert details_of([0, 0], [0, 1]).gallery_queries().tolist() == []
    assert details_of([1, 1, 1], [0, 0, 0]).gallery_queries().tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 29), st.integers(0, 3)), min_size=1, max_size=30))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_confused_classes_are_those_of_a_counter(rows: list[tuple[int, int, int]]) -> None:
    labels = [label for label, *_ in rows]
    nearest_images = [image if image < len(rows) else -1 for _, image, _ in rows]
    ranks = [rank for *_, rank in rows]
    pairs = Counter((labels[i], labels[image]) for i, image in enumerate(nearest_images) if image >= 0 and ranks[i])
    expected = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    confused = details_of(ranks, labels, [[image] for image in nearest_images]).confused_classes()
    assert [count for _, _, count, _ in confused] == sorted(expected.values(), reverse=True)[: module.PAIRS]
    for own, other, count, row in confused:
        assert expected[own, other] == count
        assert (labels[row], labels[nearest_images[row]]) == (own, other)


def test_a_thumbnail_is_a_small_webp_and_never_larger_than_the_image(tmp_path: Path) -> None:
    for size, expected in (((300, 150), (160, 80)), ((20, 10), (20, 10)), ((200, 400), (80, 160))):
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "image.png")
        with Image.open(io.BytesIO(thumbnail(tmp_path / "image.png"))) as image:
            assert (image.format, image.size) == ("WEBP", expected)
    assert thumbnail(tmp_path / "missing.png") == b""


Test = tuple[np.ndarray, dict[str, np.ndarray], ImageTable, Split]


def small_test(root: Path, count: int = 8, classes: int = 4) -> Test:
    """Everything that `describe` needs of a test whose images all search each other; their files in `root`."""
    labels = np.arange(count) % classes
    paths, names = (tuple(f"{row}.png" for row in range(count)), tuple(f"class {label}" for label in range(classes)))
    for row, path in enumerate(paths):
        Image.new("RGB", (90, 90), (20 * row % 256, 0, 0)).save(root / path)
    columns = {"first_rank": np.arange(1, count + 1), "map_at_r": np.linspace(0, 1, count)}
    images = np.arange(count)
    split = Split(np.arange(0), images, images, np.arange(classes))
    return unit_rows(2, count, 5), columns, ImageTable(root, paths, labels, names), split


def test_details_are_read_as_they_were_written_and_an_unreadable_image_has_no_picture(tmp_path: Path) -> None:
    test = small_test(tmp_path)
    (tmp_path / "3.png").write_bytes(b"damaged")
    details = describe(*test, True)
    details = replace(details, map_at_r=np.where(details.first_rank == 2, np.float32("nan"), details.map_at_r))
    pictures = details.pictures()
    assert sorted(pictures) == [0, 1, 2, 4, 5, 6, 7]
    assert pictures[5] == thumbnail(tmp_path / "5.png")
    path = ResultsFolder(tmp_path).details("some-run")
    write_details(details, path)
    assert files_below(tmp_path / "details") == ["some-run.npz"]
    again = read_details(path)
    for field in fields(Details):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(details, field.name), strict=True)
    with np.load(path) as arrays:
        assert {"listed", "mapped"} <= set(arrays), "keys of the file do not change"


def test_queries_apart_from_the_gallery_are_numbered_within_the_test(tmp_path: Path) -> None:
    """As in In-Shop: the test's images are rows 2, 4, 5, 7 of the table, the first and last search in the others."""
    vectors, _, table, _ = small_test(tmp_path)
    split = Split(np.array([0, 1]), np.array([2, 7]), np.array([4, 5]), np.array([0]))
    details = describe(vectors[split.test], {"first_rank": np.array([1, 2])}, table, split, False)
    assert details.paths.tolist() == ["2.png", "4.png", "5.png", "7.png"]
    assert details.queries.tolist() == [0, 3]
    assert [sorted(row[:2].tolist()) for row in details.neighbours] == [[1, 2], [1, 2]]
    assert (details.neighbours[:, 2:] == -1).all()
    assert details.class_names[details.labels].tolist() == [f"class {row % 4}" for row in (2, 4, 5, 7)]
    assert np.isnan(details.map_at_r).all(), "MAP@R was not measured"


def test_of_many_queries_some_are_kept_the_worst_among_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "QUERIES_WITH_NEIGHBOURS", 20)
    monkeypatch.setattr(module, "MAP_IMAGES", 4)
    vectors, columns, table, split = small_test(tmp_path, 100)
    columns["first_rank"] = np.random.default_rng(0).permutation(100) + 1

    def kept() -> Details:
        return describe(vectors, columns, table, split, False)

    queries = kept().neighbour_queries.tolist()
    assert 10 <= len(queries) <= 20
    assert queries == sorted(set(queries))
    assert {int(np.flatnonzero(columns["first_rank"] == rank)[0]) for rank in (99, 100)} <= set(queries)
    assert len(kept().neighbours) == len(kept().similarity) == len(queries)
    assert len(kept().first_rank) == 100, "ranks are kept of all"
    assert kept().map_images.tolist() == [0, 33, 66, 99], "at even distances"
    monkeypatch.setattr(module, "QUERIES_WITH_NEIGHBOURS", 100)
    assert kept().neighbour_queries.tolist() == list(range(100)), "at the limit all"


def test_damaged_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with refused(path, "no such file"):
        read_details(path)
    write_details(details_of([1, 2], [0, 0], [[1], [0]]), path)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", paths=np.arange(3))
    pickled: dict[str, Any] = {name: np.array([{}], dtype=object) for name in np.load(path)}
    np.savez(tmp_path / "pickle.npz", **pickled)
    for name in ("other.npz", "pickle.npz", "."):
        with refused(tmp_path / name, "remove it"):
            read_details(tmp_path / name)
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:200] + bytes(60) + whole[260:]):
        path.write_bytes(damaged)
        with refused(path, "remove it"):
            read_details(path)
    fitting = details_of([1, 2], [0, 0], [[1], [0]])
    for name, values in (
        ("first_rank", np.array([1], dtype=np.int32)),
        ("labels", np.array([0, 9], dtype=np.int32)),
        ("labels", np.array(["a", "b"])),
        ("neighbour_queries", np.array([0, 5], dtype=np.int32)),
        ("neighbours", np.full((2, NEIGHBOURS), -5, dtype=np.int32)),
        ("neighbours", np.array([[1], [0]], dtype=np.int32)),
        ("map_at_r", np.zeros((2, 2), dtype=np.float32)),
    ):  # arrays that do not fit together, so that whatever is made of them cannot fail later
        write_details(replace(fitting, **{name: values}), path)
        with refused(path, name, "remove it"):
            read_details(path)


@pytest.mark.parametrize(("split", "thumbnails"), [("zero_shot", True), ("closed_set", False)])
def test_a_run_writes_details_that_give_its_metrics(tmp_path: Path, split: str, thumbnails: bool) -> None:
    config = FAST.changed(data__split=split, train__epochs=0)
    record = run(config, RuntimeConfig(results=tmp_path, thumbnails=thumbnails))
    details = read_details(ResultsFolder(tmp_path).details(record.id))
    has_positive = details.first_rank > 0
    assert len(details.queries) == record.metrics["queries"] == record.data["query_images"]
    assert len(details.paths) == record.data["test_images"]
    for k in record.config["evaluation"]["k"]:
        hits = (has_positive & (details.first_rank <= k)).sum()
        assert hits / has_positive.sum() == record.metrics[f"recall_at_{k}"]
    assert np.nanmean(details.map_at_r, dtype=np.float64) == pytest.approx(record.metrics["map_at_r"], abs=1e-6)
    is_right = details.labels[details.neighbours[:, 0]] == details.labels[details.queries[details.neighbour_queries]]
    np.testing.assert_array_equal(is_right, details.first_rank[details.neighbour_queries] == 1)
    shown = details.queries[details.neighbour_queries[details.gallery_queries()]]
    assert set(shown.tolist()) <= set(details.pictures()) if thumbnails else not details.pictures()

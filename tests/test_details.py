"""Details of a test: neighbours and maps against slow definitions, galleries by hand, files, and what a real run writes."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA

from retrieval_bench import details as module
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import Split
from retrieval_bench.details import (
    NEIGHBOURS,
    PAIRS,
    PER_CLASS,
    SHOWN,
    SIDE,
    Details,
    describe,
    details_path,
    nearest,
    read_details,
    thumbnail,
    write_details,
)
from retrieval_bench.evaluation.pca import principal_components
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, ModelConfig, TrainConfig
from retrieval_bench.tables import metric_title
from tests.data.data_checks import files_below, refused

TINY = RunConfig(
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=0, batch_size=16),
)


def unit_rows(seed: int, count: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made(ranks: list[int], labels: list[int], neighbours: list[list[int]]) -> Details:
    """Details of a test in which every image is a query, all of them listed."""
    count = len(ranks)
    everything = np.arange(count, dtype=np.int32)
    found = np.full((count, NEIGHBOURS), -1, dtype=np.int32)
    for place, row in enumerate(neighbours):
        found[place, : len(row)] = row
    bare: dict[str, Any] = {
        "paths": np.array([f"{place}.png" for place in range(count)]),
        "labels": np.array(labels, dtype=np.int32),
        "class_names": np.array([f"class {label}" for label in range(max(labels) + 1)]),
        "queries": everything,
        "first_rank": np.array(ranks, dtype=np.int32),
        "map_at_r": np.array([1 / rank if rank else math.nan for rank in ranks], dtype=np.float32),
        "listed": everything,
        "neighbours": found,
        "similarity": np.zeros(found.shape, dtype=np.float16),
        "mapped": everything,
        "map": np.zeros((count, 2), dtype=np.float32),
        "thumbnails": np.zeros(0, dtype=np.int32),
        "thumbnail_ends": np.zeros(0, dtype=np.int64),
        "thumbnail_bytes": np.zeros(0, dtype=np.uint8),
    }
    return Details(**bare)


def same(one: Details, other: Details) -> bool:
    """Whether every array is equal, its type too."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Details)]
    equal = (np.array_equal(left, right, equal_nan=left.dtype.kind == "f") for left, right in pairs)
    return all(left.dtype == right.dtype for left, right in pairs) and all(equal)


@given(seed=st.integers(0, 999), count=st.integers(2, 12), data=st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_nearest_is_what_sorting_all_images_gives(seed: int, count: int, data: st.DataObject) -> None:
    """Queries and gallery are any subsets: the same images, some in common, none in common as in In-Shop."""
    vectors = unit_rows(seed, count, 5)
    rows = st.lists(st.integers(0, count - 1), min_size=1, unique=True).map(sorted)
    queries, gallery = (np.array(data.draw(rows)) for _ in range(2))
    found, similarity = nearest(vectors, queries, gallery)
    assert found.shape == similarity.shape == (len(queries), NEIGHBOURS)
    for query, images, values in zip(queries, found, similarity, strict=True):
        others = sorted((-float(vectors[query] @ vectors[image]), int(image)) for image in gallery if image != query)[
            :NEIGHBOURS
        ]
        empty = [-1] * (NEIGHBOURS - len(others))
        assert images.tolist() == [image for _, image in others] + empty
        assert values[: len(others)] == pytest.approx([-value for value, _ in others], abs=1e-6)
        assert not values[len(others) :].any()


def test_more_queries_than_are_searched_at_once() -> None:
    vectors = unit_rows(0, 1100, 4)
    everything = np.arange(1100)
    found, similarity = nearest(vectors, everything, everything)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    np.testing.assert_allclose(similarity, -np.sort(-products, axis=1)[:, :NEIGHBOURS], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(products, found, axis=1), similarity, atol=1e-6)


def test_an_equal_image_is_a_neighbour_and_the_query_itself_is_not() -> None:
    vectors = np.repeat(unit_rows(1, 1, 4), 3, axis=0)
    found, similarity = nearest(vectors, np.arange(3), np.arange(3))
    assert [sorted(row[:2].tolist()) for row in found] == [[1, 2], [0, 2], [0, 1]]
    assert (found[:, 2:] == -1).all()
    assert similarity[:, :2] == pytest.approx(np.ones((3, 2)))


@given(seed=st.integers(0, 999), count=st.integers(3, 20), dim=st.integers(2, 30))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_the_map_is_scikit_learns_pca_up_to_signs(seed: int, count: int, dim: int) -> None:
    vectors = unit_rows(seed, count, dim)
    plane = principal_components(vectors)
    expected = PCA(2, svd_solver="full").fit_transform(vectors.astype(np.float64))
    for axis in (0, 1):
        signed = expected[:, axis] * np.sign(expected[:, axis] @ plane[:, axis])
        np.testing.assert_allclose(plane[:, axis], signed, atol=1e-4)
        weights = (vectors - vectors.mean(0)).T @ plane[:, axis]
        assert weights[np.abs(weights).argmax()] > 0, "signs are fixed"


def test_the_map_of_one_image_and_of_equal_images_is_a_point() -> None:
    assert principal_components(unit_rows(0, 1, 4)).tolist() == [[0, 0]]
    np.testing.assert_allclose(principal_components(np.ones((4, 3), dtype=np.float32)), np.zeros((4, 2)), atol=1e-6)


def test_the_gallery_shows_the_worst_two_of_a_class_and_some_that_were_found() -> None:
    ranks = [9, 8, 7, 1, 1, 0, 2, 1, 3, 1, 1, 1]
    labels = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    shown = made(ranks, labels, [[]] * 12).shown().tolist()
    assert shown[:4] == [0, 1, 8, 6], "the third of class 0 gives way, a query without a positive is not wrong"
    assert shown[4:] == [3, 7, 9, 11], "from all over those that were found"


def test_the_gallery_is_no_longer_than_it_says_and_may_be_empty() -> None:
    worst = made([5] * 40, list(range(40)), [[]] * 40)
    assert worst.shown().tolist() == list(range(SHOWN)), "of equal ranks the first"
    assert Counter(worst.labels[worst.shown()].tolist()).most_common(1)[0][1] <= PER_CLASS
    assert made([0, 0], [0, 1], [[], []]).shown().tolist() == []
    assert made([1, 1, 1], [0, 0, 0], [[]] * 3).shown().tolist() == [0, 1, 2]


def test_confused_classes_are_counted_by_hand() -> None:
    labels = [0, 0, 0, 1, 1, 2, 2]
    neighbours = [[3], [4, 0], [1], [5], [3], [6], []]
    found = made([2, 2, 1, 2, 1, 1, 0], labels, neighbours).confused()
    assert found == [(0, 1, 2, 0), (1, 2, 1, 3)], (
        "0 for 1 twice, first at place 0; 1 for 2 once; the last has no neighbour"
    )


def test_confusion_of_a_query_without_a_positive_does_not_count() -> None:
    assert made([0, 1], [0, 1], [[1], []]).confused() == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 29), st.integers(0, 3)), min_size=1, max_size=30))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_confused_classes_are_those_of_a_counter(rows: list[tuple[int, int, int]]) -> None:
    labels = [label for label, *_ in rows]
    nearest_images = [image if image < len(rows) else -1 for _, image, _ in rows]
    ranks = [rank for *_, rank in rows]
    pairs = Counter((labels[i], labels[image]) for i, image in enumerate(nearest_images) if image >= 0 and ranks[i])
    expected = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    found = made(ranks, labels, [[image] for image in nearest_images]).confused()
    counts = [count for _, _, count, _ in found]
    assert counts == sorted(expected.values(), reverse=True)[:PAIRS]
    for own, other, count, place in found:
        assert expected[own, other] == count
        assert (labels[place], labels[nearest_images[place]]) == (own, other)


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 100), (72, 24)), ((100, 300), (24, 72)), ((20, 10), (20, 10)), ((72, 72), (72, 72))]
)
def test_a_thumbnail_is_a_small_webp_and_never_larger_than_the_image(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "image.png")
    with Image.open(io.BytesIO(thumbnail(tmp_path / "image.png"))) as image:
        assert (image.format, image.size, max(expected) <= SIDE) == ("WEBP", expected, True)


def test_what_is_no_image_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert thumbnail(tmp_path / "text.png") == b""
    assert thumbnail(tmp_path / "missing.png") == b""


def small_test(
    root: Path, count: int = 8, classes: int = 4
) -> tuple[np.ndarray, dict[str, np.ndarray], ImageTable, Split]:
    """Everything that `describe` is told of a test whose images are all queries of one another; drawn images in `root`."""
    labels = np.arange(count) % classes
    table = ImageTable(
        root, tuple(f"{row}.png" for row in range(count)), labels, tuple(f"class {label}" for label in range(classes))
    )
    for row, path in enumerate(table.paths):
        Image.new("RGB", (90, 90), (20 * row % 256, 0, 0)).save(root / path)
    columns = {"first_rank": np.arange(1, count + 1), "map_at_r": np.linspace(0, 1, count)}
    everything = np.arange(count)
    return unit_rows(2, count, 5), columns, table, Split(np.arange(0), everything, everything, np.arange(classes))


def test_an_image_that_cannot_be_read_any_more_has_no_picture(tmp_path: Path) -> None:
    given = small_test(tmp_path)
    (tmp_path / "3.png").write_bytes(b"damaged")
    found = describe(*given, 0, "cpu", True)
    pictures = found.pictures()
    assert sorted(pictures) == [0, 1, 2, 4, 5, 6, 7]
    assert pictures[5] == thumbnail(tmp_path / "5.png")
    assert describe(*given, 0, "cpu", False).pictures() == {}


def test_queries_apart_from_the_gallery_are_places_in_the_test(tmp_path: Path) -> None:
    """As in In-Shop: the test's images are rows 2, 4, 5, 7 of the table, the first and last search in the others."""
    vectors, _, table, _ = small_test(tmp_path)
    split = Split(np.array([0, 1]), np.array([2, 7]), np.array([4, 5]), np.array([0]))
    found = describe(vectors[split.test], {"first_rank": np.array([1, 2])}, table, split, 0, "cpu", False)
    assert found.paths.tolist() == ["2.png", "4.png", "5.png", "7.png"]
    assert found.queries.tolist() == [0, 3]
    assert [sorted(row[:2].tolist()) for row in found.neighbours] == [[1, 2], [1, 2]]
    assert (found.neighbours[:, 2:] == -1).all()
    assert found.class_names[found.labels].tolist() == [table.class_names[table.labels[row]] for row in (2, 4, 5, 7)]
    assert np.isnan(found.map_at_r).all(), "MAP@R was not measured"


def test_of_many_queries_some_are_kept_the_worst_among_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "LISTED", 20)
    vectors, columns, table, split = small_test(tmp_path, 100)
    rng = np.random.default_rng(0)
    columns["first_rank"] = rng.permutation(100) + 1
    found = describe(vectors, columns, table, split, 0, "cpu", False)
    assert 10 <= len(found.listed) <= 20
    assert found.listed.tolist() == sorted(set(found.listed.tolist()))
    assert {int(np.flatnonzero(columns["first_rank"] == rank)[0]) for rank in (99, 100)} <= set(found.listed.tolist())
    assert len(found.neighbours) == len(found.similarity) == len(found.listed)
    assert len(found.first_rank) == 100, "ranks are kept of all"
    again, other = (describe(vectors, columns, table, split, seed, "cpu", False).listed.tolist() for seed in (0, 1))
    assert again == found.listed.tolist() != other


def test_at_the_limit_all_queries_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "LISTED", 8)
    assert describe(*small_test(tmp_path), 0, "cpu", False).listed.tolist() == list(range(8))


def test_the_map_is_of_so_many_images_at_even_distances(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MAPPED", 4)
    vectors, columns, table, split = small_test(tmp_path, 10)
    found = describe(vectors, columns, table, split, 0, "cpu", False)
    assert found.mapped.tolist() == [0, 3, 6, 9]
    np.testing.assert_array_equal(found.map, principal_components(vectors[[0, 3, 6, 9]]))


def test_details_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = describe(*small_test(tmp_path), 0, "cpu", True)
    found = replace(found, map_at_r=np.where(found.first_rank == 2, np.float32("nan"), found.map_at_r))
    path = details_path(tmp_path, "some-run")
    write_details(found, path)
    assert files_below(tmp_path / "details") == ["some-run.npz"]
    assert same(read_details(path), found)


def test_damaged_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with refused(path, "no such file"):
        read_details(path)
    write_details(made([1, 2], [0, 0], [[1], [0]]), path)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", paths=np.arange(3))
    np.save(tmp_path / "array.npy", np.arange(3))
    pickled: dict[str, Any] = {field.name: np.array([{}], dtype=object) for field in fields(Details)}
    np.savez(tmp_path / "pickle.npz", **pickled)
    for name in ("other.npz", "array.npy", "pickle.npz", "."):
        with refused(tmp_path / name, "remove it"):
            read_details(tmp_path / name)
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:200] + bytes(60) + whole[260:]):
        path.write_bytes(damaged)
        with refused(path, "remove it"):
            read_details(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_rank": np.array([1], dtype=np.int32)},
        {"labels": np.array([0, 9], dtype=np.int32)},
        {"queries": np.array([0, 7], dtype=np.int32)},
        {"listed": np.array([0, 5], dtype=np.int32)},
        {"neighbours": np.full((2, NEIGHBOURS), -5, dtype=np.int32)},
        {"neighbours": np.array([[1], [0]], dtype=np.int32)},
        {"neighbours": np.full((2, NEIGHBOURS), 2, dtype=np.int32)},
        {"labels": np.array(["a", "b"])},
        {"map_at_r": np.zeros((2, 2), dtype=np.float32)},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    """So that whatever is drawn from them cannot fail later on."""
    fitting = made([1, 2], [0, 0], [[1], [0]])
    write_details(fitting, tmp_path / "d.npz")
    assert same(read_details(tmp_path / "d.npz"), fitting)
    write_details(replace(fitting, **changes), tmp_path / "d.npz")
    with refused(tmp_path / "d.npz", "remove it"):
        read_details(tmp_path / "d.npz")


@pytest.mark.parametrize("split", ["zero_shot", "closed_set"])
def test_a_run_writes_details_that_give_its_metrics(tmp_path: Path, split: str) -> None:
    record = run(replace(TINY, data=replace(TINY.data, split=split)), RuntimeConfig(results=tmp_path))
    found = read_details(details_path(tmp_path, record["id"]))
    able = found.first_rank > 0
    assert len(found.queries) == record["metrics"]["queries"] == record["data"]["query_images"]
    assert len(found.paths) == record["data"]["test_images"]
    recalls = {name: value for name, value in record["metrics"].items() if name.startswith("recall_at_")}
    assert recalls
    for name, value in recalls.items():
        hits = int(((found.first_rank > 0) & (found.first_rank <= int(name.rsplit("_", 1)[1]))).sum())
        assert hits / int(able.sum()) == value, metric_title(name)
    assert np.nanmean(found.map_at_r, dtype=np.float64) == pytest.approx(record["metrics"]["map_at_r"], abs=1e-6)
    nearest_label = found.labels[found.neighbours[:, 0]]
    np.testing.assert_array_equal(
        nearest_label == found.labels[found.queries[found.listed]], found.first_rank[found.listed] == 1
    )
    pictures = found.pictures()
    assert set(found.queries[found.listed[found.shown()]].tolist()) <= set(pictures)
    assert all(picture.startswith(b"RIFF") for picture in pictures.values())


def test_without_thumbnails_there_are_none_and_the_record_is_the_same(tmp_path: Path) -> None:
    words = [
        "run",
        "--dataset",
        "synthetic",
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--epochs",
        "0",
    ]
    found = []
    for name, flags in (("with", []), ("without", ["--no-thumbnails"])):
        assert main([*words, *flags, "--results", str(tmp_path / name)]) == 0
        (path,) = (tmp_path / name / "details").glob("*.npz")
        found.append(read_details(path))
        assert (tmp_path / name / "runs" / f"{path.stem}.json").exists()
    bare, nothing = found[1], found[0]
    assert nothing.pictures()
    assert bare.pictures() == {}
    assert same(
        bare,
        replace(nothing, **{name: getattr(bare, name) for name in ("thumbnails", "thumbnail_ends", "thumbnail_bytes")}),
    )


def test_a_query_without_positives_has_rank_0_and_no_map_at_r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gallery lacks a class that is searched for."""
    table, split = open_dataset("synthetic", None)
    alone = table.labels[split.query] == table.labels[split.query][0]
    gallery = np.setdiff1d(split.gallery, split.query[alone])
    monkeypatch.setattr("retrieval_bench.run.open_dataset", lambda *_: (table, replace(split, gallery=gallery)))
    record = run(TINY, RuntimeConfig(results=tmp_path))
    assert record["metrics"]["queries_without_positive"] == alone.sum() == 8
    found = read_details(details_path(tmp_path, record["id"]))
    assert not found.first_rank[alone].any()
    assert np.isnan(found.map_at_r[alone]).all()
    assert not np.isnan(found.map_at_r[~alone]).any()
    assert not set(found.neighbours.ravel().tolist()) & set(np.flatnonzero(alone).tolist()), (
        "the gallery alone is searched"
    )
    able = found.first_rank > 0
    assert (found.first_rank == 1).sum() / able.sum() == record["metrics"]["recall_at_1"]
    assert not set(np.flatnonzero(alone)) & set(found.listed[found.shown()].tolist()), "it is neither found nor wrong"

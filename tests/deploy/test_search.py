"""Images of your own, embedded as the evaluation embeds them, and found again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.deploy.search import read_collection
from retrieval_bench.records import ResultsFolder

RUN = "synthetic-standard"


def embed(results: Path, pictures: Path, output: Path, *more: str) -> int:
    return main(["embed", RUN, str(pictures), "-o", str(output), "--results", str(results), *more])


def search(results: Path, gallery: Path, *more: str) -> int:
    return main(["search", RUN, *more, "--gallery", str(gallery), "--results", str(results)])


@pytest.fixture
def gallery(results: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The pictures, embedded."""
    assert embed(results, pictures, tmp_path / "g.npz") == 0
    assert "64 images, 8 dimensions, 8 labels; flat index in" in capsys.readouterr().out
    return tmp_path / "g.npz"


def test_embeddings_are_those_of_the_test(results: Path, gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Embedding the test images of a run and evaluating them gives the metrics of its record."""
    assert main(["evaluate", str(gallery), "--json"]) == 0
    metrics = ResultsFolder(results).find(RUN)[0].metrics
    assert json.loads(capsys.readouterr().out) == {name: pytest.approx(value) for name, value in metrics.items()}


def test_labels_and_paths(results: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The label is the first folder, none for images of the folder itself; hidden and other files are passed over."""
    next(pictures.rglob("deep/*.png")).rename(pictures / "top.PNG")
    assert embed(results, pictures, tmp_path / "g.npz") == 0
    assert "8 labels (1 in no class folder have none; evaluate needs one)" in capsys.readouterr().out
    collection = read_collection(tmp_path / "g.npz")
    paths, labels = collection.paths.tolist(), collection.labels.tolist()
    assert len(paths) == 64
    assert paths == sorted(paths)
    assert [path.split("/deep/")[0] if "/" in path else "" for path in paths] == labels
    assert [path for path, label in zip(paths, labels, strict=True) if not label] == ["top.PNG"]
    np.testing.assert_allclose(np.linalg.norm(collection.embeddings, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_neighbours_are_those_of_all_products(
    kind: str, results: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 64 images the approximate indexes are exact too: one cell, and a graph that is searched as a whole. A query of
    the gallery is left out of its own neighbours, unless it is kept."""
    gallery = tmp_path / "g.npz"
    assert embed(results, pictures, gallery, "--index", kind) == 0
    collection, rows = read_collection(gallery), (5, 40)
    queries = [str(pictures / collection.paths[row]) for row in rows]
    capsys.readouterr()
    for kept in (True, False):
        assert search(results, gallery, *queries, "--k", "7", "--json", *["--keep-query"] * kept) == 0
        printed, logged = capsys.readouterr()
        assert not logged, "the index is read, not built again"
        for answer, query, row in zip(json.loads(printed), queries, rows, strict=True):
            products = collection.embeddings @ collection.embeddings[row]
            near = answer["neighbours"]
            places = [collection.paths.tolist().index(neighbour["path"]) for neighbour in near]
            similarities = [neighbour["similarity"] for neighbour in near]
            assert answer["query"] == query
            assert answer["left_out"] == ([] if kept else [collection.paths[row]])
            assert [neighbour["rank"] for neighbour in near] == list(range(1, 8))
            assert [neighbour["label"] for neighbour in near] == collection.labels[places].tolist()
            expected = np.sort(products if kept else np.delete(products, row))[::-1][:7]
            np.testing.assert_allclose(similarities, expected, atol=1e-5)
            np.testing.assert_allclose(products[places], similarities, atol=1e-5)
            assert (row in places) == kept


def test_a_query_is_known_by_content_or_by_its_place_in_the_folder(
    results: Path, pictures: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy elsewhere; the same file after a change, and with a file of an older version, only with --folder."""
    paths = read_collection(gallery).paths.tolist()
    copy = shutil.copy(pictures / paths[5], tmp_path / "copy.png")

    def left_out(*words: str | Path) -> list[list[str]]:
        assert search(results, gallery, *map(str, words), "--k", "64", "--json") == 0
        answers = json.loads(capsys.readouterr().out)
        for answer in answers:
            found = {near["path"] for near in answer["neighbours"]}
            assert found | set(answer["left_out"]) == set(paths)
            assert not found & set(answer["left_out"])
        return [answer["left_out"] for answer in answers]

    class_folder = pictures / paths[0].split("/")[0]
    expected = [[path] for path in paths if (pictures / path).is_relative_to(class_folder)]
    assert left_out(copy, class_folder) == [[paths[5]], *expected]
    Image.open(pictures / paths[9]).rotate(90).save(pictures / paths[9])
    assert left_out(pictures / paths[9]) == [[]]
    assert left_out(pictures / paths[9], "--folder", pictures) == [[paths[9]]]
    collection = replace(read_collection(gallery), digests=np.zeros(64, dtype="S64"))
    collection.write(gallery)
    assert left_out(copy, "--folder", pictures) == [[]]
    assert search(results, gallery, str(copy)) == 0
    assert "is of an older version" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_added_images_are_as_if_embedded_together(
    kind: str, results: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the files and in the index, whose kind stays; images that are there, and their copies, are not added again."""
    gallery, later = tmp_path / "g.npz", tmp_path / "later"
    files = sorted(pictures.rglob("deep/*.png"))
    for file in files[::3]:
        (later / file.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        file.rename(later / file.relative_to(pictures))
    assert embed(results, pictures, gallery, "--index", kind) == 0
    shutil.copytree(later, pictures, dirs_exist_ok=True)
    shutil.copy(files[1], pictures / "copy.png")
    capsys.readouterr()
    assert embed(results, pictures, gallery, "--add") == 0
    assert "22 images added: 64 images, 8 dimensions, 8 labels; index in" in capsys.readouterr().out
    before = [gallery.read_bytes(), gallery.with_suffix(".faiss").read_bytes()]
    assert embed(results, pictures, gallery, "--add") == 0
    assert "holds all images below" in capsys.readouterr().out
    assert [gallery.read_bytes(), gallery.with_suffix(".faiss").read_bytes()] == before
    (pictures / "copy.png").unlink()
    assert embed(results, pictures, tmp_path / "whole.npz") == 0
    grown, whole = read_collection(gallery), read_collection(tmp_path / "whole.npz")
    order = np.argsort(grown.paths)
    for name in ("labels", "paths", "digests"):
        assert getattr(grown, name)[order].tolist() == getattr(whole, name).tolist()
    np.testing.assert_allclose(grown.embeddings[order], whole.embeddings, atol=1e-6)
    index: Any = faiss.read_index(str(gallery.with_suffix(".faiss")))
    assert kind in type(faiss.downcast_index(index)).__name__.lower()
    np.testing.assert_array_equal(index.reconstruct_n(0, 64), grown.embeddings)


def test_what_cannot_be_added_leaves_the_files_whole(
    results: Path, pictures: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another image under a name that is taken; an interrupt; a file of another embedder, or none."""
    files = (gallery, gallery.with_suffix(".faiss"))
    before = [file.read_bytes() for file in files]
    picture = pictures / read_collection(gallery).paths[9]
    turned = Image.open(picture).rotate(90)
    turned.save(pictures / "new.png")
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", lambda stream, **_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert embed(results, pictures, gallery, "--add") == 130
    turned.save(picture)
    assert embed(results, pictures, gallery, "--add") == 2
    assert f"{picture}: another image of this name has been embedded" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before
    replace(read_collection(gallery), embedder="another").write(gallery)
    assert embed(results, pictures, gallery, "--add") == 2
    assert "was made with another embedder than synthetic-standard" in capsys.readouterr().err
    assert embed(results, pictures, gallery.with_name("none.npz"), "--add") == 2
    assert "none.npz: no such file" in capsys.readouterr().err


def test_the_page_holds_all_it_shows(results: Path, pictures: Path, gallery: Path, tmp_path: Path) -> None:
    """Names are escaped; the query's own label says which neighbours are right."""
    query = Path(shutil.copy(pictures / read_collection(gallery).paths[0], tmp_path / "<b>&.png"))
    new = tmp_path / "new.png"
    Image.open(query).rotate(90).save(new)
    page = tmp_path / "found.html"
    words = (str(query), str(new), "--k", "64", "--html", str(page), "--folder", str(pictures))
    assert search(results, gallery, *words) == 0
    text = page.read_text()
    assert "&lt;b&gt;&amp;.png" in text
    assert "<b>&" not in text
    assert len(re.findall(r'src="data:image/jpeg;base64,', text)) == 1 + 63 + 1 + 64
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert (text.count('class="right"'), text.count('class="wrong"')) == (7, 56)


def test_lines_and_the_sheet(
    results: Path, pictures: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, sheet = read_collection(gallery).paths, tmp_path / "found.png"
    queries = [str(pictures / path) for path in paths[:2]]
    assert search(results, gallery, queries[0], "--k", "100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 64, "as many neighbours as there are"
    assert lines[0] == f"{queries[0]} (left out: {paths[0]})"
    assert search(results, gallery, *queries, "--k", "3", "--sheet", str(sheet)) == 2
    printed, logged = capsys.readouterr()
    assert "--folder FOLDER names the folder that was embedded" in logged
    assert not printed
    assert not sheet.exists()
    assert search(results, gallery, *queries, "--k", "3", "--sheet", str(sheet), "--folder", str(pictures)) == 0
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("L")).astype(int)
    width, half = pixels.shape[1] // 4, pixels.shape[0] // 2
    columns = np.asarray((pixels < 250).any(axis=0))[: 4 * width].reshape(4, width)
    assert columns.any(axis=1).all(), "an image in each column"
    assert np.abs(pixels[:half] - pixels[half : 2 * half]).max() > 50, "each query has its own row"


@pytest.mark.parametrize("damage", ["missing", "half", "other rows", "another order", "another metric"])
def test_an_index_that_does_not_fit_is_built_again(
    damage: str, results: Path, pictures: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = read_collection(gallery).embeddings
    query, index = str(pictures / read_collection(gallery).paths[3]), gallery.with_suffix(".faiss")
    assert search(results, gallery, query, "--json") == 0
    expected = capsys.readouterr().out
    if damage == "missing":
        index.unlink()
    elif damage == "half":
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    else:
        other: Any = faiss.IndexFlatL2(8) if "metric" in damage else faiss.IndexFlatIP(8)
        other.add({"other rows": vectors[:-1], "another order": vectors[::-1].copy()}.get(damage, vectors))
        faiss.write_index(other, str(index))
    for messages in (1, 0):
        assert search(results, gallery, query, "--json") == 0
        printed, logged = capsys.readouterr()
        assert printed == expected
        assert logged.count(f"{index} ") == logged.count("it is built again") == messages


def test_a_damaged_image_is_named_and_nothing_is_written(
    results: Path, pictures: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The older files stay as they are, as after an interrupt; --skip-unreadable goes on without the image."""
    files = (gallery, gallery.with_suffix(".faiss"))
    before = [file.read_bytes() for file in files]
    (pictures / "text.jpg").write_text("no image")
    assert embed(results, pictures, gallery) == 2
    passed_over, message = capsys.readouterr().err.splitlines()
    assert passed_over == f"{pictures}: passed over 1 hidden (.hidden), 1 .txt"
    assert message.startswith(f"error: {pictures / 'text.jpg'}: image cannot be decoded")
    assert embed(results, pictures, gallery, "--skip-unreadable") == 0
    assert f"left out: {pictures / 'text.jpg'}" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before

    def interrupted(stream: Any, **_: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    assert embed(results, pictures, gallery, "--skip-unreadable") == 130
    assert [file.read_bytes() for file in files] == before
    assert {path.name for path in gallery.parent.iterdir()} == {"g.npz", "g.faiss", "pictures"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", RUN, "{tmp}/text.npz", "--gallery", "{tmp}/none.npz"], "`embed RUN FOLDER -o none.npz` makes one"),
        (["search", RUN, "{tmp}/text.npz", "--gallery", "{tmp}/text.npz"], "not written by `embed`, or damaged"),
        (["search", RUN, "{tmp}/text.npz", "--gallery", "{tmp}/odd.npz"], "not written by `embed`, or damaged"),
        (
            ["search", RUN, "{tmp}/text.npz", "--gallery", "{tmp}/other.npz"],
            f"was made with another embedder than {RUN}",
        ),
        (["search", RUN, "{tmp}/text.npz", "--gallery", "{tmp}/none.npz", "--k", "0"], "--k 0"),
        (["search", RUN, "--gallery", "{tmp}/none.npz"], "one image file or more"),
        (["search", RUN, "nowhere.jpg", "--gallery", "{tmp}/none.npz"], "nowhere.jpg: no such image file or folder"),
        (["search", RUN, "{tmp}/text.npz", "--gallery", "{tmp}/none.npz", "--html", "a.png"], "ends in .html"),
        (["search", RUN, "{tmp}/text.npz", "--gallery", "g.npz", "--onnx", "a.onnx"], "(with --onnx, no RUN is given)"),
        (["search", "{tmp}/text.npz", "--gallery", "{tmp}/none.npz", "--onnx", "a.onnx"], "a.onnx: no such ONNX graph"),
        (["search", "{tmp}/text.npz", "--gallery", "{tmp}/none.npz", "--onnx", "{tmp}/odd.npz"], "not an ONNX graph"),
        (["embed", RUN, "{tmp}", "-o", "{tmp}/a.npy"], "name a file that ends in .npz"),
        (["embed", RUN, "{tmp}", "-o", "{tmp}/a.npz"], "no image in it"),
        (["embed", RUN, "{tmp}/none", "-o", "{tmp}/a.npz"], "no such folder"),
        (["embed", RUN, "{tmp}", "-o", "{tmp}/a.npz", "--batch-size", "0"], "--batch-size 0"),
        (["embed", "nothing", "{tmp}", "-o", "{tmp}/a.npz"], "unknown run 'nothing'"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.npz").write_text("no arrays")
    arrays = {"embeddings": np.zeros((2, 8), dtype=np.float32), "paths": ["a", "b"], "embedder": "x"}
    np.savez(tmp_path / "odd.npz", labels=["a"], **arrays)
    np.savez(tmp_path / "other.npz", labels=["a", "b"], **arrays)
    assert main([word.format(tmp=tmp_path) for word in words] + ["--results", str(results)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

"""One's own images, embedded as the evaluation embeds them, and found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from retrieval_bench.deploy.collection import read_collection

from retrieval_bench.cli import main

RUN = "synthetic-standard"


@pytest.fixture
def gallery(results: Path, pictures: Path, tmp_path: Path) -> Path:
    """The pictures, embedded."""
    assert main(["embed", RUN, str(pictures), "-o", str(tmp_path / "g.npz"), "--results", str(results)]) == 0
    return tmp_path / "g.npz"


def search(results: Path, gallery: Path, *more: str) -> int:
    return main(["search", RUN, *more, "--gallery", str(gallery), "--results", str(results)])


def test_embeddings_are_those_of_the_test(results: Path, gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Embedding the test images of a run and evaluating them gives the metrics of its record."""
    capsys.readouterr()
    assert main(["evaluate", str(gallery), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    record = json.loads(next((results / "runs").glob("*-standard-*.json")).read_text())["metrics"]
    assert metrics == {name: pytest.approx(value, abs=1e-12) for name, value in record.items()}


def test_labels_and_paths(results: Path, pictures: Path, tmp_path: Path) -> None:
    """The label is the first folder, none for images of the folder itself; hidden and other files are passed over."""
    first = next(pictures.rglob("deep/*.png"))
    first.rename(pictures / "top.PNG")
    assert main(["embed", RUN, str(pictures), "-o", str(tmp_path / "g.npz"), "--results", str(results)]) == 0
    found = read_collection(tmp_path / "g.npz")
    assert len(found.paths) == 64
    assert found.paths.tolist() == sorted(found.paths.tolist())
    assert all(
        path.startswith(f"{label}/deep/") for path, label in zip(found.paths, found.labels, strict=True) if label
    )
    assert found.labels[found.paths.tolist().index("top.PNG")] == ""
    assert (found.labels == "").sum() == 1
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_neighbours_are_those_of_all_products(
    kind: str, results: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 64 images the approximate indexes are exact too: one cell, and a graph that is searched as a whole."""
    gallery = tmp_path / "g.npz"
    assert main(["embed", RUN, str(pictures), "-o", str(gallery), "--index", kind, "--results", str(results)]) == 0
    found = read_collection(gallery)
    capsys.readouterr()
    assert (
        search(results, gallery, str(pictures / found.paths[5]), str(pictures / found.paths[40]), "--k", "7", "--json")
        == 0
    )
    said = capsys.readouterr()
    assert not said.err, "the index is read, not built again"
    for query, row in zip(json.loads(said.out), (5, 40), strict=True):
        products = found.embeddings @ found.embeddings[row]
        assert query["query"] == str(pictures / found.paths[row])
        neighbours = query["neighbours"]
        assert [n["rank"] for n in neighbours] == list(range(1, 8))
        np.testing.assert_allclose([n["similarity"] for n in neighbours], np.sort(products)[::-1][:7], atol=1e-5)
        places = [found.paths.tolist().index(n["path"]) for n in neighbours]
        np.testing.assert_allclose(products[places], [n["similarity"] for n in neighbours], atol=1e-5)
        assert [n["label"] for n in neighbours] == found.labels[places].tolist()
        assert neighbours[0]["similarity"] == pytest.approx(1, abs=1e-5), "a query that is in the gallery finds itself"


def test_lines_and_more_neighbours_than_images(
    results: Path, pictures: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = read_collection(gallery).paths[0]
    capsys.readouterr()
    assert search(results, gallery, str(pictures / query), "--k", "100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 65
    assert lines[1].split() == ["1", "1.0000", query.split("/")[0], query]


def test_the_sheet(
    results: Path, pictures: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = [str(pictures / path) for path in read_collection(gallery).paths[:2]]
    sheet = tmp_path / "found.png"
    capsys.readouterr()
    assert search(results, gallery, *queries, "--k", "3", "--sheet", str(sheet)) == 2
    said = capsys.readouterr()
    assert "--folder FOLDER names the folder that was embedded" in said.err
    assert not said.out
    assert not sheet.exists()
    assert search(results, gallery, *queries, "--k", "3", "--sheet", str(sheet), "--folder", str(pictures)) == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L")).astype(int)
    width = pixels.shape[1] // 4
    columns = np.asarray((pixels < 250).any(axis=0))[: 4 * width].reshape(4, width)
    assert columns.any(axis=1).all(), "a picture in each column"
    half = pixels.shape[0] // 2
    assert np.abs(pixels[:half] - pixels[half : 2 * half]).max() > 50, "each query has its own row"


@pytest.mark.parametrize("damage", ["missing", "half", "other rows", "another order", "another metric"])
def test_an_index_that_does_not_fit_is_built_again(
    damage: str, results: Path, pictures: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import faiss

    query, index = str(pictures / read_collection(gallery).paths[3]), gallery.with_suffix(".faiss")
    assert search(results, gallery, query, "--json") == 0
    expected = capsys.readouterr().out.splitlines()[-1]
    vectors = read_collection(gallery).embeddings
    if damage == "missing":
        index.unlink()
    elif damage == "half":
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    else:
        other: Any = faiss.IndexFlatL2(8) if "metric" in damage else faiss.IndexFlatIP(8)
        other.add({"other rows": vectors[:-1], "another order": vectors[::-1].copy()}.get(damage, vectors))
        faiss.write_index(other, str(index))
    assert search(results, gallery, query, "--json") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == expected
    assert said.err.count(f"{index} ") == 1
    assert "it is built again" in said.err
    assert search(results, gallery, query) == 0
    assert not capsys.readouterr().err


def test_a_damaged_image_is_named_and_nothing_is_written(
    results: Path, pictures: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The older files stay as they are; --skip-unreadable goes on without the image."""
    files = (gallery, gallery.with_suffix(".faiss"))
    before = [file.read_bytes() for file in files]
    (pictures / "text.jpg").write_text("no image")
    command = ["embed", RUN, str(pictures), "-o", str(gallery), "--results", str(results)]
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {pictures / 'text.jpg'}: image cannot be decoded")
    assert said.count("\n") == 1
    assert [file.read_bytes() for file in files] == before
    assert main([*command, "--skip-unreadable"]) == 0
    assert f"left out: {pictures / 'text.jpg'}" in capsys.readouterr().err
    assert len(read_collection(gallery).paths) == 64


def test_an_interrupt_leaves_the_older_file(
    results: Path, pictures: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(stream: Any, **_: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    before = gallery.read_bytes()
    monkeypatch.setattr(np, "savez", interrupted)
    assert main(["embed", RUN, str(pictures), "-o", str(gallery), "--results", str(results)]) == 130
    assert gallery.read_bytes() == before
    assert {path.name for path in gallery.parent.iterdir()} == {"g.npz", "g.faiss", "pictures"}


def test_another_network_is_refused(
    results: Path, pictures: Path, gallery: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_collection(gallery)
    np.savez(gallery, embeddings=found.embeddings, labels=found.labels, paths=found.paths, embedder="0" * 64)
    assert search(results, gallery, str(pictures / found.paths[0])) == 2
    assert "was made with another embedder than synthetic-standard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", RUN, "q.png", "--gallery", "{tmp}/none.npz"], "`embed RUN FOLDER -o none.npz` makes one"),
        (["search", RUN, "q.png", "--gallery", "{tmp}/text.npz"], "not written by `embed`, or damaged"),
        (["search", RUN, "q.png", "--gallery", "{tmp}/odd.npz"], "its arrays do not fit each other"),
        (["search", RUN, "q.png", "--gallery", "{tmp}/none.npz", "--k", "0"], "--k 0"),
        (["search", RUN, "--gallery", "{tmp}/none.npz"], "one image file or more"),
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
    np.savez(
        tmp_path / "odd.npz", embeddings=np.zeros((2, 8), dtype=np.float32), labels=["a"], paths=["a"], embedder="x"
    )
    capsys.readouterr()
    assert main([word.format(tmp=tmp_path) for word in words] + ["--results", str(results)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_query_that_is_missing_is_named(results: Path, gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert search(results, gallery, "nowhere.jpg") == 2
    assert capsys.readouterr().err == "error: nowhere.jpg: no such image file\n"

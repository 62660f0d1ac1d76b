"""Two dimensions of embeddings, and the commands that draw."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retrieval_bench.cli import main
from retrieval_bench.errors import UserError
from retrieval_bench.figures.embedding_map import project
from retrieval_bench.records import Record, ResultsFolder, write_record
from tests.figures.test_figures import history, pruned, record

VECTORS = np.random.default_rng(0).normal(size=(40, 6)) * [9, 5, 1, 1, 1, 1]


@pytest.mark.parametrize("wrong", [np.full((3, 2), np.nan), np.zeros(3), np.zeros((0, 2)), np.array([["a"]])])
def test_what_is_no_embedding(wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match="finite numbers"):
        project(wrong)


def test_umap_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class UMAP:
        def __init__(self, **options: Any):
            calls.append(options)

        def fit_transform(self, values: np.ndarray) -> np.ndarray:
            return values[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    assert project(VECTORS, "umap", seed=3).dtype == np.float32
    assert (calls[0]["random_state"], calls[0]["metric"], calls[0]["n_neighbors"]) == (3, "cosine", 15)
    project(VECTORS[:5], "umap")
    assert calls[1]["n_neighbors"] == 4, "no more than there are"
    with pytest.raises(UserError, match="at least 4"):
        project(VECTORS[:3], "umap")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="umap-learn"):
        project(VECTORS, "umap")


@pytest.mark.slow
def test_umap_is_seeded() -> None:
    """It compiles for most of a minute."""
    pytest.importorskip("umap")
    assert np.array_equal(project(VECTORS, "umap", seed=3), project(VECTORS, "umap", seed=3))
    assert project(VECTORS[:4], "umap").shape == (4, 2)


@pytest.fixture
def vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("v.npz", embeddings=VECTORS, labels=np.arange(40) % 3)
    return tmp_path


def test_map_is_written_by_ending(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "v.npz"]) == main(["map", "v.npz", "-o", "m.svg"]) == 0
    assert (vectors / "v.png").read_bytes().startswith(b"\x89PNG")
    assert "v.npz, PCA" in (vectors / "m.svg").read_text()
    assert capsys.readouterr().out == "v.png\nm.svg\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.npz"], "nowhere.npz: no such file"),
        (["v.npz", "-o", "m.jpg"], "m.jpg: a map is written as .png or .svg"),
        (["v.npz", "--labels", "two.txt"], "(2,) labels for (40, 6) embeddings"),
    ],
)
def test_wrong_maps(words: list[str], message: str, vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (vectors / "two.txt").write_text("a\nb\n")
    assert main(["map", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(vectors.glob("*.png"))


def save(results: Path, *records: Record) -> None:
    for entry in records:
        write_record(ResultsFolder(results).record(entry.id), entry)


def test_figures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = {"loss_per_epoch": [2.0, 1.0]}
    odd = {"any": {"variation": [[1.0]], "blocks": ["a"]}}
    save(
        tmp_path,
        replace(record("standard", training=curve, info=history()), id="one"),
        *pruned("channel_gates(budget=0.5)", 5e7, 0.25),
        *pruned("channel_gates(budget=0.7)", 7e7, 0.3),
        replace(record("frozen", info=odd), id="odd"),
    )
    assert main(["figures", "--results", str(tmp_path)]) == 0
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    protocol = "emoji_mini-zero_shot-efficientnet_lite0-imagenet-72-px"
    names = [*(f"{kind}-{protocol}" for kind in ("forest", "losses", "pruning", "tradeoff")), "variation-one"]
    assert written == [f"{name}.{ending}" for name in names for ending in ("png", "svg")]
    printed, logged = capsys.readouterr()
    assert sorted(Path(line).name for line in printed.splitlines()) == [f"{name}.svg" for name in names]
    assert logged.count("skipped the figures of odd") == 1


def test_no_records_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, message in ((tmp_path, "no records"), (tmp_path / "nowhere", "no such folder")):
        assert main(["figures", "--results", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

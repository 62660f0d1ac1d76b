"""Two dimensions of embeddings, and the commands that draw."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from retrieval_bench.figures.embedding import reduce

from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.identity import to_dict
from retrieval_bench.records import SCHEMA, record_path, write_record

VECTORS = np.random.default_rng(0).normal(size=(40, 6)) * [9, 5, 1, 1, 1, 1]


def test_pca_keeps_what_scikit_learn_keeps() -> None:
    from sklearn.decomposition import PCA

    ours, theirs = reduce(VECTORS), PCA(2).fit_transform(VECTORS)
    assert ours.dtype == np.float32
    for axis in range(2):
        assert abs(np.corrcoef(ours[:, axis], theirs[:, axis])[0, 1]) == pytest.approx(1)
        assert ours[:, axis].std() == pytest.approx(theirs[:, axis].std(), rel=1e-5)
    assert np.array_equal(reduce(VECTORS[:, :1])[:, 1], np.zeros(40))
    assert reduce(VECTORS[:1]).tolist() == [[0, 0]]


def test_pca_has_one_sign() -> None:
    """The first axis lies along the first dimension, so a point far along it is far to the right, however the points are ordered."""
    assert np.corrcoef(reduce(VECTORS)[:, 0], VECTORS[:, 0])[0, 1] > 0.9
    assert np.allclose(reduce(VECTORS[::-1])[::-1], reduce(VECTORS), atol=1e-4)


@pytest.mark.parametrize("wrong", [np.full((3, 2), np.nan), np.zeros(3), np.zeros((0, 2)), np.array([["a"]])])
def test_what_is_no_embedding(wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match="finite numbers"):
        reduce(wrong)


def test_umap_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class UMAP:
        def __init__(self, **words: Any):
            asked.append(words)

        def fit_transform(self, values: np.ndarray) -> np.ndarray:
            return values[:, :2].astype(np.float64)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    assert reduce(VECTORS, "umap", seed=3).dtype == np.float32
    assert (asked[0]["random_state"], asked[0]["metric"], asked[0]["n_neighbors"]) == (3, "cosine", 15)
    reduce(VECTORS[:5], "umap")
    assert asked[1]["n_neighbors"] == 4, "no more than there are"
    with pytest.raises(UserError, match="at least 4"):
        reduce(VECTORS[:3], "umap")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="umap-learn"):
        reduce(VECTORS, "umap")


@pytest.mark.slow
def test_umap_is_seeded() -> None:
    """It compiles for most of a minute."""
    pytest.importorskip("umap")
    one = reduce(VECTORS, "umap", seed=3)
    assert one.shape == (40, 2)
    assert one.dtype == np.float32
    assert np.array_equal(one, reduce(VECTORS, "umap", seed=3))
    assert reduce(VECTORS[:4], "umap").shape == (4, 2)


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    np.savez(tmp_path / "v.npz", embeddings=VECTORS, labels=np.arange(40) % 3)
    return tmp_path / "v.npz"


def test_map_is_written_by_ending(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", str(vectors)]) == 0
    assert vectors.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert main(["map", str(vectors), "-o", str(vectors.with_name("m.svg"))]) == 0
    assert "v.npz, PCA" in vectors.with_name("m.svg").read_text()
    assert capsys.readouterr().out.splitlines()[-1].endswith("m.svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.npz"], "nowhere.npz: no such file"),
        (["v.npz", "-o", "m.jpg"], "m.jpg: a map is written as .png or .svg"),
        (["v.npz", "--labels", "two.txt"], "(2,) labels for (40, 6) embeddings"),
        (["v.npz", "--method", "tsne"], "--method"),
    ],
)
def test_wrong_maps(
    words: list[str], message: str, vectors: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(vectors.parent)
    Path("two.txt").write_text("a\nb\n")
    assert main(["map", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("*.png"))


def write(results: Path, strategy: str, seed: int, recall: float, macs: int, **facts: Any) -> None:
    cost = dict.fromkeys(
        ("parameters", "trained_parameters", "images_seen", "train_seconds", "peak_memory_mb"), 1000
    ) | {"macs": macs}
    entry = {
        "schema": SCHEMA, "id": f"{strategy}-{seed}", "seed": seed, "config_hash": strategy, "config": to_dict(RunConfig()),
        "labels": {"strategy": strategy, "weights": "imagenet", "dim": 8}, "data": {}, "metrics": {"recall_at_1": recall}, "cost": cost,
        "training": {"loss_per_epoch": [2.0, 1.0]}, "facts": facts, "environment": {"device": "cpu: test"},
    }  # fmt: skip
    write_record(record_path(results, entry["id"]), entry)


def test_figures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "variation": [[1e-5, 2e-5]],
        "rates": {"a": [1e-3], "b": [1e-3]},
        "blocks": ["a", "b"],
        "quality": [1.0],
        "trials": [1],
    }
    write(tmp_path, "standard", 0, 0.5, 100, autolr=facts)
    write(tmp_path, "channel_gates(budget=0.5)", 0, 0.25, 50)
    write(tmp_path, "channel_gates(budget=0.7)", 0, 0.3, 70)
    write(tmp_path, "frozen", 0, 0.1, 100, weight_variation=facts | {"variation": [[]], "rates": {}, "blocks": []})
    assert main(["figures", "--results", str(tmp_path)]) == 0
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    protocol = "emoji_mini-zero_shot-efficientnet_lite0-imagenet-72-px"
    names = [f"losses-{protocol}", f"pruning-{protocol}-macs", f"tradeoff-{protocol}-macs", "variation-standard-0"]
    assert written == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    printed, said = capsys.readouterr()
    assert sorted(Path(line).name for line in printed.splitlines()) == [f"{name}.svg" for name in names]
    assert "skipped" not in said, "where no block was trained there is nothing to draw"
    first = {name: (tmp_path / "figures" / name).read_bytes() for name in written}
    assert main(["figures", "--results", str(tmp_path), "-o", str(tmp_path / "again")]) == 0
    assert {name: (tmp_path / "again" / name).read_bytes() for name in written} == first


def test_no_records_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "--results", str(tmp_path)]) == 2
    assert "no records" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["figures", "--results", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err

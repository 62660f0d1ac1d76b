"""An exported folder holds all that is needed, and what its card says is true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data.crop import eval_crop
from retrieval_bench.data.reading import shrink
from retrieval_bench.data.transforms import crop_image
from retrieval_bench.deploy import onnx_graph
from retrieval_bench.deploy.export import model_card
from retrieval_bench.deploy.onnx_graph import Graph
from retrieval_bench.deploy.saved import data_config, find_embedder, read_embedder
from retrieval_bench.deploy.search import read_collection
from retrieval_bench.records import Record, ResultsFolder


def export_again(results: Path, folder: Path) -> int:
    return main(["export", "synthetic-standard", "--results", str(results), "-o", str(folder)])


def record_of(results: Path) -> Record:
    return ResultsFolder(results).find("synthetic-standard")[0]


def python_lines(card: str, image: Path) -> str:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace("picture.jpg", str(image))


def picture(path: Path, size: tuple[int, int] = (90, 50)) -> Path:
    """A drawing with soft colours, half transparent."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 2, y * 4, 255 - x, np.full_like(x, 120)], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(path)
    return path


def test_the_folder_and_the_numbers_in_the_card(exported: Path, results: Path) -> None:
    kept = {f"embedder.{ending}" for ending in ("json", "safetensors")}
    assert {path.name for path in exported.iterdir()} == {"README.md", "embedder.onnx", *kept}
    record, card = record_of(results), (exported / "README.md").read_text()
    model = ResultsFolder(results).model(record.id)
    for name in kept:
        source = model.with_name(name.replace("embedder", model.name))
        assert (exported / name).read_bytes() == source.read_bytes()
    for line in (
        f"| R@1 | {100 * record.metrics['recall_at_1']:.2f} |",
        f"| MAP@R | {100 * record.metrics['map_at_r']:.2f} |",
        f"| parameters, millions | {record.cost['parameters'] / 1e6:.5g} |",
        record.command,
        "Out: float32 (N, 8)",
        "64 images of 8 classes to train on, 64 of 8 to test on",
        "mean of those of the image and of its mirror image",
    ):
        assert line in card
    assert str(results) not in card


def test_the_lines_of_the_card_give_the_vectors_of_embed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this package: onnxruntime and Pillow alone, run in the exported folder."""
    (tmp_path / "one").mkdir()
    image = picture(tmp_path / "one" / "picture.png")
    assert main(["embed", str(exported), str(tmp_path / "one"), "-o", str(tmp_path / "one.npz")]) == 0
    monkeypatch.chdir(exported)
    space: dict[str, Any] = {}
    exec(python_lines((exported / "README.md").read_text(), image), space)
    np.testing.assert_allclose(space["vector"], read_collection(tmp_path / "one.npz").embeddings, atol=1e-4)


@pytest.mark.parametrize("size", [(90, 50), (41, 97), (64, 64)])
@pytest.mark.parametrize(
    ("image_size", "views"),
    [
        (32, {}),
        (32, {"stored": 48, "resize": 33}),
        (31, {"preprocessing": "squash"}),
        (32, {"preprocessing": "squash", "stored": 44}),
    ],
)
def test_the_lines_of_the_card_prepare_images_as_the_evaluation_does(
    size: tuple[int, int], image_size: int, views: dict[str, Any], results: Path, tmp_path: Path
) -> None:
    path, recipe = picture(tmp_path / "picture.png", size), {"image_size": image_size, "views": views}
    embedder, _ = read_embedder(find_embedder("synthetic-standard", results)[0])
    lines = python_lines(model_card(record_of(results), recipe, embedder, Graph(0.0)), path)
    space: dict[str, Any] = {}
    exec("\n".join(lines.splitlines()[:-1]).replace(", onnxruntime", ""), space)
    image, config = Image.open(path).convert("RGBA"), data_config(recipe)
    image = shrink(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), config.stored)
    expected = crop_image(image, eval_crop(image.height, image.width, config), config)
    assert np.abs(space["pixels"][0].astype(int) - expected.numpy()).max() <= 1


def test_folders_that_exist_are_left_alone(
    exported: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exported / "README.md").stat().st_mtime_ns
    assert export_again(results, exported) == 2
    assert "exists already" in capsys.readouterr().err
    assert (exported / "README.md").stat().st_mtime_ns == before
    assert main(["export", str(exported), "-o", str(tmp_path / "mine")]) == 2
    assert "is an exported folder already" in capsys.readouterr().err


def test_without_the_packages_the_rest_is_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_graph, "PACKAGES", ("onnx", "no_such_package"))
    assert export_again(results, tmp_path / "mine") == 0
    assert 'no_such_package must be installed first: pip install "retrieval_bench[export]"' in capsys.readouterr().out
    assert not (tmp_path / "mine" / "embedder.onnx").exists()
    assert "There is no ONNX graph here: no_such" in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    ("result", "message"),
    [(0.5, "differs from torch by 5.0e-01"), (float("nan"), "by nan"), (None, "cannot be exported to ONNX: not today")],
)
def test_a_graph_that_is_not_the_network_leaves_nothing(
    result: float | None,
    message: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def export(*_: Any) -> float:
        if result is None:
            raise ValueError("not today")
        return result

    monkeypatch.setattr(onnx_graph, "_export", export)
    assert export_again(results, tmp_path / "mine") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_is_particular(results: Path) -> None:
    """A closed set, a choice on validation classes, no graph."""
    record = record_of(results)
    config = {**record.config, "data": {**record.config["data"], "split": "closed_set"}, "options": {"any": {"a": 1}}}
    metrics = {"recall_at_10": 0.5, "recall_at_2": 0.25, "accuracy": 0.125, "mrr": 1 / 3, "queries": 7}
    info = {"selection": {"layer_pruning": {"chosen": "layer_pruning(drop=last:1)"}}}
    record = replace(record, config=config, metrics=metrics, info=info)
    embedder, recipe = read_embedder(find_embedder("synthetic-standard", results)[0])
    card = model_card(record, recipe, embedder, Graph(missing="it has no name"))
    for line in (
        "of the classes that it was trained on",
        "(chosen on validation classes: layer_pruning: layer_pruning(drop=last:1))",
        "| its options | any.a 1 |",
        "| R@2 | 25.00 |\n| R@10 | 50.00 |\n| top-1 | 12.50 |\n| mrr | 0.3333 |\n| queries | 7 |",
        "There is no ONNX graph here: it has no name.",
    ):
        assert line in card
    assert "A policy network decides" not in card

"""An exported folder holds all that is needed, and what its card says is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from retrieval_bench.deploy.card import model_card, snippet
from retrieval_bench.deploy.collection import read_collection

from retrieval_bench.cli import main
from retrieval_bench.data.reading import shrink
from retrieval_bench.data.transforms import crop_image, eval_crop
from retrieval_bench.deploy import onnx_graph
from retrieval_bench.deploy.onnx_graph import Graph
from retrieval_bench.sections import DataConfig

EXPORTED: dict[str, Path] = {}


@pytest.fixture
def exported(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, since an export takes seconds."""
    if "folder" not in EXPORTED:
        folder = tmp_path_factory.mktemp("exported") / "mine"
        assert main(["export", "synthetic-standard", "--results", str(results), "-o", str(folder)]) == 0
        EXPORTED["folder"] = folder
    return EXPORTED["folder"]


def picture(path: Path, size: tuple[int, int] = (90, 50)) -> Path:
    """A drawing with soft colours, half transparent."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 2, y * 4, 255 - x, np.full_like(x, 120)], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(path)
    return path


def test_the_folder_and_the_numbers_in_the_card(exported: Path, results: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "embedder.json",
        "embedder.onnx",
        "embedder.safetensors",
    }
    (path,) = (results / "runs").glob("*-standard-*.json")
    record, card = json.loads(path.read_text()), (exported / "README.md").read_text()
    for kept in ("json", "safetensors"):
        assert (exported / f"embedder.{kept}").read_bytes() == (results / "models" / f"{path.stem}.{kept}").read_bytes()
    assert f"| Recall@1 | {100 * record['metrics']['recall_at_1']:.2f} % |" in card
    assert f"| MAP@R | {100 * record['metrics']['map_at_r']:.2f} % |" in card
    assert f"{record['cost']['parameters']:,} parameters" in card
    assert record["command"] in card
    assert "Out: float32 (N, 8)" in card
    assert "64 images of 8 classes to train on, 64 of 8 to test on" in card
    assert "mean of those of the image and of its mirror image" in card
    assert str(results) not in card


def test_the_lines_of_the_card_give_the_vectors_of_embed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this package: onnxruntime and Pillow alone, run in the exported folder."""
    (tmp_path / "one").mkdir()
    picture(tmp_path / "one" / "picture.png")
    assert main(["embed", str(exported), str(tmp_path / "one"), "-o", str(tmp_path / "one.npz")]) == 0
    (lines,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    space: dict[str, Any] = {}
    exec(lines.replace("picture.jpg", str(tmp_path / "one" / "picture.png")), space)
    np.testing.assert_allclose(space["vector"], read_collection(tmp_path / "one.npz").embeddings, atol=1e-4)


@pytest.mark.parametrize("size", [(90, 50), (41, 97), (64, 64)])
@pytest.mark.parametrize(
    "config",
    [
        DataConfig(image_size=32),
        DataConfig(image_size=32, stored=48, resize=33),
        DataConfig(image_size=31, preprocessing="squash"),
        DataConfig(image_size=32, preprocessing="squash", stored=44),
    ],
)
def test_the_lines_of_the_card_prepare_images_as_the_evaluation_does(
    size: tuple[int, int], config: DataConfig, tmp_path: Path
) -> None:
    path = picture(tmp_path / "picture.png", size)
    space: dict[str, Any] = {}
    exec(
        "\n".join(snippet(config).splitlines()[:-1]).replace("picture.jpg", str(path)).replace(", onnxruntime", ""),
        space,
    )
    image = Image.open(path).convert("RGBA")
    image = shrink(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), config.stored)
    expected = crop_image(image, eval_crop(image.height, image.width, config), config)
    assert np.abs(space["pixels"][0].astype(int) - expected.numpy()).max() <= 1


def test_a_folder_that_is_there_is_left_alone(
    exported: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exported / "README.md").stat().st_mtime_ns
    assert main(["export", "synthetic-standard", "--results", str(results), "-o", str(exported)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (exported / "README.md").stat().st_mtime_ns == before


def test_without_the_packages_the_rest_is_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_graph, "PACKAGES", ("onnx", "no_such_package"))
    assert main(["export", "synthetic-standard", "--results", str(results), "-o", str(tmp_path / "mine")]) == 0
    assert 'no_such_package must be installed first: pip install "retrieval_bench[export]"' in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {
        "README.md",
        "embedder.json",
        "embedder.safetensors",
    }
    assert "There is no ONNX graph here" in (tmp_path / "mine" / "README.md").read_text()


def no_export(*_: Any) -> None:
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("broken", "with_what", "message"),
    [
        ("_difference", lambda *_: 0.5, "differs from torch by 5.0e-01"),
        ("_difference", lambda *_: float("nan"), "differs from torch by nan"),
        ("_export", no_export, "cannot be exported to ONNX: not today"),
    ],
)
def test_a_graph_that_is_not_the_network_leaves_nothing(
    broken: str,
    with_what: Any,
    message: str,
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(onnx_graph, "_export", lambda *_, **__: None)
    monkeypatch.setattr(onnx_graph, broken, lambda *given, **_: with_what(*given))
    assert main(["export", "synthetic-standard", "--results", str(results), "-o", str(tmp_path / "mine")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_older_exporter_steps_in(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = onnx_graph._export

    def only_older(model: Any, example: Any, path: Path, dynamo: bool) -> None:
        if dynamo:
            raise ValueError("an operator is missing")
        export(model, example, path, dynamo)

    monkeypatch.setattr(onnx_graph, "_export", only_older)
    assert main(["export", "synthetic-standard", "--results", str(results), "-o", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr()
    assert "(an operator is missing): its older one" in said.err
    assert re.search(r"differs from torch by at most \d\.\de-0[5-9]", said.out)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("synthetic-standart", "did you mean 'synthetic-standard-"),
        ("synthetic-", "begins 2 runs; give more of one: synthetic-frozen-"),
        (
            "synthetic-frozen",
            "was not kept; this makes it again: python -m retrieval_bench run --strategy frozen --dataset synthetic",
        ),
        ("synthetic-frozen", " --keep --results "),
        ("{results}", "not an exported folder, which holds embedder.json and embedder.safetensors"),
    ],
)
def test_runs_that_cannot_be_exported(
    run: str, message: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", run.format(results=results), "--results", str(results)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (results / "exported").exists()


def test_an_exported_folder_is_not_exported_again(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(exported), "-o", str(tmp_path / "mine")]) == 2
    assert "is an exported folder already" in capsys.readouterr().err


def test_the_card_tells_what_is_particular(results: Path) -> None:
    """A closed set, a choice on validation classes, routes without a graph."""
    record = json.loads(next((results / "runs").glob("*-standard-*.json")).read_text())
    record["config"]["data"]["split"] = "closed_set"
    record["config"]["options"] = {"spottune": {"policy": "auto"}}
    record["metrics"] = {"recall_at_10": 0.5, "recall_at_2": 0.25, "accuracy": 0.125, "queries": 7}
    record["facts"] = {"selection": {"layer_pruning": {"chosen": "layer_pruning(drop=last:1)"}}}
    card = model_card(record, {"image_size": 32}, 8, Graph(missing="it has no name"))
    assert "of the classes that it was trained on" in card
    assert "chosen on validation classes: layer_pruning: layer_pruning(drop=last:1)" in card
    assert card.index("| Recall@2 | 25.00 % |") < card.index("| Recall@10 | 50.00 % |")
    assert "| accuracy of the classifier | 12.50 % |" in card
    assert "There is no ONNX graph here: it has no name." in card
    assert "A policy network decides" in card
    record["config"]["options"]["spottune"]["eval_policy"] = "majority,argmax"
    assert "A policy network decides" not in model_card(record, {"image_size": 32}, 8, Graph()), (
        "all images take one route"
    )

"""A graph is searched with where there is no torch, and sees the same pixels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.onnx_embedder import METADATA, _prepared
from retrieval_bench.sections import DataConfig

WITHOUT_TORCH = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "pytorch_metric_learning"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from retrieval_bench.cli import main
sys.exit(main(sys.argv[1:]))
"""


def turned(image: Image.Image) -> dict[str, Any]:
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    return {"exif": exif.tobytes()}


FILES: dict[str, tuple[tuple[int, int], str, Callable[[Image.Image], dict[str, Any]]]] = {
    "odd.png": ((37, 91), "RGB", lambda _: {}),
    "turned.jpg": ((64, 41), "RGB", turned),
    "grey.jpg": ((33, 50), "L", lambda _: {}),
    "deep.png": ((40, 31), "I;16", lambda _: {}),
    "alpha.png": ((51, 44), "RGBA", lambda _: {}),
    "grey_alpha.png": ((32, 32), "LA", lambda _: {}),
    "ink.jpg": ((45, 77), "CMYK", lambda _: {}),
    "palette.gif": ((29, 60), "P", lambda _: {"transparency": 3}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of odd sizes and modes."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for name, (size, mode, options) in FILES.items():
        channels = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode)
        shape = (size[1] // 4, size[0] // 4, *((channels,) if channels else ()))
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        deep = (pixels.astype(np.uint16) * 257) if mode == "I;16" else pixels
        image = Image.frombytes(mode, (shape[1], shape[0]), deep.tobytes()).resize(size, Image.Resampling.NEAREST)
        image.save(folder / name, **options(image))
    return [folder / name for name in FILES]


@pytest.mark.parametrize(
    "config",
    [DataConfig(image_size=32), DataConfig(image_size=31, preprocessing="squash", stored=28), DataConfig(stored=30)],
)
def test_the_same_pixels_as_with_torch(files: list[Path], config: DataConfig) -> None:
    labels = np.zeros(len(files), dtype=np.int64)
    table = ImageTable(Path(), tuple(map(str, files)), labels, ("",))
    ((images, _),) = Batches(table, np.arange(len(files)), labels, config, 0)
    np.testing.assert_array_equal(np.stack([_prepared(file, config) for file in files]), images.numpy())


def test_search_without_torch(
    exported: Path, pictures: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers of a process that has no torch are those of one that has it; with PNG and page."""
    gallery, graph = tmp_path / "g.npz", exported / "embedder.onnx"
    assert main(["embed", str(exported), str(pictures), "-o", str(gallery)]) == 0
    queries = [str(files[0].parent), str(next(pictures.rglob("deep/*.png")))]
    rest = ["--gallery", str(gallery), "--k", "64", "--json"]
    capsys.readouterr()
    assert main(["search", str(exported), *queries, *rest]) == 0
    expected = json.loads(capsys.readouterr().out)
    output = ["--sheet", str(tmp_path / "a.png"), "--html", str(tmp_path / "a.html"), "--folder", str(pictures)]
    words = ["search", "--onnx", str(graph), *queries, *rest, *output]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for answer, with_torch in zip(json.loads(done.stdout), expected, strict=True):
        assert {**answer, "neighbours": 0} == {**with_torch, "neighbours": 0}
        near, expected_near = ({n["path"]: n["similarity"] for n in a["neighbours"]} for a in (answer, with_torch))
        assert near == pytest.approx(expected_near, abs=1e-4)
    assert (tmp_path / "a.png").stat().st_size
    assert (tmp_path / "a.html").stat().st_size


def test_graphs_that_cannot_be_searched_with(
    exported: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One without metadata, one of another embedder."""
    graph: Any = onnx.load(exported / "embedder.onnx")
    metadata = {entry.key: entry for entry in graph.metadata_props}
    about = json.loads(metadata[METADATA].value)
    metadata[METADATA].value = json.dumps({**about, "embedder": "another"})
    onnx.save(graph, tmp_path / "other.onnx")
    graph.ClearField("metadata_props")
    onnx.save(graph, tmp_path / "old.onnx")
    gallery = tmp_path / "g.npz"
    assert main(["embed", str(exported), str(pictures), "-o", str(gallery)]) == 0
    query = str(next(pictures.rglob("deep/*.png")))
    for name, message in (("other", "was made with another embedder"), ("old", "does not say how images are prepared")):
        capsys.readouterr()
        assert main(["search", "--onnx", str(tmp_path / f"{name}.onnx"), query, "--gallery", str(gallery)]) == 2
        assert message in capsys.readouterr().err

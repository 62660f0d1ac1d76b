"""Packs: what goes in comes out, in shards that are never too large."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from data_checks import files_below, random_image, refused
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data.catalog import open_dataset, open_table
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.pack import write_pack
from retrieval_bench.data.reading import read_image

SIDES = {
    "none": None,
    "closed set": ["train", "train", "test", "test"] * 4,
    "roles": ["train", "query", "gallery", ""] * 4,
}
NAMES = ("NA", "Ärmel, lang", '"quoted"', "007")
"""Class names that a careless CSV reader turns into something else."""


def write_images(
    root: Path, sizes: list[tuple[int, int]], sides: list[str] | None = None, zero_shot_classes: int = 0
) -> ImageTable:
    """Four classes; image i has the i-th (height, width)."""
    labels = np.arange(len(sizes)) * 4 // len(sizes)
    paths = tuple(f"{NAMES[label]}/{row}.png" for row, label in enumerate(labels))
    for row, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        random_image(height, width, row).save(root / path)
    return ImageTable(root, paths, labels, NAMES, zero_shot_classes, None if sides is None else np.array(sides))


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    return write_images(tmp_path / "images", [(20, 30)] * 16)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("zero_shot_classes", [0, 1])
def test_pack_opens_as_the_table_it_was_made_of(
    sides: str, zero_shot_classes: int, tmp_path: Path, empty_cache: Path
) -> None:
    table = write_images(tmp_path / "images", [(20, 30)] * 16, SIDES[sides], zero_shot_classes)
    write_pack("folder", table, tmp_path / "pack", 20, 1)
    opened = open_table("folder", tmp_path / "pack")
    assert (opened.paths, opened.class_names, opened.zero_shot_classes) == (
        table.paths,
        table.class_names,
        table.zero_shot_classes,
    )
    assert opened.labels.tolist() == table.labels.tolist()
    assert opened.labels.dtype == np.int64
    assert (None if opened.sides is None else opened.sides.tolist()) == SIDES[sides]


def test_images_that_fit_travel_byte_for_byte(table: ImageTable, tmp_path: Path, empty_cache: Path) -> None:
    write_pack("folder", table, tmp_path / "pack", 20, 1)
    opened = open_table("folder", tmp_path / "pack")
    for path in table.paths:
        assert (opened.root / path).read_bytes() == (table.root / path).read_bytes()
    assert opened.fingerprint() == table.fingerprint()


def test_larger_images_are_scaled_to_the_size_and_keep_their_shape(tmp_path: Path, empty_cache: Path) -> None:
    sizes = [(21, 21), (40, 60), (90, 30), (200, 25)] * 4
    table = write_images(tmp_path / "images", sizes)
    write_pack("folder", table, tmp_path / "pack", 20, 1)
    opened = open_table("folder", tmp_path / "pack")
    for path, (height, width) in zip(opened.paths, sizes, strict=True):
        small = read_image(opened.root / path)
        assert min(small.size) == 20
        assert abs(small.width / small.height - width / height) <= width / height * 0.03


def test_scaled_images_look_as_before(tmp_path: Path, empty_cache: Path) -> None:
    table = write_images(tmp_path / "images", [(64, 64)] * 16)
    for row, path in enumerate(table.paths):
        random_image(1, 1, row).resize((64, 64)).save(table.root / path)
    write_pack("folder", table, tmp_path / "pack", 32, 1)
    opened = open_table("folder", tmp_path / "pack")
    for row, path in enumerate(opened.paths):
        colour = np.asarray(random_image(1, 1, row), dtype=int)
        assert np.abs(np.asarray(read_image(opened.root / path), dtype=int) - colour).max() <= 4


def test_same_images_give_the_same_bytes(table: ImageTable, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_pack("folder", table, tmp_path / name, 16, 0.05)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    for name in files_below(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def members(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


LETTERS = st.sampled_from(["a", "é", "字"])
LONG = st.builds(
    lambda letter, length: "/".join([letter * 70] * (length // 70) + [letter * (length % 70 + 1)]),
    LETTERS,
    st.integers(0, 700),
)


@given(
    names=st.lists(LONG, min_size=1, max_size=12, unique=True),
    sides=st.lists(st.integers(4, 60), min_size=12, max_size=12),
    limit=st.integers(40_000, 70_000),
)
@example(names=["a"], sides=[54] * 12, limit=2 * 10_240 + 9_728)
@example(
    names=["字" * 70 + "/" + "/".join(["字" * 70] * 10) + f"/{row}" for row in range(12)], sides=[4] * 12, limit=40_960
)
@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_shard_is_larger_than_allowed(
    names: list[str], sides: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory, empty_cache: Path
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    paths = tuple(f"{name}.png" for name in names)
    for row, (path, side) in enumerate(zip(paths, sides, strict=False)):
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        random_image(side, side, row).save(folder / "images" / path)
    table = ImageTable(folder / "images", paths, np.zeros(len(paths), dtype=np.int64), ("a",))
    shards = write_pack("folder", table, folder / "pack", 64, limit / (1 << 20))
    assert max(shard.stat().st_size for shard in shards) <= limit
    assert [name for shard in shards for name in members(shard)] == list(paths)


def test_shards_are_filled_before_the_next_is_begun(tmp_path: Path) -> None:
    table = write_images(tmp_path / "images", [(60, 60)] * 16)
    shards = write_pack("folder", table, tmp_path / "pack", 64, 0.1)
    total = sum((table.root / path).stat().st_size for path in table.paths)
    assert 1 < len(shards) <= total / (0.1 * (1 << 20)) * 1.5 + 1


@pytest.mark.parametrize("kind", ["folder", "table", "closed set", "synthetic"])
def test_pack_has_the_split_of_the_original(
    kind: str, tmp_path: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = "closed_set" if kind == "closed set" else "zero_shot"
    table = write_images(tmp_path / "images", [(20, 30)] * 16)
    root, name = table.root, "folder"
    if kind in ("table", "closed set"):
        sides = ["train", "train", "test", "test"] * 4 if kind == "closed set" else ["train"] * 8 + ["test"] * 8
        rows = [
            f"{path},c{label},{side}\n"
            for path, label, side in zip(map(quoted, table.paths), table.labels, sides, strict=True)
        ]
        root, name = table.root / "table.csv", "table"
        root.write_text("path,label,split\n" + "".join(rows), encoding="utf-8")
    elif kind == "synthetic":
        root, name = None, "synthetic"
    where = [] if root is None else ["--data-root", str(root)]
    assert main(["data", "pack", name, *where, "--output", str(tmp_path / "pack"), "--size", "16"]) == 0
    assert f"--dataset {name} --data-root {tmp_path / 'pack'}" in capsys.readouterr().out
    before, after = open_dataset(name, root, protocol), open_dataset(name, tmp_path / "pack", protocol)
    assert after[0].paths == before[0].paths
    assert after[0].class_names == before[0].class_names
    for side in ("train", "query", "gallery", "train_classes"):
        assert getattr(after[1], side).tolist() == getattr(before[1], side).tolist()


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def test_pack_is_extracted_once_and_still_opens_when_its_folder_has_moved(
    table: ImageTable, tmp_path: Path, empty_cache: Path
) -> None:
    write_pack("folder", table, tmp_path / "pack", 20, 1)
    first = open_table("folder", tmp_path / "pack")
    (tmp_path / "pack").rename(tmp_path / "moved")
    assert open_table("folder", tmp_path / "moved").root == first.root


@pytest.mark.parametrize("target", ["folder", "file"])
def test_what_is_there_already_is_not_touched(target: str, table: ImageTable, tmp_path: Path) -> None:
    output = tmp_path / "pack"
    output.mkdir() if target == "folder" else output.write_text("mine")
    with refused(output, "exists already", "--output"):
        write_pack("folder", table, output, 20, 1)
    assert files_below(tmp_path / "pack") == []
    assert output.is_dir() or output.read_text() == "mine"


def test_image_larger_than_a_shard_is_refused(tmp_path: Path) -> None:
    table = write_images(tmp_path / "images", [(20, 20)] * 15 + [(128, 128)])
    with refused(table.paths[-1], "--max-shard-mb", "--size"):
        write_pack("folder", table, tmp_path / "pack", 128, 0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_broken_image_is_named_and_nothing_is_left(table: ImageTable, tmp_path: Path) -> None:
    (table.root / table.paths[9]).write_bytes(b"no image")
    with refused(table.root / table.paths[9], "cannot be decoded"):
        write_pack("folder", table, tmp_path / "pack", 20, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_image_too_long_for_a_jpeg_is_named(tmp_path: Path) -> None:
    table = write_images(tmp_path / "images", [(20, 20)] * 16)
    Image.new("RGB", (70_000, 20)).save(table.root / table.paths[2])
    with refused(table.root / table.paths[2]):
        write_pack("folder", table, tmp_path / "pack", 19, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_interrupted_packing_leaves_nothing(table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: tarfile.TarFile, *words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "addfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_pack("folder", table, tmp_path / "pack", 20, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    write_pack("folder", table, tmp_path / "pack", 20, 1)

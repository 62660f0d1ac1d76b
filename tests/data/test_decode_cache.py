"""The decode-once cache: what it holds, when it is built, and what is left behind when that fails."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.data import decode_cache
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.reading import read_image, shrink
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from tests.data.data_checks import files_below, random_image, refused

NAMES = ("a/0.png", "a/1.jpg", "b/2.png", "b/3.png", "b/4.png")


@pytest.fixture
def root(tmp_path: Path, empty_cache: Path) -> Path:
    """Five images of different sizes and modes, one of them turned by its EXIF data; 7,920 bytes of pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [random_image(20, 30), random_image(12, 40, 1), random_image(9, 40, 2).convert("L")]
    images += [random_image(1, 1), Image.new("P", (39, 31))]
    for name, image in zip(NAMES, images, strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, exif=exif if path.suffix == ".jpg" else None)
    return tmp_path / "images"


def make_table(root: Path) -> ImageTable:
    """Opened anew, as by another process."""
    return ImageTable(root, NAMES, np.array([0, 0, 1, 1, 1]), ("a", "b"))


def folders(cache: Path) -> list[str]:
    """Names of the caches, whole and partial; not of lock files."""
    return [name for name in files_below(cache / "decoded") if "/" not in name and not name.endswith(".lock")]


def count_bytes(root: Path, side: int) -> int:
    return sum(np.asarray(shrink(read_image(root / name), side)).size for name in NAMES)


@pytest.mark.parametrize("side", [0, 10])
def test_pixels_are_those_of_the_files_and_cannot_be_changed(side: int, root: Path) -> None:
    for _ in range(2):
        cache = open_decode_cache(make_table(root), side, 1.0)
        assert len(cache) == len(NAMES)
        for row, name in enumerate(NAMES):
            expected = np.asarray(shrink(read_image(root / name), side))
            assert cache[row].dtype == np.uint8
            assert np.array_equal(cache[row], expected)
            assert tuple(cache.sizes[row]) == expected.shape[:2]
        assert len(cache.pixels) == count_bytes(root, side)
        cache[0][:] = 255 - cache[0]


def test_cache_is_built_once(root: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table(root)
    open_decode_cache(table, 0, 1.0)
    assert "decoding 5 images once" in capsys.readouterr().err
    for name in NAMES:
        (root / name).unlink()
    open_decode_cache(table, 0, 1e-9)  # the limit is for building
    assert not capsys.readouterr().err
    assert len(folders(empty_cache)) == 1


def test_changed_files_another_size_and_another_folder_have_another_cache(root: Path, empty_cache: Path) -> None:
    for side in (0, 10, 12):
        open_decode_cache(make_table(root), side, 1.0)
    assert len(folders(empty_cache)) == 3
    random_image(20, 30, 7).save(root / NAMES[0])  # as many pixels, other content
    later = time.time_ns() + 5_000_000_000
    os.utime(root / NAMES[0], ns=(later, later))
    assert np.array_equal(open_decode_cache(make_table(root), 0, 1.0)[0], np.asarray(random_image(20, 30, 7)))
    own = replace(make_table(root), own=True)
    before = open_decode_cache(own, 0, 1.0)[0].copy()
    random_image(20, 30, 8).save(root / NAMES[0])
    os.utime(root / NAMES[0], ns=(later, later))
    assert not np.array_equal(open_decode_cache(replace(own), 0, 1.0)[0], before), "same size and time, other bytes"
    (root.parent / "other").mkdir()
    open_decode_cache(make_table(root.rename(root.parent / "other" / root.name)), 0, 1.0)
    assert len(folders(empty_cache)) == 7


def test_image_that_changes_while_it_is_decoded_leaves_nothing(
    root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> Image.Image:
        if path.name == "4.png":
            random_image(20, 30, 9).save(root / "new.png")
            (root / "new.png").replace(root / NAMES[0])
        return read_image(path)

    monkeypatch.setattr(decode_cache, "read_image", change)
    with refused(root / NAMES[0], "was changed", "run again"):
        open_decode_cache(make_table(root), 0, 1.0)
    assert folders(empty_cache) == []


@pytest.mark.parametrize("error", [UserError("bad"), KeyboardInterrupt()])
def test_failed_build_leaves_nothing(
    error: BaseException, root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Image.Image:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(decode_cache, "read_image", fail)
        with pytest.raises(type(error)):
            open_decode_cache(make_table(root), 0, 1.0)
    assert folders(empty_cache) == []
    assert len(open_decode_cache(make_table(root), 0, 1.0)) == 5


def test_limit_counts_all_caches_and_names_the_ways_out(
    root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr("retrieval_bench.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
        with refused("the cache of decoded images needs 1 MB", "RETRIEVAL_BENCH_CACHE"):
            open_decode_cache(make_table(root), 0, 1.0)
    with refused("1 MB", "--cache-limit-gb is 1e-06", "--stored 256", "--reader pil"):
        open_decode_cache(make_table(root), 0, 1e-6)
    with refused("--stored below 30"):
        open_decode_cache(make_table(root), 30, 1e-6)
    assert folders(empty_cache) == []
    total = count_bytes(root, 0)
    assert len(open_decode_cache(make_table(root), 0, total / 1e9)) == 5, "exactly the limit is allowed"
    (name,) = folders(empty_cache)
    whole = empty_cache / "decoded" / name
    whole.rename(whole.with_name(f".{name}.partial"))  # remains of a killed build do not count
    open_decode_cache(make_table(root), 0, total / 1e9)
    assert folders(empty_cache) == [name]
    total += count_bytes(root, 12)
    with refused("of other caches in", empty_cache / "decoded", "delete other caches"):
        open_decode_cache(make_table(root), 12, (total - 1) / 1e9)
    assert len(open_decode_cache(make_table(root), 12, total / 1e9)) == 5

"""The decode-once cache: what it holds, when it is built, and what is left behind when that fails."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import files_below, random_image, refused
from PIL import Image

from retrieval_bench.data import decoded as module
from retrieval_bench.data.decoded import PIXELS, SIZES, open_decoded
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.transforms import shrink

NAMES = ("a/0.png", "a/1.jpg", "b/2.png", "b/3.png", "b/4.png")


@pytest.fixture
def root(tmp_path: Path, empty_cache: Path) -> Path:
    """Five images of different sizes and modes; 7,920 bytes of pixels."""
    images = [
        random_image(20, 30),
        random_image(40, 12, 1),
        random_image(9, 40, 2).convert("L"),
        random_image(1, 1),
        Image.new("P", (39, 31)),
    ]
    for name, image in zip(NAMES, images, strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / "images"


def table(root: Path) -> ImageTable:
    """Opened anew, as by another process."""
    return ImageTable(root, NAMES, np.array([0, 0, 1, 1, 1]), ("a", "b"))


def folders(cache: Path) -> list[str]:
    """Names of the caches, whole and partial; not of lock files."""
    return [name for name in files_below(cache / "decoded") if "/" not in name and not name.endswith(".lock")]


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Any:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(module, "read_image", fail)
    monkeypatch.setattr(module, "read_size", fail)


@pytest.mark.parametrize("stored", [0, 10])
def test_pixels_are_those_of_the_files(stored: int, root: Path) -> None:
    images = table(root)
    decoded = open_decoded(images, stored, 1.0)
    assert len(decoded) == len(NAMES)
    for row, name in enumerate(NAMES):
        expected = np.asarray(shrink(read_image(root / name), stored))
        assert decoded[row].dtype == np.uint8
        assert np.array_equal(decoded[row], expected)
        assert tuple(decoded.sizes[row]) == expected.shape[:2]
    assert len(decoded.pixels) == 3 * decoded.sizes.prod(axis=1).sum()


def test_cache_is_built_once(
    root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_decoded(table(root), 0, 1.0)
    assert "decoding 5 images once" in capsys.readouterr().err
    refuse_to_read(monkeypatch)
    again = open_decoded(table(root), 0, 1e-9)  # the limit is for building
    assert all(np.array_equal(first[row], again[row]) for row in range(5))
    assert not capsys.readouterr().err
    assert len(folders(empty_cache)) == 1
    assert {name.split("/")[-1] for name in files_below(empty_cache / "decoded") if "/" in name} == {PIXELS, SIZES}


def test_changed_files_and_another_size_have_another_cache(root: Path, empty_cache: Path) -> None:
    open_decoded(table(root), 0, 1.0)
    open_decoded(table(root), 10, 1.0)
    open_decoded(table(root), 12, 1.0)
    assert len(folders(empty_cache)) == 3
    random_image(20, 30, 7).save(root / NAMES[0])  # as many pixels, other content
    later = time.time_ns() + 5_000_000_000
    os.utime(root / NAMES[0], ns=(later, later))
    assert np.array_equal(open_decoded(table(root), 0, 1.0)[0], np.asarray(random_image(20, 30, 7)))
    assert len(folders(empty_cache)) == 4


def test_sets_with_the_same_folder_name_do_not_share_a_cache(root: Path, tmp_path: Path, empty_cache: Path) -> None:
    open_decoded(table(root), 0, 1.0)
    other = tmp_path / "other" / root.name
    other.parent.mkdir()
    root.rename(other)
    for name in NAMES:
        status = (other / name).stat()
        random_image(20, 30, 9).save(other / name)
        os.utime(other / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_decoded(table(other), 0, 1.0)[0].shape == (20, 30, 3)
    assert len(folders(empty_cache)) == 2


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_corrupt_image_is_one_line_and_leaves_nothing(damage: str, root: Path, empty_cache: Path) -> None:
    victim = root / NAMES[1]
    victim.write_bytes(b"no image" if damage == "text" else victim.read_bytes()[:300])
    with refused(victim, "cannot be decoded"):
        open_decoded(table(root), 0, 1.0)
    assert folders(empty_cache) == []


def test_interrupted_build_leaves_nothing_and_is_made_up_for(
    root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> Image.Image:
        if path.name == "3.png":
            raise KeyboardInterrupt
        return read_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_decoded(table(root), 0, 1.0)
    assert folders(empty_cache) == []
    assert len(open_decoded(table(root), 0, 1.0)) == 5


def test_what_a_killed_build_left_is_removed(root: Path, empty_cache: Path) -> None:
    open_decoded(table(root), 0, 1.0)
    (name,) = folders(empty_cache)
    whole = empty_cache / "decoded" / name
    whole.rename(whole.with_name(f".{name}.partial-abc"))
    assert len(open_decoded(table(root), 0, 1.0)) == 5
    assert folders(empty_cache) == [name]


def test_what_a_killed_build_left_does_not_count_against_the_limit(root: Path, empty_cache: Path) -> None:
    open_decoded(table(root), 0, 10_000e-9)
    (name,) = folders(empty_cache)
    whole = empty_cache / "decoded" / name
    whole.rename(whole.with_name(f".{name}.partial-abc"))
    assert len(open_decoded(table(root), 0, 10_000e-9)) == 5


def test_cache_beyond_the_limit_is_refused_with_the_ways_out(root: Path, empty_cache: Path) -> None:
    with refused("1 MB", "--cache-limit-gb is 1e-06", "--stored 256", "--reader pil") as _:
        open_decoded(table(root), 0, 1e-6)
    with refused("--stored below 30"):
        open_decoded(table(root), 30, 1e-6)
    assert folders(empty_cache) == []
    size = sum(3 * image.width * image.height for image in (read_image(root / name) for name in NAMES))
    assert len(open_decoded(table(root), 0, size / 1e9)) == 5, "exactly the limit is allowed"


def test_other_caches_count_against_the_limit(root: Path, empty_cache: Path) -> None:
    full = len(open_decoded(table(root), 0, 1.0).pixels)
    small = len(open_decoded(table(root), 10, 1.0).pixels)
    needed = sum(3 * image.width * image.height for image in (shrink(read_image(root / name), 12) for name in NAMES))
    total = full + small + needed
    with refused("of other caches in", empty_cache / "decoded", "delete other caches"):
        open_decoded(table(root), 12, (total - 1) / 1e9)
    assert len(open_decoded(table(root), 12, total / 1e9)) == 5


def test_full_disk_is_said_before_anything_is_decoded(
    root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_bench.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with refused("the cache of decoded images needs 1 MB", "RETRIEVAL_BENCH_CACHE"):
        open_decoded(table(root), 0, 1.0)
    assert folders(empty_cache) == []


@pytest.mark.parametrize("below", ["", "decoded"])
def test_cache_that_cannot_be_written_is_one_line(below: str, root: Path, empty_cache: Path) -> None:
    blocked = empty_cache / below if below else empty_cache
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file, not a folder")
    with refused(empty_cache / "decoded", "cannot be written", "RETRIEVAL_BENCH_CACHE"):
        open_decoded(table(root), 0, 1.0)


def test_writing_into_the_pixels_does_not_reach_the_file(root: Path) -> None:
    decoded = open_decoded(table(root), 0, 1.0)
    before = decoded[0].copy()
    decoded[0][:] = 255 - before
    assert np.array_equal(open_decoded(table(root), 0, 1.0)[0], before)


def test_head_that_lies_about_the_size_is_refused(
    root: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_size", lambda path: (20, 31))
    with refused("another size than its pixels", root):
        open_decoded(table(root), 0, 1.0)
    assert folders(empty_cache) == []


def test_empty_table_is_an_empty_cache(root: Path) -> None:
    assert len(open_decoded(ImageTable(root, (), np.zeros(0, np.int64), ()), 0, 1.0)) == 0

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import noise, random_image, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from retrieval_bench.data.reading import read_image, read_size
from retrieval_bench.errors import UserError


def read(image: Image.Image, path: Path, **options: Any) -> np.ndarray:
    """uint8 (H, W, 3): what read_image gives for `image` saved at `path`."""
    image.save(path, **options)
    result = read_image(path)
    assert (result.mode, result.size) == ("RGB", image.size)
    return np.asarray(result)


def test_greyscale_has_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(read(Image.fromarray(grey), tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))


def test_palette_colours_are_looked_up(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([250, 10, 20, 30, 240, 50])
    image.putdata([0, 1])
    assert read(image, tmp_path / "a.png").tolist() == [[[250, 10, 20], [30, 240, 50]]]
    assert read(image, tmp_path / "b.png", transparency=1).tolist() == [[[250, 10, 20], [255, 255, 255]]]


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    assert np.abs(read(image, tmp_path / "a.jpg", quality=95).astype(int) - [200, 40, 90]).max() <= 4


def test_16_bit_greyscale_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    result = read(Image.fromarray(values), tmp_path / "a.png")
    assert np.abs(result[..., 0] - values / 257).max() <= 1
    assert len(np.unique(result)) == 64


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 128)])
    pixels = read(image, tmp_path / "a.png")[0]
    assert pixels[:2].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert np.abs(pixels[2].astype(int) - [255, 127, 127]).max() <= 1
    grey = Image.new("LA", (2, 1))
    grey.putdata([(9, 255), (9, 0)])
    assert read(grey, tmp_path / "b.png")[0, :, 0].tolist() == [9, 255]


def jpeg_bytes() -> bytes:
    stream = io.BytesIO()
    random_image(64, 64).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"this is no picture", jpeg_bytes()[:1_500], jpeg_bytes()[:20] + noise(500), jpeg_bytes()[2:]],
    ids=["empty", "text", "truncated", "corrupt", "headless"],
)
def test_bad_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bird.jpg").write_bytes(content)
    with refused(tmp_path / "bird.jpg", "cannot be decoded"):
        read_image(tmp_path / "bird.jpg")


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff", "bmp", "ppm", "jpg"])
def test_truncated_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"bird.{kind}"
    random_image(40, 40).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with refused(path):
        read_image(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with refused(tmp_path / "bird.jpg", "missing"):
        read_image(tmp_path / "bird.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "I;16"])
def test_size_is_read_from_the_head_alone(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    image = Image.new(mode, (40, 30)) if mode == "I;16" else random_image(30, 40).convert(mode)
    image.save(path)
    assert read_size(path) == (30, 40) == read_image(path).size[::-1]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_photograph_is_set_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    """As PIL's own function does it, whatever the format; 0 and 9 mean nothing."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    corners = Image.fromarray(
        np.kron(np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]], dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    )
    path = tmp_path / f"a.{kind}"
    corners.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert read_size(path) == expected.shape[:2]


def test_exif_data_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    for number, exif in enumerate([b"Exif\0\0MM", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"]):
        path = tmp_path / f"{number}.jpg"
        random_image(30, 40).save(path, exif=exif)
        assert read_size(path) == (30, 40) == read_image(path).size[::-1]


def test_size_of_a_missing_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with refused(tmp_path / "a.jpg", "missing"):
        read_size(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_text("no image")
    with refused(tmp_path / "a.jpg", "not an image"):
        read_size(tmp_path / "a.jpg")


def test_image_too_large_to_be_one_is_refused(tmp_path: Path) -> None:
    """A PNG whose head says 60,000 x 60,000: a bomb that would take 10 GB."""
    path = tmp_path / "a.png"
    random_image(8, 8).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(content)
    for read_it in (read_size, read_image):
        with refused(path, "cannot be decoded"):
            read_it(path)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    random_image(20, 24).save(stream, kind)
    return stream.getvalue()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "gif", "webp", "bmp", "ppm", "jpeg"]),
    damage=st.lists(st.tuples(st.integers(0, 1_999), st.integers(0, 255))),
)
def test_damage_of_any_kind_is_an_image_or_one_line(kind: str, damage: list[tuple[int, int]], tmp_path: Path) -> None:
    content = bytearray(encoded(kind))
    for place, value in damage:
        content[place % len(content)] = value
    path = tmp_path / "a"
    path.write_bytes(content)
    for read_it in (read_size, read_image):
        said = ""
        try:
            read_it(path)
        except UserError as error:
            said = str(error)
        assert not said or (said.startswith(f"{path}: ") and "\n" not in said)

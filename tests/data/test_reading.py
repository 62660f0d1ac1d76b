from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from retrieval_bench.data.reading import in_threads, read_image, read_size, shrink, shrunk_size
from retrieval_bench.errors import UserError
from tests.data.data_checks import noise, random_image, refused


def read(image: Image.Image, path: Path, **options: Any) -> np.ndarray:
    """uint8 (H, W, 3): what read_image gives for `image` saved at `path`."""
    image.save(path, **options)
    result = read_image(path)
    assert (result.mode, result.size) == ("RGB", image.size)
    assert read_size(path) == (image.height, image.width)
    return np.asarray(result)


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(read(Image.fromarray(grey), tmp_path / "a.png"), np.repeat(grey[..., None], 3, axis=2))
    image = Image.new("P", (2, 1))
    image.putpalette([250, 10, 20, 30, 240, 50])
    image.putdata([0, 1])
    assert read(image, tmp_path / "b.png").tolist() == [[[250, 10, 20], [30, 240, 50]]]
    assert read(image, tmp_path / "c.png", transparency=1).tolist() == [[[250, 10, 20], [255, 255, 255]]]
    image = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    assert np.abs(read(image, tmp_path / "d.jpg", quality=95).astype(int) - [200, 40, 90]).max() <= 4
    image = Image.new("LA", (2, 1))
    image.putdata([(9, 255), (9, 0)])
    assert read(image, tmp_path / "f.png")[0, :, 0].tolist() == [9, 255], "transparency is laid over white"
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (255, 0, 0, 128)])
    pixels = read(image, tmp_path / "g.png")[0].astype(int)
    assert np.abs(pixels - [[255, 0, 0], [255, 255, 255], [255, 127, 127]]).max() <= 1


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
DEEP = {
    "16 bits": ("png", RAMP * 65_535, np.uint16, np.floor(RAMP * 65_535 / 257)),
    "16 bits, big end first": ("tif", RAMP * 65_535, ">u2", np.floor(RAMP * 65_535 / 257)),
    "16 bits that hold 8": ("tif", RAMP * 255, np.uint16, np.floor(RAMP * 255)),
    "16 bits of a PGM": ("pgm", RAMP * 65_535, np.uint16, np.floor(RAMP * 65_535 / 257)),
    "32 bits": ("tif", RAMP * 2e9, np.int32, RAMP * 255),
    "32 bits that hold 8": ("tif", RAMP * 255, np.int32, np.floor(RAMP * 255)),
    "32 bits that hold 12": ("tif", RAMP * 4_095, np.int32, RAMP * 255),
    "negative": ("tif", RAMP * 900 - 700, np.int32, RAMP * 255),
    "real, 0 to 1": ("tif", 0.2 + RAMP / 2, np.float32, (0.2 + RAMP / 2) * 255),
    "real, 0 to 255": ("tif", RAMP * 255, np.float32, RAMP * 255),
    "real, above 1": ("tif", RAMP * 3.7, np.float32, RAMP * 255),
    "real, very small": ("tif", RAMP / 5_000, np.float32, RAMP * 255),
    "real, negative": ("pfm", RAMP - 0.5, np.float32, RAMP * 255),
    "real, all equal": ("tif", RAMP * 0 + 7, np.float32, RAMP * 0),
}


@pytest.mark.parametrize(("kind", "values", "dtype", "expected"), DEEP.values(), ids=DEEP)
def test_more_than_8_bits_are_scaled(
    kind: str, values: np.ndarray, dtype: Any, expected: np.ndarray, tmp_path: Path
) -> None:
    result = read(Image.fromarray(values.astype(dtype)), tmp_path / f"a.{kind}")
    assert (result == result[..., :1]).all()
    assert np.abs(result[..., 0] - expected).max() <= (1 if expected.max() > 0 else 0)


def test_a_transparent_grey_of_16_bits_is_white(tmp_path: Path) -> None:
    values = np.array([[1000, 40_000], [60_000, 1000]], dtype=np.uint16)
    chunk = b"tRNS" + (1000).to_bytes(2)
    Image.fromarray(values).save(tmp_path / "a.png")
    head, tail = (tmp_path / "a.png").read_bytes()[:33], (tmp_path / "a.png").read_bytes()[33:]
    (tmp_path / "a.png").write_bytes(head + (2).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + tail)
    assert np.asarray(read_image(tmp_path / "a.png"))[..., 0].tolist() == [[255, 155], [233, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    Image.fromarray(np.where(RAMP > 0.5, value, RAMP).astype(np.float32)).save(tmp_path / "a.tif")
    with refused(tmp_path / "a.tif", "cannot be decoded", "NaN"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "kind"), [(m, k) for m in ("1", "LA", "P", "PA", "CMYK", "YCbCr", "LAB") for k in ("tif", "png")]
)
def test_no_mode_is_black(mode: str, kind: str, tmp_path: Path) -> None:
    image = random_image(5, 5).resize((40, 30))
    converted = Image.frombytes("LAB", image.size, image.tobytes()) if mode == "LAB" else image.convert(mode)
    if kind == "tif" or mode in ("1", "LA", "P"):
        result = read(converted, tmp_path / f"a.{kind}")
        assert result.std() > 20
        if mode not in ("1", "LAB"):
            grey = np.asarray(image.convert("L"), dtype=int) - np.asarray(Image.fromarray(result).convert("L"))
            assert np.abs(grey).mean() < 12


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(10))
def test_photograph_is_set_upright(kind: str, orientation: int, tmp_path: Path) -> None:
    """Whatever the format; 0 and 9 mean nothing."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image, path = random_image(2, 3).resize((48, 32), Image.Resampling.NEAREST), tmp_path / f"a.{kind}"
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert (expected.shape[:2] == (48, 32)) is (5 <= orientation <= 8)


def test_unreadable_exif_data_turns_nothing(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0MM", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"):
        random_image(30, 40).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").size == (40, 30)


def test_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bird.jpg"
    with refused(path, "missing"):
        read_image(path)
    random_image(64, 64).save(path)
    jpeg = path.read_bytes()
    png = io.BytesIO()
    random_image(8, 8).save(png, "PNG")
    bomb = png.getvalue()[:16] + struct.pack(">II", 60_000, 60_000) + png.getvalue()[24:]  # would take 10 GB
    for content in (b"", b"this is no picture", jpeg[:1_500], jpeg[:20] + noise(500), jpeg[2:], bomb):
        path.write_bytes(content)
        with refused(path, "cannot be decoded"):
            read_image(path)
    with refused(path, "cannot be decoded"):
        read_size(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["png", "gif", "webp", "bmp", "ppm", "jpeg", "tiff"]),
    damage=st.lists(st.tuples(st.integers(0, 1_999), st.integers(0, 255))),
    share=st.sampled_from([0.5, 1.0]),
)
def test_any_damage_is_an_image_or_one_line(
    kind: str, damage: list[tuple[int, int]], share: float, tmp_path: Path
) -> None:
    stream = io.BytesIO()
    random_image(20, 24).save(stream, kind)
    content = bytearray(stream.getvalue())
    for position, value in damage:
        content[position % len(content)] = value
    path = tmp_path / "a"
    path.write_bytes(content[: int(share * len(content))])
    for function in (read_size, read_image):
        message = ""
        try:
            function(path)
        except UserError as error:
            message = str(error)
        assert not message or (message.startswith(f"{path}: ") and "\n" not in message)
        assert message or damage or share == 1 or function is read_size, "half an image is refused"


@given(height=st.integers(1, 3_000), width=st.integers(1, 3_000), side=st.integers(0, 400))
def test_shrunk_size_has_the_shorter_side_and_never_grows(height: int, width: int, side: int) -> None:
    size = shrunk_size(height, width, side)
    assert min(size) == (min(height, width, side) if side else min(height, width))
    assert max(size) <= max(height, width)
    assert shrunk_size(width, height, side) == size[::-1]
    assert shrunk_size(*size, side) == size, "once is enough"


def test_image_is_shrunk_by_lanczos() -> None:
    for size, side, expected in (((60, 90), 30, (30, 45)), ((90, 61), 30, (44, 30)), ((20, 9), 9, (20, 9))):
        image = random_image(*size)
        height, width = expected
        by_pil = image if size == expected else image.resize((width, height), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(shrink(image, side)), np.asarray(by_pil))


def test_results_come_in_order_whichever_is_first_done() -> None:
    done = [threading.Event() for _ in range(7)]

    def work(number: int) -> int:
        if number % 2 == 0 and number < 5 and (os.cpu_count() or 1) > 1:
            done[number + 1].wait(5)  # the next one ends first
        done[number].set()
        return number * number

    assert list(in_threads(work, range(6), "working", 6)) == [0, 1, 4, 9, 16, 25]
    assert list(in_threads(str, [], "working", 0)) == []


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_first_error_in_order_is_raised_and_the_rest_is_not_begun(error: BaseException) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number in (3, 4):
            raise error if number == 3 else OSError("a later one")
        return number

    results = in_threads(work, range(10_000), "working", 10_000)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(results)
    assert len(begun) < 10 + 8 * (os.cpu_count() or 1)


def test_leaving_does_not_wait_for_what_is_under_way() -> None:
    """The garbage collector may be who leaves, in any thread, even one that is being started: joining threads there is
    a deadlock."""
    begun, release = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number:
            begun.set()
            release.wait(20)
        return number

    results = in_threads(work, range(4), "working", 4)
    assert next(results) == 0
    assert begun.wait(5)
    closing = threading.Thread(target=results.close, daemon=True)
    closing.start()
    closing.join(5)
    left = not closing.is_alive()
    release.set()
    assert left

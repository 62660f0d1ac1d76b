"""Every action of `data`, as a user types it."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data.catalog import DATASETS

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default outputs land in the test's own folder."""
    monkeypatch.chdir(tmp_path)


def done(capsys: Printed, *words: str) -> str:
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
    lines = done(capsys, "list").splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(DATASETS)
    assert lines[0].split()[1:3] == ["11,788", "200"]


def test_fetch_says_what_the_set_holds(capsys: Printed) -> None:
    assert done(capsys, "fetch", "synthetic") == "synthetic: 128 images of 16 classes; 64 to train on, 64 to test on\n"


def test_fetch_counts_queries_and_gallery(tmp_path: Path, capsys: Printed) -> None:
    root = images(tmp_path / "images")
    rows = [("train", 1, 1)] * 4 + [("test", 1, 0), ("test", 0, 1), ("test", 1, 1), ("test", 0, 1)]
    lines = [f"c{n // 2}/{n % 2}.png,{n // 2},{','.join(map(str, row))}" for n, row in enumerate(rows)]
    (root / "t.csv").write_text("\n".join(["path,label,split,query,gallery", *lines]))
    assert "4 to train on, 4 to test on (2 queries, 3 in the gallery)" in done(
        capsys, "fetch", "table", "--data-root", str(root / "t.csv")
    )


def test_verify_reports_sizes_and_copies(tmp_path: Path, capsys: Printed) -> None:
    root = images(tmp_path / "images")
    shutil.copy(root / "c0" / "0.png", root / "c3" / "1.png")
    lines = done(capsys, "verify", "folder", "--data-root", str(root)).splitlines()
    assert lines[0] == "folder: 8 images of 4 classes; 4 to train on, 4 to test on"
    assert lines[1] == "all 8 images decode"
    assert "width 40 to 41" in lines[2]
    assert "1 across training and test" in lines[3]
    assert lines[4] == "  equal: c0/0.png, c3/1.png"


def test_verify_refuses_a_damaged_image(tmp_path: Path, capsys: Printed) -> None:
    root = images(tmp_path / "images")
    (root / "c1" / "1.png").write_text("no image")
    assert main(["data", "verify", "folder", "--data-root", str(root)]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"error: {root / 'c1' / '1.png'}: image cannot be decoded")
    assert not printed.out


@pytest.mark.parametrize("output", [None, "sheets/mine.png"])
def test_show_writes_a_png(output: str | None, capsys: Printed) -> None:
    said = done(
        capsys, "show", "synthetic", "--classes", "3", "--images", "2", *(["--output", output] if output else [])
    )
    path = Path(output or "synthetic.png")
    assert said == f"{path}\n"
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"


def test_show_of_an_unknown_set_makes_no_folder(capsys: Printed) -> None:
    assert main(["data", "show", "cup", "--output", "new/x.png"]) == 2
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "name", "sides"),
    [
        ([], "synthetic.csv", {"train": 64, "test": 64}),
        (["--split", "zero_shot_val"], "synthetic.zero_shot_val.csv", {"train": 48, "test": 16, "": 64}),
        (["--split", "kfold", "--fold", "1"], "synthetic.fold_1_of_4.csv", {"train": 48, "test": 16, "": 64}),
        (
            ["--split", "kfold", "--folds", "8", "--output", "sub/my.csv"],
            "sub/my.csv",
            {"train": 56, "test": 8, "": 64},
        ),
    ],
)
def test_manifest_writes_the_split_and_prints_its_digest(
    words: list[str], name: str, sides: dict[str, int], capsys: Printed
) -> None:
    said = done(capsys, "manifest", "synthetic", *words)
    content = Path(name).read_bytes()
    rows = list(csv.DictReader(content.decode().splitlines()))
    assert len(rows) == 128
    assert {side: sum(row["split"] == side for row in rows) for side in sides} == sides
    assert said.startswith(f"{name}: ")
    assert said.endswith(f"sha256 {hashlib.sha256(content).hexdigest()}\n")
    assert all(f"{count} {side or 'left out'}" in said for side, count in sides.items())


def test_manifest_of_a_closed_set_needs_official_sides(tmp_path: Path, capsys: Printed) -> None:
    for side in ("train", "test"):
        images(tmp_path / "images" / side)
    done(capsys, "manifest", "folder", "--data-root", "images", "--split", "closed_set")
    rows = list(csv.DictReader(Path("folder.closed_set.csv").read_text().splitlines()))
    assert {row["path"].split("/")[0] == row["split"] for row in rows} == {True}
    assert len(rows) == 16


def test_pack_is_opened_by_the_same_name(capsys: Printed) -> None:
    said = done(capsys, "pack", "synthetic", "--output", "pack", "--size", "16", "--max-shard-mb", "0.1")
    assert said.startswith("128 images in ")
    assert said.endswith("open with --dataset synthetic --data-root pack\n")
    assert json.loads(Path("pack/pack.json").read_text())["images"] == 128
    assert "height 16 to 16" in done(capsys, "verify", "synthetic", "--data-root", "pack")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "fetch", "synthetic", "--from-archive", "x.tgz"], "takes no archives"),
        (["data", "fetch", "cars", "--from-archive", "x.tgz"], "x.tgz: no such file"),
        (["data", "fetch", "cars", "--from-archive", "x.tgz", "--data-root", "."], "not both"),
        (["data", "verify", "folder", "--data-root", "nowhere"], "nowhere: no such folder"),
        (["data", "verify", "sketches", "--split", "closed_set"], "has no download"),
        (["data", "verify", "synthetic", "--split", "random"], "zero_shot_val"),
        (["data", "show", "synthetic", "--classes", "0"], "--classes 0"),
        (["data", "show", "synthetic", "--images", "21"], "--images 21"),
        (["data", "manifest", "synthetic", "--fold", "4"], "--fold 4: must be from 0 to 3"),
        (["data", "manifest", "cup"], "did you mean 'cub'"),
        (["data", "pack", "synthetic"], "--output"),
        (["data", "pack", "synthetic", "--output", "p", "--size", "4"], "--size 4"),
        (["data", "pack", "synthetic", "--output", "p", "--max-shard-mb", "nan"], "--max-shard-mb nan"),
        (["data", "manifest", "synthetic", "--fold", "1"], "--split kfold"),
        (["data", "manifest", "synthetic", "--split", "kfold", "--folds", "1"], "--folds"),
        (["data", "manifest", "synthetic", "--split", "kfold", "--fold", "8", "--folds", "9"], "fold"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(words: list[str], message: str, capsys: Printed) -> None:
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line


def test_output_that_cannot_be_written_is_one_line(capsys: Printed) -> None:
    Path("taken").write_text("a file, not a folder")
    for action in ("show", "manifest", "pack"):
        assert main(["data", action, "synthetic", "--output", "taken/x"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("error: taken"), action
    assert main(["data", "pack", "synthetic", "--output", "taken"]) == 2
    assert "exists already" in capsys.readouterr().err

"""Other data sets that a finished embedder is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval_bench import load_embedder
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig, portable, recorded_config
from retrieval_bench.data.other_sets import OtherSet, choose_images, parse_other_sets
from retrieval_bench.data.sets.synthetic import draw
from retrieval_bench.identity import run_ids
from retrieval_bench.records import ResultsFolder, read_record
from retrieval_bench.run import run
from tests.board_records import FAST, RUN

CLASSES, EACH = 6, 4


def drawn_folder(root: Path, images: int = EACH) -> Path:
    """Images of classes that the synthetic data set does not have; the last three are test classes."""
    for label in range(CLASSES):
        (root / f"c{label}").mkdir(parents=True)
        for index in range(images):
            Image.fromarray(draw(100 + label, index)).save(root / f"c{label}" / f"{index}.png")
    return root


def also(*words: str) -> RunConfig:
    return FAST.changed(evaluation__also_test=words)


def test_words_name_set_folder_and_number() -> None:
    here = Path("a")
    assert parse_other_sets(["cub"]) == [OtherSet("cub")]
    assert parse_other_sets(["cub:1000", "emoji:a"]) == [OtherSet("cub", None, 1000), OtherSet("emoji", here)]
    assert parse_other_sets(["emoji:a:9", "cub:./9"]) == [OtherSet("cub", Path("9")), OtherSet("emoji", here, 9)]
    assert parse_other_sets(["cub:~/x:5"]) == [OtherSet("cub", Path.home() / "x", 5)]
    assert portable(also("emoji:a:9", "cub:b")).evaluation.also_test == ("cub", "emoji:9")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.data())
def test_the_chosen_images_are_balanced_over_classes(sizes: list[int], data: st.DataObject) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = data.draw(st.integers(4, max(4, len(labels))))
    rows = 10 * np.arange(len(labels))
    chosen = choose_images(rows, labels, count)
    taken = np.bincount(labels[chosen // 10], minlength=len(sizes))
    assert (np.unique(chosen) == chosen).all()
    assert (chosen % 10 == 0).all()
    assert len(chosen) <= count
    assert ((taken >= 2) | (taken == 0)).all()
    able = np.array(sizes) > 1
    if able.sum() * 2 <= count:
        assert (taken[able] >= 2).all(), "no class is left out that there is room for"
        assert len(chosen) == min(count, np.array(sizes)[able].sum())
    spare = (taken > 0) & (taken < sizes)
    assert (taken[spare] >= taken.max() - 1).all(), "a class has fewer only where it has no more"


def test_the_finished_embedder_is_measured_there_once_without_training(tmp_path: Path) -> None:
    folder, results = drawn_folder(tmp_path / "images"), ResultsFolder(tmp_path / "results")
    runtime = RuntimeConfig(results=results.root, keep_new=True)
    record = run(also(f"folder:{folder}"), runtime)
    plain = run(FAST, RuntimeConfig(results=results.root))
    assert (record.metrics, record.training) == (plain.metrics, plain.training), "nothing else changes"
    assert record.cost["images_seen"] == plain.cost["images_seen"]
    assert plain.elsewhere == {}
    assert "elsewhere" not in results.record(plain.id).read_text()
    (found,) = record.elsewhere.values()
    assert (found["images"], found["classes"], found["queries"]) == (12, 3, 12)
    assert found.keys() >= {"recall_at_1", "map_at_r", "mrr", "r_precision", "queries_without_positive"}
    images = np.stack([draw(100 + label, index) for label in range(3, 6) for index in range(EACH)])
    embedder = load_embedder(record.id, results=results.root)
    crops = [Image.fromarray(image).resize((37, 37), Image.Resampling.BILINEAR) for image in images]
    pixels = np.stack([np.asarray(crop)[2:34, 2:34] for crop in crops]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(embedder(torch.from_numpy(pixels.copy())))
    similarity = (vectors @ vectors.T - 2 * torch.eye(12)).numpy()
    labels = np.arange(12) // EACH
    assert found["recall_at_1"] == (labels[similarity.argmax(1)] == labels).mean()


def test_the_id_tells_what_is_measured_and_not_where_it_lies(tmp_path: Path) -> None:
    one, other = drawn_folder(tmp_path / "one"), drawn_folder(tmp_path / "other")
    fewer = drawn_folder(tmp_path / "fewer", EACH - 1)
    words = ([f"folder:{one}"], [f"folder:{other}"], [f"folder:{fewer}"], [f"folder:{one}:6"], [])
    ids = list(run_ids([also(*several) for several in words], RuntimeConfig(device="cpu")))
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    record = run(also(f"folder:{one}:6").changed(strategy="frozen"), RuntimeConfig(results=tmp_path))
    path = ResultsFolder(tmp_path).record(record.id)
    assert read_record(path) == record
    assert str(one) not in path.read_text()
    assert record.elsewhere["folder:6"]["images"] == 6
    assert record.command.endswith("--also-test folder:6")
    assert recorded_config(record.config, "none").evaluation.also_test == ("folder:6",)
    assert main(["run", "--config", str(path), "--also-test", f"folder:{other}:6", "--results", str(tmp_path)]) == 0


def test_choices_are_made_without_a_look_elsewhere(tmp_path: Path) -> None:
    config = also(f"folder:{drawn_folder(tmp_path / 'images')}").changed(
        strategy="layer_pruning", options__layer_pruning__drop="auto:1"
    )
    record = run(config, RuntimeConfig(results=tmp_path))
    trials = record.info["selection"]["layer_pruning"]["records"]
    assert [read_record(ResultsFolder(tmp_path).record(trial)).elsewhere for trial in trials] == [{}, {}]
    assert record.elsewhere


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cubb"], "unknown data set 'cubb': did you mean 'cub'"),
        (["cub", "cub:1000"], "--also-test cub cub:1000: names cub twice"),
        (["synthetic"], "--also-test synthetic: synthetic is the data set that is trained on"),
        (["cub:nowhere"], "--also-test cub: nowhere: no such folder or archive"),
        (["folder"], "--also-test folder: data set 'folder' is your own images; give folder:FOLDER"),
        (["folder:HERE:99"], "--also-test folder:99: give a number of images from 4 to 12"),
        (["emoji", "--split", "zero_shot_val"], "--also-test emoji looks at test classes"),
    ],
)
def test_wrong_sets_are_refused_before_the_run(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = drawn_folder(tmp_path / "images"), tmp_path / "results"
    given = [word.replace("HERE", str(folder)) for word in words]
    for command in (RUN, RUN.replace("run", "sweep", 1) + " --seed 0,1"):
        assert main([*command.split(), "--results", str(results), "--also-test", *given]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error
        assert not results.exists()

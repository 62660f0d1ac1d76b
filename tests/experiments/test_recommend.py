"""``recommend``: what it chooses, which runs it makes, what it says; and ``refit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.cli import main
from retrieval_bench.config import RuntimeConfig
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.deploy import onnx_graph
from retrieval_bench.experiments import choices
from retrieval_bench.experiments.advice import advise
from retrieval_bench.experiments.choices import COMPARED, choose_config, compared_rows, fitting_epochs, next_runs
from retrieval_bench.records import ResultsFolder
from retrieval_bench.run import run
from retrieval_bench.validation import validate
from tests.board_records import record
from tests.experiments.helpers import QUICK
from tests.test_elsewhere import drawn_folder

SIZES = st.lists(st.integers(2, 60), min_size=4, max_size=60) | st.sampled_from([[60] * 12, [3] * 5000, [2] * 4])


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(8, 4000), st.sampled_from(["cpu", "cuda"]))
def test_the_configuration_fits_any_folder(sizes: list[int], side: int, device: str) -> None:
    config = choose_config(sizes, side, device)
    folds = config.data.folds
    assert 2 <= folds <= 4
    assert len(sizes) // folds >= 2, "a fold is searched among several classes"
    for fold in range(folds):
        for entry in compared_rows(config.changed(train__epochs=2), fold):
            validate(entry.config)
    fewest = sorted(sizes)[: len(sizes) - -(-len(sizes) // folds)]
    labels = np.repeat(np.arange(len(fewest)), fewest)
    BatchSampler(labels, config.train.batch_size, config.samples_per_class)  # raises for too few classes


def test_choices_for_few_large_and_many_small_classes() -> None:
    few, many = choose_config([60] * 12, 375), choose_config([3] * 5000, 200)
    assert (few.loss.loss, few.train.epochs, few.data.image_size) == ("proxy_anchor", 12, 112)
    assert (many.loss.loss, many.train.epochs, many.samples_per_class) == ("multi_similarity", 4, 2)
    assert choose_config([60] * 12, 375, "cuda").data.image_size == 224
    drawings = choose_config([7] * 40, 72)
    assert (drawings.data.image_size, drawings.data.flip) == (72, False)
    assert choose_config([7] * 40, 104).data.image_size == 104
    assert [fitting_epochs(few, 720, 720, each, 1800) for each in (1e-4, 0.02, 1)] == [12, 4, 2]
    names = [entry.name for entry in compared_rows(many, 0)]
    assert names == [name for name in COMPARED if name != "lp_ft"], "there are no proxies to begin with"
    assert (
        len({(row.config.strategy, row.config.data.fold) for fold in range(4) for row in compared_rows(few, fold)})
        == 24
    )


def play(folds: int, seconds: float, factors: dict[str, float], at_once: int | None) -> dict[str, dict[int, float]]:
    """All runs until the comparison is over, where the driver is stopped and asks again after `at_once` runs."""
    done: dict[str, dict[int, float]] = {}
    while wanted := next_runs([*COMPARED], folds, done, seconds - sum(sum(row.values()) for row in done.values())):
        for name, fold in wanted[:at_once]:
            assert fold not in done.get(name, {})
            done.setdefault(name, {})[fold] = 16 * COMPARED[name][0] * factors.get(name, 1)
    return done


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 4), st.floats(1, 2000), st.dictionaries(st.sampled_from([*COMPARED]), st.floats(0.5, 2)))
def test_runs_end_in_time_and_an_interruption_changes_nothing(
    folds: int, seconds: float, factors: dict[str, float]
) -> None:
    assert play(folds, seconds, {}, None) == play(folds, seconds, {}, 1)
    done = play(folds, seconds, factors, None)
    assert list(done)[:2] == ["frozen", "standard"]
    assert all(len(row) == folds for name, row in done.items() if name != "standard"), "rows are whole"
    assert len(done["standard"]) in (1, 3, folds)
    first_stage = sum(done["frozen"].values()) + done["standard"][0]
    assert sum(sum(row.values()) for row in done.values()) <= max(first_stage, 2 * seconds)
    assert play(folds, 1e9, factors, None).keys() == COMPARED.keys()


def rows_of(**recalls: tuple[float, ...]) -> dict[str, list[Any]]:
    """Records of rows on folds, by their MAP@R in percent; each trains for as many seconds as the row before, and 60
    more."""
    rows = {}
    for number, (name, values) in enumerate(recalls.items()):
        base = record(name, 0, 0.5)
        cost = {**base.cost, "train_seconds": 60.0 * number, "macs": 1e8}
        metrics = [{"recall_at_1": 0.8, "map_at_r": value / 100} for value in values]
        made = [record(name, 0, 0.5, {"data.fold": fold}, cost=cost, metrics=m) for fold, m in enumerate(metrics)]
        rows[name] = made
    return rows


FROZEN = (40.0, 50.0, 45.0, 42.0)


@pytest.mark.parametrize(
    ("others", "chosen", "words"),
    [
        ({"standard": (50.0, 61.0, 55.0, 53.0)}, "standard", "MAP@R from 44.2 to 54.8"),
        (
            {"standard": (50.0, 61.0, 55.0, 53.0)},
            "standard",
            "+10.5 points (95 % interval +9.6 to +11.4, 4 folds), p < 0.001",
        ),
        (
            {"standard": (39.0, 48.0, 45.0, 41.0), "last_k": (20.0,) * 4},
            "frozen",
            "nothing beats them. The best of the",
        ),
        ({"standard": (60.0, 40.0, 47.0, 42.0)}, "frozen", "undecided, so the cheaper one. standard has +3.0 points"),
        ({"standard": (50.0, 61.0)}, "frozen", "too few folds to test"),
        ({"standard": (50.0,)}, "frozen", "+10.0 points (1 folds)"),
        ({}, "frozen", "too short to train anything"),
        ({"last_k": (50.0, 61.0, 55.0, 53.0), "standard": (50.5, 61.0, 55.0, 54.0)}, "last_k", "not measurably better"),
        ({"last_k": (45.0, 56.0, 50.0, 47.0), "standard": (50.0, 61.0, 55.0, 53.0)}, "standard", "120 s of training"),
    ],
)
def test_the_decision(others: dict[str, tuple[float, ...]], chosen: str, words: str) -> None:
    advice = advise(rows_of(frozen=FROZEN, **others))
    assert advice.strategy == chosen
    assert (advice.gain is None) == (chosen == "frozen")
    assert words in advice.text


def test_more_strategies_need_more_evidence() -> None:
    almost = {"standard": (44.0, 57.0, 46.5, 46.0)}
    assert advise(rows_of(frozen=FROZEN, **almost)).strategy == "standard"
    noise = {f"row{number}": (40.0, 49.0 + number, 46.0, 41.0) for number in range(3)}
    assert advise(rows_of(frozen=FROZEN, **almost, **noise)).strategy == "frozen"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two strategies, and no ONNX graph, which takes seconds."""
    monkeypatch.setattr(choices, "COMPARED", {name: COMPARED[name] for name in ("frozen", "standard")})
    monkeypatch.setattr(onnx_graph, "PACKAGES", ("no_such_package",))


def test_a_folder_in_an_answer_and_an_index_out(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, results = drawn_folder(tmp_path / "photos"), tmp_path / "results"
    (photos / "c1" / "broken.jpg").write_bytes(b"no image")
    words = ["recommend", str(photos), "--backbone", "test_resnet", "--weights", "none", "--minutes", "1"]
    words += ["--results", str(results)]
    assert main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "24 images of 6 classes, 4 of each" in printed
    assert "1 of 25 images cannot be read" in printed
    assert "plan: 3 folds of classes, test_resnet at 40 px, proxy_anchor" in printed
    assert main([*words, "--dry-run", "--minutes", "0.1"]) == 0
    assert "plan: 20 images of 5 classes in 2 folds" in capsys.readouterr().out, "what is compared decides"
    home = results / "recommend" / "photos"
    assert not (home / "runs").exists()
    assert main(words) == 0
    first = capsys.readouterr()
    assert "Use " in first.out
    records = ResultsFolder(home).read_records()
    assert len(records) == 6
    assert first.err.count("MAP@R") == 6
    assert "Use " in (home / "answer.md").read_text(encoding="utf-8")
    card = (home / "embedder" / "README.md").read_text(encoding="utf-8")
    assert "all 6 classes (24 images)" in card
    assert "model-index" not in card, "no score is claimed for an embedder that was not tested"
    query, gallery = photos / "c2" / "1.png", home / "images.npz"
    search = ["search", str(home / "embedder"), str(query), "--gallery", str(gallery), "--json", "--keep-query"]
    assert main([*search, "--sheet", str(tmp_path / "found.png"), "--folder", str(photos)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["neighbours"][0]["path"] == "c2/1.png"
    (home / "runs" / f"{records[-1].id}.json").unlink()
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.err.count("MAP@R") == 1, "it goes on from the records"
    assert [run.id for run in ResultsFolder(home).read_records()] == [run.id for run in records]


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = drawn_folder(tmp_path / "photos")
    for words, message in (
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(photos / "c0")], "no images in class folders"),
        ([str(photos), "--minutes", "nan"], "--minutes nan: must be above 0"),
        ([str(photos), "--min-images", "1"], "--min-images 1"),
        ([str(photos), "--min-images", "5"], "0 classes with at least 5 images"),
        ([str(tmp_path)], "lies in the folder of photos"),
        ([str(photos), "--backbone", "resnet18x"], "resnet18x"),
    ):
        assert main(["recommend", *words, "--results", str(tmp_path / "r")]) == 2
        printed = capsys.readouterr().err.strip().splitlines()
        assert message in printed[-1]
        assert printed[-1].startswith("error: ")


def test_refit_trains_on_the_test_classes_too(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(QUICK.changed(strategy="standard", model__backbone="test_resnet"), RuntimeConfig(results=tmp_path))
    words = ["refit", made.id, "--results", str(tmp_path), "-o", str(tmp_path / "mine")]
    assert main(words) == 2
    assert "say --all-classes" in capsys.readouterr().err
    assert main([*words, "--all-classes"]) == 0
    printed = capsys.readouterr()
    assert "on all 16 classes (128 images)" in printed.err
    recipe = json.loads((tmp_path / "mine" / "embedder.json").read_text())
    assert recipe["refit"]["run"] == made.id
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    assert f"whose metrics stand for it: {made.id}" in card
    assert f"refit {made.id} --all-classes" in card
    assert len(list((tmp_path / "runs").iterdir())) == 1, "no record, since there is no score"
    assert main([*words, "--all-classes"]) == 2
    assert "exists already" in capsys.readouterr().err

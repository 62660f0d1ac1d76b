"""Other data sets that a finished embedder is measured on."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from retrieval_bench import load_embedder
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig, portable, recorded_config
from retrieval_bench.data.other_sets import OtherSet, choose_images, parse_other_sets
from retrieval_bench.data.sets.synthetic import draw
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.experiment import Row
from retrieval_bench.experiments.table import measured_table, readable_table
from retrieval_bench.figures.elsewhere import home_and_elsewhere, price_of_tuning
from retrieval_bench.figures.gallery import figures_of
from retrieval_bench.identity import run_ids
from retrieval_bench.leaderboard import leaderboard, readable
from retrieval_bench.records import Record, ResultsFolder, read_record
from retrieval_bench.run import run
from tests.board_records import FAST, RUN, save
from tests.board_records import record as record_by_hand

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


def measured(strategy: str, seed: int, home: float, cub: float, emoji: float, **config: object) -> Record:
    changes = {"strategy": strategy, "evaluation.also_test": ["cub:1000", "emoji"], **config}
    elsewhere = {"cub:1000": {"recall_at_1": cub}, "emoji": {"recall_at_1": emoji}}
    return record_by_hand(strategy, seed, home, changes, elsewhere=elsewhere)


FROZEN = [measured("frozen", seed, 0.50, 0.40, 0.60) for seed in (0, 1)]
TUNED = [measured("standard", 0, 0.70, 0.30, 0.50), measured("standard", 1, 0.80, 0.20, 0.50)]
CAREFUL = [measured("l2sp", 0, 0.55, 0.40, 0.59)]
SENTENCE = (
    "Over frozen features, standard gains most at home, +25.00 points of R@1, and changes R@1 elsewhere "
    "(cub:1000, emoji) by -12.50; of those that gain, l2sp keeps most there: +5.00 at home, -0.50 elsewhere."
)


def test_changes_are_means_over_sets_and_seeds_against_frozen_features_of_the_same_protocol() -> None:
    trained_head = [measured("frozen", 0, 0.60, 0.10, 0.10, **{"train.lr": 1.0})]
    larger = measured("standard", 0, 0.9, 0.9, 0.9, **{"data.image_size": 96})
    elsewhere_unmeasured = record_by_hand("last_k", 0, 0.5, {"strategy": "last_k"})
    table = leaderboard([*FROZEN, *TUNED, *CAREFUL, *trained_head, larger, elsewhere_unmeasured])
    rows = table.set_index(["strategy", "image_size", "lr"])[["gain", "elsewhere", "elsewhere_on_emoji"]]
    standard = table[(table["strategy"] == "standard") & (table["image_size"] == 72)].iloc[0]
    assert rows.loc[("standard", 72, 3e-4)].tolist() == pytest.approx([0.25, -0.125, 0.5])
    assert rows.loc[("frozen", 72, 3e-4)].tolist() == pytest.approx([0, 0, 0.6])
    assert rows.loc[("frozen", 72, 1.0)].tolist() == pytest.approx([0.1, -0.4, 0.1]), "the frozen row that knows most"
    assert rows.loc[("standard", 96, 3e-4)].isna().tolist() == [True, True, False], "no frozen row of its protocol"
    assert rows.loc[("last_k", 72, 3e-4)].isna().all()
    half = stats.t.ppf(0.975, 1) * np.std([-0.10, -0.15], ddof=1) / np.sqrt(2)
    assert standard["elsewhere_ci95"] == pytest.approx(half, abs=1e-6)
    cells = readable(table[table["image_size"] == 72]).set_index("strategy")
    assert cells.loc["standard", ["gain", "elsewhere"]].tolist() == ["+25.00 ± 63.53", "-12.50 ± 31.77"]
    assert cells.loc["l2sp", ["gain", "elsewhere", "R@1 on cub:1000", "R@1 on emoji"]].tolist() == [
        "+5.00",
        "-0.50",
        "40.00",
        "59.00",
    ]
    assert cells.loc["last_k", "elsewhere"] == ""


def test_frozen_features_of_a_record_from_before_a_field_was_added_are_of_the_same_protocol() -> None:
    older = [replace(record, config=copy.deepcopy(record.config)) for record in FROZEN]
    for record in older:
        del record.config["data"]["validate"]
    table = leaderboard([*older, *TUNED]).set_index("strategy")
    assert table.loc["standard", ["gain", "elsewhere"]].tolist() == pytest.approx([0.25, -0.125])


def test_a_table_without_other_sets_has_no_such_columns() -> None:
    table = leaderboard([record_by_hand("standard", 0, 0.5), record_by_hand("frozen", 0, 0.4)])
    assert not [name for name in table if "elsewhere" in name or name == "gain"]
    assert price_of_tuning(table) == ""


def test_experiments_have_the_same_columns() -> None:
    names = {"Tuned": TUNED, "Frozen": FROZEN, "Not run": []}
    config = RunConfig().changed(evaluation__also_test=("cub:1000", "emoji"))
    rows = [Row(name, config) for name in names]
    table = measured_table(rows, {name: records for name, records in names.items() if records}).set_index("row")
    assert table["elsewhere"].tolist()[:2] == pytest.approx([-0.125, 0])
    assert table.loc["Tuned", ["gain", "elsewhere_on_cub:1000"]].tolist() == pytest.approx([0.25, 0.25])
    text = readable_table(table.reset_index()).set_index("setting")
    assert text.loc["Tuned", "elsewhere"].startswith("-12.50 ± ")
    assert text.loc["Not run", "elsewhere"] == ""


def test_figure_and_report_say_who_gains_and_what_it_costs(tmp_path: Path) -> None:
    records = {"frozen": FROZEN, "standard": TUNED, "l2sp": CAREFUL}
    plot = home_and_elsewhere(records, "a title")
    assert plot is not None
    assert (plot.title, plot.summary, plot.notes) == ("a title", SENTENCE, (SENTENCE,))
    axes = plot.figure.axes[0]
    lines: list[Any] = [line for line in axes.lines if line.get_label() in records]
    drawn = {line.get_label(): line.get_xydata()[0].tolist() for line in lines}
    expected = {"frozen": [0, 0], "standard": [-12.5, 25], "l2sp": [-0.5, 5]}
    assert drawn == {name: pytest.approx(point) for name, point in expected.items()}
    assert home_and_elsewhere({"standard": TUNED}) is None, "no frozen features"
    assert home_and_elsewhere({"a": [record_by_hand("standard", 0, 0.5)]}) is None
    several = [record for runs in records.values() for record in runs]
    results = save(tmp_path, *several)
    assert read_record(results.record(TUNED[0].id)).elsewhere == TUNED[0].elsewhere
    assert any(figure.name.startswith("elsewhere-") for figure in figures_of(several))
    assert main(["report", "--results", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert SENTENCE in page
    assert "Gain at home, change elsewhere" in page


def test_a_record_with_a_set_that_was_not_measured_is_broken(tmp_path: Path) -> None:
    broken = replace(TUNED[0], elsewhere={"cub": {}})
    results = save(tmp_path, broken)
    with pytest.raises(UserError, match="'elsewhere' has a data set without recall_at_1"):
        read_record(results.record(broken.id))

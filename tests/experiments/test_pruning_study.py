"""The curve of pruning and the similarity of structures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from retrieval_bench.cli import main
from retrieval_bench.data.table import ImageTable
from retrieval_bench.experiments.pruning import BUDGETS, STUDIES
from retrieval_bench.figures.pruning import draw_curve
from retrieval_bench.figures.structures import correlation, structure


def test_structure_and_its_correlation() -> None:
    facts = {"network_slimming": {"widths": {"a": 4, "b": 6}, "full_widths": {"a": 8, "b": 8}}}
    assert structure({"facts": facts}).tolist() == [0.5, 0.75]
    one = np.array([0.1, 0.5, 0.9])
    assert correlation(one, one) == pytest.approx(1)
    assert correlation(one, -one) == pytest.approx(-1)
    assert math.isnan(correlation(one, np.full(3, 0.5))), "the same share everywhere varies with nothing"


def test_no_curve_without_recall_at_1(tmp_path: Path) -> None:
    table = ImageTable(tmp_path, (), np.empty(0, dtype=np.int64), ())
    found = {"Whole network": [{"metrics": {"recall_at_5": 0.5}, "cost": {"macs": 1}}]}
    assert draw_curve(found, tmp_path / "curve.png", "", table, []) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_similarity_is_written_with_its_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "figure_structure_similarity", "smoke", "--rows", "1", "5", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "- Slimming after 1 epochs: 0." in printed
    assert "1 pairs" in printed
    assert (tmp_path / "studies" / "figure_structure_similarity-smoke.png").read_bytes().startswith(b"\x89PNG")


def test_curve_is_drawn_from_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole network, one size of each way to prune channels, and one of blocks."""
    assert (
        main(
            [
                "study",
                "curve_pruning",
                "smoke",
                "--seeds",
                "0",
                "--rows",
                "1",
                "8",
                "9",
                "10",
                "14",
                "--results",
                str(tmp_path),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert all(
        f"| {name} |" in printed for name in ("Whole network", "Gates 0.5", "Magnitude 0.5", "Uniform 0.5", "Blocks -1")
    )
    assert (tmp_path / "studies" / "curve_pruning-smoke.png").read_bytes().startswith(b"\x89PNG")


def test_every_budget_is_met_by_every_way() -> None:
    for profile in STUDIES["curve_pruning"].profiles.values():
        rows = {entry.name: entry.config.options for entry in STUDIES["curve_pruning"].rows(profile.base)}
        for budget in BUDGETS:
            assert rows[f"Gates {budget}"].channel_gates.budget == budget
            assert rows[f"Uniform {budget}"].channel_pruning.scores == "uniform"


def test_networks_from_random_weights_are_trained_for_longer_the_more_is_pruned() -> None:
    study = STUDIES["curve_pruning"]
    rows = {entry.name: entry.config for entry in study.rows(study.profiles["paper"].base)}
    assert rows["Whole network"].train.epochs == 160
    assert rows["Gates 0.5"].train.epochs == 320
    assert rows["Gates 0.3"].train.epochs == 533
    assert rows["Gates 0.5"].options.channel_gates.regime == "from_scratch"
    assert {entry.config.train.epochs for entry in study.rows(study.profiles["cpu"].base)} == {3}


@pytest.mark.slow
def test_paper_profile_on_drawn_patterns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VGG-16 with its gates learned on random weights, in a closed set."""
    change = ["--dataset", "synthetic", "--epochs", "1", "--seeds", "0", "--reader", "pil"]
    assert main(["study", "curve_pruning", "paper", *change, "--rows", "8", "--results", str(tmp_path)]) == 0
    assert "| Gates 0.5 |" in capsys.readouterr().out

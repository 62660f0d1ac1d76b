"""The answer in words: from records to the sentences that stand before every table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.answer import Answer, answers, best_of_each, cheaper, headlines, protocol_words
from retrieval_bench.cli import main
from retrieval_bench.leaderboard import leaderboard, runs_by_row
from retrieval_bench.records import Record
from tests.board_records import of, record, save

BIRDS = {"data.dataset": "cub", "data.image_size": 224, "model.backbone": "resnet50"}
HERE = "On CUB-200-2011 (unseen species, ResNet-50, 224 px), "
STANDARD, FROZEN = of("standard", 0.60, 0.61, 0.62, config=BIRDS), of("frozen", 0.5, 0.5, 0.5, config=BIRDS)


def answered(*records: Record) -> list[Answer]:
    return answers(leaderboard(records), runs_by_row(records))


def text(*records: Record) -> str:
    (answer,) = answered(*records)
    return answer.text.removeprefix(HERE)


def test_the_winner_its_gain_over_both_baselines_how_sure_and_at_what_cost() -> None:
    winner = of("l2sp", 0.65, 0.661, 0.669, config=BIRDS)
    assert text(*winner, *STANDARD, *FROZEN) == (
        "l2sp is best: R@1 66.0, +16.0 (13.6 to 18.4) over frozen features, +5.0 (4.8 to 5.2) over standard "
        "fine-tuning; three seeds; 278 hours of training (standard: 278 hours)."
    )
    assert text(*STANDARD, *FROZEN).startswith(
        "standard fine-tuning is best: R@1 61.0, +11.0 (8.5 to 13.5) over frozen"
    )


def test_who_ties_is_named_and_then_nobody_is_called_best() -> None:
    near = of("lora", 0.62, 0.60, 0.62, config=BIRDS)
    said = text(*near, *STANDARD, *FROZEN)
    assert said.startswith("lora leads: R@1 61.3,")
    assert "+0.3 (-3.5 to 4.1) over standard fine-tuning" in said
    assert said.endswith("Not significantly different: standard fine-tuning.")
    six = [run for number in range(6) for run in of(f"a{number}", 0.61, 0.6, 0.62, config=BIRDS)]
    assert text(*near, *six).endswith("Not significantly different: a0, a1, a2, a3 and 2 more.")


def test_one_seed_never_ranks() -> None:
    one = of("standard", 0.9, config=BIRDS)
    assert text(*one, *of("frozen", 0.5, config=BIRDS)) == (
        "undecided: one seed. Highest R@1: standard fine-tuning 90.0 (frozen features 50.0)."
    )
    assert text(*one, *of("frozen", 0.5, 0.5, config=BIRDS)).startswith("undecided: two seeds at most.")
    said = text(*one, *FROZEN, *of("lora", 0.6, 0.6, 0.61, config=BIRDS))
    assert said.startswith("lora is best of those with three seeds: R@1 60.3, +10.3")
    assert "-30.0 (one common seed, undecided) against standard fine-tuning" in said
    apart = text(*STANDARD, *of("frozen", 0.4, config=BIRDS, first=7))
    assert "+21.0 (no common seeds, undecided) against frozen features" in apart
    assert text(record("standard", 0, 0.5, BIRDS, metrics={"recall_at_2": 0.5})) == "R@1 was not measured."


def test_a_strategy_stands_for_its_best_configuration_and_epochs_are_said_where_they_differ() -> None:
    longer = of("standard", 0.7, 0.71, 0.72, config={**BIRDS, "train.epochs": 9})
    lucky = of("standard", 0.99, config={**BIRDS, "train.lr": 1.0})
    said = text(*longer, *STANDARD, *lucky, *of("lora", 0.5, 0.51, 0.5, config=BIRDS))
    assert said.startswith("standard fine-tuning is best (best of its 3 configurations): R@1 71.0; three seeds")
    assert said.endswith("They trained for 4 to 9 epochs.")
    rows = best_of_each(leaderboard([*longer, *STANDARD, *lucky]))
    assert rows[["name", "configurations", "verdict", "recall_at_1"]].to_numpy().tolist() == [
        ["standard", 3, "best", 0.71]
    ]


def test_each_row_has_its_verdict_in_a_word() -> None:
    below, tie = of("lora", 0.5, 0.51, 0.52, config=BIRDS), of("l2sp", 0.6, 0.62, 0.6, config=BIRDS)
    rows = best_of_each(leaderboard([*STANDARD, *below, *tie, *of("ema", 0.9, config=BIRDS)]))
    assert dict(zip(rows["name"], rows["verdict"], strict=True)) == {
        **{"ema": "undecided", "standard": "best", "l2sp": "tie", "lora": "below"}
    }
    assert list(rows["recall_at_1"]) == sorted(rows["recall_at_1"], reverse=True)


def test_ties_that_cost_less_are_named() -> None:
    small: dict[str, Any] = {"cost": {"macs": 4e5, "images_seen": 1e6}}
    tie = [record("lora", seed, value, BIRDS, **small) for seed, value in enumerate((0.6, 0.62, 0.6))]
    (answer,) = answered(*STANDARD, *tie)
    assert cheaper(answer.rows) == ["Of the ties, lora is the smallest network: 0 M MACs, 40 % of the best's."]
    (undecided,) = answered(STANDARD[0])
    assert cheaper(undecided.rows) == []


def test_protocols_that_rank_come_first_and_a_data_set_has_one_headline_on_all_classes() -> None:
    few = {**BIRDS, "data.classes": 24}
    on_few = [*of("standard", 0.6, 0.61, 0.62, config=few), *of("lora", 0.3, 0.3, 0.31, config=few)]
    on_few += of("ema", 0.2, 0.21, 0.2, config=few)
    found = answered(*STANDARD, *FROZEN, *on_few, *of("standard", 0.5), *of("standard", 0.9, config={"data.fold": 0}))
    assert [answer.ranked for answer in found] == [3, 2, 0]
    assert [answer.headline for answer in headlines(found)] == [
        "CUB-200-2011: standard fine-tuning",
        "600 classes of emoji: undecided",
    ]
    assert headlines(found)[0].words == "CUB-200-2011 (unseen species, ResNet-50, 224 px)"
    assert found[0].words == "CUB-200-2011 (unseen species, first 24 species, ResNet-50, 224 px)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.split": "closed_set"}, "600 classes of emoji (known symbols, EfficientNet-lite0, 72 px)"),
        ({"data.dataset": "mine"}, "mine (unseen classes, EfficientNet-lite0, 72 px)"),
        ({"data.split": "kfold"}, "600 classes of emoji (kfold 0 of 4, symbols, EfficientNet-lite0, 72 px)"),
        ({"model.backbone": "resnet50_caffe"}, "600 classes of emoji (unseen symbols, ResNet-50 (Caffe), 72 px)"),
    ],
)
def test_protocols_in_words(changes: dict[str, Any], words: str) -> None:
    assert protocol_words(leaderboard(of("standard", 0.5, config=changes))) == words


def test_the_command_prints_the_answer_first_and_a_filter_changes_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [*STANDARD, *FROZEN, *of("standard", 0.5)]
    save(tmp_path, *records)
    birds, emoji = (answer.text for answer in headlines(answered(*records)))
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [birds, emoji, ""]
    assert main(["leaderboard", "--results", str(tmp_path), "--strategy", "frozen"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [birds, ""]
    assert main(["leaderboard", "--results", str(tmp_path), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("dataset,")

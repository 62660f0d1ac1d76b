"""The committed records and what is built from them: nothing that was measured may move."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_bench.cli import main
from retrieval_bench.config import config_hash, unnest
from retrieval_bench.details import read_details
from retrieval_bench.records import ResultsFolder, read_record

RESULTS = Path(__file__).parents[1] / "results"
FILES = sorted(RESULTS.glob("**/runs/*.json"))


def test_every_record_is_read_and_its_name_follows_from_its_configuration() -> None:
    assert len(FILES) >= 251
    for path in FILES:
        record = read_record(path)
        assert path.stem == record.id, path
        assert config_hash(unnest(record.config)) == record.config_hash, path
        dataset, strategy = record.config["data"]["dataset"], record.config["strategy"]
        assert record.id == f"{dataset}-{strategy}-{record.config_hash}-s{record.seed}-{record.kind}", path


def test_details_are_read_and_give_the_metrics_of_their_records() -> None:
    results = ResultsFolder(RESULTS)
    for path in sorted((RESULTS / "details").glob("*.npz"))[::5]:
        details, metrics = read_details(path), read_record(results.record(path.stem)).metrics
        has_positive = details.first_rank > 0
        recall = (details.first_rank[has_positive] == 1).mean()
        assert recall == pytest.approx(metrics["recall_at_1"], abs=1e-12)


def test_the_leaderboard_is_what_the_records_give(tmp_path: Path) -> None:
    """``make leaderboard RESULTS=results`` writes it."""
    (tmp_path / "runs").symlink_to(RESULTS / "runs")
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    for name in ("leaderboard.csv", "leaderboard.md"):
        assert (tmp_path / name).read_bytes() == (RESULTS / name).read_bytes(), name

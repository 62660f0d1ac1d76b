"""What `data speed` reports; never how fast this machine is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import Split
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import data_speed
from retrieval_bench.experiments.data_speed import Rate, measure_speed, report, training_step
from retrieval_bench.sections import DataConfig

Synthetic = tuple[ImageTable, Split]
CONFIG = DataConfig(dataset="synthetic", image_size=32, stored=20)


def test_every_way_of_reading_is_timed_and_the_step_comes_last(synthetic: Synthetic) -> None:
    rates, opening = measure_speed(*synthetic, CONFIG, "resnet10t", 32, "cpu", 0, 1.0)
    assert [rate.name for rate in rates] == [
        "PIL DataLoader (0 workers)",
        "cache, pixels only",
        "cache + augmentation",
        "resnet10t: forward + backward",
    ]
    assert all(0 < rate.low <= rate.median <= rate.high < math.inf for rate in rates)
    assert opening > 0


class Clock:
    """A second passes between any two looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("batch_size", [16, 64])
def test_rates_count_the_images_that_were_read(
    batch_size: int, synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    views = data_speed.Batches.__iter__

    def counted(batches: Any) -> Any:
        for images, labels in views(batches):
            read.append(len(images))
            yield images, labels

    monkeypatch.setattr(data_speed.Batches, "__iter__", counted)
    monkeypatch.setattr(data_speed, "time", Clock())
    monkeypatch.setattr(data_speed, "training_step", lambda *given: lambda: None)
    rates, _ = measure_speed(*synthetic, CONFIG, "resnet10t", batch_size, "cpu", 0, 1.0)
    per_pass = sum(read) / 12  # six rounds of two readers, each taking one second
    assert rates[0].median == rates[2].median == per_pass


def test_a_batch_larger_than_the_training_set_is_refused(synthetic: Synthetic) -> None:
    with pytest.raises(UserError, match="--batch-size 100"):
        measure_speed(*synthetic, CONFIG, "resnet10t", 100, "cpu", 0, 1.0)


def test_training_step_changes_the_network_and_takes_no_data() -> None:
    torch.manual_seed(0)
    step = training_step("resnet10t", 32, 4, "cpu")
    step()
    step()


def test_report_sets_each_rate_beside_the_step() -> None:
    text = report([Rate("reading", 2_000.0, 1_900.0, 2_100.0), Rate("net", 100.0, 90.0, 110.0)], 0.0123, 5_000, "cpu")
    head, reading, step, opening = text.splitlines()
    assert "share of a training step" in head
    assert ("2,000" in reading, "(1,900, 2,100)" in reading, reading.endswith("5.0 %")) == (True, True, True)
    assert "%" not in step
    assert opening.startswith("opening the cache of 5,000 images: 0.012 s; cpu")

"""The timing of routed networks runs, and what it times gives equal vectors; the timings themselves are no test."""

from __future__ import annotations

import sys

import pytest

from retrieval_bench.experiments.routing_speed import main, measure_routing


def test_the_three_ways_are_timed_and_the_routed_ones_agree() -> None:
    plain, own, both = measure_routing("resnet10t", 32, 6, 0.5, 2, "cpu")
    assert all(0 < timing.low <= timing.median <= timing.high for timing in (plain, own, both))
    assert own.difference is not None
    assert own.difference < 1e-4


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbone", "resnet10t", "--image-size", "32", "--batch-size", "4", "--rounds", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["routing_speed", *words])
    main()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 6
    assert "both branches for all" in printed

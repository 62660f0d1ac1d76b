"""The timing of routed and pruned networks runs, and what it times is what it says; the timings themselves are no test."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from retrieval_bench.experiments.inference_speed import main, pruning_ways, routing_ways
from retrieval_bench.experiments.timing import report, timed
from retrieval_bench.models.build import build_embedder
from retrieval_bench.sections import ModelConfig
from tests.training.helpers import random_images

IMAGES = random_images(6)


@torch.no_grad()
def test_routed_ways_agree_with_each_other_and_not_with_the_plain_network() -> None:
    torch.manual_seed(0)
    plain, own, both = (
        way() for way in routing_ways(build_embedder(ModelConfig("resnet26", "none"), 32).eval(), IMAGES).values()
    )
    assert ((own - both).norm(dim=1) <= 1e-4 * both.norm(dim=1)).all()
    assert not torch.allclose(own, plain)


def test_pruned_ways_have_the_cost_that_they_are_named_after() -> None:
    torch.manual_seed(0)
    ways = pruning_ways(build_embedder(ModelConfig("resnet26", "none"), 32).eval(), IMAGES, (0.5,))
    assert all(abs(float(re.findall(r"0\.\d+", name)[0]) - 0.5) < 0.01 for name in list(ways)[1:])
    timings = timed(ways, 2, "cpu")
    assert [timing.name for timing in timings] == list(ways)
    assert all(0 < timing.low <= timing.median <= timing.high for timing in timings)
    assert report(timings).count("\n") == 4


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "routing",
        "--backbone",
        "resnet10t",
        "--image-size",
        "32",
        "--batch-size",
        "4",
        "--rounds",
        "1",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["inference_speed", *words])
    main()
    assert "both branches for all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value", "message"), [("--backbone", "resnet5", "resnet"), ("--rounds", "0", "at least 1")]
)
def test_wrong_words(
    flag: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["inference_speed", "pruning", "--image-size", "32", "--device", "cpu", flag, value]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

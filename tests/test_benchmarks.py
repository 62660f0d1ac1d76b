"""The speed scripts run, and what they time is what they say; the timings themselves are no test."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import eval_cases, eval_speed, inference_speed, training_speed
from benchmarks.timing import command_line, report, timed
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.models.build import build_embedder
from retrieval_bench.sections import ModelConfig
from tests.evaluation.retrieval_cases import EVERY
from tests.training.helpers import random_images

SMALL = ["--backbone", "resnet10t", "--image-size", "32", "--device", "cpu"]
SETTING = ["--dataset", "synthetic", "--stored", "20", "--steps", "1"]


def test_timings_are_taken_in_turn_and_reported_beside_the_first() -> None:
    calls: list[str] = []
    timings = timed({name: lambda name=name: calls.append(name) for name in "ab"}, 2, "cpu", warm_up=1)
    assert calls == ["a", "b"] * 3
    assert all(len(taken) == 2 and min(taken) > 0 for taken in timings.values())
    head, first, second, last = report(timings, "cpu", images=10).splitlines()
    assert ("images/s" in head, " 1.00" in first, second.startswith("b "), last.startswith("cpu, ")) == (True,) * 4


@torch.no_grad()
def test_routed_ways_agree_with_each_other_and_not_with_the_plain_network() -> None:
    torch.manual_seed(0)
    network = build_embedder(ModelConfig("resnet26", "none"), 32).eval()
    plain, own, both = (way() for way in inference_speed.routing_ways(network, random_images(6)).values())
    assert ((own - both).norm(dim=1) <= 1e-4 * both.norm(dim=1)).all()
    assert not torch.allclose(own, plain)


def test_pruned_ways_have_the_cost_that_they_are_named_after() -> None:
    torch.manual_seed(0)
    network = build_embedder(ModelConfig("resnet26", "none"), 32).eval()
    with ExitStack() as folds:
        ways = inference_speed.pruning_ways(network, random_images(6), folds, (0.5,))
    assert all(abs(float(re.findall(r"0\.\d+", name)[0]) - 0.5) < 0.01 for name in list(ways)[1:])


@pytest.mark.parametrize(
    ("script", "words", "printed"),
    [
        (inference_speed, ["routing"], "both branches for all"),
        (
            training_speed,
            ["data", *SETTING],
            "PIL DataLoader (0 workers) cache + augmentation opening",
        ),
        (
            training_speed,
            ["train", *SETTING],
            "bare step \nretrieval_bench --fused last_k, kept pytorch-metric-learning timm",
        ),
    ],
)
def test_commands(
    script: Any, words: list[str], printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", *words, *SMALL, "--batch-size", "8", "--rounds", "1"])
    command_line(script.main)
    out = capsys.readouterr().out
    assert all(part in out for part in printed.split(" "))
    for more, message in ((["--rounds", "0"], "--rounds 0"), (["--batch-size", "0"], "--batch-size 0")):
        sys.argv += more
        with pytest.raises(SystemExit, match="2"):
            command_line(script.main)
        assert message in capsys.readouterr().err


def test_competitors_agree() -> None:
    embeddings, labels = eval_speed.draw(300, 16, 60, noise=0.6)
    results = {name: competitor(embeddings, labels) for name, competitor in eval_speed.COMPETITORS.items()}
    assert len({round(result["recall_at_1"], 9) for result in results.values() if result}) == 1
    run = {"seconds": 1.0, "fastest": 1.0, "slowest": 2.0, "peak_mb": 9.0}
    rows = [{"name": name, **run, "result": result} for name, result in results.items()]
    printed = eval_speed.table([*rows, {"name": "broken", "error": "no memory"}]).splitlines()
    assert len(printed) == len(results) + 2
    assert "x ours" in printed[0]
    assert printed[-1].split() == ["broken", "no", "memory"]


def test_the_figure_of_growth_is_drawn_again_from_what_was_measured(tmp_path: Path) -> None:
    growth = [{"rows": rows, "seconds": (rows / 1000) ** 1.5, "peak_mb": 500.0} for rows in (1000, 2000, 4000)]
    assert "N^1.50" in eval_speed.growth_figure(growth).summary
    (tmp_path / "speed.json").write_text(json.dumps({"growth": growth}))
    eval_speed.main(only="figure", output=tmp_path / "speed.json")
    assert (tmp_path / "growth.png").exists()
    with pytest.raises(UserError, match="no measured growth"):
        eval_speed.main(only="figure", output=tmp_path / "none.json")


@pytest.mark.parametrize("name", eval_cases.CASES)
def test_hard_cases_run_and_the_engines_agree_on_them(name: str) -> None:
    case = eval_cases.CASES[name]
    embeddings, labels = case.data(120)
    case.ours(embeddings, labels)
    case.simple(embeddings, labels)
    if embeddings.shape[1] <= 512:
        fast, slow = (evaluate(embeddings, labels, ks=(1, 10), metrics=EVERY, engine=e) for e in ("auto", "reference"))
        assert fast == slow

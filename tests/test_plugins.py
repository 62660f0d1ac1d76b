"""Strategies, losses and backbones of the user's own: a module in the current folder, or a package's entry point."""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench import leaderboard, load_records, plugins, run
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig, config_hash, flatten, unflatten
from retrieval_bench.deploy.saved import read_embedder, save_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.search_space import search_space
from retrieval_bench.figures.style import look_of
from retrieval_bench.identity import run_ids
from retrieval_bench.losses import build_criterion
from retrieval_bench.models.build import build_backbone, build_embedder
from retrieval_bench.records import Record
from retrieval_bench.sections import LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import REMADE, STRATEGIES, StrategyOptions, build_strategy
from tests.training.helpers import random_images

MODULE = """
from dataclasses import dataclass

import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import nn

from retrieval_bench.strategies import Strategy
from retrieval_bench.strategies.base import Range, option, scale_lrs
from retrieval_bench.strategies.spottune import SpotTune


class HalfRate(Strategy):
    @dataclass(frozen=True)
    class Options(Strategy.Options):
        factor: float = option(0.5, "rate of the lower half", low=0, high=1, search=Range(0.1, 1.0), shown=True)

    def parameter_groups(self, model, groups):
        names = [block.name for block in model.backbone.body]
        return scale_lrs(groups, dict.fromkeys(names[: len(names) // 2], self.options.factor))


class OwnRoutes(SpotTune):
    pass


class Pull(nn.Module):
    def __init__(self, margin=0.1):
        super().__init__()
        self.margin = margin

    def forward(self, embeddings, labels):
        unit = nn.functional.normalize(embeddings)
        similarity, same = unit @ unit.T, labels[:, None] == labels
        return 1 - similarity[same].mean() + (similarity[~same] - self.margin).relu().mean()


class OwnProxies(ProxyAnchorLoss):
    def __init__(self, num_classes, **kwargs):
        super().__init__(num_classes, **kwargs)


class PerRow(nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.sum(dim=1)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.last = nn.Linear(8, 16)

    def forward(self, images):
        features = self.patches(images)
        for block in self.blocks:
            features = features + block(features).relu()
        return self.last(features.mean((2, 3)))


def small(image_size):
    return Small()


def a_map():
    return nn.Conv2d(3, 8, 3)


def fails():
    raise ValueError("no such layer")


def no_network():
    return 3


NUMBER = 3
"""
BROKEN = {
    "no_option": "class A(Strategy):\n @dataclass(frozen=True)\n class Options(Strategy.Options):\n  k: int = 3",
    "no_dataclass": "class B(Strategy):\n class Options(Strategy.Options):\n  k: int = option(3)",
    "abstract": "class C(Strategy, abc.ABC):\n @abc.abstractmethod\n def rates(self): ...",
    "init": "class E(Strategy):\n def __init__(self): ...",
    "taken": "class LastK(Strategy): pass",
    "fails": "\n1 / 0",
    "wrong": "class D(Strategy:",
    "needs": "import no_such_package",
    "leaves": "raise SystemExit(3)",
}
FLAGS = "--dataset synthetic --backbone test_resnet --weights none --image-size 32 --batch-size 16 --epochs 1".split()


@pytest.fixture(autouse=True)
def registry_as_before() -> Iterator[None]:
    """What is registered and imported in a test is forgotten after it."""
    names, modules = dict(STRATEGIES), set(sys.modules)
    options = {name: getattr(StrategyOptions, name) for name in REMADE}
    yield
    for name in STRATEGIES.keys() - names.keys():
        del STRATEGIES[name]
        delattr(StrategyOptions, name)
    for name, value in options.items():
        setattr(StrategyOptions, name, value)
    forget()
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


def forget() -> None:
    """The next name is looked for as in a new process."""
    plugins.load.cache_clear()
    plugins.entry_points.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's module; it is on the path as with ``python -m``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_code.py").write_text(MODULE)
    return tmp_path


def test_a_strategy_of_the_users_own_is_like_those_of_the_registry(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", *FLAGS, "--strategy", "own_code:HalfRate+ema", "--half-rate.factor", "0.25", "--results", "r"]
    assert main(words) == 0
    (record,) = load_records("r")
    assert record.id == f"synthetic-half_rate+ema-{record.config_hash}-s0-cpu"
    assert record.strategy == "half_rate(factor=0.25)+ema(decay=0.999)"
    assert record.config["options"]["half_rate"] == {"factor": 0.25}
    digest = hashlib.sha256((folder / "own_code.py").read_bytes()).hexdigest()
    assert record.config["code"] == {"sources": [f"own_code:HalfRate sha256:{digest}"]}
    with pytest.raises(SystemExit):
        main(["run", "--strategy", "own_code:HalfRate", "--help"])
    assert re.search(r"--half-rate.factor FLOAT[^\n]*\n[^\n]*rate of the lower half", capsys.readouterr().out)
    assert main([*words[:-4], "--half-rate.factor", "7"]) == 2
    assert "--half-rate.factor 7.0: must be at least 0 and at most 1" in capsys.readouterr().err
    assert main(["run", "--config", f"r/runs/{record.id}.json", "--results", "r"]) == 0
    assert "already recorded" in capsys.readouterr().err
    config = RunConfig(strategy="own_code:HalfRate").changed(options__half_rate__factor=0.1)
    assert flatten(unflatten(flatten(config))) == flatten(config)  # as workers get it
    assert search_space(config).keys() == {"lr", "half_rate.factor"}
    assert look_of("half_rate") == look_of("half_rate(factor=0.1)") != look_of("another")


def test_tables_are_made_without_the_code_and_no_hash_moves(folder: Path, registry_as_before: None) -> None:
    usual = config_hash(flatten(RunConfig()))
    config = RunConfig(strategy="own_code:HalfRate").changed(data__dataset="synthetic")
    assert config_hash(flatten(RunConfig())) == usual
    (before,) = run_ids([config], RuntimeConfig(device="cpu"))
    (folder / "own_code.py").write_text(MODULE.replace("// 2", "// 3"))
    assert list(run_ids([config], RuntimeConfig(device="cpu"))) == [before]  # it is the code that was imported
    forget()
    del sys.modules["own_code"]
    (after,) = run_ids([config], RuntimeConfig(device="cpu"))
    assert before.split("-")[1] == after.split("-")[1] == "half_rate"
    assert before != after
    hostile = {"strategy": "own_other:X", "data": {"dataset": "synthetic"}, "loss": {"loss": "own_other:Y"}}
    (folder / "own_other.py").write_text("raise SystemExit('imported')")
    record = Record("a", 0, "b", hostile, {"strategy": "x"}, {}, {"recall_at_1": 0.5}, {}, {"device": "cpu: x"})
    assert leaderboard([record])["strategy"].tolist() == ["x"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("own_none:X", r"there is no module own_none in .* or among the installed packages"),
        ("own_code.sub:X", r"there is no module own_code.sub"),
        ("own_code:HalfRat", r"unknown name in own_code 'HalfRat': did you mean 'HalfRate'\?"),
        ("own_code:NUMBER", r"is no class or function"),
        ("own_code:small", r"is no subclass of retrieval_bench.strategies.Strategy"),
        ("own_code:Pull", r"is no subclass of"),
        ("own_no_option:A", r"declare k by option\(default, help\)"),
        ("own_no_dataclass:B", r"Options must be a @dataclass\(frozen=True\)"),
        ("own_init:E", r"cannot be made from its Options: TypeError: .*takes 1 positional argument"),
        ("own_code.py:HalfRate", r"there is no module own_code.py .*; leave out .py"),
        ("own_abstract:C", r"lacks the methods rates"),
        ("own_taken:LastK", r"its name, last_k, is that of another strategy: rename the class"),
        ("own_fails:D", r"ZeroDivisionError: .* \(.*own_fails.py, line 6\)"),
        ("own_wrong:D", r"SyntaxError: .* \(.*own_wrong.py, line 5\)"),
        ("own_needs:D", r"ModuleNotFoundError: No module named 'no_such_package' \(.*own_needs.py, line 5\)"),
        ("own_leaves:D", r"SystemExit: 3 \(.*own_leaves.py, line 5\)"),
        ("own_code:HalfRate+own_code:HalfRate", r"names one strategy twice"),
        ("half_rate", r"unknown strategy 'half_rate'"),
    ],
)
def test_what_is_wrong_with_a_strategy_is_one_line(
    word: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "import abc\nfrom dataclasses import dataclass\nfrom retrieval_bench.strategies import Strategy\n"
    for name, body in BROKEN.items():
        (folder / f"own_{name}.py").write_text(f"{head}from retrieval_bench.strategies.base import option\n{body}\n")
    assert main(["run", "--strategy", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert word == "half_rate" or word in line


def test_losses_of_the_users_own(folder: Path) -> None:
    pull = build_criterion(LossConfig("own_code:Pull", loss_options=(("margin", 0.3),)), classes=4, dim=8)
    assert pull.loss.margin == 0.3
    assert pull(torch.randn(8, 8), torch.arange(8) % 4).shape == ()
    proxies: Any = build_criterion(LossConfig("own_code:OwnProxies"), classes=4, dim=8).loss
    assert proxies.proxies.shape == (4, 8)
    pairs = [RunConfig(loss=LossConfig(name)).samples_per_class for name in ("own_code:Pull", "own_code:OwnProxies")]
    assert pairs == [4, 0]
    for name, message in {
        "own_code:PerRow": r"fails with --miner none: it gives Tensor of shape \(8,\)",
        "own_code:small": r"is no subclass of torch.nn.Module",
        "own_code:Pul": r"did you mean 'Pull'",
    }.items():
        with pytest.raises(UserError, match=f"^--loss {name}.*{message}"):
            build_criterion(LossConfig(name), classes=4, dim=8)


def test_backbones_of_the_users_own(folder: Path) -> None:
    backbone = build_backbone(ModelConfig("own_code:small", weights="none"), 32)
    assert [block.name for block in backbone.blocks] == ["stem", *(f"blocks.{n}" for n in range(4)), "tail"]
    assert backbone.feature_dim == 16
    for config, message in {
        ModelConfig("own_code:small"): r"takes no pretrained; give --weights none or --weights FILE",
        ModelConfig("own_code:small", weights="none", drop_path=0.1): r"takes no drop_path; leave it out",
        ModelConfig("own_code:a_map", weights="none"): r"gives \(1, 8, 30, 30\) for one image, not features \(1, D\)",
        ModelConfig("own_code:fails", weights="none"): r"ValueError: no such layer \(.*own_code.py, line \d+\)",
        ModelConfig("own_code:no_network", weights="none"): r"gives int, no torch.nn.Module",
    }.items():
        with pytest.raises(UserError, match=f"--backbone {config.backbone}.*{message}"):
            build_backbone(config, 32)


def test_an_embedder_of_own_code_is_saved_and_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig("own_code:small", weights="none")
    strategy = build_strategy("own_code:OwnRoutes", RunConfig(strategy="own_code:OwnRoutes").changed().options)
    model = strategy.finalize(strategy.prepare(build_embedder(config, 32), random_images(2))).eval()
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    save_embedder(model, config, 32, folder / "one", None, strategy)
    with torch.no_grad():
        expected = model(random_images(4))
        assert torch.equal(read_embedder(folder / "one")[0](random_images(4)), expected)
    assert "other code" not in capsys.readouterr().err
    (folder / "own_code.py").write_text(MODULE + "\n")
    forget()
    read_embedder(folder / "one")
    assert "was made with other code" in capsys.readouterr().err


def test_entry_points_of_installed_packages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = folder / "own_package-1.2.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own_package\nVersion: 1.2\n")
    groups = {"strategies": "slow_start = own_code:HalfRate", "losses": "pull = own_code:Pull"}
    text = "\n".join(f"[retrieval_bench.{name}]\n{line}" for name, line in groups.items())
    (package / "entry_points.txt").write_text(f"{text}\n[retrieval_bench.backbones]\nsmall = own_code:small\n")
    forget()
    assert main(["strategies"]) == 0
    assert "own_code:HalfRate of own_package 1.2" in capsys.readouterr().out
    assert "own_code" not in sys.modules
    own = "--strategy slow_start --slow-start.factor 0.3 --loss pull --backbone small".split()
    assert main(["run", *FLAGS, *own, "--results", "r"]) == 0
    (record,) = load_records("r")
    assert record.strategy == "slow_start(factor=0.3)"
    sources = [source.partition(" ")[0] for source in record.config["code"]["sources"]]
    assert sources == ["own_code:HalfRate", "own_code:Pull", "own_code:small"]
    assert record.environment["versions"]["own_code"] == "1.2"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(train=TrainConfig(epochs=-1)), r"^--epochs -1: must be at least 0$"),
        (RunConfig().changed(train__lr="3e-4"), r"^--lr '3e-4': must be float, not str$"),
        (RunConfig().changed(train__epochs=2.5), r"^--epochs 2.5: must be int, not float$"),
        (RunConfig().changed(train__freeze_bn=1), r"^--freeze-bn 1: must be bool, not int$"),
        (RunConfig().changed(train__optimizer="adamv"), r"^unknown value of --optimizer 'adamv': did you mean 'adam'"),
        (RunConfig().changed(evaluation__k=(1, "2")), r"^--k \(1, '2'\): must be tuple\[int, ...\], not tuple$"),
        (RunConfig(data={"dataset": "cub"}), r"^--data {'dataset': 'cub'}: must be DataConfig, not dict$"),  # pyright: ignore[reportArgumentType]
        (RunConfig("last_k").changed(options__last_k__k="3"), r"^--last-k.k '3': must be int, not str$"),
        ({"strategy": "frozen"}, r"^run takes a RunConfig, not dict$"),
    ],
)
def test_wrong_values_from_python_are_one_line_that_names_the_field(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(config, RuntimeConfig(device="cpu"))


def test_wrong_places_from_python_are_one_line() -> None:
    wrong: Any = "results/local"
    with pytest.raises(UserError, match="is a RuntimeConfig, not str"):
        run(RunConfig(), wrong)
    with pytest.raises(UserError, match="--workers '2': must be int"):
        run(RunConfig(), RuntimeConfig(workers="2"))  # pyright: ignore[reportArgumentType]

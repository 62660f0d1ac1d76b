"""Help pages: 80 columns without cut words, choices by name, and no flag that the command refuses."""

from __future__ import annotations

import contextlib
import re

import pytest

from retrieval_bench.cli import COMMANDS, main, parse
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.commands import ACTIONS
from retrieval_bench.experiments.registry import EXPERIMENTS
from retrieval_bench.experiments.rehearsal import hidden_flags, refuse_idle_flags
from retrieval_bench.losses import LOSSES, MINERS, REFUSED
from retrieval_bench.strategies import STRATEGIES

MANY = ("bench synthetic", "study table_autolr smoke", "reality-check smoke", "sweep", "tune")
PAGES = (*(name for name in COMMANDS if name not in ("bench", "study", "reality-check", "experiment")), *MANY)
LISTS = ("", "bench", "study", "experiment", "reality-check", "data")
VALUES = {"INT": "3", "FLOAT": "0.5", "STR": "x", "PATH": "x", "RUN": "x", "FOLDER": "x", "OWNER/NAME": "x/x"}
REQUIRED = {"embed": "-o x", "map": "", "search": "--gallery x", "data pack": "-o x"}


def page(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):
        assert main([*words.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [*PAGES, *LISTS, *(f"data {name}" for name in ACTIONS)])
def test_pages_fit_80_columns_and_no_word_is_cut(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = page(words, capsys)
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "120")
    assert page(words, capsys).split() == narrow.split()
    assert not set("│╭╰─") & set(narrow)


@pytest.mark.parametrize("words", ["strategies", "losses", "data list"])
def test_lists_fit_80_columns(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words.split()) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_run_names_every_choice_and_losses_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    printed = re.findall(r"[\w.-]+", page("run", capsys))
    short = [name for name in (*LOSSES, *MINERS) if name == name.lower()]
    assert {*STRATEGIES, *DATASETS, *short, "default", "none"} <= set(printed)
    assert main(["losses"]) == 0
    printed = capsys.readouterr().out
    assert {*LOSSES, *MINERS} <= set(re.findall(r"\w+", printed))
    assert "  triplet, pairs: margin=0.2 " in printed
    assert "  proxy_anchor, proxies: margin=0.1 alpha=32" in printed
    assert not re.search(r"num_classes|embedding_size|\?", printed)
    assert not [name for name in REFUSED if f"  {name}" in printed]


def flags_of(text: str) -> list[list[str]]:
    """Each flag of a page with values of the kind that it takes."""
    flags = []
    for line in re.sub(r"\n {6,}(?=[\[{A-Z|])", " ", text).splitlines():
        if found := re.match(r"  (?:-\w[^,]*, )?(--[\w.-]+)(?: ([^,\n]+))?", line):
            kind = re.sub(r"^\[|\]$", "", found[2] or "").split(" [")[0]
            words = [
                VALUES.get(word.split("|")[0], word.strip("{}").split(",")[0]) for word in kind.strip("()").split()
            ]
            flags.append([found[1], *words])
    return [words for words in flags if words[0] != "--help"]


@pytest.mark.parametrize("words", PAGES)
def test_every_flag_that_is_shown_is_accepted(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words == "data":
        pytest.skip("a list of actions")
    shown = page(words, capsys)
    given = [word for flag in flags_of(shown) for word in flag]
    assert given or words in ("strategies", "losses")
    positional = re.findall(r"(?m)^  (STR|PATH|RUN|FOLDER|INT|OWNER/NAME)\b", shown.partition("options:")[0])
    parse([*words.split(), *(VALUES[kind] for kind in positional), *given])
    if words in MANY:
        assert "--resume" not in shown


@pytest.mark.parametrize("name", ["synthetic", "table_autolr", "figure_weight_variation", "reality_check"])
def test_flags_that_an_experiment_refuses_with_any_value_are_hidden(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = EXPERIMENTS[name]
    profile = entry.profiles["smoke" if "smoke" in entry.profiles else "cpu"]
    hidden = hidden_flags(entry, profile)
    assert ("--loss" in hidden) == (name == "table_autolr")
    assert ("--dry-run" in hidden) == (name == "reality_check") != ("--trials" in hidden)
    if name == "figure_weight_variation":
        assert {"--strategy", "--layer-pruning.drop"} <= set(hidden)
    refuse_idle_flags(entry, profile, profile)

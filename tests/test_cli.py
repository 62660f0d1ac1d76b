"""The command line as a user meets it: help at once, one clear line and exit code 2 for what cannot be done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_bench.cli import COMMANDS, main, parse
from retrieval_bench.strategies import STRATEGIES
from tests.board_records import of, save

SLOW = ("torch", "torchvision", "timm", "pytorch_metric_learning", "faiss", "matplotlib", "ray", "optuna")


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["strategies"], 0), (["data", "list"], 0), (["runn"], 2)]
)
def test_help_and_lists_answer_at_once(words: list[str], code: int) -> None:
    program = (
        f"import sys\nfrom retrieval_bench.cli import main\nassert main({words}) == {code}\n"
        f"print([name for name in {SLOW} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("given", "set_to"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE")],
)
def test_threads_wait_for_a_short_time_unless_the_user_says_how(given: dict[str, str], set_to: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    program = (
        f"import os, sys, retrieval_bench\nassert 'torch' not in sys.modules\nprint(*map(os.environ.get, {names}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert answer.stdout.strip() == set_to


def test_help_names_every_command_and_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runn"], "did you mean 'run'"),
        (["run", "--strateg", "frozen"], "Perhaps you meant: --strategy"),
        (["run", "--strategy", "last-k"], "did you mean 'last_k'"),
        (["run", "--dataset", "emojy"], "did you mean 'emoji'"),
        (["run", "--dataset", "folder"], "--data-root FOLDER"),
        (["run", "--dataset", "cub", "--data-root", "/nowhere"], "/nowhere: no such folder"),
        (["run", "--epochs", "many"], "--epochs"),
        (["run", "--split", "random"], "zero_shot_val"),
        (["run", "--device", "tpu"], "cuda"),
        (["run", "--workers", "-5"], "--workers -5"),
        (["run", "--checkpoint-every", "-1"], "--checkpoint-every -1: must be at least 0"),
        (["run", "--dataset", "synthetic", "--results", "/dev/null/x"], "/dev/null/x/runs: cannot be written to"),
        (["run", "--config", "/nowhere.json"], "/nowhere.json: no such record"),
        (["bench", "cubb"], "did you mean 'cub'"),
        (["bench", "synthetic", "--strategies", "frozen", "standrad"], "did you mean 'standard'"),
        (["bench", "synthetic", "--strategy", "frozn"], "did you mean 'frozen'"),
        (["bench", "synthetic", "--strategies", "frozen", "--last-k.k", "1"], "--last-k.k changes nothing here"),
        (["sweep", "synthetik"], "did you mean 'synthetic'"),
        (["sweep", "--strategy", "frozen,standrad"], "did you mean 'standard'"),
        (["sweep", "--seed", "0,,1"], "a value is missing beside a comma"),
        (["sweep", "--seed", "0,1,0"], "--seed 0 is given twice"),
        (["sweep", "--seed", "0,00"], "--seed 00 is given twice"),
        (["sweep", "--lr", "1e-3,0.001"], "--lr 0.001 is given twice"),
        (["sweep", "--seed", "0,"], "--seed 0,: a value is missing beside a comma"),
        (["run", "--k", "1,"], "--k 1,: a value is missing beside a comma"),
        (["tune", "--strategy", "frozen,"], "--strategy frozen,: a value is missing beside a comma"),
        (["bench", "synthetic", "--seeds=0,"], "--seeds 0,: a value is missing beside a comma"),
        (["bench", "synthetic", "--strategies", "frozen", "standard,"], "--strategies standard,: a value is missing"),
        (["leaderboard", "--by", ",strategy"], "--by ,strategy: a value is missing beside a comma"),
        (["run", "--seed="], "Error parsing --seed: '' is not a whole number"),
        (["run", "--lr", "fast"], "Error parsing --lr: 'fast' is not a number"),
        (["run", "--mean", "0.5"], "Error parsing --mean: expected {FLOAT FLOAT FLOAT}, found ['0.5'] (`"),
        (["run", "--config"], "--config: give the file of a record"),
        (["run", "--config="], "--config: give the file of a record"),
        (["run", "--config", "--seed", "1"], "--config: give the file of a record"),
        (["run", "--config", "."], ".: is a folder; name the file of a record"),
        (["run", "--config", __file__], "test_cli.py: not a record (Extra data"),
        (["run", "--strategy", "?"], "unknown strategy '?' (known: autolr"),
        (["data", "show", "synthetic", "--output", "."], ".: is a folder; name a file"),
        (["data", "manifest", "synthetic", "--output", "."], ".: is a folder; name a file"),
        (["sweep", "--seed", "0,one"], "--seed"),
        (["sweep", "--lr", "1e-3,-1"], "must be at least 0 (the run with --lr -1"),
        (["sweep", "--strategy", "frozen,standard", "--last-k.k", "1,2"], "--last-k options are set"),
        (["sweep", "--retries", "-1"], "--retries -1"),
        (["sweep", "--jobs", "-1"], "--jobs -1"),
        (["sweep", "--ray-address", "auto"], "belong to --engine ray"),
        (["sweep", "--engine", "ray", "--jobs", "2"], "belongs to --engine local"),
        (["sweep", "--dataset", "synthetic", "--resume", "x"], "--resume is for one run"),
        (["study", "ablation"], "unknown"),
        (
            ["bench", "synthetic", "--rebuild", "--results", "/nowhere"],
            "/nowhere/runs: no records to rebuild the table",
        ),
        (
            ["sweep", "--mean", "0.5", "0.5", "0.5", "--std", "0", "1", "1", "--dry-run"],
            "--std 0.0 1.0 1.0: must be above",
        ),
        (["leaderboard", "--results", "/nowhere"], "/nowhere: no such folder"),
        (["data", "fetsh", "cub"], "did you mean 'fetch'"),
        (["data", "list", "cub"], "Unrecognized options: cub"),
        (["data", "list", "--helpp"], "--helpp"),
        (["data", "fetch"], "the data set"),
        (["data", "fetch", "cup"], "did you mean 'cub'"),
        (["evaluate"], "give a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert "---" not in printed.err, "no frame"
    assert not printed.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["leaderboard", "--resultss", "x"], "Unrecognized options: --resultss, x Perhaps you meant: --results PATH"),
        (["data", "list", "--helpp"], "Unrecognized options: --helpp"),
        (["run", "--a-flag-that-is-longer-than-the-terminal", "5"], "--a-flag-that-is-longer-than-the-terminal, 5"),
        (["run", "--epochs", "many"], "Error parsing --epochs: 'many' is not a whole number"),
        (["run", "--k", "1,x"], "Error parsing --k: Could not find valid parse for arguments: ['1', 'x']"),
        (["evaluate", "--gallery"], "Missing value for argument '--gallery'. Expected 1 values."),
        (["run", "--epochs"], "Missing value for argument '--epochs'. Expected 1 values."),
        (["run", "--split", "random"], "invalid choice 'random' for argument '--split'. Expected one of"),
        (["map"], "Missing from retrieval_bench map: PATH embeddings and labels"),
    ],
)
def test_what_cannot_be_read_is_one_line_of_words_on_any_terminal(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = set()
    for columns in ("20", "80", "300"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(words) == 2
        printed.add(capsys.readouterr().err)
        assert os.environ["COLUMNS"] == columns
    (error,) = printed
    assert error.startswith("error: ")
    assert line in error
    assert error.endswith(f"(`retrieval_bench {' '.join(words[: 1 + (words[0] == 'data')])} --help` lists all flags)\n")
    assert not re.search(r"help ?text|\(default|For full|─|\|", error)


def test_commas_of_labels_and_of_single_values_stay() -> None:
    label = "channel_gates(budget=0.9, search_epochs=6)"
    for words in (["--strategy", "standard,frozen", label], ["--strategy=standard,frozen", label]):
        assert parse(["leaderboard", *words]).strategy == ("standard", "frozen", label)
    assert parse(["leaderboard", f"--strategy={label}"]).strategy == (label,)
    assert parse(["run", "--k", "1,2"]).config.evaluation.k == (1, 2)
    assert parse(["run", "--layer-pruning.drop", "15,16"]).config.options.layer_pruning.drop == "15,16"


def test_no_command_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_as_a_module_strategies_and_their_options_are_listed(own_cache: Path) -> None:
    words = [sys.executable, "-m", "retrieval_bench", "strategies"]
    answer = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "--last-k.k (default 3; searched 1 to 8)" in answer
    lines = answer.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(STRATEGIES)
    options = [
        f"--{name}.{option}".replace("_", "-")
        for name, kind in STRATEGIES.items()
        for option in kind.Options.__dataclass_fields__
    ]
    assert [line.split()[0] for line in lines if line.lstrip().startswith("--")] == options


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_signs_that_the_terminal_lacks_are_replaced(setting: dict[str, str], tmp_path: Path) -> None:
    save(tmp_path, *of("caf\xe9", 0.5, 0.6, 0.7))
    (tmp_path / "runs" / "broken.json").write_text('{"\xb1": 1}', encoding="utf-8")
    words = [sys.executable, "-m", "retrieval_bench", "leaderboard", "--results", str(tmp_path)]
    answer = subprocess.run(words, capture_output=True, env={**os.environ, **setting}, check=True)
    assert b"caf? " in answer.stdout
    assert b"60.00 +- 24.84 *" in answer.stdout
    assert b"skipped" in answer.stderr
    table = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "caf\xe9" in table, "files have all signs"


def test_names_of_files_that_the_locale_lacks_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("path,label\ncaf\xe9.png,a\nb.png,b\n", encoding="utf-8")
    words = [sys.executable, "-m", "retrieval_bench", "data", "verify", "table", "--data-root", "images.csv"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: 'caf\\xe9.png': ")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["leaderboard", "--results=~/x"], "results"),
        (["leaderboard", "-o", "~/x"], "output"),
        (["run", "--data-root", "~/x"], "runtime.data_root"),
        (["run", "--weights=~/x"], "config.model.weights"),
        (["sweep", "--seed", "0,1", "--results=~/x"], "runtime.results"),
        (["search", "run", "~/x", "--gallery", "g.npz"], "queries"),
        (["export", "~/x"], "run"),
        (["evaluate", "e.npy", "--labels=~/x"], "labels"),
        (["data", "fetch", "cub", "--from-archive=~/x"], "from_archive"),
    ],
)
def test_a_tilde_is_the_home_folder_in_every_command(
    words: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/of-mine")
    value: object = parse(words)
    for part in name.split("."):
        value = getattr(value, part)
    assert str(value[0] if isinstance(value, tuple) else value) == "/home/of-mine/x"


def test_a_tilde_is_the_home_folder_of_config_and_of_each_of_several_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/of-mine")
    assert main(["run", "--config=~/x.json"]) == 2
    assert "/home/of-mine/x.json" in capsys.readouterr().err
    assert parse(["sweep", "--weights", "~/a.pth,~/b.pth"]).axes["model.weights"] == (
        "/home/of-mine/a.pth", "/home/of-mine/b.pth"
    )  # fmt: skip
    assert parse(["report", "--title", "~5 runs, ~half"]).title == "~5 runs, ~half"


@pytest.mark.parametrize("word", ["sweep", "tune", "reality-check"])
def test_hours_of_work_do_not_start_without_a_name(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([word])
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().out


def test_the_version_names_what_numbers_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("retrieval_bench 0", "torch 2", "timm"))


def test_flags_mean_the_same_for_one_run_and_for_many() -> None:
    words = ["--strategy", "frozen,last_k", "--seed", "0,1"]
    many = parse(["bench", "synthetic", *words])
    assert many == parse(["bench", "synthetic", "--strategies", "frozen,last_k", "--seeds", "0,1"])
    grid = [(config.strategy, config.seed) for config in parse(["sweep", *words]).configs]
    assert (
        sorted(grid)
        == [("frozen", 0), ("frozen", 1), ("last_k", 0), ("last_k", 1)]
        == sorted((strategy, seed) for strategy in many.strategy for seed in many.seed)
    )

"""The command line as a user meets it: help at once, one clear line and exit code 2 for what cannot be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_bench.cli import COMMANDS, main, parse
from retrieval_bench.experiments import BENCHES

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "pytorch_metric_learning",
    "faiss",
    "pandas",
    "scipy",
    "matplotlib",
    "pooch",
    "requests",
    "ray",
    "optuna",
)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", "--help"],
        ["data", "--help"],
        ["data", "show", "--help"],
        ["bench", "--help"],
        ["bench", "cub", "--help"],
        ["sweep", "--help"],
        ["tune", "--help"],
        ["reality-check", "--help"],
        ["reality-check", "smoke", "--help"],
        ["strategies"],
        ["data", "list"],
    ],
)
def test_help_and_lists_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom retrieval_bench.cli import main\n"
        f"try: main({words})\nexcept SystemExit as stop: assert not stop.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in BENCHES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runn"], "did you mean 'run'"),
        (["run", "--strateg", "frozen"], "--strateg"),
        (["run", "--strateg", "frozen"], "Perhaps you meant: --strategy"),
        (["run", "--strategy", "last-k"], "did you mean 'last_k'"),
        (["run", "--dataset", "emojy"], "did you mean 'emoji'"),
        (["run", "--dataset", "folder"], "--data-root FOLDER"),
        (["run", "--dataset", "cub", "--data-root", "/nowhere"], "/nowhere: no such folder"),
        (["run", "--epochs", "many"], "--epochs"),
        (["run", "--split", "random"], "zero_shot_val"),
        (["run", "--device", "tpu"], "cuda"),
        (["bench", "cubb"], "did you mean 'cub'"),
        (["bench", "synthetic", "--strategies", "frozen", "standrad"], "did you mean 'standard'"),
        (["data", "fetsh", "cub"], "did you mean 'fetch'"),
        (["data", "list", "cub"], "Unrecognized options: cub"),
        (["bench", "synthetic", "--strategy", "frozen"], "use --strategies"),
        (["sweep", "synthetik"], "did you mean 'synthetic'"),
        (["sweep", "--strategy", "frozen,standrad"], "did you mean 'standard'"),
        (["sweep", "--seed", "0,,1"], "a value is missing beside a comma"),
        (["sweep", "--seed", "0,1,0"], "--seed 0 is given twice"),
        (["sweep", "--seed", "0,one"], "--seed"),
        (["sweep", "--lr", "1e-3,-1"], "--lr -1.0: must be at least 0 (the run with --lr -1.0)"),
        (["sweep", "--strategy", "frozen,standard", "--last-k.k", "1,2"], "--last-k options are set"),
        (["sweep", "--retries", "-1"], "--retries -1"),
        (["sweep", "--jobs", "-1"], "--jobs -1"),
        (["sweep", "--ray-address", "auto"], "belong to --engine ray"),
        (["sweep", "--engine", "ray", "--jobs", "2"], "belongs to --engine local"),
        (["sweep", "--dataset", "synthetic", "--resume", "x"], "--resume is for one run"),
        (["sweep", "--dataset", "folder"], "--data-root FOLDER"),
        (["bench", "synthetic", "--strategies", "frozen", "--last-k.k", "1"], "--last-k options are set"),
        (["leaderboard", "--results", "/nowhere"], "/nowhere: no such folder"),
        (["run", "--workers", "-5"], "--workers -5"),
        (["data", "fetch"], "the data set"),
        (["data", "fetch", "cup"], "did you mean 'cub'"),
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
    assert not printed.out


@pytest.mark.parametrize("words", [["--seeds", "0,1"], ["--seeds", "0", "1"], ["--seeds=0,1"]])
def test_several_values_are_separated_by_spaces_or_commas(words: list[str]) -> None:
    command = parse(["bench", "synthetic", *words, "--strategies", "frozen,standard", "--k", "1,2"])
    assert (command.bench.seeds, command.bench.strategies) == ((0, 1), ("frozen", "standard"))
    assert command.bench.base.evaluation.k == (1, 2)
    sweep = parse(["sweep", "--dataset", "synthetic", *(word.replace("--seeds", "--seed") for word in words)])
    assert [config.seed for config in sweep.grid.runs()] == [0, 1]


def test_commas_of_labels_and_of_single_values_stay() -> None:
    label = "channel_gates(budget=0.9, search_epochs=6)"
    for words in (["--strategy", "standard,frozen", label], ["--strategy=standard,frozen", label]):
        assert parse(["leaderboard", *words]).strategy == ("standard", "frozen", label)
    assert parse(["leaderboard", f"--strategy={label}"]).strategy == (label,)
    assert parse(["run", "--layer-pruning.drop", "15,16"]).config.options.layer_pruning.drop == "15,16"


@pytest.mark.parametrize("words", [["data", "fetch"], ["evaluate"], ["data", "list", "cub"]])
def test_one_line_has_no_frame(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "---" not in capsys.readouterr().err


def test_a_misspelt_flag_that_begins_like_help_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--helpp"]) == 2
    assert "--helpp" in capsys.readouterr().err


def test_no_command_prints_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_strategies_and_data_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies"]) == 0
    assert "--last-k.k (default 3; searched 1 to 8)" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    assert "CUB-200-2011" in capsys.readouterr().out


def test_data_verify_reads_every_image(capsys: pytest.CaptureFixture[str], own_cache: Path) -> None:
    assert main(["data", "verify", "synthetic"]) == 0
    assert "128 images of 16 classes; 64 to train on, 64 to test on" in capsys.readouterr().out


def test_as_a_module() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "retrieval_bench", "strategies"], capture_output=True, text=True, check=True
    )
    assert "standard" in answer.stdout

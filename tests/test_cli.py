"""The command line as a user meets it: help at once, one clear line and exit code 2 for what cannot be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_bench.cli import COMMANDS, main, parse

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
        (["run", "--config", "/nowhere.json"], "--config /nowhere.json"),
        (["bench", "cubb"], "did you mean 'cub'"),
        (["bench", "synthetic", "--strategies", "frozen", "standrad"], "did you mean 'standard'"),
        (["bench", "synthetic", "--strategy", "frozen"], "use --strategies"),
        (["bench", "synthetic", "--strategies", "frozen", "--last-k.k", "1"], "--last-k.k changes nothing here"),
        (["sweep", "synthetik"], "did you mean 'synthetic'"),
        (["sweep", "--strategy", "frozen,standrad"], "did you mean 'standard'"),
        (["sweep", "--seed", "0,,1"], "a value is missing beside a comma"),
        (["sweep", "--seed", "0,1,0"], "--seed 0 is given twice"),
        (["sweep", "--seed", "0,one"], "--seed"),
        (["sweep", "--lr", "1e-3,-1"], "must be at least 0 (the run with --lr -1"),
        (["sweep", "--strategy", "frozen,standard", "--last-k.k", "1,2"], "--last-k options are set"),
        (["sweep", "--retries", "-1"], "--retries -1"),
        (["sweep", "--jobs", "-1"], "--jobs -1"),
        (["sweep", "--ray-address", "auto"], "belong to --engine ray"),
        (["sweep", "--engine", "ray", "--jobs", "2"], "belongs to --engine local"),
        (["sweep", "--dataset", "synthetic", "--resume", "x"], "--resume is for one run"),
        (["study", "ablation"], "unknown"),
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
    from retrieval_bench.strategies import STRATEGIES

    lines = answer.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(STRATEGIES)
    options = [
        f"--{name}.{option}".replace("_", "-")
        for name, kind in STRATEGIES.items()
        for option in kind.Options.__dataclass_fields__
    ]
    assert [line.split()[0] for line in lines if line.startswith(" ")] == options

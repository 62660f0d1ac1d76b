"""README and docs: the Python code runs, commands parse, links and Make targets exist, and nothing is too long."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from retrieval_bench.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "results/README.md", "datasets/README.md", "datasets/own.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SMALL = 'data__dataset="synthetic", data__image_size=32, model__backbone="resnet10t", model__weights="none"'
COMMANDS = {
    " ".join(line.partition("#")[0].split())
    for page in PAGES
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.startswith((".venv/bin/python -m retrieval_bench", "python -m retrieval_bench"))
}


def test_the_python_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(code.strip().splitlines()) <= 14
    small = code.replace('data__dataset="emoji_mini"', f"{SMALL}, train__batch_size=16")
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "last_k(k=2)" in printed
    assert "'recall_at_1': 1.0" in printed


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace(" ... ", " ").replace('"$head:$port"', "HOST:1").split(" & ")[0])
    parse(words[words.index("retrieval_bench") + 1 :])


def test_links_and_make_targets_exist_and_the_readme_is_short() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M):
            assert target in targets or any(target in line for line in targets), f"{page.name}: make {target}"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250

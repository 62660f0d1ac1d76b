"""docs/own_method.md and docs/tour.ipynb do what they show. ``REWRITE_GOLDEN=1`` writes the notebook's outputs anew."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from retrieval_bench import RunConfig, load_embedder, load_records
from retrieval_bench.cli import main, parse
from retrieval_bench.models.build import build_embedder
from retrieval_bench.seeding import derive
from tests.test_plugins import FLAGS, registry_as_before  # noqa: F401

DOCS = Path(__file__).parents[1] / "docs"
TOUR = DOCS / "tour.ipynb"
REWRITE = bool(os.environ.get("REWRITE_GOLDEN"))


def test_the_example_runs_and_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (DOCS / "own_method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.strip().splitlines()) <= 25
    (tmp_path / "stay_close.py").write_text(code)
    for command in re.findall(r"^retrieval-bench (.*?)(?: +#.*)?$", text, re.M):
        parse(command.split())
    own = "--strategy stay_close:StayClose --stay-close.radius 0.001 --lr 0.1 --results r".split()
    assert main(["run", *FLAGS, *own]) == 0
    (record,) = load_records("r")
    assert record.strategy == "stay_close(radius=0.001)"
    config: RunConfig = parse(["run", *FLAGS]).config
    torch.manual_seed(derive(0, "embedder"))
    start = build_embedder(config.model, 32)
    trained = load_embedder(record.id, results="r").embedder
    for before, after in zip(start.backbone.parameters(), trained.backbone.parameters(), strict=True):
        assert (after - before).norm() <= 0.00101 * before.norm() + 1e-7


def test_the_notebook_runs_and_shows_what_is_kept_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    space: dict[str, Any] = {}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        outputs = execute("".join(cell["source"]), space)
        if REWRITE:
            cell |= {"execution_count": number + 1, "outputs": outputs}
        assert kinds(outputs) == kinds(cell["outputs"]), f"cell {number + 1}"
    if REWRITE:
        TOUR.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def kinds(outputs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", ()))) for output in outputs]


def execute(source: str, space: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs a cell as Jupyter does; returns what it prints, its figures and the value of its last expression."""
    tree, printed, outputs = ast.parse(source), io.StringIO(), []
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, TOUR.name, "exec"), space)
        value = eval(compile(ast.Expression(last.value), TOUR.name, "eval"), space) if last else None  # pyright: ignore[reportAttributeAccessIssue]
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)})
    for number in plt.get_fignums():
        stream = io.BytesIO()
        plt.figure(number).savefig(stream, format="png", dpi=72)
        picture = {"image/png": base64.b64encode(stream.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "metadata": {}, "data": picture})
        plt.close(number)
    if value is not None:
        data = {"text/plain": repr(value).splitlines(True)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(True)
        outputs.append({"output_type": "execute_result", "metadata": {}, "execution_count": None, "data": data})
    return outputs

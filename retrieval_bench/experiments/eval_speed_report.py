"""Carries out the parts of ``eval_speed``, prints them, and keeps them as JSON and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.experiments.eval_speed import GROWTH, SIZES, approximate, compare, in_own_process, table
from retrieval_bench.files import atomic_path, write_text
from retrieval_bench.progress import logger
from retrieval_bench.records import environment


def run_all(only: str | None, rounds: int, output: Path, oml_python: str) -> None:
    """Runs all parts, or one; results of earlier parts in `output` are kept."""
    kept: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    kept["environment"] = environment("cpu")
    for name, (rows, size, classes) in SIZES.items():
        if only in (None, name):
            logger.info(f"{rows:,} x {size}, {classes:,} classes, {rounds} round(s)")
            kept[name] = {
                "rows": rows,
                "size": size,
                "classes": classes,
                "rounds": rounds,
                "competitors": compare(rows, size, classes, rounds, oml_python),
            }
            _save(kept, output)
            print(f"\n{rows:,} x {size}, {classes:,} classes, K = 1, 10, 100, 1000\n{table(kept[name]['competitors'])}")
    if only in (None, "growth"):
        kept["growth"] = [{"rows": rows, **in_own_process("--drawn", str(rows))} for rows in GROWTH]
        _save(kept, output)
        print(f"\n{draw_growth(kept['growth'], output.with_suffix('.png'))}")
    if only in (None, "million"):
        kept["million"] = approximate(1_000_000, 128, 100_000)
        _save(kept, output)
        said = ", ".join(f"{name} {value:.4g}" for name, value in kept["million"].items())
        print(f"\n1,000,000 x 128, inverted file: {said}")


def _save(kept: dict[str, Any], output: Path) -> None:
    write_text(output, json.dumps(kept, indent=1) + "\n")


def draw_growth(points: list[dict[str, Any]], path: Path) -> str:
    """Time and memory against N on logarithmic axes, with the fitted exponent of time; returns the same as a line of text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, seconds, memory = (np.array([point[key] for point in points]) for key in ("rows", "seconds", "peak_mb"))
    slope, offset = np.polyfit(np.log(rows), np.log(seconds), 1)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.loglog(rows, np.exp(offset) * rows**slope, color="0.7", label=f"N^{slope:.2f}")
    left.loglog(rows, seconds, "o", color="C0", label="measured")
    left.set(xlabel="embeddings (N x 512)", ylabel="seconds", title="Recall@K and MAP@R, self-retrieval")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.set_xticks(rows, [f"{count / 1000:g}k" for count in rows])
        axes.minorticks_off()
    right.plot(rows, memory, "o-", color="C0")
    right.set(xlabel="embeddings (N x 512)", ylabel="peak memory of the process, MB", ylim=(0, None), title="Memory")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    per_row = np.polyfit(rows, memory, 1)[0] * 1024
    return (
        f"time grows as N^{slope:.2f}; memory by {per_row:.1f} KB per row (the input itself takes 2 KB); plot in {path}"
    )

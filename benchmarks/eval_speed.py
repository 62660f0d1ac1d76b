"""How fast the evaluator is, beside its peers: each in its own process, on the same input, with as many threads.

``make bench-eval`` prints, for each size, seconds (median over rounds in which the competitors take turns), peak memory
of the process and ratios; then how the cost grows, with ``growth.png`` beside the output, an approximate index at a
million rows, and data that is not clean (:mod:`benchmarks.eval_cases`). The input is drawn: Gaussian clusters, noise
chosen so that Recall@1 is about 0.85. Run it on an idle machine. ``--only figure`` draws ``growth.png`` again from what
was measured.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.nn.functional import normalize

from benchmarks.eval_cases import compare as compare_cases
from benchmarks.eval_cases import draw
from benchmarks.timing import command_line
from retrieval_bench.device import environment
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.figures.style import STYLE, Plot, new_figure
from retrieval_bench.files import write_text

KS = (1, 10, 100, 1000)
SIZES = {"medium": (20_000, 512, 3_741), "sop": (60_502, 512, 11_316)}
GROWTH = (5_000, 10_000, 20_000, 40_000, 60_000)
Found = dict[str, Any]


def half_products(embeddings: np.ndarray, labels: np.ndarray) -> Found:
    """Nothing but the matrix products that exact self-retrieval cannot do without: one triangle."""
    rows = normalize(torch.from_numpy(embeddings))
    for top in range(0, len(rows), 1024):
        for left in range(top, len(rows), 1024):
            torch.mm(rows[top : top + 1024], rows[left : left + 1024].T)
    return {}


def faiss_flat(embeddings: np.ndarray, labels: np.ndarray) -> Found:
    """FAISS IndexFlatIP.search with k = max K + 1, and Recall@K from its lists, the query left out by index."""
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    index: Any = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return _recalls(index.search(rows, max(KS) + 1)[1], labels, with_query=True)


def similarity_matrix(embeddings: np.ndarray, labels: np.ndarray) -> Found:
    """The best 1,000 of each row of the similarity matrix by topk, the query put last: AutoLR's way, in blocks."""
    rows = normalize(torch.from_numpy(embeddings))
    depth = min(max(KS), len(rows) - 1)
    nearest = np.empty((len(rows), depth), dtype=np.int64)
    for start in range(0, len(rows), 500):
        similarity = rows[start : start + 500] @ rows.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -2.0
        nearest[start : start + 500] = similarity.topk(depth).indices.numpy()
    return _recalls(nearest, labels)


def pml(embeddings: np.ndarray, labels: np.ndarray) -> Found:
    """pytorch-metric-learning's AccuracyCalculator: R@1, R-precision and MAP@R; it has no Recall@K."""
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    found = calculator.get_accuracy(normalize(torch.from_numpy(embeddings)), torch.from_numpy(labels))
    return {"recall_at_1": float(found["precision_at_1"]), "map_at_r": float(found["mean_average_precision_at_r"])}


def _recalls(nearest: np.ndarray, labels: np.ndarray, with_query: bool = False) -> Found:
    """Recall@K from lists of neighbours, which hold the query too if `with_query`."""
    hits = (labels[nearest] == labels[:, None]) & (nearest != np.arange(len(labels))[:, None])
    return {f"recall_at_{k}": float(hits[:, : k + with_query].any(axis=1).mean()) for k in KS}


COMPETITORS: dict[str, Callable[[np.ndarray, np.ndarray], Found]] = {
    "half products (lower bound)": half_products,
    "retrieval_bench, recall": partial(evaluate, ks=KS, metrics=("recall",)),
    "retrieval_bench, recall + MAP@R": partial(evaluate, ks=KS, metrics=("recall", "map_at_r")),
    "FAISS flat, k=1001": faiss_flat,
    "similarity matrix + topk": similarity_matrix,
    "pytorch-metric-learning": pml,
}


def run_one(name: str, rows: int, size: int, classes: int) -> Found:
    """One competitor in this process: seconds, peak memory in 2^20 bytes, and its result."""
    embeddings, labels = draw(rows, size, classes)
    COMPETITORS[name](embeddings[:64], labels[:64] % 8)  # first calls
    started = time.perf_counter()
    result = COMPETITORS[name](embeddings, labels)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "result": result}


def in_own_process(name: str, *shape: int) -> Found:
    """:func:`run_one` in a new process; ``error`` with the last line of what it printed if it failed."""
    command = [sys.executable, "-m", "benchmarks.eval_speed", "--one", name, *map(str, shape)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if answer.returncode:
        return {"error": (answer.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(answer.stdout.splitlines()[-1])


def compare(shape: tuple[int, int, int], rounds: int) -> list[Found]:
    """Each competitor's median seconds, range, peak memory and result, `rounds` times in turn."""
    runs: dict[str, list[Found]] = {name: [] for name in COMPETITORS}
    for _ in range(rounds):
        for name, done in runs.items():
            done.append(in_own_process(name, *shape))
    rows = []
    for name, done in runs.items():
        if errors := [run["error"] for run in done if "error" in run]:
            rows.append({"name": name, "error": errors[0]})
            continue
        seconds = [run["seconds"] for run in done]
        times = {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        peak = max(run["peak_mb"] for run in done)
        rows.append({"name": name, **times, "peak_mb": peak, "result": done[0]["result"]})
    return rows


def table(rows: list[Found]) -> str:
    """The results beside the lower bound and beside ours."""
    frame: Any = pd.DataFrame(rows).set_index("name")
    for title, base in (("x products", 0), ("x ours", 1)):
        frame[title] = frame["seconds"] / frame["seconds"].iloc[base]
    frame["R@1"] = [row.get("result", {}).get("recall_at_1", np.nan) for row in rows]
    frame["peak_mb"] = frame["peak_mb"].round()
    return frame.drop(columns="result").rename_axis(None).to_string(float_format="{:.4g}".format, na_rep="")


def exponent_of(growth: list[Found]) -> float:
    """The power of the number of rows that time grows as, by least squares over logarithms."""
    rows, seconds = np.log([[run["rows"], run["seconds"]] for run in growth]).T
    return float(np.polyfit(rows, seconds, 1)[0])


@rc_context(STYLE)
def thousands(count: float, _: object = None) -> str:
    """The label of a tick; figures are copied before they are written, which a lambda cannot be."""
    return f"{count / 1000:g}k"


def growth_figure(growth: list[Found]) -> Plot:
    """Time and memory against the number of embeddings, the fitted power of time as a line."""
    rows, seconds, memory = np.array([[run[name] for name in ("rows", "seconds", "peak_mb")] for run in growth]).T
    exponent, figure = exponent_of(growth), new_figure(2.6)
    left, right = figure.subplots(1, 2)
    fitted = np.exp(np.log(seconds).mean()) * (rows / np.exp(np.log(rows).mean())) ** exponent
    left.loglog(rows, fitted, color="black", alpha=0.35, label=f"N^{exponent:.2f}")
    left.plot(rows, seconds, "o", label="measured")
    left.set(ylabel="seconds")
    left.legend()
    right.plot(rows, memory, "o-")
    right.set(ylabel="peak memory of the process, MB", ylim=(0, None))
    left.set_xticks(rows)
    left.yaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    for axes in (left, right):
        axes.xaxis.set_major_formatter(thousands)
        axes.set_xlabel("embeddings (N x 512)")
    summary = f"Time grows as N^{exponent:.2f} from {rows[0]:,.0f} to {rows[-1]:,.0f} embeddings."
    return Plot("Recall@K and MAP@R, self-retrieval", summary, figure)


def main(
    rounds: int = 3,
    only: Literal["medium", "sop", "growth", "million", "cases", "figure"] | None = None,
    output: Path = Path("results/local/eval_speed.json"),
) -> None:
    """Times the evaluator beside its peers, each `rounds` times; `only` one part, and the others stay in the output."""
    kept: Found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    if only == "figure":
        if "growth" not in kept:
            raise UserError(f"{output}: has no measured growth; --only growth measures it")
        growth_figure(kept["growth"]).save(output.with_name("growth.png"))
        return
    kept["environment"] = environment("cpu")
    for name in [only] if only else [*SIZES, "growth", "million", "cases"]:
        if name in SIZES:
            competitors = compare(SIZES[name], rounds)
            shape = dict(zip(("rows", "size", "classes"), SIZES[name], strict=True))
            kept[name] = {**shape, "rounds": rounds, "competitors": competitors}
            print(f"\n{shape}, K = {KS}\n{table(competitors)}")
        elif name == "cases":
            kept[name] = compare_cases()
        elif name == "growth":
            runs = [in_own_process("retrieval_bench, recall + MAP@R", rows, 512, rows // 5) for rows in GROWTH]
            kept[name] = [{"rows": rows, **run} for rows, run in zip(GROWTH, runs, strict=True)]
            growth_figure(kept[name]).save(output.with_name("growth.png"))
            per_row = np.polyfit(GROWTH, [run["peak_mb"] for run in runs], 1)[0] * 1024
            grows = f"time grows as N^{exponent_of(kept[name]):.2f}, memory by {per_row:.1f} KB per row"
            print(f"\n{grows} (the input itself takes 2 KB)")
        else:
            embeddings, labels = draw(1_000_000, 128, 100_000, noise=1.0)
            started = time.perf_counter()
            found = evaluate(embeddings, labels, ks=(1, 10), engine="ivf")
            kept[name] = {"seconds": time.perf_counter() - started, **found}
            figures = ", ".join(f"{key} {value:.4g}" for key, value in kept[name].items())
            print(f"\n1,000,000 x 128, inverted file: {figures}")
        write_text(output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(run_one(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        command_line(main)

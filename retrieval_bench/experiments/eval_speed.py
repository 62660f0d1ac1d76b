"""How fast the evaluator is, beside its peers: each in a process of its own, on the same input, with the same number of threads.

``make bench-eval`` prints, for each size, seconds (median over rounds in which the competitors take turns), peak memory of the process
and ratios; then how the cost grows, and an approximate index at a million rows. The input is drawn: Gaussian clusters, noise chosen so
that Recall@1 is about 0.85. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KS = (1, 10, 100, 1000)
SIZES = {"medium": (20_000, 512, 3_741), "sop": (60_502, 512, 11_316)}
GROWTH = (5_000, 10_000, 20_000, 40_000, 60_000)
ROUNDS = 3


def draw(rows: int, size: int, classes: int, noise: float = 2.2) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, size) around one centre per class, and int64 (rows,) labels in random order."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(rows) % classes)
    centres = random.standard_normal((classes, size), dtype=np.float32)
    return centres[labels] + noise * random.standard_normal((rows, size), dtype=np.float32), labels


def ours(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Recall@K by the blocked engine."""
    from retrieval_bench.evaluation.evaluate import evaluate

    return evaluate(embeddings, labels, ks=KS, metrics=("recall",))


def ours_map(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Recall@K and MAP@R together, by the blocked engine."""
    from retrieval_bench.evaluation.evaluate import evaluate

    return evaluate(embeddings, labels, ks=KS, metrics=("recall", "map_at_r"))


def half_products(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Nothing but the matrix products that exact self-retrieval cannot do without: one triangle."""
    import torch

    rows = torch.nn.functional.normalize(torch.from_numpy(embeddings))
    for top in range(0, len(rows), 1024):
        for left in range(top, len(rows), 1024):
            torch.mm(rows[top : top + 1024], rows[left : left + 1024].T)
    return {}


def faiss_flat(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """FAISS IndexFlatIP.search with k = max K + 1, and Recall@K from its lists, the query left out by index."""
    import faiss

    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    index: Any = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    found = index.search(rows, max(KS) + 1)[1]
    return _recalls(found, labels, itself=True)


def similarity_matrix(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Rows of the full similarity matrix, the diagonal put last, and the best 1,000 of each by topk: AutoLR's way, in blocks that fit."""
    import torch

    rows = torch.nn.functional.normalize(torch.from_numpy(embeddings))
    depth = min(max(KS), len(rows) - 1)
    found = np.empty((len(rows), depth), dtype=np.int64)
    for start in range(0, len(rows), 500):
        similarity = rows[start : start + 500] @ rows.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -2.0
        found[start : start + 500] = similarity.topk(depth).indices.numpy()
    return _recalls(found, labels)


def pml(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """pytorch-metric-learning's AccuracyCalculator with k="max_bin_count": precision_at_1, R-precision and MAP@R; it has no Recall@K."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    rows = torch.nn.functional.normalize(torch.from_numpy(embeddings))
    wanted = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))
    found = calculator.get_accuracy(rows, torch.from_numpy(labels))
    return {"recall_at_1": float(found["precision_at_1"]), "map_at_r": float(found["mean_average_precision_at_r"])}


def oml(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """open-metric-learning's batched neighbours (torch topk over query chunks, the query left out by id), and Recall@K from them."""
    import torch
    from oml.functional.knn import batched_knn_qg  # pyright: ignore[reportMissingImports]

    rows, ids = torch.nn.functional.normalize(torch.from_numpy(embeddings)), torch.arange(len(embeddings))
    found = batched_knn_qg(rows, rows, top_n=max(KS), ids_query=ids, ids_gallery=ids)[1]
    return _recalls(np.stack([row.numpy()[: len(rows) - 1] for row in found]), labels)


def _recalls(found: np.ndarray, labels: np.ndarray, itself: bool = False) -> dict[str, Any]:
    """Recall@K from lists of neighbours, which hold the query too if `itself`."""
    hits = (labels[found] == labels[:, None]) & (found != np.arange(len(labels))[:, None])
    return {f"recall_at_{k}": float(hits[:, : k + itself].any(axis=1).mean()) for k in KS}


COMPETITORS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "half products (lower bound)": half_products,
    "retrieval_bench, recall": ours,
    "retrieval_bench, recall + MAP@R": ours_map,
    "FAISS flat, k=1001": faiss_flat,
    "similarity matrix + topk": similarity_matrix,
    "pytorch-metric-learning": pml,
    "open-metric-learning": oml,
}


def approximate(rows: int, size: int, classes: int) -> dict[str, Any]:
    """An inverted file over `rows` embeddings: seconds, and what it finds."""
    from retrieval_bench.evaluation.evaluate import evaluate

    embeddings, labels = draw(rows, size, classes, noise=1.0)
    started = time.perf_counter()
    found = evaluate(embeddings, labels, ks=(1, 10), engine="ivf")
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb(), **found}


def peak_mb() -> float:
    """Largest memory of this process so far, 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(*words: str, python: str = sys.executable) -> dict[str, Any]:
    """What this module prints when it is run with `words`."""
    around = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [python, "-m", "retrieval_bench.experiments.eval_speed", *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=around)
    if answer.returncode:
        return {"error": (answer.stderr.strip().splitlines() or ["no word"])[-1]}
    return json.loads(answer.stdout.splitlines()[-1])


def compare(rows: int, size: int, classes: int, rounds: int, oml_python: str = sys.executable) -> list[dict[str, Any]]:
    """Each competitor's median seconds, range, peak memory and result, `rounds` times in turn.

    `oml_python` is the interpreter of an environment with open-metric-learning, which is no dependency of this package.
    """
    with tempfile.TemporaryDirectory() as folder:
        embeddings, labels = draw(rows, size, classes)
        np.save(Path(folder) / "embeddings.npy", embeddings)
        np.save(Path(folder) / "labels.npy", labels)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in COMPETITORS}
        for _ in range(rounds):
            for name in COMPETITORS:
                python = oml_python if name == "open-metric-learning" else sys.executable
                found[name].append(in_own_process("--competitor", name, "--folder", folder, python=python))
    return [_joined(name, runs) for name, runs in found.items()]


def _joined(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    if "error" in runs[0]:
        return {"name": name, "error": runs[0]["error"]}
    seconds = [run["seconds"] for run in runs]
    times = {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
    return {"name": name, **times, "peak_mb": max(run["peak_mb"] for run in runs), "result": runs[0]["result"]}


def table(results: list[dict[str, Any]]) -> str:
    """The results beside the lower bound and beside ours."""
    bound, mine = results[0]["seconds"], results[1]["seconds"]
    lines = [f"{'':34}{'seconds':>9}{'(fastest, slowest)':>21}{'peak MB':>9}{'x products':>12}{'x ours':>9}   R@1"]
    for row in results:
        if "error" in row:
            lines.append(f"{row['name']:34}{row['error']}")
            continue
        spread = f"({row['fastest']:.2f}, {row['slowest']:.2f})"
        first = f"{row['result']['recall_at_1']:.4f}" if row["result"] else ""
        ratios = f"{row['seconds'] / bound:>12.2f}{row['seconds'] / mine:>9.2f}"
        lines.append(f"{row['name']:34}{row['seconds']:>9.2f}{spread:>21}{row['peak_mb']:>9.0f}{ratios}   {first}")
    return "\n".join(lines)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rounds", type=int, default=ROUNDS)
    words.add_argument("--only", choices=[*SIZES, "growth", "million"], help="one part instead of all")
    words.add_argument("--output", type=Path, default=Path("results/local/eval_speed.json"))
    words.add_argument("--oml-python", default=sys.executable, help="interpreter that has open-metric-learning")
    words.add_argument("--competitor", choices=list(COMPETITORS), help=argparse.SUPPRESS)
    words.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words.add_argument("--drawn", type=int, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.competitor or given.drawn:
        print(json.dumps(_one(given)))
        return
    from retrieval_bench.experiments.eval_speed_report import run_all

    run_all(given.only, given.rounds, given.output, given.oml_python)


def _one(given: argparse.Namespace) -> dict[str, Any]:
    """Runs one competitor on the files in a folder, or ours on drawn rows."""
    if given.drawn:
        embeddings, labels = draw(given.drawn, 512, max(2, given.drawn // 5))
        competitor = "retrieval_bench, recall + MAP@R"
    else:
        embeddings, labels, competitor = (
            np.load(given.folder / "embeddings.npy"),
            np.load(given.folder / "labels.npy"),
            given.competitor,
        )
    COMPETITORS[competitor](embeddings[:64], labels[:64] % 8)  # imports and first calls
    started = time.perf_counter()
    result = COMPETITORS[competitor](embeddings, labels)
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb(), "result": result}


if __name__ == "__main__":
    main()

"""How fast the evaluator is on data that is not clean: few large classes, collapsed or identical rows, poor embeddings,
codes. Beside each case a simple way to the same metrics, or the evaluator itself on clean rows of the same shape.

``make bench-eval`` prints seconds and peak memory, each way in its own process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.timing import command_line
from retrieval_bench.evaluation.embedding_stats import embedding_stats
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.evaluation.vectors import as_vectors

RECALL, DEFAULT = ("recall",), ("recall", "mrr", "r_precision", "map_at_r")
Data = tuple[np.ndarray, np.ndarray]


def draw(rows: int, size: int, classes: int, noise: float = 2.2) -> tuple[np.ndarray, np.ndarray]:
    """float32 (rows, size) around one centre per class, and int64 (rows,) labels in random order."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(rows) % classes)
    vectors = random.standard_normal((classes, size), dtype=np.float32)[labels]
    for part in np.array_split(vectors, 100):  # little more memory than the result takes
        part += noise * random.standard_normal(part.shape, dtype=np.float32)
    return vectors, labels


def half_in_one(rows: int, size: int) -> Data:
    vectors, labels = draw(rows, size, max(2, rows // 5), noise=2.0)
    return vectors, np.where(np.arange(rows) < rows // 2, 0, labels)


def near(share: float, rows: int, size: int) -> Data:
    """Rows that are `share` of drawn ones beside a direction that all have in common."""
    vectors, labels = draw(rows, size, rows // 5)
    common = np.random.default_rng(1).standard_normal(size, dtype=np.float32)
    return common / np.linalg.norm(common) + share * vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def partly_dead(rows: int, size: int) -> Data:
    """Every second row the same, as a network with dead units gives."""
    vectors, labels = draw(rows, size, rows // 5)
    vectors[::2] = vectors[0]
    return vectors, labels


def collapsed_classes(rows: int, size: int) -> Data:
    """Ten classes, each nearly a point."""
    return draw(rows, size, 10, noise=1e-4)


def codes(bits: int, noise: float, rows: int) -> Data:
    """Binary codes of drawn rows, as -1 and 1."""
    vectors, labels = draw(rows, bits, rows // 5, noise)
    return np.where(vectors > 0, 1.0, -1.0).astype(np.float32), labels


def best_by_topk(embeddings: np.ndarray, labels: np.ndarray, depth: int = 10) -> np.ndarray:
    """The nearest items of each row of the similarity matrix, and how many are of its class."""
    rows, hits = normalize(torch.from_numpy(embeddings)), np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(rows), 500):
        similarity = rows[start : start + 500] @ rows.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -2.0
        nearest = labels[similarity.topk(min(depth, len(rows))).indices.numpy()]
        hits[start : start + 500] = (nearest == labels[start : start + 500, None]).sum(axis=1)
    return hits


def ranks_by_argsort(embeddings: np.ndarray, labels: np.ndarray, queries: int = 0) -> None:
    """Every row of the similarity matrix sorted, and the average precision of its ranks."""
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for start in range(0, queries or len(rows), 500):
        similarity = rows[start : start + 500] @ rows.T
        hits = labels[np.argsort(-similarity, axis=1)] == labels[start : start + 500, None]
        _ = (hits * hits.cumsum(axis=1) / np.arange(1, len(rows) + 1)).sum(axis=1) / hits.sum(axis=1)


def hashing(embeddings: np.ndarray, labels: np.ndarray) -> None:
    own = np.arange(min(1000, len(labels)))
    evaluate(embeddings, labels, embeddings[own], labels[own], same_item=own, metrics=("map",))


def ours(metrics: tuple[Any, ...], ks: tuple[int, ...] = (1, 10)) -> Callable[..., Any]:
    return lambda embeddings, labels: evaluate(embeddings, labels, metrics=metrics, ks=ks)


def clean(metrics: tuple[Any, ...]) -> Callable[..., Any]:
    """The evaluator on balanced classes of random rows of the same shape."""
    return lambda embeddings, labels: evaluate(
        *draw(len(embeddings), embeddings.shape[1], len(embeddings) // 5), metrics=metrics
    )


def health(embeddings: np.ndarray, labels: np.ndarray) -> None:
    embedding_stats(as_vectors({"embeddings": embeddings})[0], labels)


def singular_values(embeddings: np.ndarray, labels: np.ndarray) -> None:
    np.linalg.svd(embeddings[:2000], compute_uv=False)


@dataclass(frozen=True)
class Case:
    """Data of a number of rows, what is measured of it, and the simple way beside it."""

    rows: int
    data: Callable[[int], Data]
    ours: Callable[[np.ndarray, np.ndarray], object]
    simple: Callable[[np.ndarray, np.ndarray], object]


CASES = {
    "2 classes, 64, default": Case(20_000, lambda n: draw(n, 64, 2), ours(DEFAULT), ranks_by_argsort),
    "2 classes, 64, recall": Case(20_000, lambda n: draw(n, 64, 2), ours(RECALL), clean(RECALL)),
    "half in one class, 64, recall": Case(50_000, lambda n: half_in_one(n, 64), ours(RECALL), clean(RECALL)),
    "hashing: 1,000 queries, 10 classes, 64, mAP": Case(
        59_000, lambda n: draw(n, 64, 10), hashing, lambda x, y: ranks_by_argsort(x, y, 1000)
    ),
    **{
        f"precision@10, 64, noise {noise}": Case(
            10_000, lambda n, noise=noise: draw(n, 64, n // 5, noise), ours(("precision",), (10,)), best_by_topk
        )
        for noise in (1.0, 2.5, 9.0)
    },
    "identical rows, 512, recall": Case(10_000, lambda n: near(0.0, n, 512), ours(RECALL), clean(RECALL)),
    "half of the rows identical, 512, recall": Case(10_000, lambda n: partly_dead(n, 512), ours(RECALL), clean(RECALL)),
    **{
        f"common direction and {share:g} more, 512, recall": Case(
            rows, lambda n, share=share: near(share, n, 512), ours(RECALL), clean(RECALL)
        )
        for rows, share in ((10_000, 0.1), (10_000, 0.03), (10_000, 0.01), (20_000, 1e-4))
    },
    "ten collapsed classes, 512, default": Case(
        10_000, lambda n: collapsed_classes(n, 512), ours(DEFAULT), ranks_by_argsort
    ),
    "64-bit codes, default": Case(
        20_000, lambda n: codes(64, 4.0, n), ours(DEFAULT), lambda x, y: best_by_topk(x, y, 1000)
    ),
    "health, 4096": Case(20_000, lambda n: draw(n, 4096, n // 5), health, singular_values),
    "clean, 512, default": Case(20_000, lambda n: draw(n, 512, n // 5), ours(DEFAULT), clean(RECALL)),
}


def run_one(name: str, way: str, scale: float) -> dict[str, float]:
    """Seconds and peak memory in 2^20 bytes, in this process."""
    case = CASES[name]
    embeddings, labels = case.data(int(case.rows * scale))
    evaluate(*draw(200, 8, 20))  # first calls
    started = time.perf_counter()
    (case.ours if way == "ours" else case.simple)(embeddings, labels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - started, "peak_mb": peak}


def compare(scale: float = 1.0, only: str = "") -> dict[str, Any]:
    """Times the evaluator and the simple way on cases whose names contain `only`, with `scale` times the rows."""
    found: dict[str, Any] = {}
    print(f"\n{'':46}{'seconds':>9}{'peak MB':>9}{'simple':>9}{'x simple':>9}")
    for name in (name for name in CASES if only in name):
        found[name] = {"rows": int(CASES[name].rows * scale)}
        for way in ("ours", "simple"):
            command = [sys.executable, "-m", "benchmarks.eval_cases", "--one", name, way, str(scale)]
            answer = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1]
            )
            found[name][way] = json.loads(answer.stdout.splitlines()[-1])
        mine, simple = found[name]["ours"], found[name]["simple"]
        ratio = mine["seconds"] / simple["seconds"]
        numbers = f"{mine['seconds']:>9.2f}{mine['peak_mb']:>9.0f}{simple['seconds']:>9.2f}{ratio:>9.2f}"
        print(f"{name:46}{numbers}", flush=True)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(run_one(sys.argv[2], sys.argv[3], float(sys.argv[4]))))
    else:
        command_line(compare)

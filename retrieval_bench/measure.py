"""The test of a trained embedder: its metrics on the test images, in every way that its strategy can be used, and what routes it took."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retrieval_bench.config import RunConfig
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.splits import Split
from retrieval_bench.evaluation.evaluate import evaluate_in_detail
from retrieval_bench.models.embedder import Embedder, embed, unit
from retrieval_bench.models.route_stats import describe_routes
from retrieval_bench.models.routing import recorded_decisions
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.criterion import Criterion

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """What a test found.

    Attributes:
        metrics: figures by name.
        columns: per query of the split, from the evaluator.
        vectors: float32 (T, D), unit embeddings of the test images.
    """

    metrics: Metrics
    columns: dict[str, np.ndarray]
    vectors: np.ndarray


def measure(
    embedder: Embedder,
    criterion: Criterion | None,
    batches: Batches,
    labels: np.ndarray,
    split: Split,
    config: RunConfig,
) -> Tested:
    """The test of the embedder: the split's queries searched in its gallery, no image its own neighbour; in a closed set also ``accuracy``,
    the share of test images that the loss's classifier (or nearest proxy) puts into their class, if the loss has one.

    Args:
        embedder: what is measured.
        criterion: the loss it was trained with.
        batches: the rows ``split.test`` in order.
        labels: int64 (N,), of all rows of the table.
        split: says which rows are queries and gallery.
        config: gives K and how images are embedded.
    """
    embeddings = embed(embedder, batches, config.evaluation.flip_sum)
    vectors = unit(embeddings)
    gallery, query = (np.searchsorted(split.test, rows) for rows in (split.gallery, split.query))
    if np.array_equal(gallery, query):
        found = evaluate_in_detail(vectors[gallery], labels[split.gallery], ks=config.ks)
    else:
        found = evaluate_in_detail(
            vectors[gallery],
            labels[split.gallery],
            vectors[query],
            labels[split.query],
            same_item=np.where(np.isin(query, gallery), np.searchsorted(gallery, query), -1),
            ks=config.ks,
        )
    if config.data.split == "closed_set" and criterion is not None and criterion.classifies:
        classes = np.searchsorted(split.train_classes, labels[split.test])
        found.metrics["accuracy"] = accuracy(criterion, embeddings, classes)
    return Tested(found.metrics, found.columns, vectors)


@torch.no_grad()
def accuracy(criterion: Criterion, embeddings: np.ndarray, classes: np.ndarray) -> float:
    """Share of float (N, D) embeddings for which `criterion` gives the largest logit to their class, int64 (N,)."""
    criterion.eval()
    device = next(criterion.parameters()).device
    parts = torch.from_numpy(embeddings).split(4096)
    predicted = np.concatenate([criterion.logits(part.to(device)).argmax(1).cpu().numpy() for part in parts])
    return float((predicted == classes).mean())


def measure_routes(
    embedder: Embedder, criterion: Criterion, batches: Batches, table: ImageTable, split: Split, config: RunConfig
) -> tuple[Tested, dict[str, Any]]:
    """:func:`measure`, and the routes that the test images took (:func:`describe_routes`); nothing for a network without routes."""
    with recorded_decisions(embedder) as taken:
        test = measure(embedder, criterion, batches, table.labels, split, config)
    if not taken:
        return test, {}
    own = taken[:: 2 if config.evaluation.flip_sum else 1]  # the others are the mirrored images'
    paths = [table.paths[row] for row in split.test]
    return test, describe_routes(torch.cat(own).numpy(), table.labels[split.test], table.class_names, paths)


def measure_variants(strategy: Strategy, embedder: Embedder, *setting: Any) -> dict[str, Metrics]:
    """Metrics of every other way to use the embedder (``Strategy.eval_modes``), by its name.

    Args:
        strategy: of the run.
        embedder: the finished model.
        setting: the further arguments of :func:`measure`.

    Returns:
        Means over the draws of a way that has several, with their standard deviations as ``<metric>_sd``, and ``draws``.
    """
    found: dict[str, list[Metrics]] = {}
    for name, model in strategy.eval_modes(embedder):
        found.setdefault(name, []).append(measure(model, *setting).metrics)
    return {name: _over_draws(draws) for name, draws in found.items()}


def _over_draws(draws: list[Metrics]) -> Metrics:
    if len(draws) == 1:
        return draws[0]
    values = {
        name: [draw[name] for draw in draws] for name, value in draws[0].items() if isinstance(value, float)
    }  # not the counts
    means = {name: statistics.fmean(found) for name, found in values.items()}
    return {
        **draws[0],
        **means,
        **{f"{name}_sd": statistics.stdev(found) for name, found in values.items()},
        "draws": len(draws),
    }

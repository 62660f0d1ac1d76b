"""The one look at the test images: metrics in every evaluation mode of the strategy, routes, details, and what it all
cost."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from retrieval_bench import cost
from retrieval_bench.config import RunConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.details import Details, describe
from retrieval_bench.device import environment
from retrieval_bench.evaluation.evaluate import Evaluation, evaluate_in_detail
from retrieval_bench.losses import Criterion
from retrieval_bench.models.embedder import Embedder, embed, unit
from retrieval_bench.models.folding import foldable, folded
from retrieval_bench.models.routes import describe_routes, recorded_decisions
from retrieval_bench.records import Record
from retrieval_bench.training.loop import Training


def measure_run(
    training: Training,
    table: ImageTable,
    split: Split,
    read: partial[Batches],
    thumbnails: bool,
    elsewhere: Mapping[str, tuple[ImageTable, Split, partial[Batches]]],
) -> tuple[Record, Details]:
    """Everything that is measured of a finished training, on its own test images and `elsewhere`, on those of other
    data sets by their labels: a record that has no name yet, and what was found image by image."""
    embedder, device, image_size = training.embedder, training.device.type, training.config.data.image_size
    started, held_out = time.perf_counter(), training.validation
    batches = read(split.test, table.labels[split.test])
    with recorded_decisions(embedder) as decisions:
        evaluation, vectors = measure(embedder, training.criterion, batches, table.labels, split, training.config)
    routes = _routes(decisions, training, table, split) if decisions else {}
    others = {label: measure_other(training, *other) for label, other in elsewhere.items()}
    tested = time.perf_counter()
    modes = measure_eval_modes(training, batches, table.labels, split)
    finished = time.perf_counter()
    record = Record(
        id="",
        seed=training.config.seed,
        config_hash="",
        config={},
        labels={"dim": embedder.dim},
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data={
            "images": len(table),
            "train_images": len(split.train),
            "train_classes": len(split.train_classes),
            **(_validation_sizes(table, split) if len(split.validation) else {}),
            "test_images": len(split.test),
            "test_classes": len(np.unique(table.labels[split.test])),
            "query_images": len(split.query),
            "gallery_images": len(split.gallery),
        },
        metrics=evaluation.metrics,
        eval_modes=modes,
        elsewhere=others,
        training=training.account(),
        info={**training.strategy.info(), **({"routes": routes} if routes else {})},
        cost={
            "parameters": cost.parameters(embedder),
            "trained_parameters": sum(value.numel() for value in training.model.parameters() if value.requires_grad),
            "images_seen": training.images_seen,
            **({"prefix_passes_saved": training.prefix_saved} if training.prefix_saved else {}),
            **(
                {"validation_images": held_out.images, "validation_seconds": round(held_out.seconds, 2)}
                if held_out
                else {}
            ),
            "train_seconds": round(training.seconds, 2),
            "strategy_seconds": round(training.strategy_seconds, 3),
            "test_seconds": round(tested - started, 2),
            "total_seconds": round(finished - training.started, 2),
            "peak_memory_mb": round(cost.peak_memory_mb(device)),
            "macs": cost.macs(embedder, image_size),
            "latency_ms": round(cost.latency_ms(embedder, image_size), 3),
        },
        environment={**environment(device), **({"processes": training.group.size} if training.group.size > 1 else {})},
    )
    return record, describe(vectors, evaluation.columns, table, split, thumbnails)


def measure(
    embedder: Embedder,
    criterion: Criterion | None,
    batches: Batches,
    labels: np.ndarray,
    split: Split,
    config: RunConfig,
) -> tuple[Evaluation, np.ndarray]:
    """The split's queries searched in its gallery, no image its own neighbour; in a closed set also ``accuracy``, the
    share of test images that the loss's classifier (or nearest proxy) puts into their class, if the loss has one.

    Args:
        embedder: what is measured.
        criterion: the loss it was trained with.
        batches: the rows ``split.test`` in order.
        labels: int64 (N,), of all rows of the table.
        split: says which rows are queries and gallery.
        config: gives K and how images are embedded.

    Returns:
        Metrics and values per query, and the float32 (T, D) unit embeddings of the test images.
    """
    folds = foldable(embedder.backbone, config.data.image_size) if config.train.fused else []
    device, bf16 = next(embedder.parameters()).device.type, config.evaluation.test_precision == "bf16"
    with folded(folds), torch.autocast(device, torch.bfloat16, enabled=bf16):
        embeddings = embed(embedder, batches, config.evaluation.flip_sum)
    vectors = unit(embeddings)
    gallery, query = (np.searchsorted(split.test, rows) for rows in (split.gallery, split.query))
    if np.array_equal(gallery, query):
        evaluation = evaluate_in_detail(vectors[gallery], labels[split.gallery], ks=config.ks)
    else:
        evaluation = evaluate_in_detail(
            vectors[gallery],
            labels[split.gallery],
            vectors[query],
            labels[split.query],
            same_item=np.where(np.isin(query, gallery), np.searchsorted(gallery, query), -1),
            ks=config.ks,
        )
    if config.data.split == "closed_set" and criterion is not None and criterion.classifies:
        classes = np.searchsorted(split.train_classes, labels[split.test])
        evaluation.metrics["accuracy"] = accuracy(criterion, embeddings, classes)
    return evaluation, vectors


def measure_other(training: Training, table: ImageTable, split: Split, read: partial[Batches]) -> dict[str, Any]:
    """Metrics of the finished embedder on the test images of another data set, with the number of ``images`` and
    ``classes``. They are shown as the own ones are, but read anew at their full size."""
    config = training.config.changed(data__split="zero_shot", evaluation__k=(1,))
    labels = table.labels[split.test]
    evaluation, _ = measure(training.embedder, None, read(split.test, labels), table.labels, split, config)
    return {"images": len(labels), "classes": len(np.unique(labels)), **evaluation.metrics}


@torch.no_grad()
def accuracy(criterion: Criterion, embeddings: np.ndarray, classes: np.ndarray) -> float:
    """Share of float (N, D) embeddings for which `criterion` gives the largest logit to their class, int64 (N,)."""
    criterion.eval()
    device = next(criterion.parameters()).device
    chunks = torch.from_numpy(embeddings).split(4096)
    predicted = np.concatenate([criterion.logits(chunk.to(device)).argmax(1).cpu().numpy() for chunk in chunks])
    return float((predicted == classes).mean())


def measure_eval_modes(
    training: Training, batches: Batches, labels: np.ndarray, split: Split
) -> dict[str, dict[str, Any]]:
    """Metrics of every other way to use the embedder (``Strategy.eval_modes``), by its name.

    Returns: Means over the draws of a mode that has several, with their standard deviations as ``<metric>_sd``, and
        ``draws``.
    """
    modes: dict[str, list[dict[str, Any]]] = {}
    for name, model in training.strategy.eval_modes(training.embedder):
        evaluation, _ = measure(model, training.criterion, batches, labels, split, training.config)
        modes.setdefault(name, []).append(evaluation.metrics)
    return {name: _over_draws(draws) for name, draws in modes.items()}


def _validation_sizes(table: ImageTable, split: Split) -> dict[str, int]:
    images = split.validation
    return {"validation_images": len(images), "validation_classes": len(np.unique(table.labels[images]))}


def _over_draws(draws: list[dict[str, Any]]) -> dict[str, Any]:
    if len(draws) == 1:
        return draws[0]
    values = {name: [draw[name] for draw in draws] for name, value in draws[0].items() if isinstance(value, float)}
    means = {name: statistics.fmean(several) for name, several in values.items()}
    spread = {f"{name}_sd": statistics.stdev(several) for name, several in values.items()}
    return {**draws[0], **means, **spread, "draws": len(draws)}


def _routes(decisions: list[torch.Tensor], training: Training, table: ImageTable, split: Split) -> dict[str, Any]:
    """The routes that the test images took."""
    own = decisions[:: 2 if training.config.evaluation.flip_sum else 1]  # the others are the mirrored images'
    paths = [table.paths[row] for row in split.test]
    return describe_routes(torch.cat(own).numpy(), table.labels[split.test], table.class_names, paths)

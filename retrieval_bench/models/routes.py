"""Which blocks images took through a routed network: noted as they pass, and summed up for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import RoutedBackbone


@contextmanager
def recorded_decisions(model: Embedder) -> Iterator[list[Tensor]]:
    """Collects the decisions, bool (B, L), of every pass of `model`; nothing if it is not routed."""
    recorded: list[Tensor] = []

    def note(backbone: nn.Module, *_: object) -> None:
        if isinstance(backbone, RoutedBackbone) and backbone.decisions is not None:
            recorded.append(backbone.decisions.detach().cpu() > 0.5)

    handle = model.backbone.register_forward_hook(note)
    try:
        yield recorded
    finally:
        handle.remove()


def describe_routes(
    decisions: np.ndarray, labels: np.ndarray, class_names: Sequence[str], paths: Sequence[str], examples: int = 24
) -> dict[str, Any]:
    """Statistics of the routes of N images, as JSON types; a route is written as a digit per block, 1 for tuned.

    ``rate`` of tuned images per block; ``rate_by_class`` of the first 200 classes; ``distinct`` routes, the entropy of
    their distribution in bits, the ``commonest`` with their counts; and the routes of `examples` images with few, some
    and many tuned blocks. `decisions` are bool (N, L), `labels` int64 (N,) into `class_names`.
    """

    def rates(rows: np.ndarray) -> list[float]:
        return [round(value, 4) for value in rows.mean(0).tolist()]

    routes = ["".join(map(str, row)) for row in decisions.astype(int).tolist()]
    counts = Counter(routes)
    shares = np.array(list(counts.values())) / len(routes)
    by_tuned_blocks = np.argsort(decisions.sum(1), kind="stable")
    spread = np.linspace(0, len(routes) - 1, min(examples, len(routes))).round().astype(int)
    return {
        "images": len(routes),
        "rate": rates(decisions),
        "rate_by_class": {class_names[label]: rates(decisions[labels == label]) for label in np.unique(labels)[:200]},
        "distinct": len(counts),
        "entropy_bits": round(float(-(shares * np.log2(shares)).sum()) + 0.0, 4),
        "commonest": dict(counts.most_common(5)),
        "examples": {paths[row]: routes[row] for row in by_tuned_blocks[spread].tolist()},
    }

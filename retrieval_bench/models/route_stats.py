"""What routed images tell: how often each block is tuned, for which classes, and how many different routes there
are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

EXAMPLES = 24
CLASSES = 200


def describe_routes(
    decisions: np.ndarray, labels: np.ndarray, class_names: Sequence[str], paths: Sequence[str]
) -> dict[str, Any]:
    """Figures of the routes of N images through L blocks, as JSON types.

    Args:
        decisions: bool (N, L), True for the tuned block.
        labels: int64 (N,), into `class_names`.
        class_names: of the data set.
        paths: of the N images.

    Returns:
        ``rate`` per block; ``rate_by_class`` of the first 200 classes that occur; ``distinct`` routes, the entropy of
        their distribution in bits, the ``commonest`` with their counts; ``examples``: images with few, some and many
        tuned blocks. A route is written as a digit per block, 1 for tuned.
    """
    routes = ["".join(map(str, row)) for row in decisions.astype(int).tolist()]
    counts = Counter(routes)
    shares = np.array(list(counts.values())) / len(routes)
    order = np.argsort(decisions.sum(1), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)]
    return {
        "images": len(routes),
        "rate": _rates(decisions),
        "rate_by_class": {
            class_names[label]: _rates(decisions[labels == label]) for label in np.unique(labels)[:CLASSES]
        },
        "distinct": len(counts),
        "entropy_bits": round(float(-(shares * np.log2(shares)).sum()) + 0.0, 4),
        "commonest": dict(counts.most_common(5)),
        "examples": {paths[row]: routes[row] for row in chosen.tolist()},
    }


def _rates(decisions: np.ndarray) -> list[float]:
    return [round(value, 4) for value in decisions.mean(0).tolist()]

"""Embeddings as a map: two dimensions of them, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgb

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.embedding_stats import principal_components
from retrieval_bench.figures.style import STYLE, Plot, legend_below, new_figure
from retrieval_bench.strategies import STRATEGIES
from retrieval_bench.strategies.base import Look, Strategy

COLOURED = 12
"""Classes that have a colour."""
MANY = 3000
"""More points than this are drawn as one image inside the SVG, which would be megabytes otherwise."""


def project(embeddings: np.ndarray, method: Literal["pca", "umap"] = "pca", seed: int = 0) -> np.ndarray:
    """float32 (N, 2): two dimensions of (N, D) embeddings.

    Args:
        embeddings: finite numbers.
        method: ``pca`` (principal components) or ``umap`` (McInnes et al. 2018, cosine similarity; from the extra
            ``viz``).
        seed: of UMAP; PCA draws nothing.

    Raises:
        UserError: no numbers, NaN or infinities, too few rows for UMAP, or UMAP is not installed.
    """
    values = np.asarray(embeddings)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UserError(
            f"embeddings of shape {values.shape} and type {values.dtype}: a map needs (N, D) finite numbers"
        )
    if method == "pca":
        return principal_components(values)
    if len(values) < 4:
        raise UserError(f"{len(values)} embeddings: UMAP needs at least 4; use --method pca")
    try:
        from umap import UMAP
    except ImportError:
        raise UserError(
            "UMAP needs the package umap-learn (pip install 'retrieval_bench[viz]'); --method pca needs nothing"
        ) from None
    start = "random" if len(values) < 10 else "spectral"  # the spectral start fails for a handful of points
    neighbours = min(15, len(values) - 1)
    umap = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1, init=start)
    return np.asarray(umap.fit_transform(values.astype(np.float32)), dtype=np.float32)


@rc_context(STYLE)
def embedding_map(points: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None, title: str = "") -> Plot:
    """Points coloured by class: the twelve largest classes in the looks of strategies, the others grey.

    Args:
        points: (N, 2).
        labels: (N,) numbers or text.
        names: of the classes, in the order of the sorted labels; the labels themselves without.
        title: of the plot.
    """
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:COLOURED]
    rest = np.isin(codes, largest, invert=True)
    figure = new_figure(5)
    axes = figure.subplots()
    style = {"rasterized": len(points) > MANY, "ls": "none", "ms": 3 if len(points) > MANY else 4.5, "mew": 0}
    if rest.any():
        axes.plot(*points[rest].T, **style, marker=".", color=Strategy.look.colour, alpha=0.5, label="other classes")
    for number, look in zip(largest, distant_looks(), strict=False):
        own, name = points[codes == number].T, str(classes[number] if names is None else names[number])[:24]
        axes.plot(*own, **style, marker=look.marker, color=look.colour, alpha=0.85, label=name)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    legend_below(axes, 0.1)
    summary = (
        f"{len(points):,} embeddings of {len(classes):,} classes in two dimensions, {len(largest)} classes in colours."
    )
    return Plot(title or "Map of embeddings", summary, figure)


def distant_looks() -> list[Look]:
    """The looks of strategies, each one the farthest in colour from those before it."""
    looks = [kind.look for kind in STRATEGIES.values()]
    for place in range(1, len(looks)):
        chosen = np.array([to_rgb(look.colour) for look in looks[:place]])
        distance = [np.linalg.norm(chosen - to_rgb(look.colour), axis=1).min() for look in looks[place:]]
        looks.insert(place, looks.pop(place + int(np.argmax(distance))))
    return looks

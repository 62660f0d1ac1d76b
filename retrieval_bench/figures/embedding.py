"""Embeddings as a map: two dimensions of them, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.pca import principal_components
from retrieval_bench.figures.canvas import SMALL, WIDTH, Picture, dress, new_figure, plain
from retrieval_bench.figures.colours import LOOKS
from retrieval_bench.figures.tradeoff import columns

Method = Literal["pca", "umap"]
COLOURED = ("standard", "autolr", "spottune", "last_k", "layer_pruning", "random_policy", "weight_variation", "channel_pruning", "rollback",
            "network_slimming", "stochastic", "progressive")  # fmt: skip
"""Strategies whose looks the classes borrow: the colours that lie farthest apart first."""
MANY = 3000
"""More points than this are drawn as one image inside the SVG, which would be megabytes otherwise."""


def reduce(embeddings: np.ndarray, method: Method = "pca", seed: int = 0) -> np.ndarray:
    """float32 (N, 2): two dimensions of (N, D) embeddings.

    Args:
        embeddings: finite numbers.
        method: ``pca`` (principal components; of each, the value of the largest size is positive) or ``umap`` (McInnes et al. 2018, cosine
            similarity; from the extra ``viz``).
        seed: of UMAP; PCA draws nothing.

    Raises:
        UserError: no numbers, NaN or infinities, too few rows for UMAP, or UMAP is not installed.
    """
    values = np.asarray(embeddings)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UserError(
            f"embeddings of shape {values.shape} and type {values.dtype}: a map needs (N, D) finite numbers"
        )
    return _umap(values, seed) if method == "umap" else principal_components(values)


def _umap(values: np.ndarray, seed: int) -> np.ndarray:
    if len(values) < 4:
        raise UserError(f"{len(values)} embeddings: UMAP needs at least 4; use --method pca")
    try:
        from umap import UMAP
    except ImportError:
        raise UserError(
            "UMAP needs the package umap-learn (pip install 'retrieval_bench[viz]'); --method pca needs nothing"
        ) from None
    neighbours = min(15, len(values) - 1)
    start = "random" if len(values) < 10 else "spectral"  # the spectral start fails for a handful of points
    fit = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1, init=start)
    return np.asarray(fit.fit_transform(values.astype(np.float32)), dtype=np.float32)


def embedding_map(
    points: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None, title: str = ""
) -> Picture:
    """Points coloured by class: the twelve largest classes, the others grey.

    Args:
        points: (N, 2).
        labels: (N,) numbers or text.
        names: of the classes, in the order of the sorted labels; the labels themselves without.
        title: of the picture.
    """
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    words = [str(name) for name in (classes if names is None else names)]
    largest = np.argsort(-counts, kind="stable")[: len(COLOURED)]
    shown = [plain(words[place])[:24] for place in largest]
    rest = np.isin(codes, largest, invert=True)
    entries = [*shown, *(["other classes"] if rest.any() else [])]
    figure = new_figure((WIDTH, 5 + 0.16 * -(-len(entries) // columns(entries))))
    axes = figure.subplots()
    many = {"rasterized": len(points) > MANY, "ls": "none"}
    size = 3 if len(points) > MANY else 4.5
    if rest.any():
        axes.plot(
            *points[rest].T, marker=".", ms=size, color="#848490", alpha=0.5, mew=0, label="other classes", **many
        )
    for place, name, strategy in zip(largest, shown, COLOURED, strict=False):
        colour, marker = LOOKS[strategy]
        axes.plot(
            *points[codes == place].T, marker=marker, ms=size, color=colour, mew=0, alpha=0.85, label=name, **many
        )
    dress(axes)
    axes.set(xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(
        loc="outside lower center",
        ncols=columns(entries),
        frameon=False,
        fontsize=SMALL,
        columnspacing=1.2,
        handletextpad=0.3,
    )
    text = (
        f"{len(points):,} embeddings of {len(classes):,} classes in two dimensions, {len(largest)} classes in colours."
    )
    return Picture(title or "Map of embeddings", text, figure)

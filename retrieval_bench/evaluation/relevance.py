"""Which items are relevant to which queries where one class per image does not say it: several labels, grades, junk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.files import TABLES, read_frame
from retrieval_bench.evaluation.inputs import as_array, as_labels, label_codes

Relevance = Callable[[slice], np.ndarray]
"""float64 (n, G) of some queries: grades above 0 of relevant items, 0 of others, below 0 of junk."""
Difficulty = Literal["easy", "medium", "hard"]
LISTS: dict[Difficulty, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Lists of a query's positives and of its junk (Radenovic et al., Revisiting Oxford and Paris, CVPR 2018)."""
TRIPLE = ["query", "item", "grade"]
SEVERAL = (list, tuple, set, frozenset, np.ndarray)


def as_relevance(
    labels: Any, query_labels: Any, itself: np.ndarray, counts: tuple[int, int], judged: dict[str, Any]
) -> tuple[Relevance, np.ndarray]:
    """The relevance that arguments of :func:`retrieval_bench.evaluate` describe, and a label for each query (its number
    where there are no labels).

    Args:
        labels: of the gallery; `query_labels` those of the queries, None where both are the same rows.
        itself: int64 (Q,), the item that is the query itself, and so junk; -1 for none.
        counts: how many queries and items there are.
        judged: ``cameras``, ``query_cameras``, ``ignore`` and ``relevance``, None for what is not given.

    Raises:
        UserError: arguments that do not fit the embeddings.
    """
    base, names, ignored, cameras = None, np.arange(counts[0]), None, None
    if judged["relevance"] is not None:
        base = _grades(judged["relevance"], counts)
    if base is None or labels is not None:
        shared, names = _shared_labels(labels, query_labels, counts)
        base = base or shared
    if judged["cameras"] is not None:
        cameras = label_codes(judged["cameras"], judged["query_cameras"], counts, "cameras")[1:]
    if judged["ignore"] is not None:
        ignored = as_array(judged["ignore"], "ignore")
        if ignored.shape != counts[1:] or not np.isin(ignored, (0, 1)).all():
            raise UserError(
                f"ignore: expected 0 or 1 for each of {counts[1]} items, found {ignored.dtype} {ignored.shape}"
            )

    def relevance(part: slice) -> np.ndarray:
        grades = base(part)
        if cameras is not None:
            grades[(grades > 0) & (cameras[0][part, None] == cameras[1])] = -1
        if ignored is not None:
            grades[:, ignored.astype(bool)] = -1
        inside = itself[part] >= 0
        grades[inside, itself[part][inside]] = -1
        return grades

    return relevance, names


def has_several(labels: Any) -> bool:
    """Whether labels are several per row: a matrix of 0 and 1 (N, C > 1), or a collection for each row."""
    if getattr(labels, "ndim", 1) == 2:
        return labels.shape[1] > 1
    mixed = isinstance(labels, list | tuple | pd.Series | np.ndarray)
    rows = labels if mixed and getattr(getattr(labels, "dtype", None), "kind", "O") == "O" else ()
    return any(isinstance(row, SEVERAL) for row in rows)


def _shared_labels(labels: Any, query_labels: Any, counts: tuple[int, int]) -> tuple[Relevance, np.ndarray]:
    """The number of labels that a query and an item share, and a label for each query."""
    owners = [np.arange(count) for count in counts]
    if has_several(labels) or has_several(query_labels):
        sets = _label_sets(labels, "labels", counts[1])
        asked = sets if query_labels is None else _label_sets(query_labels, "query_labels", counts[0])
        owners = [np.repeat(np.arange(len(side)), list(map(len, side))) for side in (asked, sets)]
        flat = [[label for row in side for label in row] for side in (asked, sets)]
        _, *codes = label_codes(flat[1], flat[0], (len(flat[0]), len(flat[1])))
        names = np.array(["|".join(map(str, row)) for row in asked])
    else:
        names, *codes = label_codes(labels, query_labels, counts)
    size = 1 + max(int(side.max(initial=-1)) for side in codes)
    queries, items = (
        sparse.csr_array((np.ones(len(code)), (owner, code)), shape=(count, size))
        for code, owner, count in zip(codes, owners, counts, strict=True)
    )
    return (lambda part: (queries[part] @ items.T).toarray()), names


def _label_sets(labels: Any, name: str, count: int) -> list[list[Any]]:
    """Distinct labels of each row, ascending; the numbers of its ones for a row of a matrix."""
    if getattr(labels, "ndim", 1) == 2:
        ones = as_array(labels, name)
        if not np.isin(ones, (0, 1)).all():
            raise UserError(f"{name}: a matrix of several labels holds 0 and 1 alone; give lists of labels otherwise")
        sets = [np.flatnonzero(row).tolist() for row in ones]
    else:
        sets = [list(row) if isinstance(row, SEVERAL) else [row] for row in labels]
        as_labels([label for row in sets for label in row], name)
    if len(sets) != count:
        raise UserError(f"{name}: expected {count} rows to match its embeddings, found {len(sets)}")
    return [sorted(set(row)) for row in sets]


def _grades(grades: Any, counts: tuple[int, int]) -> Relevance:
    """The rows of a matrix of grades (Q, G), perhaps one of SciPy's sparse ones."""
    given = grades if sparse.issparse(grades) else as_array(grades, "relevance")
    if given.shape != counts or given.dtype.kind not in "biuf":
        raise UserError(
            f"relevance: expected numbers of shape {counts} (queries, items), found {given.dtype} {given.shape}"
        )
    matrix = sparse.csr_array(given, dtype=np.float64)
    if not np.isfinite(matrix.data).all():
        raise UserError("relevance: some grades are NaN or infinite")
    return lambda part: matrix[part].toarray()


def read_relevance(path: Path, difficulty: Difficulty | None, counts: tuple[int, int]) -> sparse.csr_array:
    """Grades (Q, G) from a file; pairs that it does not name have 0.

    Args:
        path: a table with the columns ``query``, ``item`` (row numbers from 0) and ``grade``; or ``.json``: for each
            query an object with lists of row numbers, ``easy``, ``hard`` and ``junk``.
        difficulty: which of the lists are positives and junk (:data:`LISTS`), for ``.json`` alone.
        counts: how many queries and items there are.

    Raises:
        UserError: another file, a row that there is not, or a pair that is there twice.
    """
    if (path.suffix.lower() == ".json") != (difficulty is not None):
        raise UserError(f"{path}: --relevant easy, medium or hard goes with lists in a .json file, and only with them")
    if path.suffix.lower() not in (".json", *TABLES):
        raise UserError(f"{path}: relevance is read from .json, {', '.join(TABLES)}")
    triples = _read_triples(path) if difficulty is None else _read_lists(path, LISTS[difficulty], counts[0])
    try:
        numbers = np.array(triples, dtype=np.float64).reshape(-1, 3)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: holds more than numbers ({first_line(error)})") from None
    for column, name, count in zip(numbers.T, TRIPLE, counts, strict=False):
        if (wrong := ~np.isin(column, np.arange(count))).any():
            raise UserError(f"{path}: {name} {column[wrong][0]:g} is no row number from 0 to {count - 1}")
    query, item = numbers[:, :2].astype(np.int64).T
    if (twice := pd.DataFrame({"query": query, "item": item}).duplicated()).any():
        row = int(twice.to_numpy().argmax())
        raise UserError(f"{path}: item {item[row]} is there twice for query {query[row]}")
    return sparse.csr_array((numbers[:, 2], (query, item)), shape=counts)


def _read_triples(path: Path) -> Any:
    frame = read_frame(path)
    if missing := [name for name in TRIPLE if name not in frame]:
        raise UserError(f"{path}: column '{missing[0]}' is missing (there are {', '.join(frame.columns)})")
    return frame[TRIPLE].to_numpy(dtype=object)


def _read_lists(path: Path, lists: tuple[tuple[str, ...], tuple[str, ...]], count: int) -> Any:
    """Triples of lists: grade 1 for positives and -1 for junk."""
    try:
        queries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a JSON file ({first_line(error)})") from None
    if not isinstance(queries, list) or not all(isinstance(query, dict) for query in queries) or len(queries) != count:
        raise UserError(f"{path}: expected a list with an object of lists for each of {count} queries")
    grades = [(name, grade) for names, grade in zip(lists, (1, -1), strict=True) for name in names]
    for number, query in enumerate(queries):
        if missing := [name for name, _ in grades if not isinstance(query.get(name), list)]:
            raise UserError(
                f"{path}: query {number} has no list '{missing[0]}' (there are {', '.join(query) or 'none'})"
            )
    return [
        (number, item, grade) for number, query in enumerate(queries) for name, grade in grades for item in query[name]
    ]

"""Which items are relevant to which queries where one class per image does not say it: several labels, grades, junk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.files import TABLES, read_frame
from retrieval_bench.evaluation.inputs import as_array, as_labels, label_codes

Difficulty = Literal["easy", "medium", "hard"]
LISTS: dict[Difficulty | None, tuple[tuple[str, ...], tuple[str, ...]]] = {
    None: (("positive",), ("junk",)),
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Lists of a query's positives and of its junk (Radenovic et al., Revisiting Oxford and Paris, CVPR 2018)."""
TRIPLE = ["query", "item", "grade"]


@dataclass(frozen=True)
class Relevance:
    """Grades of G items for Q queries, computed for some queries at a time."""

    base: Callable[[slice], np.ndarray]
    """float64 (n, G) of some queries, a new array: above 0 for relevant items, 0 for others, below 0 for junk."""
    items: int
    """G."""
    same_item: np.ndarray
    """int64 (Q,): the item that is the query itself, -1 for none."""
    cameras: tuple[np.ndarray, np.ndarray] | None = None
    """int64 (Q,) and (G,): relevant items of the query's camera are junk."""
    ignored: np.ndarray | None = None
    """bool (G,): items that are junk for every query."""

    def grades(self, part: slice) -> np.ndarray:
        """float64 (n, G) of some queries: as :attr:`base`, with all junk."""
        found = self.base(part)
        if self.cameras is not None:
            asked, cameras = self.cameras
            found[(found > 0) & (asked[part, None] == cameras)] = -1
        if self.ignored is not None:
            found[:, self.ignored] = -1
        itself = self.same_item[part]
        found[itself >= 0, itself[itself >= 0]] = -1
        return found


def as_relevance(
    labels: Any,
    query_labels: Any,
    same_item: np.ndarray,
    counts: tuple[int, int],
    cameras: Any = None,
    query_cameras: Any = None,
    ignore: Any = None,
    relevance: Any = None,
) -> tuple[Relevance, np.ndarray]:
    """The relevance that the arguments of :func:`retrieval_bench.evaluate` describe, and a label for each query (its
    number where there are no labels). `counts` is how many queries and items there are.

    Raises:
        UserError: arguments that do not fit the embeddings.
    """
    base, names = None, np.arange(counts[0])
    if relevance is not None:
        base = _base_of_grades(relevance, counts)
    if base is None or labels is not None:
        shared, names = _base_of_labels(labels, query_labels, counts)
        base = base or shared
    both = None if cameras is None else label_codes(cameras, query_cameras, counts, "cameras")[1:]
    ignored = None if ignore is None else as_ignored(ignore, counts[1])
    return Relevance(base, counts[1], same_item, both, ignored), names


def has_several(labels: Any) -> bool:
    """Whether labels are several per row: a matrix of 0 and 1 (N, C > 1), or a collection for each row."""
    if getattr(labels, "ndim", 1) == 2:
        return labels.shape[1] > 1
    mixed = isinstance(labels, list | tuple | pd.Series | np.ndarray)
    rows = labels if mixed and getattr(getattr(labels, "dtype", None), "kind", "O") == "O" else ()
    return any(isinstance(row, list | tuple | set | frozenset | np.ndarray) for row in rows)


def _base_of_labels(labels: Any, query_labels: Any, counts: tuple[int, int]) -> tuple[Any, np.ndarray]:
    """:attr:`Relevance.base` of labels, one or several per row: the number of labels that a query and an item share;
    and a label for each query. `counts` is how many queries and items there are."""
    if not has_several(labels) and not has_several(query_labels):
        asked, *codes = label_codes(labels, query_labels, counts)
        owners = [np.arange(count) for count in counts]
    else:
        sets = _label_sets(labels, "labels", counts[1])
        asked_sets = sets if query_labels is None else _label_sets(query_labels, "query_labels", counts[0])
        owners = [np.repeat(np.arange(len(side)), list(map(len, side))) for side in (asked_sets, sets)]
        flat = [[label for row in side for label in row] for side in (asked_sets, sets)]
        _, *codes = label_codes(flat[1], flat[0], (len(flat[0]), len(flat[1])))
        asked = np.array(["|".join(map(str, row)) for row in asked_sets])
    size = 1 + max(int(side.max(initial=-1)) for side in codes)
    queries, items = (
        sparse.csr_array((np.ones(len(code)), (owner, code)), shape=(count, size))
        for code, owner, count in zip(codes, owners, counts, strict=True)
    )
    return (lambda part: (queries[part] @ items.T).toarray()), asked


def _label_sets(labels: Any, name: str, count: int) -> list[list[Any]]:
    """Distinct labels of each row, ascending; the numbers of its ones for a row of a matrix."""
    if getattr(labels, "ndim", 1) == 2:
        ones = as_array(labels, name)
        if not np.isin(ones, (0, 1)).all():
            raise UserError(f"{name}: a matrix of several labels holds 0 and 1 alone; give lists of labels otherwise")
        sets = [np.flatnonzero(row).tolist() for row in ones]
    else:
        several = (list, tuple, set, frozenset, np.ndarray)
        sets = [list(row) if isinstance(row, several) else [row] for row in labels]
        as_labels([label for row in sets for label in row], name)
        sets = [sorted(set(row)) for row in sets]
    if len(sets) != count:
        raise UserError(f"{name}: expected {count} rows to match its embeddings, found {len(sets)}")
    return sets


def _base_of_grades(grades: Any, counts: tuple[int, int]) -> Any:
    """:attr:`Relevance.base` of a matrix of grades (Q, G), perhaps one of SciPy's sparse ones."""
    matrix = sparse.csr_array(grades) if sparse.issparse(grades) else as_array(grades, "relevance")
    values = matrix.data if isinstance(matrix, sparse.csr_array) else matrix
    if matrix.shape != counts or values.dtype.kind not in "biuf":
        raise UserError(
            f"relevance: expected numbers of shape {counts} (queries, items), found {values.dtype} {matrix.shape}"
        )
    if not np.isfinite(values).all():
        raise UserError("relevance: some grades are NaN or infinite")
    if isinstance(matrix, sparse.csr_array):
        return lambda part: matrix[part].toarray().astype(np.float64)
    return lambda part: matrix[part].astype(np.float64)


def as_ignored(ignore: Any, count: int) -> np.ndarray:
    """bool (G,) of truth values, or of the numbers 0 and 1."""
    flags = as_array(ignore, "ignore")
    if flags.shape != (count,) or not np.isin(flags, (0, 1)).all():
        raise UserError(f"ignore: expected 0 or 1 for each of {count} items, found {flags.dtype} {flags.shape}")
    return flags.astype(bool)


def read_relevance(path: Path, difficulty: Difficulty | None, counts: tuple[int, int]) -> sparse.csr_array:
    """Grades (Q, G) from a file; pairs that it does not name have 0.

    Args:
        path: a table with the columns ``query``, ``item`` (row numbers from 0) and ``grade`` (below 0 for junk); or
            ``.json`` with an object for each query that holds lists of row numbers: ``easy``, ``hard`` and ``junk``, or
            ``positive`` and ``junk``.
        difficulty: which lists are positives (:data:`LISTS`), for ``.json``.
        counts: how many queries and items there are.

    Raises:
        UserError: another file, a row that there is not, or a pair that is there twice.
    """
    if path.suffix.lower() == ".json":
        triples = _read_lists(path, difficulty, counts[0])
    elif path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: relevance is read from .json, {', '.join(TABLES)}")
    elif difficulty is not None:
        raise UserError(f"--relevant {difficulty}: belongs to lists in a .json file; {path} is a table of grades")
    else:
        frame = read_frame(path)
        if missing := [name for name in TRIPLE if name not in frame]:
            raise UserError(f"{path}: column '{missing[0]}' is missing (there are {', '.join(frame.columns)})")
        try:
            triples = frame[TRIPLE].to_numpy(dtype=np.float64, na_value=np.nan)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: query, item and grade are numbers ({first_line(error)})") from None
    for column, (name, count) in enumerate(zip(TRIPLE, counts, strict=False)):
        numbers = triples[:, column]
        wrong = ~((numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers)))
        if wrong.any():
            raise UserError(f"{path}: {name} {numbers[wrong][0]:g} is no row number from 0 to {count - 1}")
    pairs = triples[:, :2].astype(np.int64)
    _, first, times = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        query, item = pairs[first[times > 1][0]].tolist()
        raise UserError(f"{path}: item {item} is there twice for query {query}")
    return sparse.csr_array((triples[:, 2], (pairs[:, 0], pairs[:, 1])), shape=counts)


def _read_lists(path: Path, difficulty: Difficulty | None, count: int) -> np.ndarray:
    """float64 (n, 3): triples of the lists, 1 for positives and -1 for junk."""
    try:
        queries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a JSON file ({first_line(error)})") from None
    if not isinstance(queries, list) or not all(isinstance(query, dict) for query in queries) or len(queries) != count:
        raise UserError(f"{path}: expected a list with an object of lists for each of {count} queries")
    positive, junk = LISTS[difficulty]
    there = sorted({name for query in queries for name in query})
    if missing := [name for name in (*positive, *junk[:1]) if name not in there]:
        hint = "; choose them with --relevant easy, medium or hard" if difficulty is None and "easy" in there else ""
        raise UserError(f"{path}: no query has a list '{missing[0]}' (there are {', '.join(there)}){hint}")
    triples = [
        (number, item, grade)
        for number, query in enumerate(queries)
        for names, grade in ((positive, 1), (junk, -1))
        for item in _items(query, names)
    ]
    try:
        return np.array(triples, dtype=np.float64).reshape(-1, 3)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: lists hold row numbers ({first_line(error)})") from None


def _items(query: dict[str, Any], names: Iterable[str]) -> list[Any]:
    return [item for name in names for item in query.get(name, [])]

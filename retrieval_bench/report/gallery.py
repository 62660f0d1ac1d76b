"""Retrieval galleries from the details of runs: queries with their nearest images, worst first, and the classes that
are confused."""

from __future__ import annotations

from typing import Any

from retrieval_bench.details import Details


def gallery_of(details: Details, numbers: dict[bytes, int]) -> dict[str, Any]:
    """What a page shows of a run.

    Args:
        details: of the run.
        numbers: the pictures of the page, each with its number; those of the run are added.

    Returns:
        ``queries``: each with ``image``, ``rank`` of its best positive and ``neighbours`` (images, with ``right`` and
        ``similarity``); ``pairs``: each with ``query``, ``confused_with`` (images) and ``count``. An image is ``name``,
        ``path`` and ``thumbnail``, a number or None.
    """
    pictures = details.pictures()

    def image(row: int) -> dict[str, Any]:
        picture = pictures.get(row)
        number = numbers.setdefault(picture, len(numbers)) if picture else None
        return {
            "name": str(details.class_names[details.labels[row]]),
            "path": str(details.paths[row]),
            "thumbnail": number,
        }

    def query(row: int) -> dict[str, Any]:
        own = int(details.queries[details.neighbour_queries[row]])
        neighbours = [
            image(int(other))
            | {"right": bool(details.labels[other] == details.labels[own]), "similarity": float(similarity)}
            for other, similarity in zip(details.neighbours[row], details.similarity[row], strict=True)
            if other >= 0
        ]
        rank = int(details.first_rank[details.neighbour_queries[row]])
        return {"image": image(own), "rank": rank, "neighbours": neighbours}

    pairs = [
        {
            "query": image(int(details.queries[details.neighbour_queries[row]])),
            "confused_with": image(int(details.neighbours[row, 0])),
            "count": count,
        }
        for _, _, count, row in details.confused_classes()
    ]
    return {"queries": [query(int(row)) for row in details.gallery_queries()], "pairs": pairs}

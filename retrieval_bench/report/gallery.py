"""Retrieval galleries from the details of runs: queries with their nearest images, worst first, and the classes that are confused."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from retrieval_bench.details import Details


@dataclass
class Thumbnails:
    """Pictures that are embedded once, however many galleries show them.

    Attributes:
        names: the number of each picture, by its bytes.
        size: bytes of all of them as base64.
    """

    names: dict[bytes, int] = field(default_factory=dict)
    size: int = 0

    def add(self, picture: bytes | None) -> int | None:
        """The number of a picture; None for one that is not there."""
        if not picture:
            return None
        if picture not in self.names:
            self.names[picture] = len(self.names)
            self.size += len(picture) * 4 // 3 + 32
        return self.names[picture]

    def copy(self) -> Thumbnails:
        """The same pictures, to try what more would take."""
        return Thumbnails(dict(self.names), self.size)

    def encoded(self) -> list[str]:
        """The pictures by number, as base64."""
        return [base64.b64encode(picture).decode("ascii") for picture in self.names]


def gallery_of(details: Details, thumbnails: Thumbnails) -> dict[str, Any]:
    """What a page shows of a run.

    Returns:
        ``queries``: each with ``image``, ``rank`` of its best positive and ``neighbours`` (images, with ``right`` and ``similarity``);
        ``pairs``: each with ``query``, ``taken_for`` (images) and ``count``. An image is ``name``, ``path`` and ``thumbnail``, a number or
        None.
    """
    pictures = details.pictures()

    def image(row: int) -> dict[str, Any]:
        name = str(details.class_names[details.labels[row]])
        return {"name": name, "path": str(details.paths[row]), "thumbnail": thumbnails.add(pictures.get(row))}

    def query(place: int) -> dict[str, Any]:
        row = int(details.queries[details.listed[place]])
        near = [
            image(int(other))
            | {"right": bool(details.labels[other] == details.labels[row]), "similarity": float(similarity)}
            for other, similarity in zip(details.neighbours[place], details.similarity[place], strict=True)
            if other >= 0
        ]
        return {"image": image(row), "rank": int(details.first_rank[details.listed[place]]), "neighbours": near}

    pairs = [
        {
            "query": image(int(details.queries[details.listed[place]])),
            "taken_for": image(int(details.neighbours[place, 0])),
            "count": count,
        }
        for _, _, count, place in details.confused()
    ]
    return {"queries": [query(int(place)) for place in details.shown()], "pairs": pairs}

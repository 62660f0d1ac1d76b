"""Which blocks of the similarity matrix are computed."""

from __future__ import annotations

from collections.abc import Iterator


def tiles(rows: int, columns: int, size: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Blocks of at most `size` by `size` that cover a matrix, or its upper triangle, row after row.

    Those on the diagonal of a triangle are halved down to a quarter of `size`, since half of each is computed for nothing.
    """
    for top in range(0, rows, size):
        here = slice(top, min(top + size, rows))
        if symmetric:
            yield from _triangle(here, max(1, size // 4))
        for left in range(top + size if symmetric else 0, columns, size):
            yield here, slice(left, min(left + size, columns))


def _triangle(places: slice, smallest: int) -> Iterator[tuple[slice, slice]]:
    """The upper triangle over `places` in squares, of which those on the diagonal are at most `smallest` wide."""
    size = places.stop - places.start
    if size <= smallest:
        yield places, places
        return
    middle = places.start + smallest * -(-size // (2 * smallest))
    first, second = slice(places.start, middle), slice(middle, places.stop)
    yield from _triangle(first, smallest)
    yield first, second
    yield from _triangle(second, smallest)

"""Where the records of a CSV file begin and end: one pass over its bytes, no field is parsed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import FileContentError
from distqexp.problem.readers.bytes import ByteSource

_NEWLINE, _RETURN, _QUOTE, _COMMA = 10, 13, 34, 44


@dataclass(frozen=True)
class LineIndex:
    """``header``: byte range of the first record. ``starts``, ``ends``: int64 (n,), byte ranges of the others."""

    header: tuple[int, int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def index_lines(source: ByteSource) -> LineIndex:
    """Index the records of a CSV file; line ends and commas inside quotes don't count, empty lines are skipped.

    FileContentError for an empty file, an open quote, or records with other numbers of fields than the header.
    """
    kept_starts: list[NDArray[np.int64]] = []
    kept_ends: list[NDArray[np.int64]] = []
    at, comma_count, inside, last = 0, 0, 0, 0
    start, commas_before, width, uneven = 0, 0, 0, False

    def keep(ends: NDArray[np.int64], commas: NDArray[np.int64], returns: NDArray[np.bool_]) -> None:
        """Records that end at ``ends``, with the commas and the carriage returns up to there; empty lines aren't kept."""
        nonlocal start, commas_before, width, uneven
        if len(ends) == 0:
            return
        starts = np.concatenate([[start], ends[:-1] + 1]).astype(np.int64)
        fields = np.diff(commas, prepend=commas_before) + 1
        filled = ends - starts - returns > 0
        if filled.any():
            width = width or int(fields[filled][0])
            uneven = uneven or bool((fields[filled] != width).any())
            kept_starts.append(starts[filled])
            kept_ends.append(ends[filled])
        start, commas_before = int(ends[-1]) + 1, int(commas[-1])

    for block in source.blocks():
        values = np.frombuffer(block, dtype=np.uint8)
        parity = (np.cumsum(values == _QUOTE) + inside) & 1
        free = parity == 0
        counted = np.cumsum((values == _COMMA) & free) + comma_count
        found = np.flatnonzero((values == _NEWLINE) & free)
        before = np.where(found > 0, values[found - 1], np.uint8(last)) if len(found) else values[:0]
        keep(found + at, counted[found], before == _RETURN)
        at, comma_count, inside, last = at + len(block), int(counted[-1]), int(parity[-1]), int(values[-1])
    if inside:
        raise FileContentError(f"{source.path}: a quote is never closed; expected whole records; the file is truncated")
    keep(np.array([at]), np.array([comma_count]), np.array([last == _RETURN]))
    starts, ends = (np.concatenate(kept) if kept else np.zeros(0, np.int64) for kept in (kept_starts, kept_ends))
    if len(starts) == 0:
        raise FileContentError(f"{source.path}: empty; expected a CSV file with a header")
    if uneven:
        raise FileContentError(
            f"{source.path}: a record has not as many fields as the header, which has {width}; "
            "expected equally many in every record; the file is damaged or truncated"
        )
    return LineIndex((int(starts[0]), int(ends[0])), starts[1:], ends[1:])

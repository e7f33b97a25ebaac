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
    newlines: list[NDArray[np.int64]] = []
    commas: list[NDArray[np.int64]] = []
    returns: list[NDArray[np.bool_]] = []
    at, comma_count, inside, last = 0, 0, 0, 0
    for block in source.blocks():
        values = np.frombuffer(block, dtype=np.uint8)
        parity = (np.cumsum(values == _QUOTE) + inside) & 1
        free = parity == 0
        counted = np.cumsum((values == _COMMA) & free) + comma_count
        found = np.flatnonzero((values == _NEWLINE) & free)
        before = np.where(found > 0, values[found - 1], np.uint8(last)) if len(found) else values[:0]
        newlines.append(found + at)
        commas.append(counted[found])
        returns.append(before == _RETURN)
        at, comma_count, inside, last = at + len(block), int(counted[-1]), int(parity[-1]), int(values[-1])
    if inside:
        raise FileContentError(f"{source.path}: a quote is never closed; expected whole records; the file is truncated")
    ends = np.concatenate([*newlines, np.array([at])]).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    passed = np.concatenate([*commas, np.array([comma_count])])
    carriage = np.concatenate([*returns, np.array([last == _RETURN])])
    fields = np.diff(passed, prepend=0) + 1
    filled = ends - starts - carriage > 0
    starts, ends, fields = starts[filled], ends[filled], fields[filled]
    if len(starts) == 0:
        raise FileContentError(f"{source.path}: empty; expected a CSV file with a header")
    if np.any(fields != fields[0]):
        raise FileContentError(
            f"{source.path}: a record has not as many fields as the header, which has {int(fields[0])}; "
            "expected equally many in every record; the file is damaged or truncated"
        )
    return LineIndex((int(starts[0]), int(ends[0])), starts[1:], ends[1:])

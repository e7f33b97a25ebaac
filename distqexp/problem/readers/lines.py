"""Where the records of a CSV file begin and end: one pass over its bytes, in which no field is parsed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.errors import FileContentError
from distqexp.problem.readers.bytes import ByteSource

_NEWLINE, _RETURN, _QUOTE, _COMMA = 10, 13, 34, 44


@dataclass(frozen=True)
class LineIndex:
    """The places of a CSV file's records.

    Attributes:
        header: the byte range of the first record.
        starts: int64 (n,), where the others begin.
        ends: int64 (n,), the places behind their last bytes.
    """

    header: tuple[int, int]
    starts: IntegerArray
    ends: IntegerArray


def index_lines(source: ByteSource) -> LineIndex:
    """Index the records of a CSV file. Line ends and commas inside quotes don't count, and empty lines are skipped.

    Raises FileContentError for an empty file, an open quote, or a record with another number of fields than the header.
    """
    start_parts: list[IntegerArray] = []
    end_parts: list[IntegerArray] = []
    at, comma_count, inside, last = 0, 0, 0, 0
    start, commas_before, width, uneven = 0, 0, 0, False

    def keep(ends: IntegerArray, commas: IntegerArray, returns: BoolArray) -> None:
        """Keep the records that end at ``ends``, unless empty, with the commas and the carriage returns up to there."""
        nonlocal start, commas_before, width, uneven
        if len(ends) == 0:
            return
        starts = np.concatenate([[start], ends[:-1] + 1]).astype(np.int64)
        fields = np.diff(commas, prepend=commas_before) + 1
        nonempty = ends - starts - returns > 0
        if nonempty.any():
            width = width or int(fields[nonempty][0])
            uneven = uneven or bool((fields[nonempty] != width).any())
            start_parts.append(starts[nonempty])
            end_parts.append(ends[nonempty])
        start, commas_before = int(ends[-1]) + 1, int(commas[-1])

    for block in source.blocks():
        values = np.frombuffer(block, dtype=np.uint8)
        parity = (np.cumsum(values == _QUOTE) + inside) & 1
        free = parity == 0
        comma_counts = np.cumsum((values == _COMMA) & free) + comma_count
        line_ends = np.flatnonzero((values == _NEWLINE) & free)
        before = np.where(line_ends > 0, values[line_ends - 1], np.uint8(last)) if len(line_ends) else values[:0]
        keep(line_ends + at, comma_counts[line_ends], before == _RETURN)
        at, comma_count, inside, last = at + len(block), int(comma_counts[-1]), int(parity[-1]), int(values[-1])
    if inside:
        raise FileContentError(f"{source.path}: a quote is never closed; expected whole records; the file is truncated")
    keep(np.array([at]), np.array([comma_count]), np.array([last == _RETURN]))
    starts, ends = (np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in (start_parts, end_parts))
    if len(starts) == 0:
        raise FileContentError(f"{source.path}: empty; expected a CSV file with a header")
    if uneven:
        raise FileContentError(
            f"{source.path}: a record has not as many fields as the header, which has {width}; "
            "expected equally many in every record; the file is damaged or truncated"
        )
    return LineIndex((int(starts[0]), int(ends[0])), starts[1:], ends[1:])

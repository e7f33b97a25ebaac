"""The raw columns of public records, some at a time, for the figures of a schema."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.problem.readers import Reader
from distqexp.problem.readers.table import TableReader

_VALUES_AT_ONCE = 2**24
_ROWS_AT_ONCE = 1024


def column_blocks(reader: Reader, rows: IntegerArray) -> Iterator[tuple[int, FloatArray]]:
    """Yield the flattened raw features of all rows, some columns at a time: float64 (n, b) with n b bounded.

    With them comes the number of the first column.
    """
    width = math.prod(reader.shape)
    step = max(1, _VALUES_AT_ONCE // len(rows))
    for first in range(0, width, step):
        block = np.empty((len(rows), min(step, width - first)))
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            raw, _ = reader.read(rows[start : start + _ROWS_AT_ONCE], reader.names)
            block[start : start + len(raw)] = raw.reshape(len(raw), width)[:, first : first + block.shape[1]]
        yield first, block


def unlabelled_rows(reader: Reader, rows: IntegerArray) -> int:
    """Return how many of these public rows have no label. Features aren't parsed, where the format allows it."""
    if not isinstance(reader, TableReader):
        return 0
    parts = [reader.read(rows[start : start + _ROWS_AT_ONCE], ())[1] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    return sum(int(np.isnan(part).sum()) for part in parts)

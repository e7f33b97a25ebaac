"""Which rows of a file are records: ranges, a filter and blanks."""

from __future__ import annotations

import os

import numpy as np

from distqexp.arrays import BoolArray, IntegerArray
from distqexp.config import DataConfig
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.filters import parse_filter
from distqexp.problem.readers.base import Reader, existing_file
from distqexp.problem.readers.npy import npy_header


def select_rows(data: DataConfig, reader: Reader, keep_blank: bool = False) -> IntegerArray:
    """Return the rows of the file that are records: int64, ascending.

    Args:
        data: the source, whose ``rows`` and ``where`` select, and whose ``blank`` marks rows that are left out.
        reader: a reader of its file.
        keep_blank: whether the rows that ``blank`` marks are kept.

    Raises:
        FileContentError: a range reaches beyond the file, or the file of blanks is damaged.
        UsageError: two ranges overlap, the filter can't be parsed, or a file is missing.
    """
    keep = np.ones(reader.count, dtype=np.bool_)
    if data.rows is not None:
        keep[:] = False
        for first, last in data.rows:
            if last > reader.count:
                raise FileContentError(
                    f"data.rows: [{first}, {last}) reaches beyond the last row of "
                    f"{', '.join(str(path) for path in reader.files()) or data.format}; give rows that the file has"
                )
            if keep[first:last].any():
                raise UsageError(f"data.rows: [{first}, {last}) overlaps another range; expected disjoint ranges")
            keep[first:last] = True
    if data.where is not None:
        for comparison in parse_filter(data.where):
            keep &= comparison.mask(reader)
    if not keep_blank:
        keep &= ~read_blank(data, reader.count)
    return np.flatnonzero(keep).astype(np.int64)


def read_blank(data: DataConfig, count: int) -> BoolArray:
    """Return bool (count,): the rows of the file that ``data.blank`` marks; none where it is absent."""
    return open_blank(data, count)[0]


def open_blank(data: DataConfig, count: int) -> tuple[BoolArray, tuple[os.stat_result, ...]]:
    """Return what ``read_blank`` does, and the stat result of the file that was read, if there is one."""
    if data.blank is None:
        return np.zeros(count, dtype=np.bool_), ()
    path = existing_file(data.blank, "data.blank")
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            shape, _, dtype = npy_header(file)
            entries = np.frombuffer(file.read(count + 1), dtype=np.uint8)
    except Exception:  # noqa: BLE001 - numpy meets a damaged header with exceptions of every class
        raise FileContentError(f"{path}: not a whole .npy array; expected booleans, one a row of the file") from None
    if dtype != np.bool_ or shape != (count,) or len(entries) != count:
        raise FileContentError(f"{path}: not a vector of booleans, one a row of the data file; make it anew")
    blank: BoolArray = entries != 0
    return blank, (stat,)

"""Columns of Arrow as numbers, whatever stands in them: an entry that can't be read harms no other."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.problem.readers.entries import decode_text, legible_text, number_of

NO_ID = -1
"""Stands for an id that is missing or can't be read."""
NO_TIME = np.iinfo(np.int64).min
"""Stands for a time that is missing or can't be read."""
_LARGEST_ID = 2**31 - 1
_WHOLE = re.compile(r"\d+(\.0*)?", re.ASCII)
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]+")
_LONGEST = 40
_MICROSECONDS = 1_000_000


def whole_numbers(column: Any) -> IntegerArray:
    """Return a column of ids (whole numbers of 0 to 2^31 - 1) as int64 (n,), with NO_ID for all else."""
    import pyarrow
    import pyarrow.compute

    try:
        numbers = column.cast(pyarrow.int64())
    except (pyarrow.ArrowException, ValueError):
        numbers = pyarrow.array([_whole(value) for value in _values(column)], pyarrow.int64())
    ids: IntegerArray = pyarrow.compute.fill_null(numbers, NO_ID).to_numpy(zero_copy_only=False)
    return np.where((ids >= 0) & (ids <= _LARGEST_ID), ids, NO_ID)


def decimals(column: Any) -> FloatArray:
    """Return a column of numbers as float64 (n,): NaN where missing, and infinite where an entry is no number."""
    import pyarrow

    try:
        numbers = column.cast(pyarrow.float64(), safe=False)
    except (pyarrow.ArrowException, ValueError):
        numbers = pyarrow.array([_decimal(value) for value in _values(column)], pyarrow.float64())
    values: FloatArray = numbers.to_numpy(zero_copy_only=False)
    return values


def seconds(column: Any) -> IntegerArray:
    """Return a column of times as whole seconds since 1970, int64 (n,), with NO_TIME for what is none."""
    import pyarrow
    import pyarrow.compute

    try:
        kind = pyarrow.timestamp("us", getattr(column.type, "tz", None))
        # An hour of a clock in some zone is taken as it stands, as all of a database's are.
        micro = column.cast(kind, safe=False).cast(pyarrow.int64())
    except (pyarrow.ArrowException, ValueError):
        micro = pyarrow.array([_microseconds(value) for value in _values(column)], pyarrow.int64())
    missing = pyarrow.compute.is_null(micro).to_numpy(zero_copy_only=False)
    numbers = pyarrow.compute.fill_null(micro, 0).to_numpy(zero_copy_only=False)
    return np.where(missing, NO_TIME, numbers // _MICROSECONDS)


def texts(column: Any) -> list[str | None]:
    """Return a column of texts; None where one is missing or not in UTF-8."""
    return [None if value is None else legible_text(str(value)) for value in _values(column)]


def years(times: IntegerArray) -> FloatArray:
    """Return the year of each time, NaN where there is none."""
    numbers = np.where(times == NO_TIME, 0, times).astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64)
    return np.where(times == NO_TIME, np.nan, numbers + 1970.0)


def _values(column: Any) -> list[Any]:
    """Return a column as Python's values. Texts are decoded one by one: bytes that aren't UTF-8 harm no other."""
    import pyarrow

    plain = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if not (pyarrow.types.is_string(plain) or pyarrow.types.is_large_string(plain)):
        values: list[Any] = column.to_pylist()
        return values
    contents = column.cast(plain).cast(pyarrow.large_binary()).to_pylist()
    return [None if content is None else decode_text(content) for content in contents]


def _whole(value: Any) -> int | None:
    """Read an id as Arrow reads a text of digits, which also takes hexadecimal ones: no entry may depend on those beside it."""
    text = str(value).strip()
    if len(text) > _LONGEST:
        return None
    if _HEXADECIMAL.fullmatch(text):
        return min(int(text, 16), _LARGEST_ID + 1)
    return min(int(text.split(".")[0]), _LARGEST_ID + 1) if _WHOLE.fullmatch(text) else None


def _decimal(value: Any) -> float | None:
    if value is None:
        return None
    number = number_of(value) if isinstance(value, str) else None
    return np.inf if number is None else number


def _microseconds(value: Any) -> int | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        return math.floor(moment.replace(tzinfo=UTC).timestamp()) * _MICROSECONDS
    except (ValueError, OverflowError):
        return None

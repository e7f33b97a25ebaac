"""Which new records have no prediction, and why: for their owner alone, as private as the records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import IntegerArray
from distqexp.problem.dataset import Dataset
from distqexp.problem.faults import WORDS, Fault

_SHOWN = 5
"""So many records are named for each reason."""

_REASONS = 5
"""So many reasons are given."""

_NOT_FINITE = "no number that can be read, or one that is infinite"
_NO_OUTPUT = "the model's output is no number"


def unpredicted_words(records: Dataset, rows: IntegerArray, names: list[str | None] | None) -> str:
    """Return the first of the records without a prediction, by row from 1 or by file, with the reason, on one line.

    Args:
        records: The opened records.
        rows: The rows without a prediction, from 0.
        names: The name of each record's file, where each has its own.
    """
    groups: dict[str, list[int]] = {}
    for row, reason in zip(rows.tolist(), _reasons(records, rows), strict=True):
        groups.setdefault(reason, []).append(row)
    parts = [f"{_listed(found, names)}: {reason}" for reason, found in list(groups.items())[:_REASONS]]
    return "; ".join(parts) + _more(len(groups) - _REASONS, "reason")


def _listed(rows: list[int], names: list[str | None] | None) -> str:
    if names is None:
        shown, what = [str(row + 1) for row in rows[:_SHOWN]], "row" if len(rows) == 1 else "rows"
    else:
        shown, what = [repr(names[row] or "") for row in rows[:_SHOWN]], "file" if len(rows) == 1 else "files"
    return f"{what} {', '.join(shown)}{_more(len(rows) - _SHOWN, '')}"


def _more(count: int, what: str) -> str:
    return f" and {count} more{f' {what}' if what else ''}" if count > 0 else ""


def _reasons(records: Dataset, rows: IntegerArray) -> list[str]:
    """Return why each of these rows has no prediction; for a table the first column at fault."""
    faults, schema = records.input_faults(rows), records.schema
    if schema.image:
        return ["no picture that can be read" if fault else _NO_OUTPUT for fault in faults.tolist()]
    if schema.tokens:
        return [WORDS[Fault(fault)] if fault else _NO_OUTPUT for fault in faults.tolist()]
    raw = records.reader.read(rows, schema.names)[0]
    return [_column(values, schema.names) if fault else _NO_OUTPUT for fault, values in zip(faults, raw, strict=True)]


def _column(values: NDArray[np.generic], names: tuple[str, ...]) -> str:
    with np.errstate(all="ignore"):
        beyond = np.flatnonzero(np.isinf(np.asarray(values, dtype=np.float32).reshape(-1)))
    if values.ndim != 1 or len(values) != len(names) or not len(beyond):
        return _NOT_FINITE
    return f"column {names[beyond[0]]!r} has {_NOT_FINITE}"

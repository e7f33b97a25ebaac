"""Features and targets of an estimator, looked at before scikit-learn does: what it says of them would show entries of private records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.live.spool import is_frame


class NotANumberError(UsageError, TypeError):
    """An entry that can't be made a number, in the class that scikit-learn expects."""


def require_numbers(X: Any, least: int = 0) -> None:
    """Refuse features that are no matrix of real numbers. What scikit-learn converts (numbers as objects, say) is let through.

    Args:
        X: (n, features), in any form that scikit-learn takes.
        least: the least number of records.

    Raises:
        UsageError: with the column and the rule, never with an entry or the number of records.
    """
    if hasattr(X, "toarray"):
        return  # sparse, which scikit-learn refuses by its kind
    if is_frame(X):
        count = len(X)
        columns: Iterable[tuple[Any, Any]] = ((repr(name), X.iloc[:, place]) for place, name in enumerate(X.columns))
    else:
        array = _array(X, "X")
        if array.ndim < 2:
            raise UsageError(
                "X: Expected 2D array, a row a record. Reshape your data: X.reshape(-1, 1) for a single feature"
            )
        count = len(array)
        whole = array.dtype.kind in "biuf" or array.ndim > 2
        columns = () if whole else ((str(place), array[:, place]) for place in range(array.shape[1]))
    if count < least:
        raise UsageError(f"X: one sample or none; expected at least {least} records")
    for name, column in columns:
        _require_column(name, column)


def as_targets(y: Any, X: Any) -> NDArray[Any]:
    """Return targets as an array, (n,) or (n, 1). Raises UsageError for other shapes, or other numbers of rows."""
    targets = _array(y, "y")
    if targets.ndim != 1 and targets.shape[1:] != (1,):
        raise UsageError("y should be a 1d array, (n,); expected one target a record")
    count = X.shape[0] if hasattr(X, "shape") else len(X)
    if len(targets) != count:
        raise UsageError("X, y: different numbers of rows; expected one target a record")
    return targets


def as_numbers(y: NDArray[Any]) -> NDArray[np.float64]:
    """Return targets as float64. Raises UsageError for texts and whatever else is no real number."""
    if y.dtype.kind in "cMmV":
        raise UsageError(f"y: targets of type {y.dtype}; expected real numbers")
    try:
        return y.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UsageError("y: holds texts, or other values that are no numbers; expected real numbers") from None


def _array(value: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception:  # noqa: BLE001 - an object's own __array__ may raise anything, with entries in it
        raise UsageError(
            f"{name}: {type(value).__name__} can't be made an array; expected numbers of one shape"
        ) from None


def _require_column(name: str, column: Any) -> None:
    kind = getattr(column.dtype, "kind", "O")
    if kind == "c":
        raise UsageError(f"X: column {name} holds complex numbers. Complex data not supported; expected real numbers")
    if kind in "biuf":
        return
    try:
        np.asarray(column.to_numpy() if hasattr(column, "to_numpy") else column).astype(np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # The class is that of NumPy's error, which scikit-learn would let through with the entry in it.
        wrong = NotANumberError if isinstance(error, TypeError) else UsageError
        raise wrong(
            f"X: column {name} holds texts, or other values that are no numbers; each argument must be a string of a number, or a number"
        ) from None

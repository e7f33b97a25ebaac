"""Long arrays whose numbers fit a narrower floating-point type exactly: a public file holds them in that."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError

WIDE = "wide"
"""The attribute of a narrowed array in a file: the type that its numbers have, as numpy writes it."""

LEAST = 4096
"""Shorter arrays stay as they are."""


def narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array in the narrowest type that holds every number of it to the last bit; NaN and short arrays stay as they are."""
    if array.dtype.kind != "f" or array.size < LEAST:
        return array
    for narrow in ("<f2", "<f4"):
        if np.dtype(narrow).itemsize >= array.dtype.itemsize:
            break
        with np.errstate(over="ignore"):
            shorter = array.astype(narrow)
        if np.array_equal(shorter.astype(array.dtype), array):
            return shorter
    return array


def widened(array: npt.NDArray[Any], wide: Any) -> npt.NDArray[Any]:
    """Return the array that ``narrowed`` was given, of the type ``wide``. Raises FileContentError where that is none of its types."""
    if wide not in ("<f4", "<f8") or array.dtype.kind != "f":
        raise FileContentError(f"numbers of type {array.dtype} for {str(wide)[:20]}; damaged: copy it again")
    return array.astype(wide)

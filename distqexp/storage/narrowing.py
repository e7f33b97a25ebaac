"""Long arrays whose numbers all fit a narrower type exactly: a public file holds them in that."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError

WIDE = "wide"
"""The attribute of a narrowed array in a file: the type that its numbers have, as numpy writes it."""

_NARROWER = {"<f8": ("<f2", "<f4"), "<f4": ("<f2",), "<i8": ("<i4",)}
"""The types that a type is narrowed to, the narrowest first."""

LEAST = 4096
"""Shorter arrays stay as they are."""


def narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array in the narrowest type that holds every number of it to the last bit; NaN and short arrays stay as they are."""
    for narrow in _NARROWER.get(array.dtype.str, ()) if array.size >= LEAST else ():
        with np.errstate(over="ignore"):
            shorter = array.astype(narrow)
        if np.array_equal(shorter.astype(array.dtype), array):
            return shorter
    return array


def widened(array: npt.NDArray[Any], wide: Any) -> npt.NDArray[Any]:
    """Return the array that ``narrowed`` was given, of the type ``wide``. Raises FileContentError where that is none of its types."""
    if not isinstance(wide, str) or array.dtype.str not in _NARROWER.get(wide, ()):
        raise FileContentError(f"numbers of type {array.dtype} for {str(wide)[:20]}; damaged: copy it again")
    return array.astype(wide)

"""Lower triangular arrays, of which a public file holds what is on and below the diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.errors import FileContentError

SIDE = "lower"
"""The attribute of a packed array in a file: the side n of its triangles."""


def is_lower_triangular(array: npt.NDArray[Any]) -> bool:
    """Whether the last two axes of an array (..., n, n), n > 1, are lower triangles; a zero with a sign is no zero of those."""
    if array.ndim < 2 or array.dtype.kind != "f" or array.shape[-1] != array.shape[-2] or array.shape[-1] < 2:
        return False
    above = np.triu(array, 1)
    return not (above.any() or np.signbit(above).any())


def packed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the lower triangles of an array (..., n, n), row by row, as (..., n (n + 1) / 2)."""
    return np.concatenate([array[..., row, : row + 1] for row in range(array.shape[-1])], axis=-1)


def unpacked(array: npt.NDArray[Any], side: Any) -> npt.NDArray[Any]:
    """Return the array (..., side, side) that ``packed`` was given. Raises FileContentError where the sizes don't fit."""
    n = int(side) if isinstance(side, int | np.integer) else 0
    if n < 2 or array.ndim < 1 or array.shape[-1] != n * (n + 1) // 2:
        raise FileContentError(f"a triangle of side {str(side)[:20]} in {array.shape} numbers; damaged: copy it again")
    whole = np.zeros((*array.shape[:-1], n, n), dtype=array.dtype)
    for row in range(n):
        first = row * (row + 1) // 2
        whole[..., row, : row + 1] = array[..., first : first + row + 1]
    return whole

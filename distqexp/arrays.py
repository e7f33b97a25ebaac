"""Names of the array types that all packages use, and the blocks that long vectors of coordinates are cut into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntegerArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Arrays = Mapping[str, npt.NDArray[Any]]
"""Arrays by name, as files and messages carry them."""
NewArrays = dict[str, npt.NDArray[Any]]
"""Arrays by name to which further arrays may be added."""

BLOCK = 1 << 20
"""The coordinates of a block, a multiple of 4: public, and the same on any number of processes. The last block may be shorter."""


def blocks_of(length: int) -> list[slice]:
    """Return the places of the blocks of a vector, in order."""
    return [slice(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]

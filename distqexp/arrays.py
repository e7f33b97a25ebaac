"""Names of the array types that all packages use."""

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

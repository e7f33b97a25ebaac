"""The released point of one round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.mechanism.grid import Grid


def released_point(
    sums: NDArray[np.int64], noise: NDArray[np.int64] | NDArray[np.float64], grid: Grid
) -> NDArray[np.float64]:
    """y = -(sums + noise) * h, float64 (k,), in whitened coordinates.

    ``sums`` int64 (k,) and ``noise`` (k,), both in grid steps, are private; y is the release. Integer noise is
    added modulo 2^64: it wraps, never saturates or refuses, so that nothing but y depends on the data. Whatever
    follows the integer addition is post-processing. Raises UsageError for a wrong type or shape.
    """
    if sums.dtype != np.int64 or sums.ndim != 1:
        raise UsageError(f"sums: found {sums.dtype} of {sums.ndim} dimensions; expected int64 of one")
    if noise.shape != sums.shape or noise.dtype not in (np.int64, np.float64):
        raise UsageError(f"noise: found {noise.dtype} {noise.shape}; expected int64 or float64 {sums.shape}")
    total = (sums + noise).astype(np.float64)
    return -total * grid.step + 0.0  # + 0.0 turns -0.0 into 0.0

"""The released point of one round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.mechanism.grid import Grid


def add_noise(
    sums: NDArray[np.int64], noise: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """The noisy sums (k,), in grid steps: the release itself; whatever follows is post-processing.

    ``sums`` int64 (k,) and ``noise`` (k,), int64 or float64, are private. Integer noise is added modulo 2^64: it
    wraps, never saturates or refuses, so that nothing but the release depends on the data. Raises UsageError
    for a wrong type or shape.
    """
    if sums.dtype != np.int64 or sums.ndim != 1:
        raise UsageError(f"sums: found {sums.dtype} of {sums.ndim} dimensions; expected int64 of one")
    if noise.shape != sums.shape or noise.dtype not in (np.int64, np.float64):
        raise UsageError(f"noise: found {noise.dtype} {noise.shape}; expected int64 or float64 {sums.shape}")
    return sums + noise


def released_point(noisy_sums: NDArray[np.int64] | NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """y = -(noisy sums) * h, float64 (k,), in whitened coordinates."""
    return -noisy_sums.astype(np.float64) * grid.step + 0.0  # + 0.0 turns -0.0 into 0.0

"""Rounding to the integer grid with an exact norm check (docs/proofs/rounding.md).

After this step a unit's influence is a statement about integers: its squared norm is at most
``clip_integer`` squared, whatever floating point did before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distqexp.errors import UsageError
from distqexp.mechanism.grid import LARGEST_CLIP_INTEGER

FloatArray = npt.NDArray[np.float64]
IntegerArray = npt.NDArray[np.int64]


def round_to_grid(vectors: FloatArray, step: float, clip_integer: int) -> IntegerArray:
    """Round finite vectors to multiples of ``step`` so that each squared integer norm is <= clip_integer**2.

    vectors: (units, k) float64, private, each of norm about ``step * clip_integer`` or less. Returns int64
    (units, k). A row that rounding pushed over the bound is shrunk toward zero and checked again; a row that
    is not finite, or is still over the bound after that, becomes zero. Row i of the result depends on row i
    alone. Sensitivity (add, remove or blank one unit): exactly ``clip_integer`` in Euclidean norm.

    Raises UsageError when ``clip_integer`` is not in [1, 2**30], where its square is safe in int64.
    """
    if not 1 <= clip_integer <= LARGEST_CLIP_INTEGER:
        raise UsageError(f"grid: clip/step = {clip_integer}; expected 1 to 2^30: choose another grid step")
    with np.errstate(over="ignore"):  # a warning would tell of the data
        scaled = np.where(np.isfinite(vectors), vectors, 0.0) / step
    usable = np.isfinite(vectors).all(axis=1)
    # Entries are bounded before the cast: int64 squares wrap and a huge float casts to an arbitrary integer.
    scaled = np.clip(scaled, -float(clip_integer), float(clip_integer))
    integers = np.rint(scaled).astype(np.int64)
    within = _norm_within(integers, clip_integer)
    over = np.flatnonzero(~within)
    if over.size:
        norms = np.sqrt(np.square(scaled[over]).sum(axis=1))
        # At most 1: a row inside the bound that rounding alone pushed over it is truncated, never stretched.
        factors = np.minimum(1.0, clip_integer / norms * (1.0 - 1e-12))
        integers[over] = np.trunc(scaled[over] * factors[:, None]).astype(np.int64)
        within[over] = _norm_within(integers[over], clip_integer)
    integers[~(within & usable)] = 0
    return integers


def truncate_to_grid(vectors: FloatArray, step: float, largest: int) -> IntegerArray:
    """Toward zero to multiples of ``step``: no norm grows. Entries beyond ``largest`` steps are cut off; int64, of the same shape.

    vectors: (n, k) float64, private; a row that is not finite becomes zero. Row i of the result depends on row i alone.
    """
    usable = np.isfinite(vectors).all(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # a warning would tell of the data
        scaled = np.where(usable, vectors, 0.0) / step
    return np.trunc(np.clip(scaled, -float(largest), float(largest))).astype(np.int64)


def norms_upwards(integers: IntegerArray) -> IntegerArray:
    """Each row's Euclidean norm, rounded upwards to an integer: entries at most 2^30 in size, norms above 2^31 as 2^31."""
    squares = np.square(integers.astype(np.float64)).sum(axis=1) * (1.0 + 2.0**-50 * (integers.shape[1] + 2))
    norms: IntegerArray = np.minimum(np.ceil(np.sqrt(squares) * (1.0 + 2.0**-50)), 2.0**31).astype(np.int64)
    return norms


def round_sum(vector: FloatArray, step: float) -> IntegerArray:
    """A sum (k,), private, to the nearest multiples of ``step``, a power of two; (k,) int64.

    The plan has made sure that its magnitude is below 2^53 steps, whatever the records: clipped units are finite.
    """
    scaled = vector / step
    np.rint(scaled, out=scaled)
    if not (scaled.min(initial=0.0) > -(2.0**53) and scaled.max(initial=0.0) < 2.0**53):  # neither holds for NaN
        raise ArithmeticError("a clipped sum left the range that its clip allows")
    return scaled.astype(np.int64)


def _norm_within(integers: IntegerArray, clip_integer: int) -> npt.NDArray[np.bool_]:
    """Whether each row's squared norm is at most clip_integer**2, decided in integer arithmetic."""
    # The bound is at most 2^60; the float64 estimate rules out rows whose int64 sum could wrap.
    estimate = np.square(integers.astype(np.float64)).sum(axis=1)
    small = estimate < 2.0**61
    squares = np.where(small[:, None], integers, 0)
    exact = np.einsum("uk,uk->u", squares, squares)
    within: npt.NDArray[np.bool_] = small & (exact <= clip_integer * clip_integer)
    return within

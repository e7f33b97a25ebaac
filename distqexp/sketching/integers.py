"""Rounding to the integer grid with an exact check of norms (docs/proofs/rounding.md).

From here on a unit's influence is a statement about integers: its squared norm is at most ``clip_integer`` squared,
whatever floating point did before.
"""

from __future__ import annotations

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.mechanism.grid import LARGEST_CLIP_INTEGER

ROUNDED_AT_ONCE = 1 << 14
"""How many coordinates of a sum are rounded at a time: as many as a processor's nearest cache holds."""


def round_to_grid(vectors: FloatArray, step: float, clip_integer: int) -> IntegerArray:
    """Round vectors to multiples of ``step`` so that each squared integer norm is at most clip_integer**2. Private.

    A row that rounding pushed over the bound is shrunk toward zero and checked again. A row that is not finite, or is still
    over the bound after that, becomes zero. Row i of the result depends on row i alone. The sensitivity of their sum (add,
    remove or blank one unit) is exactly ``clip_integer`` in Euclidean norm.

    Args:
        vectors: (units, k) float64, each of norm about ``step * clip_integer`` or less.
        step: The step of the grid.
        clip_integer: The bound, in steps.

    Returns:
        The number of steps, int64 (units, k).

    Raises:
        UsageError: ``clip_integer`` is not in [1, 2**30], where its square is safe in int64.
    """
    if not 1 <= clip_integer <= LARGEST_CLIP_INTEGER:
        raise UsageError(f"grid: clip/step = {clip_integer}; expected 1 to 2^30: choose another grid step")
    usable = np.asarray(np.isfinite(vectors).all(axis=1))
    with np.errstate(all="ignore"):  # a warning would tell of the data
        quotients = vectors / step
    np.copyto(quotients, 0.0, where=~usable[:, None])
    # Entries are bounded before the cast: int64 squares wrap and a huge float casts to an arbitrary integer.
    np.clip(quotients, -float(clip_integer), float(clip_integer), out=quotients)
    whole = np.rint(quotients)
    within = _norm_within(whole, clip_integer)
    over = np.flatnonzero(~within)
    if over.size:
        norms = np.sqrt(np.square(quotients[over]).sum(axis=1))
        # At most 1: a row inside the bound that rounding alone pushed over it is truncated, never stretched.
        factors = np.minimum(1.0, clip_integer / norms * (1.0 - 1e-12))
        whole[over] = np.trunc(quotients[over] * factors[:, None])
        within[over] = _norm_within(whole[over], clip_integer)
    np.copyto(whole, 0.0, where=~within[:, None])
    return whole.astype(np.int64)


def truncate_to_grid(vectors: FloatArray, step: float, largest: int) -> IntegerArray:
    """Truncate vectors toward zero to multiples of ``step``, so that no norm grows. Private.

    Row i of the result depends on row i alone, and is zero where row i is not finite.

    Args:
        vectors: (n, k) float64.
        step: The step of the grid.
        largest: The size, in steps, at which entries are cut off.

    Returns:
        The number of steps, int64 (n, k).
    """
    usable = np.isfinite(vectors).all(axis=1, keepdims=True)
    with np.errstate(all="ignore"):  # a warning would tell of the data
        quotients = np.where(usable, vectors, 0.0) / step
    return np.trunc(np.clip(quotients, -float(largest), float(largest))).astype(np.int64)


def norms_upwards(integers: IntegerArray) -> IntegerArray:
    """Return each row's Euclidean norm, rounded upwards to an integer; norms above 2^31 count as 2^31. Private.

    Entries of ``integers``, (rows, k), must be at most 2^30 in size.
    """
    squares = np.square(integers.astype(np.float64)).sum(axis=1) * (1.0 + 2.0**-50 * (integers.shape[1] + 2))
    norms: IntegerArray = np.minimum(np.ceil(np.sqrt(squares) * (1.0 + 2.0**-50)), 2.0**31).astype(np.int64)
    return norms


def round_sum(vector: FloatArray, step: float) -> IntegerArray:
    """Round a sum (k,) to the nearest multiples of ``step``, a power of two; return their number, (k,) int64. Private.

    The result takes the memory of ``vector``, which is of no use afterwards. The plan has made sure that magnitudes are below 2^53
    steps, whatever the records, as clipped units are finite. Raises ArithmeticError where one is not.
    """
    integers = vector.view(np.int64)
    for first in range(0, len(vector), ROUNDED_AT_ONCE):
        part = slice(first, first + ROUNDED_AT_ONCE)
        quotients = np.rint(vector[part] / step)
        if not (quotients.min() > -(2.0**53) and quotients.max() < 2.0**53):  # neither holds for NaN
            raise ArithmeticError("a clipped sum left the range that its clip allows")
        integers[part] = quotients
    return integers


def _norm_within(whole: FloatArray, clip_integer: int) -> BoolArray:
    """Return which rows of whole numbers, of at most 2^53 in size, have a squared norm of at most clip_integer**2, exactly."""
    bound = clip_integer * clip_integer
    # While a sum of squares of whole numbers is below 2^53, float64 makes no error, and once it isn't it stays above.
    squares = np.einsum("uk,uk->u", whole, whole)
    within: BoolArray = squares <= bound
    if bound >= 2**53:
        # The bound is at most 2^60. The estimate rules out rows whose int64 sum could wrap.
        near = np.flatnonzero(squares < 2.0**61)
        integers = whole[near].astype(np.int64)
        within = np.zeros(len(whole), dtype=np.bool_)
        within[near] = np.einsum("uk,uk->u", integers, integers) <= bound
    return within

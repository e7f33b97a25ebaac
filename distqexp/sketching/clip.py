"""The Lipschitz clip of a unit's linear utility (docs/method.md, "One unit's utility")."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distqexp.errors import UsageError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def clip_units(vectors: FloatArray, finite: BoolArray, clip: float) -> FloatArray:
    """Scale each unit's whitened gradient to norm at most ``clip``; a non-finite unit becomes exactly zero.

    vectors: (units, k), private. finite: (units,), private; False where a record's gradient was not finite.
    Each row of the result, (units, k), is a function of that row alone. The norm is taken of the unit's sum,
    so that a unit of many records is bounded once. Floating-point rounding may leave a norm a few units in
    the last place above ``clip``: the integer check of ``round_to_grid`` has the last word.

    Raises UsageError when ``clip`` is not a finite positive number.
    """
    if not (np.isfinite(clip) and clip > 0):
        raise UsageError(f"clip: found {clip!r}; expected a finite number above 0")
    with np.errstate(over="ignore", invalid="ignore"):
        # Not einsum: beyond 8192 coordinates the order of its sums depends on the row's place in the batch.
        norms = np.sqrt(np.square(vectors).sum(axis=1))
    good = finite & np.isfinite(norms)
    # Both factors are replaced before the product: 0 x NaN would be NaN, and min(1, NaN) may be 1.
    safe_norms = np.where(good, norms, 0.0)
    factors = np.where(good, np.minimum(1.0, clip / np.maximum(safe_norms, clip)), 0.0)
    return np.where(good[:, None], vectors, 0.0) * factors[:, None]

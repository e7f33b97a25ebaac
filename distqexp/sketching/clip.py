"""The Lipschitz clip of a unit's linear utility (docs/method.md, "One unit's utility")."""

from __future__ import annotations

import numpy as np

from distqexp.arrays import BoolArray, FloatArray
from distqexp.errors import UsageError


def clip_units(vectors: FloatArray, finite: BoolArray, clip: float) -> FloatArray:
    """Scale each unit's whitened gradient to norm at most ``clip``; a non-finite unit becomes exactly zero. Private.

    The norm is that of the unit's sum, so that a unit of many records is bounded once. Floating-point rounding may leave a norm a
    few units in the last place above ``clip``: the integer check of ``round_to_grid`` has the last word.

    Args:
        vectors: The gradient of each unit, (units, k).
        finite: Which units have finite gradients throughout, (units,).
        clip: C, in whitened units.

    Returns:
        The clipped vectors, (units, k), each a function of the same row of ``vectors`` alone.

    Raises:
        UsageError: ``clip`` is not a finite positive number.
    """
    if not (np.isfinite(clip) and clip > 0):
        raise UsageError(f"clip: found {clip!r}; expected a finite number above 0")
    with np.errstate(all="ignore"):
        # Not einsum: beyond 8192 coordinates the order of its sums depends on the row's place in the batch.
        norms = np.sqrt(np.square(vectors).sum(axis=1))
    good = finite & np.isfinite(norms)
    safe_norms = np.where(good, norms, 0.0)
    factors = np.where(good, np.minimum(1.0, clip / np.maximum(safe_norms, clip)), 0.0)
    with np.errstate(all="ignore"):
        clipped = vectors * factors[:, None]
    np.copyto(clipped, 0.0, where=~good[:, None])
    return clipped

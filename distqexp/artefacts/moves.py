"""The way from a round's start to its released point, of which the guard may leave a part, and the way of a whole run."""

from __future__ import annotations

import numpy as np

from distqexp.arrays import FloatArray

HALVINGS = 9
"""A move that was halved so often is not made at all. It is one digit, so that no file tells it by its size."""


WHOLE = 8
"""The way of a whole run is kept in so many eighths; one digit, as above."""


def halved(start: FloatArray, end: FloatArray, halvings: int) -> FloatArray:
    """Return the point 2^-halvings of the way from ``start`` to ``end``, (d,) each, or ``start`` after HALVINGS halvings."""
    if halvings == 0:
        return end
    if halvings >= HALVINGS:
        return start
    with np.errstate(invalid="ignore", over="ignore"):  # a run that noise drove out of float64's range
        return np.asarray(start + (end - start) * 2.0**-halvings)


def kept_part(start: FloatArray, end: FloatArray, eighths: int) -> FloatArray:
    """Return the point ``eighths`` eighths of the way from ``start`` to ``end``, (d,) each."""
    if eighths == WHOLE:
        return end
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(start + (end - start) * (eighths / WHOLE))

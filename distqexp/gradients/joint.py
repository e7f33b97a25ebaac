"""Each unit's gradient and curvature factors, and the constant that their joint clip bounds (docs/proofs/guarantee.md)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch


def gradients_and_factors(
    gradients: UnitGradients, batches: list[Batch]
) -> tuple[FloatArray, FloatArray, IntegerArray, BoolArray]:
    """Compute the whitened gradients and curvature factors of one piece. Private.

    Returns:
        The gradients, (units, k); the factors, (rows, k); the unit of each row, (rows,); which units are finite, (units,).
    """
    vectors, finite = gradients.of_piece(iter(batches))
    factors, owners = [], []
    finite = finite.copy()
    for records, unit in batches:
        rows, rows_finite = gradients.whitened_factors(records)
        # A piece of many batches holds one unit alone.
        local = np.unique(unit, return_inverse=True)[1] if len(batches) == 1 else np.zeros(len(unit), dtype=np.int64)
        finite[local[~rows_finite]] = False
        factors.append(rows.reshape(-1, rows.shape[2]))
        owners.append(np.repeat(local, rows.shape[1]))
    return vectors, np.concatenate(factors), np.concatenate(owners).astype(np.int64), finite


def joint_sizes(gradients: UnitGradients, batches: Iterable[Batch], trust_radius: float) -> FloatArray:
    """Return the number that the joint clip compares with C, for each finite unit of one piece. For public records only."""
    with np.errstate(all="ignore"):
        vectors, rows, unit, finite = gradients_and_factors(gradients, list(batches))
        sizes = lipschitz_sizes(vectors, rows, unit, trust_radius)
    return sizes[finite & np.isfinite(sizes)]


def lipschitz_sizes(vectors: FloatArray, rows: FloatArray, unit: IntegerArray, trust_radius: float) -> FloatArray:
    """Return ||g|| + R trace(V^T V) of each unit, (units,). Entry i depends on unit i alone. Private.

    Args:
        vectors: The gradient g of each unit, (units, k).
        rows: The rows of all units' curvature factors V, (rows, k).
        unit: The unit of each row, (rows,).
        trust_radius: R.
    """
    squares = np.square(rows).sum(axis=1)
    traces = np.zeros(len(vectors))
    np.add.at(traces, unit, squares)  # one after another, in the order of the slots
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=1)) + trust_radius * traces)

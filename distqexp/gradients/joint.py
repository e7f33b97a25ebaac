"""A unit's gradient and curvature factors together, and the constant that the joint clip bounds (docs/proofs/guarantee.md)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.batching import Batch


def gradients_and_factors(
    gradients: UnitGradients, batches: list[Batch]
) -> tuple[FloatArray, FloatArray, IntegerArray, BoolArray]:
    """Of one piece, whitened: gradients (units, k), factors (rows, k), the unit of each row, which units are finite. Private."""
    vectors, finite = gradients.of_piece(iter(batches))
    found, owners = [], []
    finite = finite.copy()
    for records, unit in batches:
        rows, whole = gradients.whitened_factors(records)
        # A piece of many batches holds one unit alone.
        local = np.unique(unit, return_inverse=True)[1] if len(batches) == 1 else np.zeros(len(unit), dtype=np.int64)
        finite[local[~whole]] = False
        found.append(rows.reshape(-1, rows.shape[2]))
        owners.append(np.repeat(local, rows.shape[1]))
    return vectors, np.concatenate(found), np.concatenate(owners).astype(np.int64), finite


def joint_sizes(gradients: UnitGradients, batches: Iterable[Batch], radius: float) -> FloatArray:
    """What the joint clip compares with C, of the finite units of one piece. For public records."""
    with np.errstate(over="ignore", invalid="ignore"):
        vectors, rows, unit, finite = gradients_and_factors(gradients, list(batches))
        sizes = lipschitz_sizes(vectors, rows, unit, radius)
    return sizes[finite & np.isfinite(sizes)]


def lipschitz_sizes(vectors: FloatArray, rows: FloatArray, unit: IntegerArray, radius: float) -> FloatArray:
    """||g|| + R trace(V^T V) of each unit, (units,). Row i depends on unit i alone. Private."""
    squares = np.square(rows).sum(axis=1)
    traces = np.zeros(len(vectors))
    np.add.at(traces, unit, squares)  # one after another, in the order of the slots
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=1)) + radius * traces)

"""Public geometry: the subspaces (P) that are searched and the precisions (A) that shape the search."""

from __future__ import annotations

from distqexp.geometry.precisions import (
    Precision,
    curvature_size,
    curvature_sum,
    make_precision,
    precision_from_arrays,
)
from distqexp.geometry.subspaces import Subspace, make_subspace

__all__ = [
    "Precision",
    "Subspace",
    "curvature_size",
    "curvature_sum",
    "make_precision",
    "make_subspace",
    "precision_from_arrays",
]

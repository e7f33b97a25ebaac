"""Public geometry: the subspaces (P) that are searched and the precisions (A) that shape the search."""

from __future__ import annotations

from distqexp.geometry.precisions import (
    Precision,
    curvature_size,
    curvature_sum,
    make_kronecker_precision,
    make_precision,
    precision_from_arrays,
)
from distqexp.geometry.subspaces import KroneckerSubspace, Subspace, make_subspace
from distqexp.geometry.whitening import BlockWhitening, combined_whitening

__all__ = [
    "BlockWhitening",
    "KroneckerSubspace",
    "Precision",
    "Subspace",
    "combined_whitening",
    "curvature_size",
    "curvature_sum",
    "make_kronecker_precision",
    "make_precision",
    "make_subspace",
    "precision_from_arrays",
]

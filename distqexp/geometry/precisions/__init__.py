"""The public precisions, by kind: what they are made from, and how they are rebuilt from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.dense import DenseKind, DensePrecision
from distqexp.geometry.precisions.diagonal import DiagonalKind, DiagonalPrecision
from distqexp.geometry.precisions.identity import IdentityKind, IdentityPrecision
from distqexp.geometry.precisions.kind import PrecisionKind, precision_kind, register_precision
from distqexp.geometry.precisions.kronecker import KroneckerKind, KroneckerPrecision, make_kronecker_precision

__all__ = [
    "DensePrecision",
    "DiagonalPrecision",
    "IdentityPrecision",
    "KroneckerPrecision",
    "Precision",
    "PrecisionKind",
    "curvature_sum",
    "make_kronecker_precision",
    "make_precision",
    "precision_from_arrays",
    "precision_kind",
    "register_precision",
    "rescaled_arrays",
]

for _kind in (IdentityKind(), DiagonalKind(), DenseKind(), KroneckerKind()):
    register_precision(_kind)


def curvature_sum(kind: str, factors: torch.Tensor) -> np.ndarray:
    """Sum over public examples of V^T V (dense, float64 (k, k)) or of its diagonal (diagonal, float64 (k,)).

    ``factors`` is float64 (B, r, k): example b's curvature in the subspace is V_b^T V_b, so a masked example of zeros
    adds nothing. Identity needs no curvature: float64 (0,).
    """
    return precision_kind(kind).curvature_sum(factors)


def make_precision(
    kind: str, k: int, public: Any, n_public_units: int, n_bar: float, step: float, damping: float
) -> Precision:
    """The precision A = (n_bar / step) (H + damping * mean eigenvalue(H) * I), H = public / n_public_units.

    ``public``: what the kind needs, summed over public units: (k, k) or flat for dense, (k,) for diagonal, the second moments of
    every block for kronecker; None for identity, where A = (n_bar / step) I. Raises UsageError when a scale is not positive, the
    sum has another size or is not finite, or A is not positive definite (raise precision.damping).
    """
    for name, value in (("privacy.units", n_bar), ("mechanism.step", step)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"precision {kind}: {name} = {value}; expected a finite number above 0")
    if not (math.isfinite(damping) and damping >= 0):
        raise UsageError(f"precision {kind}: precision.damping = {damping}; expected a finite number, 0 or more")
    return precision_kind(kind).make(k, public, n_public_units, n_bar, step, damping)


def precision_from_arrays(kind: str, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
    """The precision that ``to_arrays`` wrote, bit for bit.

    Raises FileContentError when an array is absent, of another shape or type, not finite, or no inverse factor.
    """
    return precision_kind(kind).restore(k, arrays)


def rescaled_arrays(kind: str, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """The arrays of A / ratio: those of a precision kept from a round whose step was smaller by ``ratio``.

    The same arrays, bit for bit, at ratio 1. Raises UsageError unless the ratio is finite and positive.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise UsageError(f"precision: rescaled by {ratio}; expected a finite number above 0")
    return precision_kind(kind).rescaled(arrays, ratio)

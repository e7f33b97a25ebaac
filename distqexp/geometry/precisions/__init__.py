"""The public precisions by kind: how they are made from public records, and how they are rebuilt from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.precisions.dense import DenseKind, DensePrecision
from distqexp.geometry.precisions.diagonal import DiagonalKind, DiagonalPrecision
from distqexp.geometry.precisions.identity import IdentityKind, IdentityPrecision
from distqexp.geometry.precisions.joint import (
    UNITS_A_DIRECTION,
    JointKind,
    JointPrecision,
    blocks_only,
    joint,
    leading_curvature,
)
from distqexp.geometry.precisions.kind import PrecisionKind, precision_kind, register_precision
from distqexp.geometry.precisions.kronecker import KroneckerKind, KroneckerPrecision, make_kronecker_precision

__all__ = [
    "UNITS_A_DIRECTION",
    "Damping",
    "DensePrecision",
    "DiagonalPrecision",
    "IdentityPrecision",
    "JointPrecision",
    "KroneckerPrecision",
    "Precision",
    "PrecisionKind",
    "blocks_only",
    "curvature_sum",
    "joint",
    "leading_curvature",
    "make_kronecker_precision",
    "make_precision",
    "precision_from_arrays",
    "precision_kind",
    "register_precision",
    "rescaled_arrays",
]

for _kind in (IdentityKind(), DiagonalKind(), DenseKind(), KroneckerKind(), JointKind()):
    register_precision(_kind)


def curvature_sum(kind: str, factors: torch.Tensor) -> np.ndarray:
    """Return what a kind keeps of the curvature V^T V in the subspace, summed over public records, in float64.

    The dense kind keeps the matrix (k, k), the diagonal one its diagonal (k,), and identity nothing, (0,).

    Args:
        kind: The name of the kind.
        factors: The factors V, float64 (B, r, k): V_b^T V_b is the curvature of record b, so that a record masked by zeros
            adds nothing.
    """
    return precision_kind(kind).curvature_sum(factors)


def make_precision(
    kind: str, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping
) -> Precision:
    """Return the precision A = (units / step) (H + damping.share * size of H's spectrum * I), H = public / public_units.

    Args:
        kind: The name of the kind.
        k: The dimension of the subspace.
        public: What the kind needs, summed over public units: (k, k) or flat for dense, (k,) for diagonal, the second
            moments of every block for kronecker and kronecker-joint; None for identity, where A = (units / step) I.
        public_units: The number of public units in the sum.
        units: The nominal number of private units of a round, from the config.
        step: The step of the round.
        damping: What is added to the curvature, and relative to what.

    Raises:
        UsageError: A scale is not positive, the sum has another size or is not finite, or A is not positive definite
            (raise precision.damping).
    """
    for name, value in (("privacy.units", units), ("mechanism.step", step)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"precision {kind}: {name} = {value}; expected a finite number above 0")
    damping.check(kind)
    return precision_kind(kind).make(k, public, public_units, units, step, damping)


def precision_from_arrays(kind: str, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
    """Rebuild the precision that ``Precision.to_arrays`` described, bit for bit.

    Args:
        kind: The name of the kind.
        k: The dimension of the subspace.
        arrays: The arrays by name, as in the file.

    Raises:
        FileContentError: An array is missing, has another shape or type, is not finite, or is no inverse factor.
    """
    return precision_kind(kind).restore(k, arrays)


def rescaled_arrays(kind: str, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """Return the arrays of A / ratio, for a precision that is kept in a later round with a longer step.

    Args:
        kind: The name of the kind.
        arrays: The arrays of the precision A.
        ratio: The later step divided by the step that A was made with. A ratio of 1 gives the same arrays, bit for bit.

    Raises:
        UsageError: The ratio is not finite and positive.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise UsageError(f"precision: rescaled by {ratio}; expected a finite number above 0")
    return precision_kind(kind).rescale(arrays, ratio)

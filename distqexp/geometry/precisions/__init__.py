"""The public precisions, by kind: what they are made from, and how they are rebuilt from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.dense import LARGEST_DENSE, DensePrecision
from distqexp.geometry.precisions.diagonal import DiagonalPrecision
from distqexp.geometry.precisions.identity import IdentityPrecision
from distqexp.geometry.precisions.kronecker import KroneckerPrecision, kronecker_from_arrays, make_kronecker_precision

__all__ = [
    "DensePrecision",
    "DiagonalPrecision",
    "IdentityPrecision",
    "KroneckerPrecision",
    "Precision",
    "curvature_size",
    "curvature_sum",
    "make_kronecker_precision",
    "make_precision",
    "precision_from_arrays",
    "rescaled_arrays",
]

_KINDS: dict[str, type[Precision]] = {
    "identity": IdentityPrecision,
    "diagonal": DiagonalPrecision,
    "dense": DensePrecision,
}


def curvature_size(kind: str, k: int) -> int:
    """How many float64 numbers a curvature sum has: 0 for identity, k for diagonal, k^2 for dense (public).

    Raises UsageError for an unknown kind, and for dense above k = 8192.
    """
    return math.prod(_curvature_shape(kind, k)) if kind != "identity" else 0


def curvature_sum(kind: str, factors: torch.Tensor) -> np.ndarray:
    """Sum over public examples of V^T V (dense, float64 (k, k)) or of its diagonal (diagonal, float64 (k,)).

    ``factors`` is float64 (B, r, k): example b's curvature in the subspace is V_b^T V_b, so a masked example of zeros
    adds nothing. Identity needs no curvature: float64 (0,).
    """
    if factors.ndim != 3 or factors.dtype != torch.float64:
        raise UsageError(
            f"curvature: factors of shape {tuple(factors.shape)} of {factors.dtype}; expected float64 (B, r, k)"
        )
    _curvature_shape(kind, factors.shape[2])
    rows = factors.detach().reshape(-1, factors.shape[2])
    if kind == "identity":
        return np.zeros(0)
    total = rows.T @ rows if kind == "dense" else (rows * rows).sum(dim=0)
    summed: np.ndarray = total.cpu().numpy()
    return summed


def make_precision(
    kind: str,
    k: int,
    curvature_sum: np.ndarray | None,
    n_public_units: int,
    n_bar: float,
    step: float,
    damping: float,
) -> Precision:
    """The precision A = (n_bar / step) (H + damping * mean eigenvalue(H) * I), H = curvature_sum / n_public_units.

    ``curvature_sum``: float64, the sum over public units, (k, k) or flat for dense, (k,) for diagonal; None (or
    unused) for identity, where A = (n_bar / step) I. Raises UsageError when a scale is not positive, the sum has
    another size or is not finite, or A is not positive definite (raise precision.damping).
    """
    for name, value in (("privacy.units", n_bar), ("mechanism.step", step)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"precision {kind}: {name} = {value}; expected a finite number above 0")
    if not (math.isfinite(damping) and damping >= 0):
        raise UsageError(f"precision {kind}: precision.damping = {damping}; expected a finite number, 0 or more")
    shape = _curvature_shape(kind, k)
    if kind == "identity":
        return IdentityPrecision.from_scale(k, n_bar / step)
    if curvature_sum is None or n_public_units < 1:
        found = "no curvature" if curvature_sum is None else f"{n_public_units} public units"
        raise UsageError(f"precision {kind}: {found}; expected at least one public unit, or kind = identity")
    total = np.asarray(curvature_sum, dtype=np.float64)
    if total.size != math.prod(shape):
        raise UsageError(f"precision {kind}: curvature of shape {total.shape}; expected {shape}")
    if not np.isfinite(total).all():
        raise UsageError(f"precision {kind}: the public curvature has entries that are not finite; check data.public")
    mean = total.reshape(shape) / n_public_units
    make = DensePrecision.from_curvature if kind == "dense" else DiagonalPrecision.from_curvature
    return make(k, mean, n_bar / step, damping)


def precision_from_arrays(kind: str, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
    """The precision that ``to_arrays`` wrote, bit for bit.

    Raises FileContentError when an array is absent, of another shape or type, not finite, or no inverse factor.
    """
    if kind == "kronecker":
        return kronecker_from_arrays(k, arrays)
    shape = _curvature_shape(kind, k)
    if set(arrays) != {"inverse_factor"}:
        raise FileContentError(
            f"precision {kind}: arrays {sorted(arrays)}; expected inverse_factor; get the file again"
        )
    array = np.asarray(arrays["inverse_factor"])
    if array.shape != shape or array.dtype != np.float64:
        raise FileContentError(
            f"precision {kind}: inverse_factor of shape {array.shape} of {array.dtype}; expected {shape} of float64"
        )
    diagonal = np.diagonal(array) if kind == "dense" else array
    good = np.isfinite(array).all() and (diagonal > 0).all() and (kind != "dense" or not np.triu(array, 1).any())
    if not good:
        raise FileContentError(
            f"precision {kind}: inverse_factor is not a finite lower triangle of positive diagonal; get the file again"
        )
    return _KINDS[kind](k, {"inverse_factor": array})


def rescaled_arrays(arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
    """The arrays of A / ratio: those of a precision kept from a round whose step was smaller by ``ratio``.

    The same arrays, bit for bit, at ratio 1. A column factor of kronecker carries no scale. Raises UsageError unless
    the ratio is finite and positive.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise UsageError(f"precision: rescaled by {ratio}; expected a finite number above 0")
    root = math.sqrt(ratio)
    return {name: array if name.startswith("column/") else array * root for name, array in arrays.items()}


def _curvature_shape(kind: str, k: int) -> tuple[int, ...]:
    if kind not in _KINDS:
        raise UsageError(f"precision: unknown kind {kind!r}; expected identity, diagonal or dense")
    if kind == "dense" and k > LARGEST_DENSE:
        raise UsageError(f"precision dense: k = {k}; expected at most {LARGEST_DENSE}; choose diagonal, or lower k")
    return {"identity": (1,), "diagonal": (k,), "dense": (k, k)}[kind]

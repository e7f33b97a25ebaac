"""The dense precision: it keeps the whole curvature matrix in the subspace."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.precisions.flat import FlatPrecisionKind
from distqexp.kinds import PRECISIONS

LARGEST_DENSE = 8192
"""The largest k for which a matrix (k, k) is kept."""


class DensePrecision(Precision):
    """A = L L^T with L lower triangular, so that whitening is one matrix product with the precomputed L^{-1}."""

    kind = "dense"

    @classmethod
    def from_curvature(cls, k: int, curvature: np.ndarray, scale: float, damping: Damping) -> DensePrecision:
        """Make A = scale (H + damping.share * size of H's spectrum * I).

        Args:
            k: The dimension of the subspace.
            curvature: H, float64 (k, k), which is symmetrised.
            scale: The factor in front, above 0.
            damping: What is added to the curvature.

        Raises:
            UsageError: A is not positive definite.
        """
        precision = (curvature + curvature.T) * (scale / 2)
        precision[np.diag_indices(k)] += scale * damping.share * damping.size(curvature)
        advice = "raise precision.damping, or choose kind = identity"
        try:
            factor = cholesky(precision, lower=True, overwrite_a=True)
            inverse = np.tril(solve_triangular(factor, np.eye(k), lower=True, overwrite_b=True))
        except (LinAlgError, ValueError) as error:
            raise UsageError(
                f"precision dense: the damped public curvature is not positive definite at damping {damping.share}; {advice}"
            ) from error
        if not np.isfinite(inverse).all():
            raise UsageError(f"precision dense: the inverse factor overflows at damping {damping.share}; {advice}")
        return cls(k, {"inverse_factor": inverse})

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients @ self._arrays["inverse_factor"].T

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        point: np.ndarray = self._arrays["inverse_factor"].cpu().numpy().T @ y
        return point


class DenseKind(FlatPrecisionKind):
    """The kind that keeps the whole curvature, k^2 numbers."""

    traits = PRECISIONS["dense"]
    operator = DensePrecision

    def shape(self, k: int) -> tuple[int, ...]:
        if k > LARGEST_DENSE:
            raise UsageError(f"precision dense: k = {k}; expected at most {LARGEST_DENSE}; choose diagonal, or lower k")
        return (k, k)

    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping) -> Precision:
        return DensePrecision.from_curvature(k, self.mean_curvature(k, public, public_units), units / step, damping)

    def _curvature(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.T @ rows

    def _is_inverse_factor(self, array: np.ndarray) -> bool:
        return bool((np.diagonal(array) > 0).all() and not np.triu(array, 1).any())

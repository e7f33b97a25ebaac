"""A dense: the whole curvature matrix in the subspace."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision

LARGEST_DENSE = 8192


class DensePrecision(Precision):
    """A = L L^T with L lower triangular: whitening is one matrix product with the precomputed L^{-1}."""

    kind = "dense"

    @classmethod
    def from_curvature(cls, k: int, curvature: np.ndarray, scale: float, damping: float) -> DensePrecision:
        """A = scale (H + damping * mean eigenvalue(H) * I), H = ``curvature`` float64 (k, k), symmetrised.

        The mean eigenvalue is trace(H) / k. Raises UsageError when A is not positive definite.
        """
        precision = (curvature + curvature.T) * (scale / 2)
        precision[np.diag_indices(k)] += scale * damping * (np.trace(curvature) / k)
        advice = "raise precision.damping, or choose kind = identity"
        try:
            factor = cholesky(precision, lower=True, overwrite_a=True)
            inverse = np.tril(solve_triangular(factor, np.eye(k), lower=True, overwrite_b=True))
        except (LinAlgError, ValueError) as error:
            raise UsageError(
                f"precision dense: the damped public curvature is not positive definite at damping {damping}; {advice}"
            ) from error
        if not np.isfinite(inverse).all():
            raise UsageError(f"precision dense: the inverse factor overflows at damping {damping}; {advice}")
        return cls(k, {"inverse_factor": inverse})

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients @ self._arrays["inverse_factor"].T

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        mapped: np.ndarray = self._arrays["inverse_factor"].cpu().numpy().T @ y
        return mapped

"""The diagonal precision: it keeps one curvature for each coordinate of the subspace."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.precisions.flat import FlatPrecisionKind
from distqexp.kinds import PRECISIONS


class DiagonalPrecision(Precision):
    """A = diag(a), so that whitening divides coordinate i by sqrt(a_i)."""

    kind = "diagonal"

    @classmethod
    def from_curvature(cls, k: int, curvature: np.ndarray, scale: float, damping: Damping) -> DiagonalPrecision:
        """Make a = scale (h + damping.share * size of h).

        Args:
            k: The dimension of the subspace.
            curvature: h, float64 (k,).
            scale: The factor in front, above 0.
            damping: What is added to the curvature.

        Raises:
            UsageError: An entry of a is not positive.
        """
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            precision = scale * (curvature + damping.share * damping.size(curvature))
            inverse = 1.0 / np.sqrt(precision)
        if not (np.isfinite(inverse).all() and (inverse > 0).all() and (precision > 0).all()):
            raise UsageError(
                f"precision diagonal: the damped public curvature is not positive everywhere at damping {damping.share}; "
                "raise precision.damping, or choose kind = identity"
            )
        return cls(k, {"inverse_factor": inverse})

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients * self._arrays["inverse_factor"]

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        point: np.ndarray = y * self._arrays["inverse_factor"].cpu().numpy()
        return point


class DiagonalKind(FlatPrecisionKind):
    """The kind that keeps one curvature for each coordinate, k numbers."""

    traits = PRECISIONS["diagonal"]
    operator = DiagonalPrecision

    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping) -> Precision:
        return DiagonalPrecision.from_curvature(k, self.mean_curvature(k, public, public_units), units / step, damping)

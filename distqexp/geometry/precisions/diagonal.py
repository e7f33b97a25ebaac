"""A diagonal: one curvature a coordinate of the subspace."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.flat import FlatPrecisionKind
from distqexp.kinds import PRECISIONS


class DiagonalPrecision(Precision):
    """A = diag(a): whitening divides coordinate i by sqrt(a_i)."""

    kind = "diagonal"

    @classmethod
    def from_curvature(cls, k: int, curvature: np.ndarray, scale: float, damping: float) -> DiagonalPrecision:
        """a = scale (h + damping * mean(h)), h = ``curvature`` float64 (k,). Raises UsageError unless every a_i > 0."""
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            precision = scale * (curvature + damping * curvature.mean())
            inverse = 1.0 / np.sqrt(precision)
        if not (np.isfinite(inverse).all() and (inverse > 0).all() and (precision > 0).all()):
            raise UsageError(
                f"precision diagonal: the damped public curvature is not positive everywhere at damping {damping}; "
                "raise precision.damping, or choose kind = identity"
            )
        return cls(k, {"inverse_factor": inverse})

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients * self._arrays["inverse_factor"]

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        mapped: np.ndarray = y * self._arrays["inverse_factor"].cpu().numpy()
        return mapped


class DiagonalKind(FlatPrecisionKind):
    """One curvature a coordinate, k numbers."""

    traits = PRECISIONS["diagonal"]
    operator = DiagonalPrecision

    def make(self, k: int, public: Any, units: int, n_bar: float, step: float, damping: float) -> Precision:
        return DiagonalPrecision.from_curvature(k, self.mean_curvature(k, public, units), n_bar / step, damping)

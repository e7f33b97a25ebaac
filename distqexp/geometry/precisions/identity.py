"""A = c I: no curvature at all."""

from __future__ import annotations

import math

import numpy as np
import torch

from distqexp.geometry.precisions.base import Precision


class IdentityPrecision(Precision):
    """A = c I: whitening divides by sqrt(c)."""

    kind = "identity"

    @classmethod
    def from_scale(cls, k: int, scale: float) -> IdentityPrecision:
        """A = scale * I, scale > 0."""
        return cls(k, {"inverse_factor": np.array([1.0 / math.sqrt(scale)])})

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients * self._arrays["inverse_factor"]

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        return y * self._arrays["inverse_factor"].item()

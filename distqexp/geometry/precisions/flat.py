"""What identity, diagonal and dense have in common: a sum of curvature to start from, one inverse factor to end with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.kind import PrecisionKind


class FlatPrecisionKind(PrecisionKind):
    """A kind whose curvature is one array ``shape(k)``, and whose inverse factor has the same shape."""

    operator: type[Precision]

    def shape(self, k: int) -> tuple[int, ...]:
        """Of curvature and inverse factor. Raises UsageError for a k that is too large."""
        return (k,)

    def curvature_sum(self, factors: torch.Tensor) -> np.ndarray:
        if factors.ndim != 3 or factors.dtype != torch.float64:
            raise UsageError(
                f"curvature: factors of shape {tuple(factors.shape)} of {factors.dtype}; expected float64 (B, r, k)"
            )
        self.shape(factors.shape[2])
        summed: np.ndarray = self._summed(factors.detach().reshape(-1, factors.shape[2])).cpu().numpy()
        return summed

    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        name, shape = self.traits.name, self.shape(k)
        if set(arrays) != {"inverse_factor"}:
            raise FileContentError(
                f"precision {name}: arrays {sorted(arrays)}; expected inverse_factor; get the file again"
            )
        array = np.asarray(arrays["inverse_factor"])
        if array.shape != shape or array.dtype != np.float64:
            raise FileContentError(
                f"precision {name}: inverse_factor of shape {array.shape} of {array.dtype}; expected {shape} of float64"
            )
        if not (np.isfinite(array).all() and self._is_inverse_factor(array)):
            raise FileContentError(
                f"precision {name}: inverse_factor is not a finite lower triangle of positive diagonal; get the file again"
            )
        return self.operator(k, {"inverse_factor": array})

    def mean_curvature(self, k: int, public: Any, units: int) -> np.ndarray:
        """The curvature of one public unit, shape(k), from their sum. Raises UsageError for a sum that is of no use."""
        name, shape = self.traits.name, self.shape(k)
        if public is None or units < 1:
            found = "no curvature" if public is None else f"{units} public units"
            raise UsageError(f"precision {name}: {found}; expected at least one public unit, or kind = identity")
        total = np.asarray(public, dtype=np.float64)
        if total.size != math.prod(shape):
            raise UsageError(f"precision {name}: curvature of shape {total.shape}; expected {shape}")
        if not np.isfinite(total).all():
            raise UsageError(
                f"precision {name}: the public curvature has entries that are not finite; check data.public"
            )
        mean: np.ndarray = total.reshape(shape) / units
        return mean

    def _summed(self, rows: torch.Tensor) -> torch.Tensor:
        """The curvature of rows (n, k) of V, shape(k)."""
        return (rows * rows).sum(dim=0)

    def _is_inverse_factor(self, array: np.ndarray) -> bool:
        return bool((array > 0).all())

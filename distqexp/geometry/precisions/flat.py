"""What identity, diagonal and dense have in common: they turn one sum of curvatures into one inverse factor."""

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
    """A kind whose curvature is one array of shape ``shape(k)``, and whose inverse factor has the same shape."""

    operator: type[Precision]

    def shape(self, k: int) -> tuple[int, ...]:
        """Return the shape of the curvature and of the inverse factor. Raises UsageError for a k that is too large."""
        return (k,)

    def curvature_sum(self, factors: torch.Tensor) -> np.ndarray:
        if factors.ndim != 3 or factors.dtype != torch.float64:
            raise UsageError(
                f"curvature: factors of shape {tuple(factors.shape)} of {factors.dtype}; expected float64 (B, r, k)"
            )
        self.shape(factors.shape[2])
        curvature: np.ndarray = self._curvature(factors.detach().reshape(-1, factors.shape[2])).cpu().numpy()
        return curvature

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

    def mean_curvature(self, k: int, public: Any, public_units: int) -> np.ndarray:
        """Return the mean curvature of a public unit, of shape ``shape(k)``.

        Args:
            k: The dimension of the subspace.
            public: The curvature summed over public units, or None.
            public_units: The number of public units in the sum.

        Raises:
            UsageError: There is no sum, or it has another size or is not finite.
        """
        name, shape = self.traits.name, self.shape(k)
        if public is None or public_units < 1:
            source = "no curvature" if public is None else f"{public_units} public units"
            raise UsageError(f"precision {name}: {source}; expected at least one public unit, or kind = identity")
        total = np.asarray(public, dtype=np.float64)
        if total.size != math.prod(shape):
            raise UsageError(f"precision {name}: curvature of shape {total.shape}; expected {shape}")
        if not np.isfinite(total).all():
            raise UsageError(
                f"precision {name}: the public curvature has entries that are not finite; check data.public"
            )
        mean: np.ndarray = total.reshape(shape) / public_units
        return mean

    def _curvature(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the kind keeps of V^T V, of shape ``shape(k)``, for the rows (n, k) of V."""
        return (rows * rows).sum(dim=0)

    def _is_inverse_factor(self, array: np.ndarray) -> bool:
        """Whether a finite array of shape ``shape(k)`` can be an inverse factor of the kind."""
        return bool((array > 0).all())

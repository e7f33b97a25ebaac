"""A kind of precision that distqexp doesn't have, as somebody else would add it: one file. Registered by the tests that use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distqexp.geometry.precisions import Damping, Precision, PrecisionKind
from distqexp.kinds import PrecisionTraits


class TwoLevelPrecision(Precision):
    """A = diag(a): one value where the public curvature is above its median, another elsewhere."""

    kind = "toy-two-level"

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients * self._arrays["inverse_root"]

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        return np.asarray(y * self._arrays["inverse_root"].numpy())


class TwoLevelKind(PrecisionKind):
    traits = PrecisionTraits("toy-two-level")

    def curvature_sum(self, factors: torch.Tensor) -> np.ndarray:
        rows = factors.reshape(-1, factors.shape[2])
        return np.asarray((rows * rows).sum(dim=0).numpy())

    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping) -> Precision:
        mean = public / public_units
        high = mean > np.median(mean)
        levels = np.where(high, mean[high].mean(), mean[~high].mean()) + damping.share * mean.mean()
        return TwoLevelPrecision(k, {"inverse_root": 1 / np.sqrt(units / step * levels)})

    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        return TwoLevelPrecision(k, arrays)

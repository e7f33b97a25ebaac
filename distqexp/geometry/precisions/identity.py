"""The identity precision A = c I, which uses no curvature at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions.base import Factors, Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.precisions.flat import FlatPrecisionKind
from distqexp.kinds import PRECISIONS


class IdentityPrecision(Precision):
    """A = c I, so that whitening divides by sqrt(c)."""

    kind = "identity"

    @classmethod
    def from_scale(cls, k: int, scale: float) -> IdentityPrecision:
        """Make A = scale * I, where the scale is above 0."""
        return cls(k, {"inverse_factor": np.array([1.0 / math.sqrt(scale)])})

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients * self._arrays["inverse_factor"]

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        return y * self._arrays["inverse_factor"].item()

    def by_blocks(self, coordinates: Sequence[Block]) -> list[Factors]:
        scale = self._arrays["inverse_factor"].item()
        return [
            (
                torch.full((part.copies, part.rows), scale, dtype=torch.float64),
                torch.ones((part.copies, part.columns), dtype=torch.float64),
            )
            for part in coordinates
        ]


class IdentityKind(FlatPrecisionKind):
    """The kind that uses no curvature and keeps one number, the scale."""

    traits = PRECISIONS["identity"]
    operator = IdentityPrecision

    def shape(self, k: int) -> tuple[int, ...]:
        return (1,)

    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping) -> Precision:
        return IdentityPrecision.from_scale(k, units / step)

    def _curvature(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_zeros(0)

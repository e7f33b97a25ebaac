"""The whole space of trainable parameters: P = I."""

from __future__ import annotations

import numpy as np
import torch

from distqexp.geometry.subspaces.base import Subspace


class IdentitySubspace(Subspace):
    """P = I, k = d: for a head, low-rank adapters, or any model small enough."""

    kind = "identity"

    def __init__(self, d: int) -> None:
        super().__init__(d, d)

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients.to(torch.float64, copy=True)

    def _lift(self, w: np.ndarray) -> np.ndarray:
        return w.copy()

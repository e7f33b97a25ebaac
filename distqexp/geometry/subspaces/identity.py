"""The whole space of trainable parameters, P = I."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.geometry.subspaces.kronecker import whole_space
from distqexp.kinds import SUBSPACES


class IdentitySubspace(Subspace):
    """P = I and k = d, for a head, low-rank adapters, or any model that is small enough."""

    kind = "identity"

    def __init__(self, d: int) -> None:
        super().__init__(d, d)

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients.to(torch.float64, copy=True)

    def _lift(self, w: np.ndarray) -> np.ndarray:
        return w.copy()


class IdentityKind(SubspaceKind):
    """The kind of the whole space; its coordinates are in the order of the blocks where the run works by blocks."""

    traits = SUBSPACES["identity"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return IdentitySubspace(frame.d) if frame.blocks is None else whole_space(frame.blocks)

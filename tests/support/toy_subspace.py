"""A kind of subspace that distqexp doesn't have, as somebody else would add it: one file. Registered by the tests that use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.geometry.subspaces import Frame, Subspace, SubspaceKind
from distqexp.kinds import SubspaceTraits


class CoordinateSubspace(Subspace):
    """k of the parameters, the others stay."""

    kind = "toy-coordinates"

    def __init__(self, d: int, chosen: NDArray[np.int64]) -> None:
        super().__init__(d, len(chosen))
        self.chosen = chosen

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        return gradients[:, torch.from_numpy(self.chosen)].to(torch.float64)

    def _lift(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        theta = np.zeros(self.d)
        theta[self.chosen] = w
        return theta


class CoordinateKind(SubspaceKind):
    traits = SubspaceTraits("toy-coordinates")

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        seed = int.from_bytes(frame.key("toy-coordinates"), "little")
        chosen = np.random.default_rng(seed).choice(frame.d, frame.k, replace=False)
        return CoordinateSubspace(frame.d, np.sort(chosen))

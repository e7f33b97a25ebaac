"""What every subspace can do: P^T on gradients, P on a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments


@dataclass(frozen=True)
class BlockFactors:
    """R_row and R_col of one block: float64 (copies or 1, k, n), or None for the identity.

    ``row`` may be int64 (copies, k_row) instead: the rows that are kept, R_row made of unit vectors.
    """

    row: NDArray[Any] | None = None
    column: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class BlockSubspace:
    """The blocks of theta, the factors of each, and the blocks of the coordinates: R_row G R_col^T for each block."""

    blocks: tuple[Block, ...]
    factors: tuple[BlockFactors, ...]
    coordinates: tuple[Block, ...]

    def projected(self, moments: Sequence[BlockMoments]) -> list[BlockMoments]:
        """Second moments of the blocks, in the coordinates."""
        return [part.projected(factor.row, factor.column) for part, factor in zip(moments, self.factors, strict=True)]


class Subspace(ABC):
    """A public linear map P of shape (d, k), drawn without looking at a private record.

    Row i of ``project`` depends on row i of its argument alone, to the last bit, among batches of one shape:
    each row is summed in an order that the other rows' values don't influence.
    """

    kind: str

    def __init__(self, d: int, k: int) -> None:
        self.d = d
        self.k = k

    def project(self, gradients: torch.Tensor) -> torch.Tensor:
        """P^T v for every row v: (B, d) of any floating type to (B, k) float64, on the same device.

        Raises UsageError when the shape or the type is another.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.d or not gradients.is_floating_point():
            raise UsageError(
                f"subspace {self.kind}: project got shape {tuple(gradients.shape)} of {gradients.dtype}; "
                f"expected (B, {self.d}) of a floating type"
            )
        with torch.no_grad():
            return self._project(gradients.detach())

    def lift(self, w: np.ndarray) -> np.ndarray:
        """P w: float64 (k,) to float64 (d,). Raises UsageError when the shape is another."""
        w = np.asarray(w, dtype=np.float64)
        if w.shape != (self.k,):
            raise UsageError(f"subspace {self.kind}: lift got shape {w.shape}; expected ({self.k},)")
        return self._lift(w)

    def by_blocks(self) -> BlockSubspace | None:
        """The subspace as a pair of factors for each block of parameters, None for one that mixes blocks."""
        return None

    @abstractmethod
    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        """As project, its argument checked and detached."""

    @abstractmethod
    def _lift(self, w: np.ndarray) -> np.ndarray:
        """As lift, its argument checked."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(d={self.d}, k={self.k})"


def as_float64_array(gradients: torch.Tensor) -> np.ndarray:
    """The gradients in the computer's own memory, float64 (B, d), C-contiguous; shared where possible: read only."""
    array: np.ndarray = gradients.to(device="cpu", dtype=torch.float64).contiguous().numpy()
    return array

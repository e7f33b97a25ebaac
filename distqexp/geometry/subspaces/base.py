"""What every subspace can do: apply P^T to gradients, and P to a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments


@dataclass(frozen=True)
class BlockFactors:
    """The factors R_row and R_col of one block.

    Attributes:
        row: R_row as float64 (copies or 1, k_row, rows), or as int64 (copies, k_row) when it selects rows by their numbers;
            None for the identity.
        column: R_col as float64 (copies or 1, k_col, columns); None for the identity.
    """

    row: NDArray[Any] | None = None
    column: FloatArray | None = None


@dataclass(frozen=True)
class BlockSubspace:
    """A subspace whose projection of each block of parameters G is R_row G R_col^T.

    Attributes:
        blocks: The blocks of theta.
        factors: R_row and R_col of each block.
        coordinates: The blocks of the coordinates, (copies, k_row, k_col) each.
    """

    blocks: tuple[Block, ...]
    factors: tuple[BlockFactors, ...]
    coordinates: tuple[Block, ...]

    def project_moments(self, moments: Sequence[BlockMoments]) -> list[BlockMoments]:
        """Return the second moments of the blocks in the coordinates of the subspace."""
        return [part.project(factor.row, factor.column) for part, factor in zip(moments, self.factors, strict=True)]


class Subspace(ABC):
    """A public linear map P of shape (d, k), made without looking at a private record.

    Among batches of one shape, row i of ``project`` depends on row i of its argument alone, to the last bit: each row is
    summed in an order that the values of other rows don't influence.
    """

    kind: str

    def __init__(self, d: int, k: int) -> None:
        self.d = d
        self.k = k

    def project(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return P^T v for every row v: (B, d) of any floating type becomes (B, k) float64 on the same device.

        Raises UsageError for another shape or type.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.d or not gradients.is_floating_point():
            raise UsageError(
                f"subspace {self.kind}: project got shape {tuple(gradients.shape)} of {gradients.dtype}; "
                f"expected (B, {self.d}) of a floating type"
            )
        with torch.no_grad():
            return self._project(gradients.detach())

    def lift(self, w: np.ndarray) -> np.ndarray:
        """Return P w: float64 (k,) becomes float64 (d,). Raises UsageError for another shape."""
        w = np.asarray(w, dtype=np.float64)
        if w.shape != (self.k,):
            raise UsageError(f"subspace {self.kind}: lift got shape {w.shape}; expected ({self.k},)")
        return self._lift(w)

    def by_blocks(self) -> BlockSubspace | None:
        """Return the subspace as a pair of factors for each block of parameters, or None if it mixes blocks."""
        return None

    @abstractmethod
    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        """Project rows that are checked and detached."""

    @abstractmethod
    def _lift(self, w: np.ndarray) -> np.ndarray:
        """Lift a vector whose shape is checked."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(d={self.d}, k={self.k})"


def as_float64_array(gradients: torch.Tensor) -> np.ndarray:
    """Return gradients as a C-contiguous float64 array (B, d) in main memory, shared where possible: read it only."""
    array: np.ndarray = gradients.to(device="cpu", dtype=torch.float64).contiguous().numpy()
    return array

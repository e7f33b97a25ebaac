"""What every precision can do: whiten gradients before they are clipped, and map a released point back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block


@dataclass(frozen=True)
class AcrossBlocks:
    """The symmetric map I - V^T diag(h) V of coordinates whitened by blocks. Public.

    Attributes:
        directions: V (m, k), float64.
        shrinkage: h (m,), float64.
    """

    directions: torch.Tensor
    shrinkage: torch.Tensor

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """Map every row of ``vectors`` (B, k) float64. Among batches of one shape a row depends on itself alone, to the last bit."""
        directions = self.directions.to(vectors.device)
        shares = torch.matmul(vectors, directions.T) * self.shrinkage.to(vectors.device)
        return vectors - torch.matmul(shares, directions)


Factors = tuple[torch.Tensor, torch.Tensor]
"""The row and the column factor of one block, each as matrices (copies, n, n) or as diagonals (copies, n)."""


class Precision(ABC):
    """A public precision A = L L^T of shape (k, k), stored as its inverse factor L^{-1} in one array or several.

    The same L^{-1} whitens (g -> L^{-1} g), maps back (y -> L^{-T} y), and is what files carry, so that sites that read
    it agree to the bit, whatever their linear algebra library. Among batches of one shape, row i of ``whiten`` depends on
    row i of its argument alone, to the last bit.
    """

    kind: str

    def __init__(self, k: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.k = k
        self._arrays = {
            name: torch.from_numpy(np.array(array, dtype=np.float64, order="C")) for name, array in arrays.items()
        }

    def whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return L^{-1} g for every row g: float64 (B, k) becomes float64 (B, k) on the same device.

        Raises UsageError for another shape or type.
        """
        if gradients.ndim != 2 or gradients.shape[1] != self.k or gradients.dtype != torch.float64:
            raise UsageError(
                f"precision {self.kind}: whiten got shape {tuple(gradients.shape)} of {gradients.dtype}; "
                f"expected (B, {self.k}) of torch.float64"
            )
        self._arrays = {name: array.to(gradients.device) for name, array in self._arrays.items()}
        with torch.no_grad():
            return self._whiten(gradients.detach())

    def unwhiten(self, y: np.ndarray) -> np.ndarray:
        """Return L^{-T} y: float64 (k,) becomes float64 (k,). Raises UsageError for another shape."""
        y = np.asarray(y, dtype=np.float64)
        if y.shape != (self.k,):
            raise UsageError(f"precision {self.kind}: unwhiten got shape {y.shape}; expected ({self.k},)")
        return self._unwhiten(y)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the float64 arrays from which a file can rebuild the precision.

        They are ``inverse_factor``, which is (1,), (k,) or lower triangular (k, k), or for kronecker ``row/NNNN`` and
        ``column/NNNN`` of each block number NNNN, with ``directions`` and ``values`` for kronecker-joint.
        """
        return {name: array.cpu().numpy().copy() for name, array in self._arrays.items()}

    def by_blocks(self, coordinates: Sequence[Block]) -> list[Factors] | None:
        """Return L^{-1} as a row and a column factor for each block of the coordinates; None for a kind that mixes blocks."""
        return None

    @property
    def across(self) -> AcrossBlocks | None:
        """What L^{-1} does to gradients that were whitened by blocks; None where ``by_blocks`` is all of it."""
        return None

    @abstractmethod
    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """Whiten rows that are checked, detached, and on the same device as L^{-1}."""

    @abstractmethod
    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        """Map back a vector whose shape is checked."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k})"

"""What every precision can do: whiten gradients before the clip, map a released point back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block

Factors = tuple[torch.Tensor, torch.Tensor]


class Precision(ABC):
    """A public precision A = L L^T of shape (k, k), held as the inverse factor L^{-1}, in one array or several.

    One and the same L^{-1} whitens (g -> L^{-1} g) and maps back (y -> L^{-T} y), and it is what files carry: sites
    that read it agree to the bit, whatever their linear algebra library. Row i of ``whiten`` depends on row i of its
    argument alone, to the last bit, among batches of one shape.
    """

    kind: str

    def __init__(self, k: int, arrays: Mapping[str, np.ndarray]) -> None:
        self.k = k
        self._arrays = {
            name: torch.from_numpy(np.array(array, dtype=np.float64, order="C")) for name, array in arrays.items()
        }

    def whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """L^{-1} g for every row g: float64 (B, k) to float64 (B, k), on the same device.

        Raises UsageError when the shape or the type is another.
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
        """L^{-T} y: float64 (k,) to float64 (k,). Raises UsageError when the shape is another."""
        y = np.asarray(y, dtype=np.float64)
        if y.shape != (self.k,):
            raise UsageError(f"precision {self.kind}: unwhiten got shape {y.shape}; expected ({self.k},)")
        return self._unwhiten(y)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What a file needs to rebuild it, float64: ``inverse_factor`` (1,), (k,) or lower triangular (k, k).

        For kronecker, of each block NNNN, ``row/NNNN`` and ``column/NNNN``.
        """
        return {name: array.cpu().numpy().copy() for name, array in self._arrays.items()}

    def by_blocks(self, coordinates: Sequence[Block]) -> list[Factors] | None:
        """L^{-1} as a pair of factors for each block of the coordinates: of row and column, matrices (copies, n, n) or diagonals
        (copies, n). None for a kind that mixes blocks.
        """
        return None

    @abstractmethod
    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """As whiten, its argument checked and detached, L^{-1} on its device."""

    @abstractmethod
    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        """As unwhiten, its argument checked."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(k={self.k})"

"""The subspace and the precision in one: the map from gradients to whitened coordinates, and back to a move of theta. Public."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.subspaces.base import Subspace


@dataclass(frozen=True)
class BlockWhitening:
    """The whitened, projected gradient of a block is U_row G U_col^T, (copies, k_row, k_col). float64, public.

    row: U_row (copies, k_row, rows), or its diagonal (copies, rows). column: U_col (copies, k_col, columns), or its
    diagonal (copies, columns).
    """

    row: torch.Tensor
    column: torch.Tensor


@dataclass(frozen=True)
class Whitening:
    """g~ = L^{-1} P^T g, for both ways to gradients: whole ones (``project``, ``whiten``) and those of layers (``by_blocks``).

    precision: None while it is unknown; then gradients are projected alone.
    """

    subspace: Subspace
    precision: Precision | None = None

    @property
    def k(self) -> int:
        """Number of coordinates."""
        return self.subspace.k

    def project(self, gradients: torch.Tensor) -> torch.Tensor:
        """P^T g for every row: (B, d) of any floating type to (B, k) float64."""
        return self.subspace.project(gradients)

    def whiten(self, projected: torch.Tensor) -> torch.Tensor:
        """L^{-1} for every row of (B, k) float64; the rows as they are while the precision is unknown."""
        return projected if self.precision is None else self.precision.whiten(projected)

    def lift(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """P L^{-T} y: the move of theta (d,) of a point (k,) in whitened coordinates."""
        return self.subspace.lift(y if self.precision is None else self.precision.unwhiten(y))

    def by_blocks(self) -> tuple[tuple[Block, ...], list[BlockWhitening]] | None:
        """The blocks of theta and the map of each; None where subspace or precision mixes blocks. The same map as the other way.

        Raises UsageError where the precision is of other blocks than the subspace.
        """
        if (blocks := self.subspace.by_blocks()) is None or self.precision is None:
            return None
        if (inverses := self.precision.by_blocks(blocks.coordinates)) is None:
            return None
        whitening = []
        for block, factors, (row, column) in zip(blocks.blocks, blocks.factors, inverses, strict=True):
            r = factors.row
            if r is not None and r.ndim == 2:
                r = _unit_vectors(r, block.rows)
            whitening.append(BlockWhitening(_product(row, r), _product(column, factors.column)))
        return blocks.blocks, whitening


def _product(inverse: torch.Tensor, factor: np.ndarray | None) -> torch.Tensor:
    if factor is None:
        return inverse
    r = torch.from_numpy(factor).to(inverse.device)
    return inverse[:, :, None] * r if inverse.ndim == 2 else torch.matmul(inverse, r)


def _unit_vectors(chosen: np.ndarray, n: int) -> np.ndarray:
    rows = np.zeros((*chosen.shape, n))
    np.put_along_axis(rows, chosen[:, :, None], 1.0, axis=2)
    return rows

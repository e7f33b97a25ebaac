"""The subspace and the precision together: they map gradients to whitened coordinates, and points to moves of theta. Public."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.subspaces.base import Subspace


@dataclass(frozen=True)
class BlockWhitening:
    """The map of one block: its projected and whitened gradient is U_row G U_col^T (copies, k_row, k_col). float64, public.

    Attributes:
        row: U_row (copies, k_row, rows), or its diagonal (copies, rows).
        column: U_col (copies, k_col, columns), or its diagonal (copies, columns).
    """

    row: torch.Tensor
    column: torch.Tensor


@dataclass(frozen=True)
class Whitening:
    """The map g~ = L^{-1} P^T g, for whole gradients (``project``, ``whiten``) and for those of layers (``by_blocks``).

    Attributes:
        subspace: The subspace, with its map P.
        precision: The precision A = L L^T; None while it is not yet made, when gradients are projected and not whitened.
    """

    subspace: Subspace
    precision: Precision | None = None

    @property
    def k(self) -> int:
        """The number of coordinates."""
        return self.subspace.k

    def project(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return P^T g for every row g: (B, d) of any floating type becomes (B, k) float64."""
        return self.subspace.project(gradients)

    def whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return L^{-1} g for every projected gradient g, a row of (B, k) float64; the rows unchanged while there is no precision."""
        return gradients if self.precision is None else self.precision.whiten(gradients)

    def lift(self, y: FloatArray) -> FloatArray:
        """Return P L^{-T} y, the move of theta (d,) that a point y (k,) in whitened coordinates stands for."""
        return self.subspace.lift(y if self.precision is None else self.precision.unwhiten(y))

    def by_blocks(self) -> tuple[tuple[Block, ...], list[BlockWhitening]] | None:
        """Return the blocks of theta and the map of each, or None when the subspace or the precision mixes blocks.

        The maps of the blocks together are the map of whole gradients, up to what the precision does ``across`` them.

        Raises UsageError when the precision was made for other blocks than the subspace.
        """
        if (blocks := self.subspace.by_blocks()) is None or self.precision is None:
            return None
        if (inverses := self.precision.by_blocks(blocks.coordinates)) is None:
            return None
        maps = []
        for block, factors, (row, column) in zip(blocks.blocks, blocks.factors, inverses, strict=True):
            r = factors.row
            if r is not None and r.ndim == 2:
                r = _unit_vectors(r, block.rows)
            maps.append(BlockWhitening(_product(row, r), _product(column, factors.column)))
        return blocks.blocks, maps


def _product(inverse: torch.Tensor, factor: np.ndarray | None) -> torch.Tensor:
    """Return L^{-1} R, where L^{-1} is given whole or as its diagonal and R = None is the identity."""
    if factor is None:
        return inverse
    r = torch.from_numpy(factor).to(inverse.device)
    return inverse[:, :, None] * r if inverse.ndim == 2 else torch.matmul(inverse, r)


def _unit_vectors(numbers: np.ndarray, n: int) -> np.ndarray:
    """Return the unit vectors (copies, k, n) that have their ones at ``numbers`` (copies, k)."""
    rows = np.zeros((*numbers.shape, n))
    np.put_along_axis(rows, numbers[:, :, None], 1.0, axis=2)
    return rows

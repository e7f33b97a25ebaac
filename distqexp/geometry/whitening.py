"""The subspace and the precision in one: per block the two matrices that take a gradient to whitened coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.identity import IdentityPrecision
from distqexp.geometry.precisions.kronecker import KroneckerPrecision
from distqexp.geometry.subspaces.kronecker import KroneckerSubspace


@dataclass(frozen=True)
class BlockWhitening:
    """The whitened, projected gradient of a block is U_row G U_col^T, (copies, k_row, k_col). float64, public.

    row: U_row (copies, k_row, rows), or its diagonal (copies, rows). column: U_col (copies, k_col, columns), or its
    diagonal (copies, columns).
    """

    row: torch.Tensor
    column: torch.Tensor


def combined_whitening(subspace: KroneckerSubspace, precision: Precision) -> list[BlockWhitening]:
    """U_row = L_S^{-1} R_row and U_col = L_A^{-1} R_col of every block: the same map as project, then whiten.

    Raises UsageError unless the precision is identity or kronecker and has the subspace's blocks.
    """
    if isinstance(precision, IdentityPrecision):
        scale = float(precision.to_arrays()["inverse_factor"][0])
        inverses = [
            (torch.full((part.copies, part.rows), scale, dtype=torch.float64), _ones(part.copies, part.columns))
            for part in subspace.coordinates
        ]
    elif isinstance(precision, KroneckerPrecision):
        inverses = precision.factors
    else:
        raise UsageError(f"whitening by blocks: precision {precision.kind}; expected kronecker or identity")
    found = [(row.shape[:2], column.shape[:2]) for row, column in inverses]
    wanted = [((part.copies, part.rows), (part.copies, part.columns)) for part in subspace.coordinates]
    if found != wanted:
        raise UsageError("whitening by blocks: the precision is of other blocks than the subspace's; plan again")
    whitening = []
    for block, factors, (row, column) in zip(subspace.blocks, subspace.factors, inverses, strict=True):
        r = factors.row
        if r is not None and r.ndim == 2:
            r = _unit_vectors(r, block.rows)
        whitening.append(BlockWhitening(_product(row, r), _product(column, factors.column)))
    return whitening


def _product(inverse: torch.Tensor, factor: np.ndarray | None) -> torch.Tensor:
    if factor is None:
        return inverse
    r = torch.from_numpy(factor).to(inverse.device)
    return inverse[:, :, None] * r if inverse.ndim == 2 else torch.matmul(inverse, r)


def _unit_vectors(chosen: np.ndarray, n: int) -> np.ndarray:
    rows = np.zeros((*chosen.shape, n))
    np.put_along_axis(rows, chosen[:, :, None], 1.0, axis=2)
    return rows


def _ones(copies: int, n: int) -> torch.Tensor:
    return torch.ones((copies, n), dtype=torch.float64)

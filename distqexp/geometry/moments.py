"""Second moments of a block's gradients, from which Kronecker curvatures and pca subspaces are made. Public.

Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015: the curvature
of a block is modelled as the Kronecker product of a row moment (output gradients) and a column moment (activations).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block

FloatArray = NDArray[np.float64]

LARGEST_SIDE = 8192


@dataclass(frozen=True)
class BlockMoments:
    """Sums over public records, float64, of one block of shape (copies, rows, columns).

    row: (copies, rows, rows), or its diagonal (copies, rows) when the block has sparse rows. column: (copies, columns,
    columns). energy: (copies,), the sum of ||G||_F^2, G a record's gradient. Row and column matter up to a factor:
    the energy alone says how large the curvature is.
    """

    row: FloatArray
    column: FloatArray
    energy: FloatArray

    def projected(self, row: NDArray[Any] | None, column: FloatArray | None) -> BlockMoments:
        """In the coordinates of R_row G R_col^T, R_row ``row`` (copies or 1, k_row, rows) or None: all of them.

        ``row`` may be int64 (copies, k_row): rows that are picked. The product of the factors keeps its scale, as if
        the curvature were the Kronecker product: energy times tr(R S R^T) / tr(S) on both sides.
        """
        if row is None:
            left = self.row
        elif np.issubdtype(row.dtype, np.integer):
            left = _picked(self.row, row)
        else:
            left = _congruence(row, self.row)
        right = self.column if column is None else _congruence(column, self.column)
        shares = []
        for small, whole in ((left, self.row), (right, self.column)):
            total = traces(whole)
            shares.append(np.divide(traces(small), total, out=np.zeros_like(total), where=total > 0))
        return BlockMoments(left, right, self.energy * shares[0] * shares[1])


def explicit_moments(block: Block, matrices: torch.Tensor) -> BlockMoments:
    """Moments of per-record gradients G given as (B, copies, rows, columns): sums of G G^T and of G^T G."""
    g = _checked(block, matrices)
    row = (g * g).sum(dim=(0, 3)) if block.sparse_rows else torch.matmul(g, g.transpose(2, 3)).sum(dim=0)
    column = torch.matmul(g.transpose(2, 3), g).sum(dim=0)
    return BlockMoments(_array(row), _array(column), _array((g * g).sum(dim=(0, 2, 3))))


def position_moments(block: Block, row: torch.Tensor, column: torch.Tensor) -> BlockMoments:
    """Moments of G = sum over L positions of row_t column_t^T: row (B, copies, L, rows), column (B, copies, L, columns).

    Sums over records and positions of row_t row_t^T and of column_t column_t^T, and over records of ||G||_F^2. ``row`` may
    be numbers of rows, int64 (B, 1, L), for unit vectors in a block with sparse rows. A position whose row or column is
    exactly zero, such as padding, adds nothing to G and counts in neither moment.
    """
    numbered = row.dtype == torch.int64 and block.sparse_rows
    ends = ((), (block.columns,)) if numbered else ((block.rows,), (block.columns,))
    wanted = tuple((*column.shape[:1], block.copies, *column.shape[2:3], *end) for end in ends)
    if (tuple(row.shape), tuple(column.shape)) != wanted:
        raise UsageError(
            f"block {block.name}: factors of shapes {tuple(row.shape)} and {tuple(column.shape)}; expected "
            f"(B, copies, L, rows) and (B, copies, L, columns) of {block.shape}"
        )
    a = column.detach().to(torch.float64)
    live = (a != 0).any(dim=3)
    if numbered:
        a = torch.where(live.unsqueeze(3), a, 0.0)
        same = row.unsqueeze(3) == row.unsqueeze(2)
        energy = torch.where(same, torch.matmul(a, a.transpose(2, 3)), 0.0).sum(dim=(0, 2, 3))
        counts = a.new_zeros(block.rows).index_add(0, row.reshape(-1), live.reshape(-1).to(a.dtype))
        return BlockMoments(_array(counts.unsqueeze(0)), _array(_gram(a)), _array(energy))
    e = row.detach().to(torch.float64)
    live = (live & (e != 0).any(dim=3)).unsqueeze(3)
    e, a = torch.where(live, e, 0.0), torch.where(live, a, 0.0)
    if e.shape[2] ** 2 < block.rows * block.columns:
        energy = (torch.matmul(e, e.transpose(2, 3)) * torch.matmul(a, a.transpose(2, 3))).sum(dim=(0, 2, 3))
    else:
        energy = torch.matmul(e.transpose(2, 3), a).square().sum(dim=(0, 2, 3))
    left = (e * e).sum(dim=(0, 2)) if block.sparse_rows else _gram(e)
    return BlockMoments(_array(left), _array(_gram(a)), _array(energy))


def moments_size(blocks: Sequence[Block]) -> int:
    """How many float64 numbers the packed moments of ``blocks`` have. Raises UsageError above a side of 8192."""
    total = 0
    for block in blocks:
        for side, dense in ((block.rows, not block.sparse_rows), (block.columns, True)):
            if dense and side > LARGEST_SIDE:
                raise UsageError(
                    f"block {block.name}: a second moment of side {side}; expected at most {LARGEST_SIDE}: set "
                    "subspace.kind = kronecker with smaller subspace.k_in and subspace.k_out, or train other parameters"
                )
        total += sum(math.prod(shape) for shape in _shapes(block))
    return total


def pack(moments: Sequence[BlockMoments]) -> FloatArray:
    """The moments as one flat vector, so that sums over records are sums of vectors."""
    parts = [array.reshape(-1) for part in moments for array in (part.row, part.column, part.energy)]
    return np.concatenate(parts)


def unpack(blocks: Sequence[Block], flat: FloatArray) -> list[BlockMoments]:
    """Inverse of pack. Raises UsageError when the length is another, or an entry is not finite."""
    if flat.shape != (moments_size(blocks),):
        raise UsageError(f"moments: found shape {flat.shape}; expected ({moments_size(blocks)},)")
    if not np.isfinite(flat).all():
        raise UsageError("moments: the public second moments have entries that are not finite; check data.public")
    found, at = [], 0
    for block in blocks:
        arrays = []
        for shape in _shapes(block):
            size = math.prod(shape)
            arrays.append(flat[at : at + size].reshape(shape))
            at += size
        found.append(BlockMoments(*arrays))
    return found


def traces(moment: FloatArray) -> FloatArray:
    """(copies,): the trace of each copy's moment, given whole or as its diagonal."""
    diagonal = moment if moment.ndim == 2 else np.diagonal(moment, axis1=1, axis2=2)
    total: FloatArray = diagonal.sum(axis=1)
    return total


def coordinate_block(block: Block, k_row: int, k_col: int, start: int, sparse_rows: bool) -> Block:
    """The block of a projected gradient: (copies, k_row, k_col) at ``start`` in the coordinates, row-major."""
    return dataclasses.replace(
        block, rows=k_row, columns=k_col, weight=start, bias=None, transposed=False, sparse_rows=sparse_rows
    )


def _shapes(block: Block) -> tuple[tuple[int, ...], ...]:
    row = (block.copies, block.rows) if block.sparse_rows else (block.copies, block.rows, block.rows)
    return (row, (block.copies, block.columns, block.columns), (block.copies,))


def _checked(block: Block, matrices: torch.Tensor) -> torch.Tensor:
    if matrices.ndim != 4 or tuple(matrices.shape[1:]) != block.shape:
        raise UsageError(
            f"block {block.name}: gradients of shape {tuple(matrices.shape)}; expected (B, *{block.shape})"
        )
    return matrices.detach().to(torch.float64)


def _gram(factors: torch.Tensor) -> torch.Tensor:
    """(B, copies, L, n) -> (copies, n, n): the sum over records and positions of the outer products."""
    flat = factors.transpose(0, 1).flatten(1, 2)
    return torch.matmul(flat.transpose(1, 2), flat)


def _congruence(factor: FloatArray, moment: FloatArray) -> FloatArray:
    if moment.ndim == 2:
        return np.matmul(factor * moment[:, None, :], factor.transpose(0, 2, 1))
    return np.matmul(np.matmul(factor, moment), factor.transpose(0, 2, 1))


def _picked(moment: FloatArray, rows: NDArray[np.int64]) -> FloatArray:
    picked: FloatArray
    if moment.ndim == 2:
        picked = np.take_along_axis(moment, rows, axis=1)
    else:
        picked = np.stack([part[np.ix_(chosen, chosen)] for part, chosen in zip(moment, rows, strict=True)])
    return picked


def _array(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.cpu().numpy()
    return array

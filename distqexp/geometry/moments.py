"""Second moments of a block's gradients, from which Kronecker precisions and kronecker-pca subspaces are made. Public.

Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015: the curvature
of a block is modelled as the Kronecker product of a row moment (output gradients) and a column moment (activations).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.leading import LARGE_SIDE

Moment = NDArray[np.floating[Any]]
"""A row or column moment, float64 or float32: matrices (copies, n, n), or their diagonals (copies, n)."""


@dataclass(frozen=True)
class BlockMoments:
    """The second moments of one block of shape (copies, rows, columns), summed over public records.

    The row and column moments matter only up to a factor: the energy alone says how large the curvature is. They are in float64, those
    of a large block in float32 (``sum_type``); the energy is in float64.

    Attributes:
        row: The row moment (copies, rows, rows), or its diagonal (copies, rows) when the block has sparse rows.
        column: The column moment (copies, columns, columns).
        energy: The sum (copies,) of ||G||_F^2, where G is the gradient of one record.
    """

    row: Moment
    column: Moment
    energy: FloatArray

    def project(self, row: NDArray[Any] | None, column: FloatArray | None) -> BlockMoments:
        """Return the moments of the projected gradient R_row G R_col^T.

        The energy is that of the projection if the curvature is exactly the Kronecker product of the row and column
        moments: it is multiplied by tr(R S R^T) / tr(S) on both sides.

        Args:
            row: R_row as (copies or 1, k_row, rows), or as int64 (copies, k_row) when it selects rows by their numbers;
                None for the identity.
            column: R_col as (copies or 1, k_col, columns); None for the identity.
        """
        if row is None:
            row_moment = self.row
        elif np.issubdtype(row.dtype, np.integer):
            row_moment = _selection(self.row, row)
        else:
            row_moment = _congruence(row, self.row)
        column_moment = self.column if column is None else _congruence(column, self.column)
        shares = []
        for small, whole in ((row_moment, self.row), (column_moment, self.column)):
            total = traces(whole)
            shares.append(np.divide(traces(small), total, out=np.zeros_like(total), where=total > 0))
        return BlockMoments(row_moment, column_moment, self.energy * shares[0] * shares[1])


class MomentSums(NamedTuple):
    """The tensors of ``BlockMoments``, on the device of the gradients that they were made of."""

    row: torch.Tensor
    column: torch.Tensor
    energy: torch.Tensor

    def arrays(self) -> BlockMoments:
        """Return the same moments as arrays."""
        return BlockMoments(*(tensor.cpu().numpy() for tensor in self))

    def add(self, other: MomentSums) -> None:
        """Add the moments of other records to these, in place."""
        for total, part in zip(self, other, strict=True):
            total.add_(part)


def sum_type(block: Block) -> torch.dtype:
    """Return the type in which the moments of a block are summed: float32 where a side with a dense moment is large, else float64."""
    side = max(block.columns, 0 if block.sparse_rows else block.rows)
    return torch.float32 if side >= LARGE_SIDE else torch.float64


def explicit_moments(block: Block, matrices: torch.Tensor) -> MomentSums:
    """Return the moments of per-record gradients G (B, copies, rows, columns): the sums of G G^T and of G^T G."""
    if matrices.ndim != 4 or tuple(matrices.shape[1:]) != block.shape:
        raise UsageError(
            f"block {block.name}: gradients of shape {tuple(matrices.shape)}; expected (B, *{block.shape})"
        )
    g = matrices.detach().to(sum_type(block))
    row = (g * g).sum(dim=(0, 3)) if block.sparse_rows else torch.matmul(g, g.transpose(2, 3)).sum(dim=0)
    column = torch.matmul(g.transpose(2, 3), g).sum(dim=0)
    return MomentSums(row, column, (g * g).sum(dim=(0, 2, 3), dtype=torch.float64))


def position_moments(block: Block, row: torch.Tensor, column: torch.Tensor) -> MomentSums:
    """Return the moments of gradients of the form G = sum over L positions t of row_t column_t^T.

    They are the sums over records and positions of row_t row_t^T and of column_t column_t^T, and the sum over records of
    ||G||_F^2. A position whose row or column is exactly zero, such as padding, adds nothing to G and counts in neither
    moment.

    Args:
        block: The block that the gradients belong to.
        row: The vectors row_t as (B, copies, L, rows). In a block with sparse rows they may be unit vectors, given by the
            numbers of their rows as int64 (B, 1, L).
        column: The vectors column_t as (B, copies, L, columns).

    Raises:
        UsageError: The shapes do not fit the block.
    """
    has_row_numbers = row.dtype == torch.int64 and block.sparse_rows
    ends = ((), (block.columns,)) if has_row_numbers else ((block.rows,), (block.columns,))
    expected = tuple((*column.shape[:1], block.copies, *column.shape[2:3], *end) for end in ends)
    if (tuple(row.shape), tuple(column.shape)) != expected:
        raise UsageError(
            f"block {block.name}: factors of shapes {tuple(row.shape)} and {tuple(column.shape)}; expected "
            f"(B, copies, L, rows) and (B, copies, L, columns) of {block.shape}"
        )
    a = column.detach().to(sum_type(block))
    live = (a != 0).any(dim=3)
    if has_row_numbers:
        a = torch.where(live.unsqueeze(3), a, 0.0)
        same = row.unsqueeze(3) == row.unsqueeze(2)
        products = torch.where(same, torch.matmul(a, a.transpose(2, 3)), 0.0)
        counts = a.new_zeros(block.rows).index_add(0, row.reshape(-1), live.reshape(-1).to(a.dtype))
        return MomentSums(counts.unsqueeze(0), _gram(a), _total(products))
    e = row.detach().to(a.dtype)
    live = (live & (e != 0).any(dim=3)).unsqueeze(3)
    e, a = torch.where(live, e, 0.0), torch.where(live, a, 0.0)
    if e.shape[2] ** 2 < block.rows * block.columns:
        energy = _total(torch.matmul(e, e.transpose(2, 3)) * torch.matmul(a, a.transpose(2, 3)))
    else:
        energy = _total(torch.matmul(e.transpose(2, 3), a).square())
    row_moment = (e * e).sum(dim=(0, 2)) if block.sparse_rows else _gram(e)
    return MomentSums(row_moment, _gram(a), energy)


def traces(moment: Moment) -> FloatArray:
    """Return the trace (copies,) of each copy's moment, which is given whole or as its diagonal."""
    diagonal = moment if moment.ndim == 2 else np.diagonal(moment, axis1=1, axis2=2)
    total: FloatArray = diagonal.sum(axis=1, dtype=np.float64)
    return total


def coordinate_block(block: Block, k_row: int, k_col: int, start: int, sparse_rows: bool) -> Block:
    """Return the block (copies, k_row, k_col) of a projected gradient, row-major from ``start`` on in the coordinates."""
    return dataclasses.replace(
        block, rows=k_row, columns=k_col, weight=start, bias=None, transposed=False, sparse_rows=sparse_rows
    )


def _gram(factors: torch.Tensor) -> torch.Tensor:
    """Return the sum (copies, n, n) over records and positions of the outer products of vectors (B, copies, L, n)."""
    flat = factors.transpose(0, 1).flatten(1, 2)
    return torch.matmul(flat.transpose(1, 2), flat)


def _total(products: torch.Tensor) -> torch.Tensor:
    """Return the sum (copies,) in float64 over records and entries of (B, copies, n, m)."""
    return products.sum(dim=(0, 2, 3), dtype=torch.float64)


def _congruence(factor: FloatArray, moment: Moment) -> FloatArray:
    """Return R S R^T of each copy in float64, where the moment S is given whole or as its diagonal."""
    if moment.ndim == 2:
        return np.matmul(factor * moment[:, None, :], factor.transpose(0, 2, 1))
    return np.matmul(np.matmul(factor, moment), factor.transpose(0, 2, 1))


def _selection(moment: Moment, rows: IntegerArray) -> FloatArray:
    """Return the part of the moment that belongs to the given rows (copies, k_row)."""
    part: Moment
    if moment.ndim == 2:
        part = np.take_along_axis(moment, rows, axis=1)
    else:
        part = np.stack([matrix[np.ix_(numbers, numbers)] for matrix, numbers in zip(moment, rows, strict=True)])
    return part.astype(np.float64, copy=False)

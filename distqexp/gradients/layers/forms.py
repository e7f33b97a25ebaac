"""Forms of a block's per-example gradient: raw as a layer's rule gives it, whitened as it is kept. Private."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch

from distqexp.geometry.blocks import Block

Tensor = torch.Tensor

LATE_GROWTH = 2
"""A product taken before whitening may be at most this many times as large as the whitened block."""

PRODUCT_GROWTH = 2
"""A product over several positions is kept while it is at most this many times as large as its factors."""


class Whitening(Protocol):
    """Row and column factors of a block: (copies, k, n) matrices or (copies, n) diagonals. Public."""

    @property
    def row(self) -> Tensor: ...

    @property
    def column(self) -> Tensor: ...


@dataclass(frozen=True)
class Dense:
    """G_j = sum_t row_jt column_jt^T: row (B, copies, L, k_row), column (B, copies, L, k_column)."""

    row: Tensor
    column: Tensor


@dataclass(frozen=True)
class Indexed:
    """Rows that are scaled unit vectors: row_jt = scale_jt e_(token_jt). token, scale (B, L); column (B, 1, L, k_column)."""

    token: Tensor
    scale: Tensor
    column: Tensor
    rows: int

    def dense(self) -> Dense:
        """The same with rows written out, (B, 1, L, rows)."""
        row = self.scale.new_zeros((*self.token.shape, self.rows))
        return Dense(row.scatter_(2, self.token.unsqueeze(2), self.scale.unsqueeze(2)).unsqueeze(1), self.column)


@dataclass(frozen=True)
class Whole:
    """The matrices themselves, (B, copies, k_row, k_column)."""

    matrix: Tensor


Kept = Dense | Indexed | Whole


class Raw(ABC):
    """A block's gradient before whitening, as one use of the layer gives it.

    ``weight`` and ``bias``: which of the block's columns it holds; the others are zero.
    """

    @abstractmethod
    def plain(self, block: Block) -> Kept:
        """The gradient unwhitened, with every column of the block."""

    @abstractmethod
    def whiten(self, block: Block, whitening: Whitening) -> Kept:
        """U_row G U_column^T in the form that is cheaper to keep."""


@dataclass(frozen=True)
class Positions(Raw):
    """Rows (B, copies, L, rows) and columns (B, copies, L, weight columns); None: no weight. ``constant``: the bias's ones."""

    row: Tensor
    column: Tensor | None
    constant: bool = False

    def plain(self, block: Block) -> Kept:
        row = self.row
        parts = [] if self.column is None else [self.column]
        if self.column is None:
            row = row.sum(dim=2, keepdim=True)
            parts = [row.new_zeros((*row.shape[:3], block.weight_columns))] if block.weight_columns else []
        if block.bias is not None:
            parts.append(row.new_full((*row.shape[:3], 1), 1.0 if self.constant else 0.0))
        return Dense(row, torch.cat(parts, dim=3) if len(parts) > 1 else parts[0])

    def whiten(self, block: Block, whitening: Whitening) -> Kept:
        if self.column is None:
            # One row a record is enough: the columns of all positions are the same.
            row = apply(self.row.sum(dim=2, keepdim=True), whitening.row)
            bias = last_column(whitening.column)
            return smaller(row, bias.expand(row.shape[0], *bias.shape[1:]))
        steps, rows = self.row.shape[2:]
        k_row, k_column = width(whitening.row), width(whitening.column)
        if keeps_factors(steps, k_row, k_column):
            return Dense(apply(self.row, whitening.row), self.whitened_column(whitening))
        row_late, column_late = association(steps, rows, block.columns, k_row, k_column, 0)
        row = self.row if row_late else apply(self.row, whitening.row)
        if column_late:
            matrix = row.transpose(2, 3) @ self.column
            if block.bias is not None:
                total = row.sum(dim=2) if self.constant else row.new_zeros((len(row), row.shape[1], row.shape[3]))
                matrix = torch.cat([matrix, total.unsqueeze(3)], dim=3)
            matrix = apply(matrix, whitening.column)
        else:
            matrix = row.transpose(2, 3) @ self.whitened_column(whitening)
        return Whole(apply_left(matrix, whitening.row) if row_late else matrix)

    def whitened_column(self, whitening: Whitening) -> Tensor:
        """(B, copies, L, k_column)."""
        assert self.column is not None
        return apply_with_constant(self.column, whitening.column, self.constant)


@dataclass(frozen=True)
class Tokens(Raw):
    """Rows that are one-hot vectors of tokens (B, L); columns (B, L, weight columns), zero where a token gets no gradient."""

    token: Tensor
    column: Tensor

    def plain(self, block: Block) -> Kept:
        column = self.column.unsqueeze(1)
        if block.bias is not None:
            column = torch.nn.functional.pad(column, (0, 1))
        found = Indexed(self.token, torch.ones_like(self.column[..., 0]), column, block.rows)
        return found if block.sparse_rows else found.dense()

    def whiten(self, block: Block, whitening: Whitening) -> Kept:
        column = apply_with_constant(self.column.unsqueeze(1), whitening.column, False)
        if whitening.row.ndim == 2:
            return Indexed(self.token, whitening.row[0][self.token], column, block.rows)
        row = whitening.row[0].T.contiguous()[self.token].unsqueeze(1)
        return smaller(row, column)


@dataclass(frozen=True)
class Matrices(Raw):
    """The gradient itself, (B, copies, rows, columns), for parameters that are small or follow no rule."""

    matrix: Tensor

    def plain(self, block: Block) -> Kept:
        return Whole(self.matrix)

    def whiten(self, block: Block, whitening: Whitening) -> Kept:
        k_row, k_column = width(whitening.row), width(whitening.column)
        rows, columns = self.matrix.shape[2:]
        if k_row * rows * columns + k_row * columns * k_column <= rows * columns * k_column + rows * k_column * k_row:
            return Whole(apply(apply_left(self.matrix, whitening.row), whitening.column))
        return Whole(apply_left(apply(self.matrix, whitening.column), whitening.row))


def dense(kept: Dense | Indexed) -> Dense:
    """With rows written out."""
    return kept.dense() if isinstance(kept, Indexed) else kept


def product(kept: Kept) -> Tensor:
    """(B, copies, k_row, k_column)."""
    if isinstance(kept, Whole):
        return kept.matrix
    if isinstance(kept, Indexed):
        scaled = kept.column[:, 0] * kept.scale.unsqueeze(2)
        found = scaled.new_zeros((len(scaled), kept.rows, scaled.shape[2]))
        index = kept.token.unsqueeze(2).expand(scaled.shape)
        return found.scatter_add_(1, index, scaled).unsqueeze(1)
    return kept.row.transpose(2, 3) @ kept.column


def joined(first: Kept, second: Kept) -> Kept:
    """Two uses of one block: their sum. Factors stay factors, of the positions of both."""
    if isinstance(first, Whole) or isinstance(second, Whole):
        return Whole(product(first) + product(second))
    if isinstance(first, Indexed) and isinstance(second, Indexed):
        return Indexed(
            torch.cat([first.token, second.token], dim=1),
            torch.cat([first.scale, second.scale], dim=1),
            torch.cat([first.column, second.column], dim=2),
            first.rows,
        )
    one, two = dense(first), dense(second)
    return Dense(torch.cat([one.row, two.row], dim=2), torch.cat([one.column, two.column], dim=2))


def merged(kept: Kept, views: int) -> Kept:
    """The sum over the ``views`` of each record, which are neighbours in the batch: their positions become the record's."""
    if isinstance(kept, Whole):
        return Whole(kept.matrix.reshape(-1, views, *kept.matrix.shape[1:]).sum(dim=1))
    column = _one_after_another(kept.column, views)
    if isinstance(kept, Dense):
        return smaller(_one_after_another(kept.row, views), column)
    token, scale = (side.reshape(-1, views * side.shape[1]) for side in (kept.token, kept.scale))
    return Indexed(token, scale, column, kept.rows)


def _one_after_another(side: Tensor, views: int) -> Tensor:
    """(B views, copies, L, n) -> (B, copies, views L, n)."""
    return side.reshape(-1, views, *side.shape[1:]).transpose(1, 2).flatten(2, 3)


def keeps_factors(steps: int, k_row: int, k_column: int) -> bool:
    """Whether to keep factors rather than their product, by sizes.

    Where the product is the smaller, it also is the cheaper way to the norm than Gram matrices (the two counts have the same
    ratio). Somewhat above that it still saves time: factors meet their Gram matrices and the sum in float64.
    """
    growth = 1 if steps == 1 else PRODUCT_GROWTH
    return k_row * k_column > growth * steps * (k_row + k_column)


def smaller(row: Tensor, column: Tensor) -> Kept:
    """Whitened factors, or their product when it is smaller."""
    if keeps_factors(row.shape[2], row.shape[3], column.shape[3]):
        return Dense(row, column)
    return Whole(row.transpose(2, 3) @ column)


def association(steps: int, rows: int, columns: int, k_row: int, k_column: int, unfolding: int) -> tuple[bool, bool]:
    """Which side to whiten after the product over positions rather than before, (row, column), by operation counts.

    ``unfolding``: what it costs, in operations a position and column, to have the raw columns.
    """
    choices = {}
    for row_late in (False, True):
        for column_late in (False, True):
            wide, deep = rows if row_late else k_row, columns if column_late else k_column
            if wide * deep > LATE_GROWTH * k_row * k_column:
                continue
            cost = steps * wide * deep
            cost += (
                wide * columns * k_column + unfolding * steps * columns if column_late else steps * columns * k_column
            )
            cost += rows * k_row * k_column if row_late else steps * rows * k_row
            choices[row_late, column_late] = cost
    return min(choices, key=lambda choice: choices[choice])


def width(factor: Tensor) -> int:
    """k: what a factor maps to."""
    return factor.shape[1]


def apply(values: Tensor, factor: Tensor) -> Tensor:
    """(B, copies, L, n) -> (B, copies, L, k), each position on its own."""
    if factor.ndim == 2:
        return values * factor.unsqueeze(1)
    if factor.shape[0] == 1 and values.shape[1] == 1:
        return torch.nn.functional.linear(values, factor[0])
    return values @ factor.transpose(1, 2)


def apply_left(matrix: Tensor, factor: Tensor) -> Tensor:
    """(B, copies, n, m) -> (B, copies, k, m)."""
    if factor.ndim == 2:
        return matrix * factor.unsqueeze(2)
    return apply(matrix.transpose(2, 3), factor).transpose(2, 3)


def apply_with_constant(values: Tensor, factor: Tensor, constant: bool) -> Tensor:
    """``apply`` on the leading columns that ``values`` has, and a one (or zero) for the bias's column, if there is one."""
    count = values.shape[3]
    if factor.shape[-1] == count:
        return apply(values, factor)
    if factor.ndim == 2:
        ones = (factor[:, count:].unsqueeze(1) if constant else factor.new_zeros((len(factor), 1, 1))).expand(
            *values.shape[:3], 1
        )
        return torch.cat([apply(values, factor[:, :count]), ones], dim=3)
    if constant and factor.shape[0] == 1 and values.shape[1] == 1:
        return torch.nn.functional.linear(values, factor[0, :, :count], factor[0, :, count])
    found = apply(values, factor[:, :, :count])
    return found + factor[:, :, count].unsqueeze(1) if constant else found


def last_column(factor: Tensor) -> Tensor:
    """(1, copies, 1, k): what the factor makes of the bias's column."""
    if factor.ndim == 2:
        unit = torch.zeros_like(factor)
        unit[:, -1] = factor[:, -1]
        return unit.unsqueeze(1).unsqueeze(0)
    return factor[:, :, -1].unsqueeze(1).unsqueeze(0)

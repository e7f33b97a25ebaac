"""The forms that a block's per-example gradient takes: raw as a layer's rule gives it, then as it is stored. Private."""

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
"""A product over several positions is stored, not its factors, while it is at most this many times as large as they are."""


class Whitening(Protocol):
    """The row and column factors of a block: matrices (copies, k, n) or diagonals (copies, n). Public."""

    @property
    def row(self) -> Tensor: ...

    @property
    def column(self) -> Tensor: ...


@dataclass(frozen=True)
class Dense:
    """Factors of G_j = sum_t row_jt column_jt^T.

    Attributes:
        row: (B, copies, L, k_row).
        column: (B, copies, L, k_column).
    """

    row: Tensor
    column: Tensor


@dataclass(frozen=True)
class Indexed:
    """Factors whose rows are scaled unit vectors: row_jt = scale_jt e_(token_jt).

    Attributes:
        token: Which entry of the row is not zero, int64 (B, L).
        scale: That entry, (B, L).
        column: (B, 1, L, k_column).
        rows: The length of a row.
    """

    token: Tensor
    scale: Tensor
    column: Tensor
    rows: int

    def dense(self) -> Dense:
        """Return the same factors with rows written out, (B, 1, L, rows)."""
        row = self.scale.new_zeros((*self.token.shape, self.rows))
        return Dense(row.scatter_(2, self.token.unsqueeze(2), self.scale.unsqueeze(2)).unsqueeze(1), self.column)


@dataclass(frozen=True)
class Whole:
    """The matrices themselves, (B, copies, k_row, k_column)."""

    matrix: Tensor


Form = Dense | Indexed | Whole
"""How a block's gradients are stored from the backward pass on."""


class Raw(ABC):
    """A block's gradient before whitening, as one use of the layer gives it.

    Columns of the block that the use doesn't give (its bias's, or all but that) are zero.
    """

    @abstractmethod
    def plain(self, block: Block) -> Form:
        """Return the gradient unwhitened, with every column of the block."""

    @abstractmethod
    def whiten(self, block: Block, whitening: Whitening) -> Form:
        """Return U_row G U_column^T in the form that is cheaper to store."""


@dataclass(frozen=True)
class Positions(Raw):
    """Rows and columns, position by position, as a linear layer has them.

    Attributes:
        row: (B, copies, L, rows).
        column: (B, copies, L, weight columns); None without a weight.
        constant: Whether there is a gradient of the bias too, whose column is 1 at every position.
    """

    row: Tensor
    column: Tensor | None
    constant: bool = False

    def plain(self, block: Block) -> Form:
        row = self.row
        parts = [] if self.column is None else [self.column]
        if self.column is None:
            row = row.sum(dim=2, keepdim=True)
            parts = [row.new_zeros((*row.shape[:3], block.weight_columns))] if block.weight_columns else []
        if block.bias is not None:
            parts.append(row.new_full((*row.shape[:3], 1), 1.0 if self.constant else 0.0))
        return Dense(row, torch.cat(parts, dim=3) if len(parts) > 1 else parts[0])

    def whiten(self, block: Block, whitening: Whitening) -> Form:
        if self.column is None:
            # One row for each record is enough, as the columns of all positions are the same.
            row = apply(self.row.sum(dim=2, keepdim=True), whitening.row)
            bias = _last_column(whitening.column)
            return smaller_form(row, bias.expand(row.shape[0], *bias.shape[1:]))
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
        """Return the whitened columns, (B, copies, L, k_column)."""
        assert self.column is not None
        return _apply_with_constant(self.column, whitening.column, self.constant)


@dataclass(frozen=True)
class Tokens(Raw):
    """Rows that are one-hot vectors, as an embedding has them.

    Attributes:
        token: The token at every position, (B, L).
        column: (B, L, weight columns), zero where a token gets no gradient.
    """

    token: Tensor
    column: Tensor

    def plain(self, block: Block) -> Form:
        column = self.column.unsqueeze(1)
        if block.bias is not None:
            column = torch.nn.functional.pad(column, (0, 1))
        form = Indexed(self.token, torch.ones_like(self.column[..., 0]), column, block.rows)
        return form if block.sparse_rows else form.dense()

    def whiten(self, block: Block, whitening: Whitening) -> Form:
        column = _apply_with_constant(self.column.unsqueeze(1), whitening.column, False)
        if whitening.row.ndim == 2:
            return Indexed(self.token, whitening.row[0][self.token], column, block.rows)
        row = whitening.row[0].T.contiguous()[self.token].unsqueeze(1)
        return smaller_form(row, column)


@dataclass(frozen=True)
class Matrices(Raw):
    """The gradient itself, (B, copies, rows, columns), for parameters that are small or follow no rule."""

    matrix: Tensor

    def plain(self, block: Block) -> Form:
        return Whole(self.matrix)

    def whiten(self, block: Block, whitening: Whitening) -> Form:
        k_row, k_column = width(whitening.row), width(whitening.column)
        rows, columns = self.matrix.shape[2:]
        if k_row * rows * columns + k_row * columns * k_column <= rows * columns * k_column + rows * k_column * k_row:
            return Whole(apply(apply_left(self.matrix, whitening.row), whitening.column))
        return Whole(apply_left(apply(self.matrix, whitening.column), whitening.row))


def product(form: Form) -> Tensor:
    """Return the matrices themselves, (B, copies, k_row, k_column)."""
    if isinstance(form, Whole):
        return form.matrix
    if isinstance(form, Indexed):
        rows = form.column[:, 0] * form.scale.unsqueeze(2)
        matrix = rows.new_zeros((len(rows), form.rows, rows.shape[2]))
        index = form.token.unsqueeze(2).expand(rows.shape)
        return matrix.scatter_add_(1, index, rows).unsqueeze(1)
    return form.row.transpose(2, 3) @ form.column


def join_uses(first: Form, second: Form) -> Form:
    """Add two uses of one block. Factors stay factors, with the positions of both."""
    if isinstance(first, Whole) or isinstance(second, Whole):
        return Whole(product(first) + product(second))
    if isinstance(first, Indexed) and isinstance(second, Indexed):
        return Indexed(
            torch.cat([first.token, second.token], dim=1),
            torch.cat([first.scale, second.scale], dim=1),
            torch.cat([first.column, second.column], dim=2),
            first.rows,
        )
    one, two = _dense(first), _dense(second)
    return Dense(torch.cat([one.row, two.row], dim=2), torch.cat([one.column, two.column], dim=2))


def merge_views(form: Form, views: int) -> Form:
    """Add the ``views`` of each record, which are side by side in the batch: their positions become the record's."""
    if isinstance(form, Whole):
        return Whole(form.matrix.reshape(-1, views, *form.matrix.shape[1:]).sum(dim=1))
    column = _one_after_another(form.column, views)
    if isinstance(form, Dense):
        return smaller_form(_one_after_another(form.row, views), column)
    token, scale = (side.reshape(-1, views * side.shape[1]) for side in (form.token, form.scale))
    return Indexed(token, scale, column, form.rows)


def _dense(form: Dense | Indexed) -> Dense:
    return form.dense() if isinstance(form, Indexed) else form


def _one_after_another(side: Tensor, views: int) -> Tensor:
    """Reshape (B views, copies, L, n) to (B, copies, views L, n)."""
    return side.reshape(-1, views, *side.shape[1:]).transpose(1, 2).flatten(2, 3)


def keeps_factors(steps: int, k_row: int, k_column: int) -> bool:
    """Return whether to store factors rather than their product, which depends on sizes alone.

    Where the product is smaller than the factors, the norm costs less by the product than by Gram matrices too (the two counts
    have the same ratio). A product that is somewhat larger still saves time, as Gram matrices and the sum of factors are taken
    in float64.

    Args:
        steps: The number of positions.
        k_row: The length of a row factor.
        k_column: The length of a column factor.
    """
    growth = 1 if steps == 1 else PRODUCT_GROWTH
    return k_row * k_column > growth * steps * (k_row + k_column)


def smaller_form(row: Tensor, column: Tensor) -> Form:
    """Return the factors as they are, or their product where ``keeps_factors`` says so."""
    if keeps_factors(row.shape[2], row.shape[3], column.shape[3]):
        return Dense(row, column)
    return Whole(row.transpose(2, 3) @ column)


def association(steps: int, rows: int, columns: int, k_row: int, k_column: int, unfolding: int) -> tuple[bool, bool]:
    """Return which of (row, column) to whiten after the product over positions rather than before, by counts of operations.

    Args:
        steps: The number of positions.
        rows: The length of a raw row.
        columns: The length of a raw column.
        k_row: The length of a whitened row.
        k_column: The length of a whitened column.
        unfolding: The cost of having the raw columns at all, in operations for each position and column.
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
    """Return k, the number of coordinates that a factor maps to."""
    return factor.shape[1]


def apply(values: Tensor, factor: Tensor) -> Tensor:
    """Map values (B, copies, L, n) to (B, copies, L, k) by a factor, each position on its own."""
    if factor.ndim == 2:
        return values * factor.unsqueeze(1)
    if factor.shape[0] == 1 and values.shape[1] == 1:
        return torch.nn.functional.linear(values, factor[0])
    return values @ factor.transpose(1, 2)


def apply_left(matrix: Tensor, factor: Tensor) -> Tensor:
    """Map matrices (B, copies, n, m) to (B, copies, k, m) by a factor from the left."""
    if factor.ndim == 2:
        return matrix * factor.unsqueeze(2)
    return apply(matrix.transpose(2, 3), factor).transpose(2, 3)


def _apply_with_constant(values: Tensor, factor: Tensor, constant: bool) -> Tensor:
    """Apply a factor to values that lack the bias's column, if the block has one: it is a constant one, or zero."""
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
    without_bias = apply(values, factor[:, :, :count])
    return without_bias + factor[:, :, count].unsqueeze(1) if constant else without_bias


def _last_column(factor: Tensor) -> Tensor:
    """Return what the factor makes of the bias's column, (1, copies, 1, k)."""
    if factor.ndim == 2:
        unit = torch.zeros_like(factor)
        unit[:, -1] = factor[:, -1]
        return unit.unsqueeze(1).unsqueeze(0)
    return factor[:, :, -1].unsqueeze(1).unsqueeze(0)

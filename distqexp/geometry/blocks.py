"""Blocks: the trainable parameters as matrices, which is how Kronecker subspaces and precisions see them. Public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError


@dataclass(frozen=True)
class Block:
    """One weight, and the bias that goes with it, as ``copies`` matrices of shape (rows, columns).

    The rows are the side of the output gradients, the columns that of the activations. A bias is the last column, whose
    activation is one. A grouped convolution has one copy for each group.

    Attributes:
        name: The name that error messages show.
        copies: The number of matrices.
        rows: The number of rows of each matrix.
        columns: The number of columns of each matrix, including that of the bias.
        weight: The position in theta where the weight starts, as (copies, rows, columns without the bias); None for a
            block that is a bias alone.
        bias: The position in theta where the bias starts, as (copies, rows); None for a block without a bias.
        transposed: Whether theta holds the weight as (copies, columns without the bias, rows) instead.
        sparse_rows: Whether the rows are the entries of a vocabulary, of an embedding or of a head. These are too many for
            a dense second moment, so only its diagonal is kept.
    """

    name: str
    copies: int
    rows: int
    columns: int
    weight: int | None
    bias: int | None
    transposed: bool = False
    sparse_rows: bool = False

    def __post_init__(self) -> None:
        if min(self.copies, self.rows, self.columns) < 1 or (self.weight is None and self.bias is None):
            raise UsageError(f"block {self.name}: found {self}; expected a weight or a bias of at least one entry")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (copies, rows, columns) of the block."""
        return (self.copies, self.rows, self.columns)

    @property
    def size(self) -> int:
        """The number of parameters in the block."""
        return self.copies * self.rows * self.columns

    @property
    def weight_columns(self) -> int:
        """The number of columns without that of the bias."""
        return self.columns - (self.bias is not None)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the block's matrices (B, copies, rows, columns) from vectors (B, d) in the order of theta."""
        parts = []
        if self.weight is not None:
            flat = rows[:, self.weight : self.weight + self.copies * self.rows * self.weight_columns]
            shape = (self.weight_columns, self.rows) if self.transposed else (self.rows, self.weight_columns)
            weight = flat.reshape(len(rows), self.copies, *shape)
            parts.append(weight.transpose(2, 3) if self.transposed else weight)
        if self.bias is not None:
            bias = rows[:, self.bias : self.bias + self.copies * self.rows]
            parts.append(bias.reshape(len(rows), self.copies, self.rows, 1))
        return torch.cat(parts, dim=3)

    def scatter(self, matrices: FloatArray, theta: FloatArray) -> None:
        """Write matrices (copies, rows, columns) to the block's places in the vector ``theta`` (d,)."""
        if self.weight is not None:
            weight = matrices[:, :, : self.weight_columns]
            weight = weight.transpose(0, 2, 1) if self.transposed else weight
            theta[self.weight : self.weight + weight.size] = weight.reshape(-1)
        if self.bias is not None:
            theta[self.bias : self.bias + self.copies * self.rows] = matrices[:, :, -1].reshape(-1)


def check_cover(blocks: Sequence[Block], d: int) -> None:
    """Raise UsageError unless the blocks hold each of the d parameters exactly once."""
    spans: list[tuple[int, int]] = []
    for block in blocks:
        if block.weight is not None:
            spans.append((block.weight, block.copies * block.rows * block.weight_columns))
        if block.bias is not None:
            spans.append((block.bias, block.copies * block.rows))
    offset = 0
    for start, length in sorted(spans):
        if start != offset:
            raise UsageError(
                f"blocks: parameter {offset} of theta is in no block or in two; expected each in exactly one"
            )
        offset = start + length
    if offset != d or math.fsum(block.size for block in blocks) != d:
        raise UsageError(f"blocks: they hold {offset} parameters; expected d = {d}")

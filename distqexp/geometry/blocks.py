"""Blocks: the trainable parameters as matrices, the shape that Kronecker subspaces and precisions work on. Public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.errors import UsageError


@dataclass(frozen=True)
class Block:
    """One weight, and the bias that goes with it, as ``copies`` matrices of shape (rows, columns).

    Rows are the side of the output gradients, columns that of the activations; a bias is the last column, whose
    activation is one. A grouped convolution has a copy a group. In theta the weight starts at ``weight`` (None: the
    block is a bias alone) as (copies, rows, columns without bias), or, when ``transposed``, as (copies, columns
    without bias, rows); the bias starts at ``bias`` (None: no bias) as (copies, rows). ``sparse_rows``: the rows are
    entries of a vocabulary, too many for a dense second moment, which is kept as its diagonal.
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
        """(copies, rows, columns)."""
        return (self.copies, self.rows, self.columns)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.copies * self.rows * self.columns

    @property
    def weight_columns(self) -> int:
        """Columns without that of the bias."""
        return self.columns - (self.bias is not None)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, d) vectors in the order of theta -> (B, copies, rows, columns)."""
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

    def scatter(self, matrices: NDArray[np.float64], theta: NDArray[np.float64]) -> None:
        """Write (copies, rows, columns) to its places in a vector (d,)."""
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
    at = 0
    for start, length in sorted(spans):
        if start != at:
            raise UsageError(f"blocks: parameter {at} of theta is in no block or in two; expected each in exactly one")
        at = start + length
    if at != d or math.fsum(block.size for block in blocks) != d:
        raise UsageError(f"blocks: they hold {at} parameters; expected d = {d}")

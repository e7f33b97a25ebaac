"""Second moments of all blocks as one flat vector, in which they travel from the ranks to the root. Public."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments, sum_type

LARGEST_SIDE = 8192
"""The largest number of rows or columns of a block whose second moment is kept as a dense matrix."""


def moments_size(blocks: Sequence[Block]) -> int:
    """Return how many words of 8 bytes the packed moments of ``blocks`` have. Raises UsageError above a side of 8192."""
    for block in blocks:
        for side, dense in ((block.rows, not block.sparse_rows), (block.columns, True)):
            if dense and side > LARGEST_SIDE:
                raise UsageError(
                    f"block {block.name}: a second moment of side {side}; expected at most {LARGEST_SIDE}: set "
                    "subspace.kind = kronecker with smaller subspace.k_in and subspace.k_out, or train other parameters"
                )
    return sum(_words(shape, dtype) for block in blocks for shape, dtype in _layout(block))


def moments_in(blocks: Sequence[Block], flat: FloatArray) -> list[BlockMoments]:
    """Return the moments that a packed vector (``moments_size``,) holds, as views into it. Raises UsageError for another length."""
    expected = (moments_size(blocks),)
    if flat.shape != expected:
        raise UsageError(f"moments: found shape {flat.shape}; expected {expected}")
    moments, offset = [], 0
    for block in blocks:
        arrays = []
        for shape, dtype in _layout(block):
            words = _words(shape, dtype)
            arrays.append(flat[offset : offset + words].view(dtype)[: math.prod(shape)].reshape(shape))
            offset += words
        moments.append(BlockMoments(*arrays))
    return moments


def pack(blocks: Sequence[Block], moments: Sequence[BlockMoments]) -> FloatArray:
    """Return the moments of the blocks as one flat vector."""
    flat = np.zeros(moments_size(blocks))
    for there, part in zip(moments_in(blocks, flat), moments, strict=True):
        _copy_or_add(there, part, add=False)
    return flat


def unpack(blocks: Sequence[Block], flat: FloatArray) -> list[BlockMoments]:
    """Invert ``pack``. Raises UsageError when the vector has another length or an entry that is not finite."""
    moments = moments_in(blocks, flat)
    if not all(np.isfinite(array).all() for part in moments for array in (part.row, part.column, part.energy)):
        raise UsageError("moments: the public second moments have entries that are not finite; check data.public")
    return moments


def add_packed(blocks: Sequence[Block], total: FloatArray, part: FloatArray) -> None:
    """Add the packed moments of other records to ``total``, in place."""
    for there, more in zip(moments_in(blocks, total), moments_in(blocks, part), strict=True):
        _copy_or_add(there, more, add=True)


def _copy_or_add(there: BlockMoments, part: BlockMoments, *, add: bool) -> None:
    for name in ("row", "column", "energy"):
        target = getattr(there, name)
        target[...] = target + getattr(part, name) if add else getattr(part, name)


def _layout(block: Block) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]:
    """Return shape and type of the row moment, the column moment and the energy."""
    dtype = np.dtype(np.float32 if sum_type(block) is torch.float32 else np.float64)
    row = (block.copies, block.rows) if block.sparse_rows else (block.copies, block.rows, block.rows)
    return (
        (row, dtype),
        ((block.copies, block.columns, block.columns), dtype),
        ((block.copies,), np.dtype(np.float64)),
    )


def _words(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // 8)

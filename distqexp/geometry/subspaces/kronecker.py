"""Kronecker subspaces: every block of parameters moves by R_row^T M R_col, where M has the shape (k_row, k_col).

A projected gradient R_row G R_col^T needs R_row on output gradients and R_col on activations only, so for layers whose
gradient is a sum of outer products the gradient of a record never has to be formed. Here it is formed: this is the
plain way, with which the fast one is compared.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block, check_cover
from distqexp.geometry.leading import FEW, LARGE_SIDE, leading_eigenvectors
from distqexp.geometry.moments import BlockMoments, Moment, coordinate_block
from distqexp.geometry.philox import standard_normal_entries, stream_key
from distqexp.geometry.subspaces.base import BlockFactors, BlockSubspace, Subspace
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.kinds import SUBSPACES

MANY = 40_000
"""A factor of so many numbers, or more, is rounded to half precision."""

_Factor = NDArray[Any] | None


class KroneckerSubspace(Subspace):
    """The subspace in which P^T v is the blocks R_row G R_col^T in turn, each (copies, k_row, k_col) flattened row-major.

    With no factors at all it is the identity in the order of the blocks. The constructor raises UsageError unless the
    blocks cover theta and the factors fit them.
    """

    kind = "kronecker"

    def __init__(self, blocks: Sequence[Block], factors: Sequence[BlockFactors]) -> None:
        if len(factors) != len(blocks):
            raise UsageError(
                f"subspace kronecker: {len(factors)} pairs of factors; expected {len(blocks)}, one a block"
            )
        d = sum(block.size for block in blocks)
        check_cover(blocks, d)
        coordinates, dimension = [], 0
        for block, factor in zip(blocks, factors, strict=True):
            k_row, k_col = _sides(block, factor)
            sparse = block.sparse_rows and (factor.row is None or factor.row.ndim == 2)
            coordinates.append(coordinate_block(block, k_row, k_col, dimension, sparse))
            dimension += coordinates[-1].size
        super().__init__(d, dimension)
        self.blocks = tuple(blocks)
        self.factors = tuple(factors)
        self.coordinates = tuple(coordinates)
        self._tensors = [(_tensor(factor.row), _tensor(factor.column)) for factor in factors]

    def by_blocks(self) -> BlockSubspace:
        """Return the blocks of theta, their factors, and the blocks of the coordinates."""
        return BlockSubspace(self.blocks, self.factors, self.coordinates)

    def project_blocks(self, gradients: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield R_row G R_col^T (B, copies, k_row, k_col), float64, of each block for gradients (B, d) of any floating type."""
        for i, block in enumerate(self.blocks):
            row, column = self._factors_on(i, gradients.device)
            g = block.gather(gradients.detach()).to(torch.float64)
            if row is not None and row.ndim == 2:
                g = torch.gather(g, 2, row[None, :, :, None].expand(len(g), -1, -1, g.shape[3]))
            elif row is not None:
                g = torch.matmul(row, g)
            yield g if column is None else torch.matmul(g, column.transpose(1, 2))

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        parts = [part.reshape(len(gradients), -1) for part in self.project_blocks(gradients)]
        return torch.cat(parts, dim=1)

    def _lift(self, w: FloatArray) -> FloatArray:
        theta = np.empty(self.d)
        offset = 0
        for block, factor, part in zip(self.blocks, self.factors, self.coordinates, strict=True):
            m = w[offset : offset + part.size].reshape(part.shape)
            offset += part.size
            if factor.column is not None:
                m = np.matmul(m, factor.column)
            if factor.row is not None and factor.row.ndim == 2:
                matrices = np.zeros((block.copies, block.rows, m.shape[2]))
                np.put_along_axis(matrices, factor.row[:, :, None], m, axis=1)
                m = matrices
            elif factor.row is not None:
                m = np.matmul(factor.row.transpose(0, 2, 1), m)
            block.scatter(m, theta)
        return theta

    def _factors_on(self, i: int, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the factors of block ``i`` on the device, where they stay."""
        row, column = self._tensors[i]
        self._tensors[i] = (None if row is None else row.to(device), None if column is None else column.to(device))
        return self._tensors[i]


def kronecker_sides(block: Block, k_in: int | None, k_out: int | None) -> tuple[int, int]:
    """Return (k_row, k_col) of a block: at most k_out and k_in, or all rows or columns where that is None."""
    k_row = block.rows if k_out is None else min(k_out, block.rows)
    k_col = block.columns if k_in is None else min(k_in, block.columns)
    return k_row, k_col


def kronecker_dimension(blocks: Sequence[Block], k_in: int | None, k_out: int | None) -> int:
    """Return k of a Kronecker subspace, which is the sum of copies * k_row * k_col over the blocks."""
    return sum(block.copies * math.prod(kronecker_sides(block, k_in, k_out)) for block in blocks)


def whole_space(blocks: Sequence[Block]) -> KroneckerSubspace:
    """Return the space of all parameters, k = d, with coordinates in the order of the blocks."""
    return KroneckerSubspace(blocks, [BlockFactors()] * len(blocks))


def random_kronecker(
    blocks: Sequence[Block], k_in: int | None, k_out: int | None, seed: int, round: int
) -> KroneckerSubspace:
    """Draw a subspace of independent normal factors of variance 1/k_row and 1/k_col, one pair for each block.

    The copies of a block share its factors. Entry (i, j) of a factor of n columns is word i n + j of the stream of
    (k, n, seed, round, block number, side). A side whose dimension is not reduced has the identity as its factor.

    Args:
        blocks: The blocks of theta.
        k_in: The largest k_col; None leaves all columns.
        k_out: The largest k_row; None leaves all rows.
        seed: The seed of the subspace.
        round: The round that draws it.
    """

    def entries(number: int, side: str, k: int, n: int) -> FloatArray | None:
        if k == n:
            return None
        key = stream_key("subspace", "kronecker", k, n, seed, round, number, side)
        return standard_normal_entries(key, 0, k * n).reshape(1, k, n) / math.sqrt(k)

    factors = []
    for number, block in enumerate(blocks):
        k_row, k_col = kronecker_sides(block, k_in, k_out)
        row = entries(number, "row", k_row, block.rows)
        factors.append(BlockFactors(row, entries(number, "column", k_col, block.columns)))
    return KroneckerSubspace(blocks, factors)


def leading_factors(
    blocks: Sequence[Block], moments: Sequence[BlockMoments], k_in: int | None, k_out: int | None
) -> list[BlockFactors]:
    """Return the leading eigenvectors of each copy's row and column moments; of sparse rows, the most frequent ones.

    The entry of largest size of each eigenvector is positive. The factors are made once, where the moments are, and then
    stored, because eigenvectors differ between libraries. Those of a large block are rounded to half precision, in which a file
    holds them: any subspace will do, as long as everybody has the same.

    Args:
        blocks: The blocks of theta.
        moments: The moments of each block.
        k_in: The largest k_col; None leaves all columns.
        k_out: The largest k_row; None leaves all rows.

    Raises:
        UsageError: A moment has no eigenvectors in float64.
    """
    sides = leading_sides(blocks, k_in, k_out)
    return _with_found(blocks, moments, k_out, {side: leading_directions(side.of(moments), side.k) for side in sides})


class LeadingSide(NamedTuple):
    """A side of a block whose factor is made of eigenvectors of its dense moment (copies, n, n).

    Attributes:
        number: The number of the block.
        name: ``row`` or ``column``.
        copies: The number of moments.
        n: The side of a moment.
        k: How many eigenvectors of each are wanted.
    """

    number: int
    name: str
    copies: int
    n: int
    k: int

    @property
    def cost(self) -> float:
        """About how long it takes to find them: products of the moment with vectors for few of many, else a whole decomposition."""
        return (
            self.copies * float(self.n) ** 2 * (self.n if self.n < LARGE_SIDE or FEW * self.k > self.n else 4 * self.k)
        )

    def of(self, moments: Sequence[BlockMoments]) -> Moment:
        """Return the moment of this side, of those of all blocks."""
        moment: Moment = getattr(moments[self.number], self.name)
        return moment


def leading_sides(blocks: Sequence[Block], k_in: int | None, k_out: int | None) -> list[LeadingSide]:
    """Return the sides of all blocks that ``leading_factors`` finds eigenvectors for; arguments are those of ``leading_factors``."""
    sides = []
    for number, block in enumerate(blocks):
        k_row, k_col = kronecker_sides(block, k_in, k_out)
        if k_row < block.rows and not block.sparse_rows:
            sides.append(LeadingSide(number, "row", block.copies, block.rows, k_row))
        if k_col < block.columns:
            sides.append(LeadingSide(number, "column", block.copies, block.columns, k_col))
    return sides


def leading_arrays(
    blocks: Sequence[Block],
    moments: Sequence[BlockMoments],
    k_in: int | None,
    k_out: int | None,
    found: Mapping[LeadingSide, FloatArray],
) -> dict[str, NDArray[Any]]:
    """Return the arrays that a file has of ``leading_factors``, whose eigenvectors have been ``found`` already."""
    return factors_to_arrays(_with_found(blocks, moments, k_out, found))


def _with_found(
    blocks: Sequence[Block],
    moments: Sequence[BlockMoments],
    k_out: int | None,
    found: Mapping[LeadingSide, FloatArray],
) -> list[BlockFactors]:
    factors: list[dict[str, NDArray[Any]]] = [{} for _ in blocks]
    for side, directions in found.items():
        factors[side.number][side.name] = directions
    for block, moment, factor in zip(blocks, moments, factors, strict=True):
        k_row = kronecker_sides(block, None, k_out)[0]
        if block.sparse_rows and k_row < block.rows:
            factor["row"] = _most_frequent(moment.row, k_row)
    return [BlockFactors(**factor) for factor in factors]


def factors_to_arrays(factors: Sequence[BlockFactors]) -> dict[str, NDArray[Any]]:
    """Return what a file needs to rebuild the factors: ``row/NNNN`` and ``column/NNNN`` of every block that has one."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, factor in enumerate(factors):
        arrays |= {} if factor.row is None else {f"row/{i:04d}": factor.row}
        arrays |= {} if factor.column is None else {f"column/{i:04d}": factor.column}
    return arrays


def stored_kronecker(
    blocks: Sequence[Block], arrays: Mapping[str, np.ndarray], k_in: int | None, k_out: int | None
) -> KroneckerSubspace:
    """Rebuild the subspace from the arrays of ``factors_to_arrays``.

    Args:
        blocks: The blocks of theta.
        arrays: The arrays by name, as in the file.
        k_in: The largest k_col; None leaves all columns.
        k_out: The largest k_row; None leaves all rows.

    Raises:
        FileContentError: An array is missing, or does not fit the blocks.
    """
    remaining = dict(arrays)
    factors = []
    for i, block in enumerate(blocks):
        k_row, k_col = kronecker_sides(block, k_in, k_out)
        row, column = remaining.pop(f"row/{i:04d}", None), remaining.pop(f"column/{i:04d}", None)
        row_shape = (block.copies, k_row) if block.sparse_rows else (block.copies, k_row, block.rows)
        row_type = np.dtype(np.int64 if block.sparse_rows else np.float64)
        _check_factor(block, "row", row, row_shape if k_row < block.rows else None, row_type)
        shape = (block.copies, k_col, block.columns)
        _check_factor(block, "column", column, shape if k_col < block.columns else None, np.dtype(np.float64))
        factors.append(BlockFactors(row, column))
    if remaining:
        name = re.sub(r"\s", " ", min(remaining))
        raise FileContentError(f"subspace kronecker: unexpected array {name}; expected the model's blocks only")
    return KroneckerSubspace(blocks, factors)


def _check_factor(
    block: Block, side: str, array: np.ndarray | None, shape: tuple[int, ...] | None, dtype: np.dtype[np.generic]
) -> None:
    """Raise FileContentError unless a factor from a file has the shape (None: there is no factor) and type of the block's."""
    if array is None and shape is None:
        return
    if array is None or array.shape != shape or array.dtype != dtype:
        actual = "nothing" if array is None else f"{array.shape} of {array.dtype}"
        expected = "nothing" if shape is None else f"{shape} of {dtype}"
        raise FileContentError(f"subspace kronecker: {side} factor of {block.name}: {actual}; expected {expected}")
    if dtype == np.int64:
        good = bool((array >= 0).all() and (array < block.rows).all() and (np.diff(array, axis=1) > 0).all())
    else:
        good = bool(np.isfinite(array).all())
    if not good:
        raise FileContentError(
            f"subspace kronecker: {side} factor of {block.name} is not of finite numbers or rising row numbers; "
            "get the file again"
        )


def leading_directions(moment: Moment, k: int) -> FloatArray:
    """Return the k leading eigenvectors (copies, k, n) of each copy's moment, as rows. Raises UsageError where there are none."""
    try:
        vectors = np.stack([leading_eigenvectors(part, k) for part in moment])
    except (LinAlgError, ValueError) as error:
        raise UsageError(
            "subspace kronecker-pca: a public second moment has no eigenvectors in float64; check data.public"
        ) from error
    return vectors if vectors.size < MANY else vectors.astype(np.float16).astype(np.float64)


def _most_frequent(diagonal: Moment, k: int) -> IntegerArray:
    """Return the numbers (copies, k) of the rows with the largest moments, in rising order."""
    order = np.argsort(-diagonal, axis=1, kind="stable")[:, :k]
    return np.sort(order, axis=1).astype(np.int64)


def _sides(block: Block, factor: BlockFactors) -> tuple[int, int]:
    """Return (k_row, k_col) of a block's factors. Raises UsageError when they don't fit the block."""
    row, column = factor.row, factor.column
    good = column is None or (column.ndim == 3 and column.shape[0] in (1, block.copies) and column.dtype == np.float64)
    good = good and (column is None or column.shape[2] == block.columns)
    if row is not None and row.ndim == 2:
        good = good and row.shape[0] == block.copies and row.dtype == np.int64
    elif row is not None:
        good = good and row.ndim == 3 and row.shape[0] in (1, block.copies) and row.shape[2] == block.rows
    if not good:
        raise UsageError(
            f"subspace kronecker: factors of shapes {_shape(row)} and {_shape(column)} for block {block.name}; "
            f"expected (copies or 1, k, n) of {block.shape}"
        )
    return block.rows if row is None else row.shape[1], block.columns if column is None else column.shape[1]


def _shape(factor: _Factor) -> tuple[int, ...] | None:
    return None if factor is None else factor.shape


def _tensor(factor: _Factor) -> torch.Tensor | None:
    return None if factor is None else torch.from_numpy(np.ascontiguousarray(factor))


class RandomKroneckerKind(SubspaceKind):
    """The kind whose factors have normal entries."""

    traits = SUBSPACES["kronecker"]

    def dimension(self, frame: Frame) -> int:
        return kronecker_dimension(frame.required_blocks(), frame.k_in, frame.k_out)

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return random_kronecker(frame.required_blocks(), frame.k_in, frame.k_out, frame.seed, frame.round)


class KroneckerPcaKind(RandomKroneckerKind):
    """The kind whose factors are leading eigenvectors of public second moments."""

    traits = SUBSPACES["kronecker-pca"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return stored_kronecker(frame.required_blocks(), arrays, frame.k_in, frame.k_out)

    def make(self, frame: Frame, public: Any) -> dict[str, NDArray[Any]]:
        return factors_to_arrays(leading_factors(frame.required_blocks(), public, frame.k_in, frame.k_out))

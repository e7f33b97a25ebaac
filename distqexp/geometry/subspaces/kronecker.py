"""Kronecker subspaces: every block of parameters moves by R_row^T M R_col, M of shape (k_row, k_col).

A projected gradient R_row G R_col^T needs R_row on output gradients and R_col on activations only: for layers whose
gradient is a sum of outer products the per-example gradient never has to be formed. Here it is formed: this is the
plain way, which the fast one is held against.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, eigh

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block, check_cover
from distqexp.geometry.moments import BlockMoments, coordinate_block
from distqexp.geometry.philox import standard_normal_entries, stream_key
from distqexp.geometry.subspaces.base import BlockFactors, BlockSubspace, Subspace
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.kinds import SUBSPACES

FloatArray = NDArray[np.float64]
Factor = NDArray[Any] | None


class KroneckerSubspace(Subspace):
    """P^T v = the blocks R_row G R_col^T one after the other, each as (copies, k_row, k_col) flattened row-major.

    With no factors at all it is the identity in the order of the blocks. Raises UsageError unless the blocks cover
    theta and the factors fit them.
    """

    kind = "kronecker"

    def __init__(self, blocks: Sequence[Block], factors: Sequence[BlockFactors]) -> None:
        if len(factors) != len(blocks):
            raise UsageError(
                f"subspace kronecker: {len(factors)} pairs of factors; expected {len(blocks)}, one a block"
            )
        d = sum(block.size for block in blocks)
        check_cover(blocks, d)
        found, at = [], 0
        for block, factor in zip(blocks, factors, strict=True):
            k_row, k_col = _sides(block, factor)
            sparse = block.sparse_rows and (factor.row is None or factor.row.ndim == 2)
            found.append(coordinate_block(block, k_row, k_col, at, sparse))
            at += found[-1].size
        super().__init__(d, at)
        self.blocks = tuple(blocks)
        self.factors = tuple(factors)
        self.coordinates = tuple(found)
        self._tensors = [(_tensor(factor.row), _tensor(factor.column)) for factor in factors]

    def by_blocks(self) -> BlockSubspace:
        return BlockSubspace(self.blocks, self.factors, self.coordinates)

    def project_blocks(self, gradients: torch.Tensor) -> Iterator[torch.Tensor]:
        """R_row G R_col^T of every block in turn: (B, d) of any floating type -> (B, copies, k_row, k_col) float64."""
        for i, block in enumerate(self.blocks):
            row, column = self._on(i, gradients.device)
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
        at = 0
        for block, factor, part in zip(self.blocks, self.factors, self.coordinates, strict=True):
            m = w[at : at + part.size].reshape(part.shape)
            at += part.size
            if factor.column is not None:
                m = np.matmul(m, factor.column)
            if factor.row is not None and factor.row.ndim == 2:
                lifted = np.zeros((block.copies, block.rows, m.shape[2]))
                np.put_along_axis(lifted, factor.row[:, :, None], m, axis=1)
                m = lifted
            elif factor.row is not None:
                m = np.matmul(factor.row.transpose(0, 2, 1), m)
            block.scatter(m, theta)
        return theta

    def _on(self, i: int, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        row, column = self._tensors[i]
        self._tensors[i] = (None if row is None else row.to(device), None if column is None else column.to(device))
        return self._tensors[i]


def kronecker_sides(block: Block, k_in: int | None, k_out: int | None) -> tuple[int, int]:
    """(k_row, k_col) of a block: at most k_out and k_in; all rows or columns where that is None."""
    k_row = block.rows if k_out is None else min(k_out, block.rows)
    k_col = block.columns if k_in is None else min(k_in, block.columns)
    return k_row, k_col


def kronecker_dimension(blocks: Sequence[Block], k_in: int | None, k_out: int | None) -> int:
    """k of a Kronecker subspace: the sum of copies k_row k_col."""
    return sum(block.copies * math.prod(kronecker_sides(block, k_in, k_out)) for block in blocks)


def unprojected(blocks: Sequence[Block]) -> KroneckerSubspace:
    """All parameters, in the order of the blocks: k = d."""
    return KroneckerSubspace(blocks, [BlockFactors()] * len(blocks))


def random_kronecker(
    blocks: Sequence[Block], k_in: int | None, k_out: int | None, seed: int, round: int
) -> KroneckerSubspace:
    """Independent normal factors of variance 1/k_row and 1/k_col, one pair a block, shared by its copies.

    Entry (i, j) of a factor of n columns is word i n + j of the stream of (k, n, seed, round, block number, side). A
    side that is kept whole has the identity.
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
    """Per copy the leading eigenvectors of the row and column moments; of sparse rows the most frequent ones.

    Each eigenvector's entry of largest size is positive. Made once, where the moments are, and then stored: eigenvectors
    differ between libraries.
    """
    found = []
    for block, moment in zip(blocks, moments, strict=True):
        k_row, k_col = kronecker_sides(block, k_in, k_out)
        row: Factor = None
        if k_row < block.rows:
            row = _most_frequent(moment.row, k_row) if block.sparse_rows else _leading(moment.row, k_row)
        found.append(BlockFactors(row, _leading(moment.column, k_col) if k_col < block.columns else None))
    return found


def factors_to_arrays(factors: Sequence[BlockFactors]) -> dict[str, NDArray[Any]]:
    """What a file needs to rebuild them: ``row/NNNN`` and ``column/NNNN`` of every block that has one."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, factor in enumerate(factors):
        arrays |= {} if factor.row is None else {f"row/{i:04d}": factor.row}
        arrays |= {} if factor.column is None else {f"column/{i:04d}": factor.column}
    return arrays


def stored_kronecker(
    blocks: Sequence[Block], arrays: Mapping[str, np.ndarray], k_in: int | None, k_out: int | None
) -> KroneckerSubspace:
    """The subspace of ``factors_to_arrays``. Raises FileContentError when an array is absent or isn't the blocks'."""
    left = dict(arrays)
    factors = []
    for i, block in enumerate(blocks):
        k_row, k_col = kronecker_sides(block, k_in, k_out)
        row, column = left.pop(f"row/{i:04d}", None), left.pop(f"column/{i:04d}", None)
        shape = (block.copies, k_row) if block.sparse_rows else (block.copies, k_row, block.rows)
        kind = np.dtype(np.int64 if block.sparse_rows else np.float64)
        _check_stored(block, "row", row, shape if k_row < block.rows else None, kind)
        stored = (block.copies, k_col, block.columns)
        _check_stored(block, "column", column, stored if k_col < block.columns else None, np.dtype(np.float64))
        factors.append(BlockFactors(row, column))
    if left:
        name = re.sub(r"\s", " ", min(left))
        raise FileContentError(f"subspace kronecker: unexpected array {name}; expected the model's blocks only")
    return KroneckerSubspace(blocks, factors)


def _check_stored(
    block: Block, side: str, array: np.ndarray | None, shape: tuple[int, ...] | None, kind: np.dtype[np.generic]
) -> None:
    if array is None and shape is None:
        return
    if array is None or array.shape != shape or array.dtype != kind:
        found = "nothing" if array is None else f"{array.shape} of {array.dtype}"
        wanted = "nothing" if shape is None else f"{shape} of {kind}"
        raise FileContentError(f"subspace kronecker: {side} factor of {block.name}: {found}; expected {wanted}")
    if kind == np.int64:
        good = bool((array >= 0).all() and (array < block.rows).all() and (np.diff(array, axis=1) > 0).all())
    else:
        good = bool(np.isfinite(array).all())
    if not good:
        raise FileContentError(
            f"subspace kronecker: {side} factor of {block.name} is not of finite numbers or rising row numbers; "
            "get the file again"
        )


def _leading(moment: FloatArray, k: int) -> FloatArray:
    n = moment.shape[1]
    found = []
    for part in moment:
        try:
            vectors = eigh((part + part.T) / 2, subset_by_index=[n - k, n - 1])[1].T[::-1]
        except (LinAlgError, ValueError) as error:
            raise UsageError(
                "subspace kronecker-pca: a public second moment has no eigenvectors in float64; check data.public"
            ) from error
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
        found.append(np.where(largest < 0, -vectors, vectors))
    return np.stack(found)


def _most_frequent(diagonal: FloatArray, k: int) -> NDArray[np.int64]:
    order = np.argsort(-diagonal, axis=1, kind="stable")[:, :k]
    return np.sort(order, axis=1).astype(np.int64)


def _sides(block: Block, factor: BlockFactors) -> tuple[int, int]:
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


def _shape(factor: Factor) -> tuple[int, ...] | None:
    return None if factor is None else factor.shape


def _tensor(factor: Factor) -> torch.Tensor | None:
    return None if factor is None else torch.from_numpy(np.ascontiguousarray(factor))


class RandomKroneckerKind(SubspaceKind):
    """Factors of normal entries."""

    traits = SUBSPACES["kronecker"]

    def dimension(self, frame: Frame) -> int:
        return kronecker_dimension(frame.required_blocks(), frame.k_in, frame.k_out)

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return random_kronecker(frame.required_blocks(), frame.k_in, frame.k_out, frame.seed, frame.round)


class KroneckerPcaKind(RandomKroneckerKind):
    """Factors of leading eigenvectors of public second moments."""

    traits = SUBSPACES["kronecker-pca"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return stored_kronecker(frame.required_blocks(), arrays, frame.k_in, frame.k_out)

    def make(self, frame: Frame, public: Any) -> dict[str, NDArray[Any]]:
        return factors_to_arrays(leading_factors(frame.required_blocks(), public, frame.k_in, frame.k_out))

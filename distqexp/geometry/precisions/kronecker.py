"""The Kronecker precision: a block's matrix is a scale times the Kronecker product of a row and a column factor (K-FAC).

Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015. Blocks are
row-major, so the matrix of a block is kron(S, A), with S on the row side (output gradients) and A on the column side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from distqexp.arrays import BoolArray, FloatArray
from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments, traces
from distqexp.geometry.precisions.base import Factors, Precision
from distqexp.geometry.precisions.kind import PrecisionKind
from distqexp.kinds import PRECISIONS


class KroneckerPrecision(Precision):
    """The precision whose L^{-1} g is, block by block, L_S^{-1} M L_A^{-T}, with M the block of g as (copies, k_row, k_col).

    Block number NNNN has two arrays. ``row/NNNN`` is L_S^{-1}, lower triangular (copies, k_row, k_row), or (copies, k_row)
    when it is diagonal, and carries all scales; ``column/NNNN`` is L_A^{-1} (copies, k_col, k_col).
    """

    kind = "kronecker"

    @property
    def factors(self) -> list[Factors]:
        """L_S^{-1} and L_A^{-1} of every block, in the order of the blocks."""
        count = len(self._arrays) // 2
        return [(self._arrays[f"row/{i:04d}"], self._arrays[f"column/{i:04d}"]) for i in range(count)]

    def by_blocks(self, coordinates: Sequence[Block]) -> list[Factors]:
        """Return the row and column factors of every block. Raises UsageError when the precision was made for other blocks."""
        factors = self.factors
        shapes = [(row.shape[:2], column.shape[:2]) for row, column in factors]
        if shapes != [((part.copies, part.rows), (part.copies, part.columns)) for part in coordinates]:
            raise UsageError("whitening by blocks: the precision is of other blocks than the subspace's; plan again")
        return factors

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        parts, offset = [], 0
        for row, column in self.factors:
            size = row.shape[0] * row.shape[1] * column.shape[1]
            m = gradients[:, offset : offset + size].reshape(-1, row.shape[0], row.shape[1], column.shape[1])
            m = torch.matmul(row, m) if row.ndim == 3 else row[:, :, None] * m
            parts.append(torch.matmul(m, column.transpose(1, 2)).reshape(-1, size))
            offset += size
        return torch.cat(parts, dim=1)

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        out, offset = np.empty(self.k), 0
        for row, column in ((row.cpu().numpy(), column.cpu().numpy()) for row, column in self.factors):
            size = row.shape[0] * row.shape[1] * column.shape[1]
            m = np.matmul(y[offset : offset + size].reshape(row.shape[0], row.shape[1], column.shape[1]), column)
            m = np.matmul(row.transpose(0, 2, 1), m) if row.ndim == 3 else row[:, :, None] * m
            out[offset : offset + size] = m.reshape(-1)
            offset += size
        return out


def make_kronecker_precision(
    moments: Sequence[BlockMoments], public_units: int, units: float, step: float, damping: float
) -> KroneckerPrecision:
    """Make (units / step) h (S + sqrt(damping) I) kron (A + sqrt(damping) I) for every copy of every block.

    S and A are the row and column moments over their mean eigenvalues, and h = energy / (public units rows columns) is the mean
    eigenvalue of the block's curvature, so that h S kron A has the trace of the mean over public units of vec G vec G^T.
    Each factor is damped by itself, because a damped product would be no Kronecker product; the damping of the product
    is then about ``damping`` h. A copy whose gradients are all zero gets the mean over all parameters as h, and S = A = I.

    Args:
        moments: The sums over public records for every block, in the coordinates of the subspace.
        public_units: The number of public units in the sums.
        units: The nominal number of private units of a round, finite and above 0.
        step: The step of the round, finite and above 0.
        damping: The damping, finite and at least 0.

    Raises:
        UsageError: There are no public units, or a factor is not positive definite (raise precision.damping).
    """
    if public_units <= 0:
        raise UsageError(f"precision kronecker: public units = {public_units}; expected a finite number above 0")
    with np.errstate(
        over="ignore", under="ignore", divide="ignore", invalid="ignore"
    ):  # what overflows is refused below
        return _from_moments(moments, public_units, step / units, damping)


def _from_moments(
    moments: Sequence[BlockMoments], public_units: int, scale: float, damping: float
) -> KroneckerPrecision:
    k = sum(len(part.energy) * part.row.shape[1] * part.column.shape[1] for part in moments)
    mean = sum(float(part.energy.sum()) for part in moments) / (public_units * k)
    if not (math.isfinite(mean) and mean > 0):
        raise UsageError(
            "precision kronecker: the public gradients are all zero or not finite; expected curvature: check data.public, "
            "or choose kind = identity"
        )
    arrays: dict[str, FloatArray] = {}
    for i, part in enumerate(moments):
        live = (part.energy > 0) & (traces(part.row) > 0) & (traces(part.column) > 0)
        h = np.where(live, part.energy / (public_units * part.row.shape[1] * part.column.shape[1]), mean)
        row, column = (_inverse_factor(moment, live, damping) for moment in (part.row, part.column))
        row = row * np.sqrt(scale / h).reshape(-1, *[1] * (row.ndim - 1))
        if not (_is_inverse_factor(row) and _is_inverse_factor(column)):
            raise UsageError(
                f"precision kronecker: the inverse factor overflows at damping {damping}; raise precision.damping, or "
                "choose kind = identity"
            )
        arrays |= {f"row/{i:04d}": row, f"column/{i:04d}": column}
    return KroneckerPrecision(k, arrays)


class KroneckerKind(PrecisionKind):
    """The kind that takes the curvature of each block from its second moments."""

    traits = PRECISIONS["kronecker"]

    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: float) -> Precision:
        return make_kronecker_precision(public, public_units, units, step, damping)

    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        return _from_arrays(k, arrays)

    def rescale(self, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
        root = math.sqrt(ratio)  # the row factors carry all scales
        return {name: array if name.startswith("column/") else array * root for name, array in arrays.items()}


def _from_arrays(k: int, arrays: Mapping[str, np.ndarray]) -> KroneckerPrecision:
    count = len(arrays) // 2
    names = {f"{side}/{i:04d}" for side in ("row", "column") for i in range(count)}
    if set(arrays) != names or not names:
        raise FileContentError(
            f"precision kronecker: {len(arrays)} arrays; expected row/NNNN and column/NNNN of every block; get the file again"
        )
    total = 0
    for i in range(count):
        row, column = arrays[f"row/{i:04d}"], arrays[f"column/{i:04d}"]
        if not (
            _is_inverse_factor(row) and _is_inverse_factor(column) and column.ndim == 3 and len(row) == len(column)
        ):
            raise FileContentError(
                f"precision kronecker: the factors of block {i} are not finite float64 lower triangles of positive "
                "diagonal; get the file again"
            )
        total += row.shape[0] * row.shape[1] * column.shape[1]
    if total != k:
        raise FileContentError(
            f"precision kronecker: factors of {total} coordinates; expected k = {k}; get the file again"
        )
    return KroneckerPrecision(k, arrays)


def _inverse_factor(moment: FloatArray, live: BoolArray, damping: float) -> FloatArray:
    """Return L^{-1} of moment / mean eigenvalue + sqrt(damping) I, shaped like the moment, which is I for a dead copy."""
    n, ridge = moment.shape[1], math.sqrt(damping)
    mean = np.where(live, traces(moment) / n, 1.0)
    if moment.ndim == 2:
        diagonal = np.where(live[:, None], moment / mean[:, None], 1.0) + ridge
        if not (diagonal > 0).all():
            raise _not_definite(damping)
        inverse: FloatArray = 1.0 / np.sqrt(diagonal)
        return inverse
    factors = []
    for part, scale, is_live in zip(moment, mean, live, strict=True):
        matrix = (part + part.T) / (2 * scale) if is_live else np.eye(n)
        matrix[np.diag_indices(n)] += ridge
        try:
            factor = cholesky(matrix, lower=True)
            factors.append(np.tril(solve_triangular(factor, np.eye(n), lower=True)))
        except (LinAlgError, ValueError) as error:
            raise _not_definite(damping) from error
    return np.stack(factors)


def _not_definite(damping: float) -> UsageError:
    return UsageError(
        f"precision kronecker: a damped public factor is not positive definite at damping {damping}; "
        "raise precision.damping, or choose kind = identity"
    )


def _is_inverse_factor(array: np.ndarray) -> bool:
    """Whether the array is a finite float64 lower triangle, or diagonal, of each copy, with a positive diagonal."""
    if array.dtype != np.float64 or array.ndim not in (2, 3) or array.size == 0 or array.shape[1] != array.shape[-1]:
        return False
    diagonal = array if array.ndim == 2 else np.diagonal(array, axis1=1, axis2=2)
    good = np.isfinite(array).all() and (diagonal > 0).all()
    return bool(good and (array.ndim == 2 or not np.triu(array, 1).any()))

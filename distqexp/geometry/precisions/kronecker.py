"""A kronecker: block by block, curvature times the Kronecker product of a row factor and a column factor (K-FAC).

Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015. Blocks are
row-major, so the matrix of a block is kron(S, A): S on the row side (output gradients), A on the column side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments, traces
from distqexp.geometry.precisions.base import Factors, Precision
from distqexp.geometry.precisions.kind import PrecisionKind
from distqexp.kinds import PRECISIONS

FloatArray = NDArray[np.float64]


class KroneckerPrecision(Precision):
    """L^{-1} g is, block by block, L_S^{-1} M L_A^{-T}, M the block of g as (copies, k_row, k_col).

    The arrays of block NNNN: ``row/NNNN`` is L_S^{-1}, lower triangular (copies, k_row, k_row), or (copies, k_row) when
    it is diagonal, and carries all scales; ``column/NNNN`` is L_A^{-1} (copies, k_col, k_col).
    """

    kind = "kronecker"

    @property
    def factors(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """L_S^{-1} and L_A^{-1} of every block, in order."""
        count = len(self._arrays) // 2
        return [(self._arrays[f"row/{i:04d}"], self._arrays[f"column/{i:04d}"]) for i in range(count)]

    def by_blocks(self, coordinates: Sequence[Block]) -> list[Factors]:
        """As in Precision. Raises UsageError where the precision is of other blocks."""
        found = [(row.shape[:2], column.shape[:2]) for row, column in self.factors]
        if found != [((part.copies, part.rows), (part.copies, part.columns)) for part in coordinates]:
            raise UsageError("whitening by blocks: the precision is of other blocks than the subspace's; plan again")
        return self.factors

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        parts, at = [], 0
        for row, column in self.factors:
            size = row.shape[0] * row.shape[1] * column.shape[1]
            m = gradients[:, at : at + size].reshape(-1, row.shape[0], row.shape[1], column.shape[1])
            m = torch.matmul(row, m) if row.ndim == 3 else row[:, :, None] * m
            parts.append(torch.matmul(m, column.transpose(1, 2)).reshape(-1, size))
            at += size
        return torch.cat(parts, dim=1)

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        out, at = np.empty(self.k), 0
        for row, column in ((row.cpu().numpy(), column.cpu().numpy()) for row, column in self.factors):
            size = row.shape[0] * row.shape[1] * column.shape[1]
            m = np.matmul(y[at : at + size].reshape(row.shape[0], row.shape[1], column.shape[1]), column)
            m = np.matmul(row.transpose(0, 2, 1), m) if row.ndim == 3 else row[:, :, None] * m
            out[at : at + size] = m.reshape(-1)
            at += size
        return out


def make_kronecker_precision(
    moments: Sequence[BlockMoments], n_public_units: int, n_bar: float, step: float, damping: float
) -> KroneckerPrecision:
    """A = (n_bar / step) h (S + sqrt(damping) I) kron (A + sqrt(damping) I) for every copy of every block.

    S and A are the row and column moments over their mean eigenvalues, and h = energy / (units rows columns) is the mean
    eigenvalue of the block's curvature, so that h S kron A has the trace of the mean over public units of vec G vec G^T.
    Damping sits on each factor, because a damped product would be no Kronecker product; the product's own is then
    about ``damping`` h. ``moments``: sums over public records, in the coordinates of the subspace. A copy whose
    gradients are all zero gets the mean over all parameters as h, and S = A = I.
    Raises UsageError when a scale is not positive or a factor not positive definite (raise precision.damping).
    """
    for name, value in (("privacy.units", n_bar), ("mechanism.step", step), ("public units", n_public_units)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"precision kronecker: {name} = {value}; expected a finite number above 0")
    if not (math.isfinite(damping) and damping >= 0):
        raise UsageError(f"precision kronecker: precision.damping = {damping}; expected a finite number, 0 or more")
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):  # refused below
        return _made(moments, n_public_units, step / n_bar, damping)


def _made(moments: Sequence[BlockMoments], units: int, scale: float, damping: float) -> KroneckerPrecision:
    k = sum(len(part.energy) * part.row.shape[1] * part.column.shape[1] for part in moments)
    mean = sum(float(part.energy.sum()) for part in moments) / (units * k)
    if not (math.isfinite(mean) and mean > 0):
        raise UsageError(
            "precision kronecker: the public gradients are all zero or not finite; expected curvature: check data.public, "
            "or choose kind = identity"
        )
    arrays: dict[str, FloatArray] = {}
    for i, part in enumerate(moments):
        live = (part.energy > 0) & (traces(part.row) > 0) & (traces(part.column) > 0)
        h = np.where(live, part.energy / (units * part.row.shape[1] * part.column.shape[1]), mean)
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
    """Curvature block by block, from second moments."""

    traits = PRECISIONS["kronecker"]

    def make(self, k: int, public: Any, units: int, n_bar: float, step: float, damping: float) -> Precision:
        return make_kronecker_precision(public, units, n_bar, step, damping)

    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        return _restored(k, arrays)

    def rescaled(self, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
        root = math.sqrt(ratio)  # the row factors carry all scales
        return {name: array if name.startswith("column/") else array * root for name, array in arrays.items()}


def _restored(k: int, arrays: Mapping[str, np.ndarray]) -> KroneckerPrecision:
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


def _inverse_factor(moment: FloatArray, live: NDArray[np.bool_], damping: float) -> FloatArray:
    """(copies, n, n) or (copies, n): L^{-1} of moment / mean eigenvalue + sqrt(damping) I; a dead copy has moment I."""
    n, ridge = moment.shape[1], math.sqrt(damping)
    mean = np.where(live, traces(moment) / n, 1.0)
    if moment.ndim == 2:
        scaled = np.where(live[:, None], moment / mean[:, None], 1.0) + ridge
        if not (scaled > 0).all():
            raise _not_definite(damping)
        inverse: FloatArray = 1.0 / np.sqrt(scaled)
        return inverse
    found = []
    for part, scale, lives in zip(moment, mean, live, strict=True):
        matrix = (part + part.T) / (2 * scale) if lives else np.eye(n)
        matrix[np.diag_indices(n)] += ridge
        try:
            factor = cholesky(matrix, lower=True)
            found.append(np.tril(solve_triangular(factor, np.eye(n), lower=True)))
        except (LinAlgError, ValueError) as error:
            raise _not_definite(damping) from error
    return np.stack(found)


def _not_definite(damping: float) -> UsageError:
    return UsageError(
        f"precision kronecker: a damped public factor is not positive definite at damping {damping}; "
        "raise precision.damping, or choose kind = identity"
    )


def _is_inverse_factor(array: np.ndarray) -> bool:
    if array.dtype != np.float64 or array.ndim not in (2, 3) or array.size == 0 or array.shape[1] != array.shape[-1]:
        return False
    diagonal = array if array.ndim == 2 else np.diagonal(array, axis1=1, axis2=2)
    good = np.isfinite(array).all() and (diagonal > 0).all()
    return bool(good and (array.ndim == 2 or not np.triu(array, 1).any()))

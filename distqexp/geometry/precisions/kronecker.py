"""The Kronecker precision: a block's matrix is a scale times the Kronecker product of a row and a column factor (K-FAC).

Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015. Blocks are
row-major, so the matrix of a block is kron(S, A), with S on the row side (output gradients) and A on the column side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from distqexp.arrays import BoolArray, FloatArray
from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.blocks import Block
from distqexp.geometry.moments import BlockMoments, Moment, traces
from distqexp.geometry.precisions.base import Factors, Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.precisions.kind import PrecisionKind
from distqexp.kinds import PRECISIONS

STILL = 2.0**-34
"""A copy whose mean squared public gradient is at most this share of the largest block's stands still.

Its gradients are then below 1e-5 of the others': what is left in float32 of terms that cancel, as for the bias of an attention's
keys.
"""


class KroneckerPrecision(Precision):
    """The precision whose L^{-1} g is, block by block, L_S^{-1} M L_A^{-T}, with M the block of g as (copies, k_row, k_col).

    Block number NNNN has two arrays. ``row/NNNN`` is L_S^{-1}, lower triangular (copies, k_row, k_row), or (copies, k_row)
    when it is diagonal, and carries all scales; it is zero for a copy that stands still. ``column/NNNN`` is L_A^{-1}
    (copies, k_col, k_col).
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

    def with_still(self, numbers: Collection[int]) -> KroneckerPrecision:
        """Return the precision under which the blocks of these numbers stand still as well: their L^{-1} is zero."""
        arrays = {
            name: np.zeros_like(array) if name.startswith("row/") and int(name[4:]) in numbers else array
            for name, array in self.to_arrays().items()
        }
        return KroneckerPrecision(self.k, arrays)

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
    moments: Sequence[BlockMoments], public_units: int, units: float, step: float, damping: Damping
) -> KroneckerPrecision:
    """Make (units / step) h (S + r_S I) kron (A + r_A I) for every copy of every block.

    S and A are the row and column moments over their mean eigenvalues, and h = energy / (public units rows columns) is the mean
    eigenvalue of the block's curvature, so that h S kron A has the trace of the mean over public units of vec G vec G^T.
    Each factor is damped by itself, because a damped product would be no Kronecker product: r is sqrt(damping.share) times the
    size of the factor's spectrum (``Damping``), and h r_S r_A = damping.share times the size of the block's. In a block that is
    smaller than ``damping.floor`` times the network, both are raised until that holds with the floor for the block's size.

    A copy whose public gradients are zero, or nothing next to those of the network (``STILL``), has L^{-1} = 0: nothing would say
    how far it may go. Its whitened gradients are zero, noise does not reach it, and it stands still for the round.

    Args:
        moments: The sums over public records for every block, in the coordinates of the subspace.
        public_units: The number of public units in the sums.
        units: The nominal number of private units of a round, finite and above 0.
        step: The step of the round, finite and above 0.
        damping: What is added to the curvature.

    Raises:
        UsageError: There are no public units, or a factor is not positive definite (raise precision.damping).
    """
    if public_units <= 0:
        raise UsageError(f"precision kronecker: public units = {public_units}; expected a finite number above 0")
    with np.errstate(
        over="ignore", under="ignore", divide="ignore", invalid="ignore"
    ):  # what overflows is refused below
        return _from_moments(moments, public_units, step / units, damping)


@dataclass(frozen=True)
class _Spectrum:
    """How large the curvature of a block is, for each of its copies: whether it moves, h, and the sizes of S and A."""

    live: BoolArray
    h: FloatArray
    row: FloatArray
    column: FloatArray

    @property
    def size(self) -> FloatArray:
        """The size of the spectrum of h S kron A, 0 where the copy stands still."""
        return np.where(self.live, self.h * self.row * self.column, 0.0)


def _from_moments(
    moments: Sequence[BlockMoments], public_units: int, scale: float, damping: Damping
) -> KroneckerPrecision:
    spectra = _spectra(moments, public_units, damping)
    sizes = np.concatenate([spectrum.size for spectrum in spectra])
    counts = np.concatenate([np.full(len(m.energy), m.row.shape[1] * m.column.shape[1]) for m in moments])
    least = damping.floor * float(np.average(sizes, weights=counts))
    arrays: dict[str, FloatArray] = {}
    for i, (part, spectrum) in enumerate(zip(moments, spectra, strict=True)):
        live = spectrum.live
        root = math.sqrt(damping.share) * np.sqrt(np.maximum(1.0, least / np.where(live, spectrum.size, least or 1.0)))
        row = _inverse_factor(part.row, live, root * spectrum.row, damping.share)
        column = _inverse_factor(part.column, live, root * spectrum.column, damping.share)
        row = row * np.where(live, np.sqrt(scale / spectrum.h), 0.0).reshape(-1, *[1] * (row.ndim - 1))
        moves = row.reshape(len(row), -1).any(axis=1)
        if not (_is_row_factor(row) and _is_inverse_factor(column) and np.array_equal(moves, live)):
            raise UsageError(
                f"precision kronecker: the inverse factor overflows at damping {damping.share}; raise precision.damping, or "
                "choose kind = identity"
            )
        arrays |= {f"row/{i:04d}": row, f"column/{i:04d}": column}
    return KroneckerPrecision(int(counts.sum()), arrays)


def _spectra(moments: Sequence[BlockMoments], public_units: int, damping: Damping) -> list[_Spectrum]:
    """Measure the curvature of every block. Raises UsageError where there is none."""
    means = [part.energy / (public_units * part.row.shape[1] * part.column.shape[1]) for part in moments]
    largest = max(float(h.max()) for h in means)
    if not (all(np.isfinite(h).all() for h in means) and largest > 0):
        raise UsageError(
            "precision kronecker: the public gradients are all zero or not finite; expected curvature: check data.public, "
            "or choose kind = identity"
        )
    spectra = []
    for part, h in zip(moments, means, strict=True):
        live = (h > STILL * largest) & (traces(part.row) > 0) & (traces(part.column) > 0)
        row, column = (_relative_sizes(moment, live, damping) for moment in (part.row, part.column))
        spectra.append(_Spectrum(live, h, row, column))
    return spectra


def _relative_sizes(moment: Moment, live: BoolArray, damping: Damping) -> FloatArray:
    """Return the size of each copy's spectrum over its mean eigenvalue; 1 for one that stands still."""
    means = np.where(live, traces(moment) / moment.shape[1], 1.0)
    if damping.reference == "mean":
        return np.ones(len(moment))
    sizes = [
        damping.size(part / mean) if is_live else 1.0 for part, mean, is_live in zip(moment, means, live, strict=True)
    ]
    return np.array(sizes)


class KroneckerKind(PrecisionKind):
    """The kind that takes the curvature of each block from its second moments."""

    traits = PRECISIONS["kronecker"]

    def make(
        self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping
    ) -> KroneckerPrecision:
        return make_kronecker_precision(public, public_units, units, step, damping)

    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> KroneckerPrecision:
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
        if not (_is_row_factor(row) and _is_inverse_factor(column) and column.ndim == 3 and len(row) == len(column)):
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


def _inverse_factor(moment: Moment, live: BoolArray, ridges: FloatArray, damping: float) -> FloatArray:
    """Return L^{-1} of moment / mean eigenvalue + ridge I, shaped like the moment; I for a copy that stands still."""
    n = moment.shape[1]
    mean = np.where(live, traces(moment) / n, 1.0)
    if moment.ndim == 2:
        diagonal = np.where(live[:, None], moment / mean[:, None] + ridges[:, None], 1.0)
        if not (diagonal > 0).all():
            raise _not_definite(damping)
        inverse: FloatArray = 1.0 / np.sqrt(diagonal)
        return inverse
    factors = []
    for part, scale, ridge, is_live in zip(moment, mean, ridges, live, strict=True):
        if not is_live:
            factors.append(np.eye(n))
            continue
        matrix = (part + part.T).astype(np.float64, copy=False) / (2 * scale)
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


def _is_row_factor(array: np.ndarray) -> bool:
    """Whether the array is an inverse factor of each copy, or zero for a copy that stands still."""
    if array.ndim not in (2, 3) or array.dtype != np.float64:
        return False
    moving = array.reshape(len(array), -1).any(axis=1)
    return _has_inverse_shape(array) and (not moving.any() or _is_inverse_factor(array[moving]))


def _has_inverse_shape(array: np.ndarray) -> bool:
    return array.dtype == np.float64 and array.ndim in (2, 3) and array.size > 0 and array.shape[1] == array.shape[-1]


def _is_inverse_factor(array: np.ndarray) -> bool:
    """Whether the array is a finite float64 lower triangle, or diagonal, of each copy, with a positive diagonal."""
    if not _has_inverse_shape(array):
        return False
    diagonal = array if array.ndim == 2 else np.diagonal(array, axis1=1, axis2=2)
    good = np.isfinite(array).all() and (diagonal > 0).all()
    return bool(good and (array.ndim == 2 or not np.triu(array, 1).any()))

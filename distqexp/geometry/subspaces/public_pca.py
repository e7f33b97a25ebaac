"""The subspace of public gradients: an orthonormal basis of their leading directions, from a randomised range finder.

Each column of G (d, n) is the gradient of the loss of a public record. The basis is close to the k leading left singular
vectors of G, which are the eigenvectors of the uncentred second moment G G^T. The method is that of Halko, Martinsson and
Tropp, "Finding structure with randomness", SIAM Review 2011: algorithm 4.4 (subspace iteration, made orthonormal after every
product), then algorithm 5.1 (a small SVD). G is never stored: only the products G W for W (n, width) and Q^T G for Q (d, width)
are needed, which are sums over the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, qr, svd

from distqexp.arrays import FloatArray
from distqexp.errors import FileContentError, TooFewDirectionsError, UsageError
from distqexp.geometry.philox import standard_normal_entries, stream_key
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.kinds import SUBSPACES

OVERSAMPLING = 10
"""The number of directions that are followed beyond k."""
POWER_ITERATIONS = 2
"""The number of subspace iterations."""
COPIES = 5
"""How many arrays of the size of the widened basis one process may hold at once while the basis is computed."""
UNIT_TOLERANCE = 1e-9
"""The largest deviation from 1 of the squared length of a stored column."""


class PublicPcaSubspace(Subspace):
    """P (d, k), float64 and public, with orthonormal columns. It is made once from public gradients and then stored."""

    kind = "public-pca"

    def __init__(self, basis: FloatArray) -> None:
        super().__init__(*basis.shape)
        self._basis = torch.from_numpy(np.ascontiguousarray(basis))

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        self._basis = self._basis.to(gradients.device)
        return gradients.to(torch.float64).contiguous() @ self._basis

    def _lift(self, w: FloatArray) -> FloatArray:
        step = torch.from_numpy(w).to(self._basis.device)
        move: FloatArray = (self._basis @ step).cpu().numpy()
        return move


def stored_basis(d: int, k: int, arrays: Mapping[str, NDArray[np.generic]]) -> PublicPcaSubspace:
    """Rebuild the subspace from the arrays of a plan or a release.

    Args:
        d: The number of trainable parameters.
        k: The dimension.
        arrays: The arrays by name; there must be ``basis``, float64 (d, k), and no other.

    Raises:
        FileContentError: The basis is missing or has another shape or type, or its columns are not finite and of length 1.
    """
    if set(arrays) != {"basis"}:
        raise FileContentError(
            f"subspace public-pca: {len(arrays)} arrays; expected basis and no other; get the file again"
        )
    basis = np.asarray(arrays["basis"])
    if basis.shape != (d, k) or basis.dtype != np.float64:
        raise FileContentError(
            f"subspace public-pca: basis of shape {basis.shape} of {basis.dtype}; expected ({d}, {k}) of float64"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->j", basis, basis)
    if not (np.abs(squares - 1.0) <= UNIT_TOLERANCE).all():  # also where a square is NaN
        raise FileContentError("subspace public-pca: a column of the basis is not of length 1; get the file again")
    return PublicPcaSubspace(np.asarray(basis, dtype=np.float64))


def range_width(d: int, k: int, records: int, memory: int | None = None) -> int:
    """Return how many directions are followed to find k: ``OVERSAMPLING`` more, but at most d and the number of records.

    Args:
        d: The number of trainable parameters.
        k: The dimension.
        records: The number of public records.
        memory: The memory of the machine in bytes, None where it is unknown.

    Raises:
        UsageError: k is larger than d or than the number of public records, or ``COPIES`` arrays (d, width) need more than
            the memory.
    """
    if not 1 <= k <= d:
        raise UsageError(
            f"subspace public-pca: k = {k}, with d = {d} trainable parameters; expected 1 <= k <= d; lower k"
        )
    if k > records:
        raise TooFewDirectionsError(
            f"subspace public-pca: k = {k}, with {records} public records; expected at least k; "
            "raise precision.samples, or lower subspace.k"
        )
    width = min(k + OVERSAMPLING, d, records)
    requirement = COPIES * 8 * d * width
    if memory is not None and requirement > memory:
        raise UsageError(
            f"subspace public-pca: d k = {d} x {k} needs about {requirement / 2**30:.3g} GiB; found {memory / 2**30:.3g} GiB of memory; "
            "lower subspace.k, train fewer parameters, or choose kronecker-pca"
        )
    return width


def gaussian_rows(seed: int, round: int, first_slot: int, count: int, width: int) -> FloatArray:
    """Return rows of the Gaussian test matrix (n, width), one for each slot of public records.

    The row of slot s is the words s * width to (s + 1) * width - 1 of one stream.

    Args:
        seed: The seed of the subspace.
        round: The round that makes the basis.
        first_slot: The slot of the first row.
        count: The number of rows.
        width: The number of directions that are followed.
    """
    key = stream_key("subspace", "public-pca", seed, round)
    return standard_normal_entries(key, first_slot * width, count * width).reshape(count, width)


def orthonormal(columns: FloatArray) -> FloatArray:
    """Return an orthonormal basis whose span contains the columns (m, width), m >= width, by Householder QR.

    When an entry is not finite the result is all zeros, and ``leading_basis`` later refuses its rank of 0.
    """
    if not np.isfinite(columns).all():
        return np.zeros_like(columns)
    # Row-major, as it is on the ranks that receive it: the bits of later products depend on the layout.
    return np.ascontiguousarray(qr(columns, mode="economic", check_finite=False)[0])


def leading_basis(basis: FloatArray, coefficients: FloatArray, k: int) -> FloatArray:
    """Return the k leading left singular vectors of Q (Q^T G), float64 (d, k), the largest entry of each positive.

    Args:
        basis: Q (d, width), with orthonormal columns.
        coefficients: G^T Q (n, width).
        k: The dimension.

    Raises:
        TooFewDirectionsError: Fewer than k directions have a gradient above float64's rounding errors.
        UsageError: The gradients have no singular vectors.
    """
    try:
        values, rows = svd(coefficients, full_matrices=False)[1:]
    except (LinAlgError, ValueError) as error:
        raise UsageError(
            "subspace public-pca: the public gradients have no singular vectors in float64; check data.public"
        ) from error
    floor = values[0] * np.finfo(np.float64).eps * max(len(basis), len(coefficients))
    rank = int((values > floor).sum())
    if rank < k:
        raise TooFewDirectionsError(
            f"subspace public-pca: the public gradients have rank {rank}; expected at least k = {k}; check data.public, "
            "raise precision.samples, or lower subspace.k"
        )
    vectors: FloatArray = basis @ rows[:k].T
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None, :], axis=0)
    return np.ascontiguousarray(np.where(largest < 0, -vectors, vectors))


class PublicPcaKind(SubspaceKind):
    """The kind that spans the leading directions of public gradients."""

    traits = SUBSPACES["public-pca"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return stored_basis(frame.d, frame.k, arrays)

    def make(self, frame: Frame, public: Any) -> dict[str, NDArray[Any]]:
        basis, coefficients = public
        return {"basis": leading_basis(basis, coefficients, frame.k)}

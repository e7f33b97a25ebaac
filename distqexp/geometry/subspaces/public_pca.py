"""The subspace of public gradients: an orthonormal basis of their leading directions, found by a randomised range finder.

G (d, n) has the gradient of a public record's loss in each column. The basis is close to the k leading left singular vectors of
G, the eigenvectors of the uncentred second moment G G^T. Halko, Martinsson and Tropp, "Finding structure with randomness",
SIAM Review 2011: algorithm 4.4 (subspace iteration, orthonormal after every product), then 5.1 (a small SVD). G is never held:
only G W for W (n, width) and Q^T G for Q (d, width) are asked for, sums over the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, qr, svd

from distqexp.errors import FileContentError, UsageError
from distqexp.geometry.philox import standard_normal_entries, stream_key
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.kinds import SUBSPACES

FloatArray = NDArray[np.float64]

OVERSAMPLING = 10
POWER_ITERATIONS = 2
COPIES = 5
"""How many arrays of the size of the widened basis one process may hold at once while the basis is found."""
UNIT_TOLERANCE = 1e-9


class PublicPcaSubspace(Subspace):
    """P with orthonormal columns, float64 (d, k), public: made from public gradients once, stored, never made again."""

    kind = "public-pca"

    def __init__(self, basis: FloatArray) -> None:
        super().__init__(*basis.shape)
        self._basis = torch.from_numpy(np.ascontiguousarray(basis))

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        self._basis = self._basis.to(gradients.device)
        return gradients.to(torch.float64).contiguous() @ self._basis

    def _lift(self, w: FloatArray) -> FloatArray:
        step = torch.from_numpy(w).to(self._basis.device)
        lifted: FloatArray = (self._basis @ step).cpu().numpy()
        return lifted


def stored_basis(d: int, k: int, arrays: Mapping[str, NDArray[np.generic]]) -> PublicPcaSubspace:
    """The subspace of the arrays of a plan or release, ``basis`` float64 (d, k).

    Raises FileContentError when it is absent, of another shape or type, or its columns are not finite and of length 1.
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
    """How many directions are followed to find k: ``OVERSAMPLING`` more, where there are as many parameters and records.

    ``memory``: bytes of the machine, None where unknown. Raises UsageError when k is larger than d or than the number of
    public records, or when ``COPIES`` arrays (d, width) are more than the memory.
    """
    if not 1 <= k <= d:
        raise UsageError(
            f"subspace public-pca: k = {k}, with d = {d} trainable parameters; expected 1 <= k <= d; lower k"
        )
    if k > records:
        raise UsageError(
            f"subspace public-pca: k = {k}, with {records} public records; expected at least k; "
            "raise precision.samples, or lower subspace.k"
        )
    width = min(k + OVERSAMPLING, d, records)
    needed = COPIES * 8 * d * width
    if memory is not None and needed > memory:
        raise UsageError(
            f"subspace public-pca: d k = {d} x {k} needs about {needed / 2**30:.3g} GiB; found {memory / 2**30:.3g} GiB of memory; "
            "lower subspace.k, train fewer parameters, or choose kronecker-pca"
        )
    return width


def gaussian_rows(seed: int, round: int, first_slot: int, count: int, width: int) -> FloatArray:
    """Rows ``first_slot`` .. of the Gaussian test matrix (n, width): that of slot s is the words s width .. of one stream."""
    key = stream_key("subspace", "public-pca", seed, round)
    return standard_normal_entries(key, first_slot * width, count * width).reshape(count, width)


def orthonormal(columns: FloatArray) -> FloatArray:
    """An orthonormal basis whose span holds that of the columns, (m, width) with m >= width, by Householder QR.

    Zeros where a column is not finite: then the last step finds rank 0 and refuses.
    """
    if not np.isfinite(columns).all():
        return np.zeros_like(columns)
    # Row-major, as it is on the ranks that receive it: the bits of later products depend on the layout.
    return np.ascontiguousarray(qr(columns, mode="economic", check_finite=False)[0])


def leading_basis(basis: FloatArray, coefficients: FloatArray, k: int) -> FloatArray:
    """The k leading left singular vectors of Q (Q^T G), float64 (d, k), the largest entry of each positive.

    basis: Q (d, width), orthonormal columns. coefficients: G^T Q (n, width). Raises UsageError when fewer than k directions
    have any gradient, in float64.
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
        raise UsageError(
            f"subspace public-pca: the public gradients have rank {rank}; expected at least k = {k}; check data.public, "
            "raise precision.samples, or lower subspace.k"
        )
    found: FloatArray = basis @ rows[:k].T
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=0)[None, :], axis=0)
    return np.ascontiguousarray(np.where(largest < 0, -found, found))


class PublicPcaKind(SubspaceKind):
    """The leading directions of public gradients."""

    traits = SUBSPACES["public-pca"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return stored_basis(frame.d, frame.k, arrays)

    def make(self, frame: Frame, public: Any) -> dict[str, NDArray[Any]]:
        basis, coefficients = public
        return {"basis": leading_basis(basis, coefficients, frame.k)}

"""The leading eigenvectors of a second moment: in full for small matrices, by a randomised block Krylov method for large ones.

Of a large moment a few directions are wanted (64 of 3,072, say), for which no full decomposition is needed. The method is the block
Krylov iteration of Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate singular value
decomposition", NeurIPS 2015, started again from its own Ritz vectors until their residuals are small. Where eigenvalues hardly differ
their eigenvectors can't be told apart in a bounded number of steps; the vectors that are found then hold all but a little of the
energy that eigenvectors would hold, whatever the gaps, and serve as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh, qr

from distqexp.arrays import FloatArray
from distqexp.geometry.philox import standard_normal_entries, stream_key

LARGE_SIDE = 1536
"""A side from which on moments are summed in float32, and few eigenvectors are found without a full decomposition."""

FEW = 8
"""At most one in so many of the eigenvectors are few."""

OVERSAMPLING = 16
"""The least number of directions that are followed beyond those that are wanted; or a quarter of these, where that is more."""

STEPS = 4
"""How many blocks a Krylov space has."""

SWEEPS = 6
"""How many Krylov spaces there are at most."""

TOLERANCE = 1e-6
"""The residual ||S v - lambda v||, relative to the largest eigenvalue, with which an eigenvector is found."""


def leading_eigenvectors(moment: NDArray[np.floating[Any]], k: int) -> FloatArray:
    """Return the k leading eigenvectors of a symmetric positive semidefinite matrix, orthonormal rows (k, n) in float64.

    The first has the largest eigenvalue, and the entry of largest size of each is positive. They are the same to the last bit at every
    call with the same threads on the same machine.

    Args:
        moment: The matrix (n, n), float64 or float32; symmetric up to rounding.
        k: How many, at most n.

    Raises:
        LinAlgError: The decomposition fails.
        ValueError: An entry is not finite.
    """
    n = len(moment)
    symmetric = (moment + moment.T) / 2
    if n >= LARGE_SIDE and FEW * k <= n:
        vectors = krylov_eigenvectors(symmetric, k)
    else:
        vectors = eigh(symmetric.astype(np.float64, copy=False), subset_by_index=[n - k, n - 1])[1].T[::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return np.where(largest < 0, -vectors, vectors)


def krylov_eigenvectors(symmetric: NDArray[np.floating[Any]], k: int) -> FloatArray:
    """Return approximately the k leading eigenvectors (k, n) of a symmetric matrix, of any sign; see ``leading_eigenvectors``.

    Products with the matrix are in its own type, all else is in float64. Each basis is made orthonormal as a whole by Householder QR,
    so that a matrix of low rank does no harm.
    """
    n = len(symmetric)
    width = min(n // STEPS, k + max(OVERSAMPLING, k // 4))
    matrix = torch.from_numpy(np.ascontiguousarray(symmetric))
    start = standard_normal_entries(stream_key("leading eigenvectors", n, width), 0, n * width).reshape(n, width)
    for _ in range(SWEEPS):
        basis = _krylov_basis(matrix, start)
        image = _product(matrix, basis)
        small = basis.T @ image
        values, vectors = eigh((small + small.T) / 2)
        values, vectors = values[::-1], vectors[:, ::-1]
        start = basis @ vectors[:, :width]
        residuals = image @ vectors[:, :k] - start[:, :k] * values[:k]
        if (np.linalg.norm(residuals, axis=0) <= TOLERANCE * max(values[0], 0.0)).all():
            break
    return np.ascontiguousarray(start[:, :k].T)


def _krylov_basis(matrix: torch.Tensor, start: FloatArray) -> FloatArray:
    """Return an orthonormal basis (n, STEPS width) of the span of X, S X, S^2 X and so on, X being the start (n, width)."""
    blocks = [_orthonormal(start)]
    for _ in range(STEPS - 1):
        blocks.append(_orthonormal(_product(matrix, blocks[-1])))
    return _orthonormal(np.concatenate(blocks, axis=1))


def _product(matrix: torch.Tensor, columns: FloatArray) -> FloatArray:
    product: FloatArray = (matrix @ torch.from_numpy(np.ascontiguousarray(columns)).to(matrix.dtype)).double().numpy()
    return product


def _orthonormal(columns: FloatArray) -> FloatArray:
    basis: FloatArray = qr(columns, mode="economic")[0]
    return basis

"""The subsampled randomised Hadamard transform: random signs, a fast orthogonal transform, and sampled coordinates.

Sources: Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", 2009; Tropp, "Improved analysis of the
subsampled randomized Hadamard transform", 2011 (sampling without replacement).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.geometry.philox import random_signs, raw_words, stream_key
from distqexp.geometry.subspaces.base import Subspace, as_float64_array
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.kinds import SUBSPACES


class HadamardSubspace(Subspace):
    """P^T v = sqrt(d_padded / k) S H D pad(v), with random signs D, the orthonormal Hadamard matrix H, and k sampled rows S.

    The vector is padded to d_padded, the next power of two. A product takes O(d log d) operations and no stored matrix, in
    main memory. The transform only adds and subtracts in a fixed tree, one row at a time, so that the bits of a row don't
    depend on its batch.
    """

    kind = "srht"

    def __init__(self, d: int, k: int, key: bytes) -> None:
        super().__init__(d, k)
        if d > 2**32:
            raise UsageError(f"subspace srht: d = {d}; expected at most 2^32 parameters; choose sjlt")
        self.d_padded = 1 << (d - 1).bit_length()
        self._signs = random_signs(stream_key("signs", key.hex()), 0, d)
        self._sample = sample_without_replacement(stream_key("rows", key.hex()), self.d_padded, k)

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        rows = as_float64_array(gradients)
        out = np.empty((rows.shape[0], self.k))
        vector = np.zeros(self.d_padded)
        for row, target in zip(rows, out, strict=True):
            np.multiply(row, self._signs, out=vector[: self.d])
            vector[self.d :] = 0.0
            np.take(hadamard_transform(vector), self._sample, out=target)
        out /= math.sqrt(self.k)  # sqrt(d_padded / k), and 1/sqrt(d_padded) of the orthonormal transform
        return torch.from_numpy(out).to(gradients.device)

    def _lift(self, w: np.ndarray) -> np.ndarray:
        vector = np.zeros(self.d_padded)
        vector[self._sample] = w
        move: np.ndarray = hadamard_transform(vector)[: self.d] * self._signs
        move /= math.sqrt(self.k)
        return move


def sample_without_replacement(key: bytes, n: int, k: int) -> np.ndarray:
    """Return a uniformly random subset of k of the numbers 0 to n-1, sorted, int64 (k,).

    It is the first k different values of the stream (the top bits of its words are uniform on 0 to n-1), or the complement
    of such a set when k > n/2.

    Args:
        key: The key of the stream.
        n: The number of candidates, a power of two, at most 2^32.
        k: The size of the sample.
    """
    size = min(k, n - k)
    shift = np.uint64(32 - (n.bit_length() - 1))
    sample = np.zeros(0, dtype=np.int64)
    position = 0
    while sample.size < size:
        words = raw_words(key, position, size).astype(np.uint64) >> shift
        position += size
        values, places = np.unique(np.concatenate([sample, words.astype(np.int64)]), return_index=True)
        sample = values[np.argsort(places)]  # in the order of their first appearance
    sample = np.sort(sample[:size])
    return sample if size == k else np.setdiff1d(np.arange(n), sample, assume_unique=True)


def hadamard_transform(vector: np.ndarray) -> np.ndarray:
    """Return H v, float64 (n,), where H is the unnormalised Hadamard matrix in Sylvester's order and n is a power of two.

    The argument is overwritten. H of n = a b is the Kronecker product of H of a and H of b: both are applied as butterflies
    on the long axis of a matrix, so that every addition runs over a contiguous stretch.
    """
    n = vector.size
    columns = 1 << ((n.bit_length() - 1) // 2)
    matrix = vector.reshape(n // columns, columns)
    matrix = np.ascontiguousarray(_butterflies(matrix).T)
    return np.ascontiguousarray(_butterflies(matrix).T).reshape(n)


def _butterflies(matrix: np.ndarray) -> np.ndarray:
    """Return H times the matrix (rows, columns), rows a power of two, in log2(rows) passes; the argument is overwritten."""
    rows, columns = matrix.shape
    source, target = matrix, np.empty_like(matrix)
    half = 1
    while half < rows:
        pairs, sums = (m.reshape(rows // (2 * half), 2, half * columns) for m in (source, target))
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        source, target = target, source
        half *= 2
    return source


class HadamardKind(SubspaceKind):
    """The kind that samples coordinates of a fast orthogonal transform."""

    traits = SUBSPACES["srht"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return HadamardSubspace(frame.d, frame.k, frame.key("srht"))

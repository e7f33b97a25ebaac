"""The subsampled randomised Hadamard transform: signs, a fast orthogonal transform, sampled coordinates.

Source: Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", 2009; Tropp, "Improved analysis of the
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
    """P^T v = sqrt(d_padded / k) S H D pad(v): D random signs, H orthonormal Hadamard, S samples k of d_padded rows.

    d_padded is the next power of two. O(d log d) a vector and no stored matrix. Works in the computer's own memory.
    The transform only adds and subtracts in a fixed tree, a row at a time: a row's bits don't depend on its batch.
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
        padded = np.zeros(self.d_padded)
        for row, target in zip(rows, out, strict=True):
            np.multiply(row, self._signs, out=padded[: self.d])
            padded[self.d :] = 0.0
            np.take(hadamard_transform(padded), self._sample, out=target)
        out /= math.sqrt(self.k)  # sqrt(d_padded / k), and 1/sqrt(d_padded) of the orthonormal transform
        return torch.from_numpy(out).to(gradients.device)

    def _lift(self, w: np.ndarray) -> np.ndarray:
        padded = np.zeros(self.d_padded)
        padded[self._sample] = w
        lifted: np.ndarray = hadamard_transform(padded)[: self.d] * self._signs
        lifted /= math.sqrt(self.k)
        return lifted


def sample_without_replacement(key: bytes, n: int, k: int) -> np.ndarray:
    """A uniform k-subset of 0 .. n-1, sorted, int64 (k,); n a power of two, at most 2^32.

    The first k different values of the stream (their top bits are uniform on 0 .. n-1), or the complement of such
    a set when k > n/2.
    """
    size = min(k, n - k)
    shift = np.uint64(32 - (n.bit_length() - 1))
    chosen = np.zeros(0, dtype=np.int64)
    drawn = 0
    while chosen.size < size:
        words = raw_words(key, drawn, size).astype(np.uint64) >> shift
        drawn += size
        values, places = np.unique(np.concatenate([chosen, words.astype(np.int64)]), return_index=True)
        chosen = values[np.argsort(places)]  # in the order of their first appearance
    chosen = np.sort(chosen[:size])
    return chosen if size == k else np.setdiff1d(np.arange(n), chosen, assume_unique=True)


def hadamard_transform(vector: np.ndarray) -> np.ndarray:
    """H v, H the unnormalised Hadamard matrix in Sylvester's order: float64 (n,), n a power of two; v is scratch.

    H of n = a b is the Kronecker product of H of a and H of b: both are done as butterflies on the long axis of a
    matrix, so that every addition runs over a contiguous stretch.
    """
    n = vector.size
    columns = 1 << ((n.bit_length() - 1) // 2)
    matrix = vector.reshape(n // columns, columns)
    matrix = np.ascontiguousarray(_butterflies(matrix).T)
    return np.ascontiguousarray(_butterflies(matrix).T).reshape(n)


def _butterflies(matrix: np.ndarray) -> np.ndarray:
    """H times the matrix (rows, columns), rows a power of two, by log2(rows) passes; the argument is scratch."""
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
    """Sampled coordinates of a fast orthogonal transform."""

    traits = SUBSPACES["srht"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return HadamardSubspace(frame.d, frame.k, frame.key("srht"))

"""Dense random subspaces: the entries of P are independent, with mean 0 and variance 1/k.

The idea is from Johnson and Lindenstrauss, 1984; signs in place of normal entries are from Achlioptas,
"Database-friendly random projections", 2003. Entry (i, j) is word (or bit) i k + j of a counter-based stream, so that each
block of rows can be generated on its own, in any order, with the same bits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.geometry.philox import random_signs, standard_normal_entries
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.kind import CACHE_BYTES, Frame, SubspaceKind
from distqexp.kinds import SUBSPACES

BLOCK_ENTRIES = 2**18
"""The number of entries of Z that are generated at a time, unless ``LEAST_ROWS`` rows have more."""
LEAST_ROWS = 32
"""The least number of rows of a block, so that products with a wide P are still products of matrices."""


class _DenseSubspace(Subspace):
    """P = Z / sqrt(k), where Z is generated in blocks of rows and cached when it fits in ``cache_bytes``.

    The blocks are a function of k alone, and products are summed block after block whether or not Z is cached: the
    size of the cache changes no bit of any result.
    """

    def __init__(self, d: int, k: int, key: bytes, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(d, k)
        self._key = key
        self._rows = max(LEAST_ROWS, BLOCK_ENTRIES // k)
        self._is_cached = self._bytes_an_entry * d * k <= cache_bytes
        self._cache: dict[int, torch.Tensor] = {}

    @property
    @abstractmethod
    def _bytes_an_entry(self) -> int:
        """The bytes of one entry of Z in the cache."""

    @abstractmethod
    def _entries(self, first: int, count: int) -> np.ndarray:
        """Return the entries ``first`` to ``first + count - 1`` of Z in row-major order, in the type of the cache."""

    def _block(self, first: int, last: int, device: torch.device) -> torch.Tensor:
        """Return rows ``first`` to ``last - 1`` of Z, float64 on ``device``; a cached block moves to the device that asks."""
        block = self._cache.get(first)
        if block is None:
            block = torch.from_numpy(self._entries(first * self.k, (last - first) * self.k).reshape(-1, self.k))
        block = block.to(device)
        if self._is_cached:
            self._cache[first] = block
        return block.to(torch.float64)

    def _bounds(self) -> list[tuple[int, int]]:
        """Return the first row and the end of each block."""
        return [(first, min(first + self._rows, self.d)) for first in range(0, self.d, self._rows)]

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((gradients.shape[0], self.k), dtype=torch.float64, device=gradients.device)
        for first, last in self._bounds():
            part = gradients[:, first:last].to(torch.float64).contiguous()
            total.addmm_(part, self._block(first, last, gradients.device))
        return total.div_(math.sqrt(self.k))

    def _lift(self, w: np.ndarray) -> np.ndarray:
        step = torch.from_numpy(w / math.sqrt(self.k))
        out = np.empty(self.d)
        for first, last in self._bounds():
            cached_block = self._cache.get(first)
            device = step.device if cached_block is None else cached_block.device
            out[first:last] = (self._block(first, last, device) @ step.to(device)).cpu().numpy()
        return out


class GaussianSubspace(_DenseSubspace):
    """P has independent normal entries of variance 1/k (those of Z are multiples of 2^-16)."""

    kind = "gaussian"
    _bytes_an_entry = 4

    def _entries(self, first: int, count: int) -> np.ndarray:
        return standard_normal_entries(self._key, first, count).astype(np.float32)


class RademacherSubspace(_DenseSubspace):
    """P has independent fair signs over sqrt(k)."""

    kind = "rademacher"
    _bytes_an_entry = 1

    def _entries(self, first: int, count: int) -> np.ndarray:
        return random_signs(self._key, first, count)


class _DenseKind(SubspaceKind):
    def cached_bytes(self, d: int, k: int) -> int:
        return min(4 * d * k, CACHE_BYTES)


class GaussianKind(_DenseKind):
    """The kind with normal entries."""

    traits = SUBSPACES["gaussian"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return GaussianSubspace(frame.d, frame.k, frame.key("gaussian"), frame.cache_bytes)


class RademacherKind(_DenseKind):
    """The kind with random signs."""

    traits = SUBSPACES["rademacher"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return RademacherSubspace(frame.d, frame.k, frame.key("rademacher"), frame.cache_bytes)

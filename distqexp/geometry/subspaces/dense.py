"""Dense random subspaces: independent entries of mean 0 and variance 1/k.

Source of the idea: Johnson and Lindenstrauss 1984; signs in place of normals: Achlioptas, "Database-friendly
random projections", 2003. Entry (i, j) is word (or bit) i k + j of a counter-based stream, so that blocks of
rows are made alone, in any order, with the same bits.
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
LEAST_ROWS = 32  # so that a wide P is still a matrix product


class _DenseSubspace(Subspace):
    """P = Z / sqrt(k), with Z made in blocks of rows and kept when it fits in ``cache_bytes``.

    The blocks are a function of k alone, and products are summed block after block whether or not Z is kept: the
    memory allowed changes no bit of any result.
    """

    def __init__(self, d: int, k: int, key: bytes, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(d, k)
        self._key = key
        self._rows = max(LEAST_ROWS, BLOCK_ENTRIES // k)
        self._keep = self._bytes_an_entry * d * k <= cache_bytes
        self._kept: dict[int, torch.Tensor] = {}

    @property
    @abstractmethod
    def _bytes_an_entry(self) -> int:
        """Bytes of one entry of Z in the cache."""

    @abstractmethod
    def _entries(self, first: int, count: int) -> np.ndarray:
        """Entries ``first`` .. ``first + count - 1`` of Z in row-major order, in the type they are kept in."""

    def _block(self, first: int, last: int, device: torch.device) -> torch.Tensor:
        """Rows ``first`` .. ``last - 1`` of Z, float64 on ``device``; what is kept moves to the device that asks."""
        block = self._kept.get(first)
        if block is None:
            block = torch.from_numpy(self._entries(first * self.k, (last - first) * self.k).reshape(-1, self.k))
        block = block.to(device)
        if self._keep:
            self._kept[first] = block
        return block.to(torch.float64)

    def _bounds(self) -> list[tuple[int, int]]:
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
            kept = self._kept.get(first)
            device = step.device if kept is None else kept.device
            out[first:last] = (self._block(first, last, device) @ step.to(device)).cpu().numpy()
        return out


class GaussianSubspace(_DenseSubspace):
    """Independent normal entries of variance 1/k (Z on a grid of 2^-16)."""

    kind = "gaussian"
    _bytes_an_entry = 4

    def _entries(self, first: int, count: int) -> np.ndarray:
        return standard_normal_entries(self._key, first, count).astype(np.float32)


class RademacherSubspace(_DenseSubspace):
    """Independent fair signs over sqrt(k)."""

    kind = "rademacher"
    _bytes_an_entry = 1

    def _entries(self, first: int, count: int) -> np.ndarray:
        return random_signs(self._key, first, count)


class _DenseKind(SubspaceKind):
    def cached_bytes(self, d: int, k: int) -> int:
        return min(4 * d * k, CACHE_BYTES)


class GaussianKind(_DenseKind):
    """Normal entries."""

    traits = SUBSPACES["gaussian"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return GaussianSubspace(frame.d, frame.k, frame.key("gaussian"), frame.cache_bytes)


class RademacherKind(_DenseKind):
    """Signs."""

    traits = SUBSPACES["rademacher"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return RademacherSubspace(frame.d, frame.k, frame.key("rademacher"), frame.cache_bytes)

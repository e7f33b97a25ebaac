"""The sparse Johnson-Lindenstrauss transform: every row of P has a few signs.

Source: Kane and Nelson, "Sparser Johnson-Lindenstrauss transforms", J. ACM 2014 (the block construction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from distqexp.errors import UsageError
from distqexp.geometry.philox import raw_words
from distqexp.geometry.subspaces.base import Subspace
from distqexp.geometry.subspaces.kind import Frame, SubspaceKind
from distqexp.kinds import SUBSPACES

ROWS_AT_ONCE = 1 << 16
"""How many rows of P are made at a time, to bound what their making takes."""


class SparseSubspace(Subspace):
    """Each row of P has ``nonzeros`` entries +-1/sqrt(nonzeros), one in each of ``nonzeros`` blocks of columns.

    The products are computed in main memory; gradients on another device are copied there. They only add and subtract,
    in the order of the parameters, so that the bits of a row don't depend even on the size of its batch.
    """

    kind = "sjlt"

    def __init__(self, d: int, k: int, key: bytes, nonzeros: int = 4) -> None:
        super().__init__(d, k)
        if not 1 <= nonzeros <= k:
            raise UsageError(f"subspace sjlt: nonzeros = {nonzeros}, with k = {k}; expected 1 <= nonzeros <= k")
        self.nonzeros = nonzeros
        index = np.int32 if d * nonzeros < 2**31 else np.int64
        columns, signs = np.empty((d, nonzeros), index), np.empty((d, nonzeros))
        edges = np.arange(nonzeros + 1, dtype=np.uint64) * np.uint64(k) // np.uint64(nonzeros)
        one, shift = np.uint64(1), np.uint64(31)
        for first in range(0, d, ROWS_AT_ONCE):
            part = slice(first, min(first + ROWS_AT_ONCE, d))
            count = (part.stop - first) * nonzeros
            words = raw_words(key, first * nonzeros, count).astype(np.uint64).reshape(-1, nonzeros)
            # The upper 31 bits choose the column.
            columns[part] = edges[:-1] + ((words >> one) * np.diff(edges) >> shift)
            signs[part] = np.where(words & one, 1.0, -1.0)  # the lowest bit chooses the sign
        ends = np.arange(0, d * nonzeros + 1, nonzeros, dtype=index)
        self._signs = sparse.csr_array((signs.ravel(), columns.ravel(), ends), shape=(d, k))

    def _project(self, gradients: torch.Tensor) -> torch.Tensor:
        # One copy alone, as gradients may be as long as all memory that is left.
        columns = gradients.cpu().T.to(torch.float64, memory_format=torch.contiguous_format, copy=True).numpy()
        rows = np.ascontiguousarray((self._signs.T @ columns).T)
        rows /= math.sqrt(self.nonzeros)
        return torch.from_numpy(rows).to(gradients.device)

    def _lift(self, w: np.ndarray) -> np.ndarray:
        move: np.ndarray = self._signs @ w
        move /= math.sqrt(self.nonzeros)
        return move


class SparseKind(SubspaceKind):
    """The kind with a few signs in every row."""

    traits = SUBSPACES["sjlt"]

    def restore(self, frame: Frame, arrays: Mapping[str, NDArray[Any]]) -> Subspace:
        return SparseSubspace(frame.d, frame.k, frame.key("sjlt"), frame.nonzeros)

"""The joint precision: the Kronecker one, and the leading directions of the whole network's curvature, which cross its blocks.

Blocks of one network move the same outputs. A matrix for each block doesn't know it, so that a step along what they share is too
long by about their number (docs/whitening.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh

from distqexp.arrays import FloatArray
from distqexp.errors import FileContentError
from distqexp.geometry.blocks import Block
from distqexp.geometry.precisions.base import AcrossBlocks, Factors, Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.geometry.precisions.kind import PrecisionKind
from distqexp.geometry.precisions.kronecker import KroneckerKind, KroneckerPrecision
from distqexp.kinds import PRECISIONS

UNITS_A_DIRECTION = 8
"""A direction is found from so many public units; more would cost memory, and hardly change the leading ones."""

NEGLIGIBLE = 1e-3
"""A direction is left out where its curvature is at most this share of the damped curvature by blocks: it would change nothing."""

LARGEST_SQUARE = 1e200
"""A gradient of a larger squared norm, of a run that diverged, is left out: products of such numbers are no finite curvature."""

_OWN = ("directions", "values")
_BLOCKS = KroneckerKind()


class JointPrecision(Precision):
    """The precision A = L_K (I + V^T diag(values) V) L_K^T, with A_K = L_K L_K^T the precision by blocks.

    It is applied as L^{-1} = (I - V^T diag(h) V) L_K^{-1}, h = 1 - (1 + values)^{-1/2}, which is symmetric but for L_K, so that
    L^{-T} is as cheap. Any V is a linear map that whitens; only an orthonormal one gives the A above.

    The arrays are those of ``KroneckerPrecision``, ``directions`` V (m, k) and ``values`` (m,).
    """

    kind = "kronecker-joint"

    def __init__(self, k: int, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(k, {name: arrays[name] for name in _OWN})
        self.blocks = KroneckerPrecision(k, blocks_only(arrays))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the precision by blocks, ``directions`` and ``values``."""
        return self.blocks.to_arrays() | super().to_arrays()

    def by_blocks(self, coordinates: Sequence[Block]) -> list[Factors]:
        """Return the row and column factors of L_K^{-1}. Raises UsageError when the precision was made for other blocks."""
        return self.blocks.by_blocks(coordinates)

    @property
    def across(self) -> AcrossBlocks | None:
        """I - V^T diag(h) V; None where there are no directions."""
        return self._map if len(self._arrays["values"]) else None

    @property
    def _map(self) -> AcrossBlocks:
        return AcrossBlocks(self._arrays["directions"], 1 - (1 + self._arrays["values"]) ** -0.5)

    def with_still(self, numbers: Collection[int]) -> JointPrecision:
        """Return the precision under which the blocks of these numbers stand still as well, before directions are found."""
        return joint(self.blocks.with_still(numbers))

    def _whiten(self, gradients: torch.Tensor) -> torch.Tensor:
        return self._map.apply(self.blocks.whiten(gradients))

    def _unwhiten(self, y: np.ndarray) -> np.ndarray:
        return self.blocks.unwhiten(self._map.apply(torch.from_numpy(y)[None])[0].numpy())


def joint(
    blocks: KroneckerPrecision, directions: FloatArray | None = None, values: FloatArray | None = None
) -> JointPrecision:
    """Return the joint precision of a precision by blocks and ``leading_curvature``; without directions it does what ``blocks`` does."""
    own = {
        "directions": np.zeros((0, blocks.k)) if directions is None else directions,
        "values": np.zeros(0) if values is None else values,
    }
    return JointPrecision(blocks.k, blocks.to_arrays() | own)


def leading_curvature(vectors: FloatArray, units: float, count: int) -> tuple[FloatArray, FloatArray]:
    """Return the leading directions (m, k) of public curvature in coordinates whitened by blocks, and their values (m,).

    The curvature is units * mean over public units of v v^T, next to the damped curvature by blocks, which is I. Its directions are
    those of the small matrix of inner products. They are rounded to half precision, in which a file holds them.

    Args:
        vectors: The gradients v of public units at labels drawn from the model, whitened by blocks, (n, k), finite. Those whose
            squares are too large (``LARGEST_SQUARE``) are overwritten by zeros.
        units: The nominal number of private units of a round.
        count: The largest number of directions.

    Returns:
        Fewer than ``count``, perhaps none, where fewer have a curvature above ``NEGLIGIBLE``.
    """
    n = len(vectors)
    with np.errstate(over="ignore"):
        vectors[~(np.square(vectors).sum(axis=1) <= LARGEST_SQUARE)] = 0.0
    inner = vectors @ vectors.T * (units / n)
    first = max(0, n - count)
    values, coefficients = eigh(inner, subset_by_index=[first, n - 1])
    keep = values > NEGLIGIBLE
    values, coefficients = values[keep][::-1], coefficients[:, keep][:, ::-1]
    directions = (coefficients / np.sqrt(values * (n / units))).T @ vectors
    return directions.astype(np.float16).astype(np.float64), np.ascontiguousarray(values)


class JointKind(PrecisionKind):
    """The kind that adds what crosses blocks to the Kronecker one. ``make`` gives it without directions."""

    traits = PRECISIONS["kronecker-joint"]

    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping) -> Precision:
        return joint(_BLOCKS.make(k, public, public_units, units, step, damping))

    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        if not set(_OWN) <= set(arrays):
            raise FileContentError(
                f"precision kronecker-joint: {len(arrays)} arrays without directions and values; get the file again"
            )
        blocks = _BLOCKS.restore(k, blocks_only(arrays))
        directions, values = (np.asarray(arrays[name]) for name in _OWN)
        good = directions.dtype == values.dtype == np.float64 and directions.shape == (len(values), k)
        if not (good and np.isfinite(directions).all() and np.isfinite(values).all() and (values >= 0).all()):
            raise FileContentError(
                f"precision kronecker-joint: directions {directions.shape} and values {values.shape}; expected finite float64 (m, {k}) "
                "and (m,), none below 0; get the file again"
            )
        return joint(blocks, directions, values)

    def rescale(self, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
        return _BLOCKS.rescale(blocks_only(arrays), ratio) | {
            "directions": arrays["directions"],
            "values": arrays["values"] * ratio,
        }


def blocks_only(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of the precision by blocks among those of a joint one."""
    return {name: array for name, array in arrays.items() if name not in _OWN}


__all__ = ["UNITS_A_DIRECTION", "JointKind", "JointPrecision", "blocks_only", "joint", "leading_curvature"]

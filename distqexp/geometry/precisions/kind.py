"""What a kind of precision is: how it is made from public records, and how it is rebuilt from a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.geometry.precisions.damping import Damping
from distqexp.kinds import PRECISIONS, PrecisionTraits


class PrecisionKind(ABC):
    """One kind of precision. ``register_precision`` makes it known under the name in its traits."""

    traits: PrecisionTraits

    @abstractmethod
    def make(self, k: int, public: Any, public_units: int, units: float, step: float, damping: Damping) -> Precision:
        """Make A = (units / step) (H + damping.share * size of H's spectrum * I), or what the kind takes for it.

        The caller has checked that units and step are finite and above 0, and the damping.

        Args:
            k: The dimension of the subspace.
            public: What the kind needs, summed over public units: the result of ``curvature_sum``, or the ``BlockMoments``
                of every block in the coordinates of the subspace, or None.
            public_units: The number of public units in the sum.
            units: The nominal number of private units of a round, from the config.
            step: The step of the round.
            damping: What is added to the curvature.

        Raises:
            UsageError: No precision can be made from these public records.
        """

    @abstractmethod
    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        """Rebuild the precision that ``Precision.to_arrays`` described, bit for bit. Raises FileContentError for other arrays."""

    def rescale(self, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
        """Return the arrays of A / ratio, for a precision that is kept in a later round with a longer step.

        Args:
            arrays: The arrays of the precision A.
            ratio: The later step divided by the step that A was made with, finite and above 0. A ratio of 1 gives the same
                arrays, bit for bit.
        """
        root = math.sqrt(ratio)
        return {name: array * root for name, array in arrays.items()}

    def curvature_sum(self, factors: torch.Tensor) -> np.ndarray:
        """Return what a kind that needs CURVATURE keeps of V^T V, summed over public records.

        ``factors`` holds V, float64 (B, r, k).
        """
        raise NotImplementedError(f"precision {self.traits.name}: made without a curvature in the subspace")


_KINDS: dict[str, PrecisionKind] = {}


def register_precision(kind: PrecisionKind) -> None:
    """Make a kind known, also to configs. Every process that reads a plan with this kind has to register it."""
    PRECISIONS.setdefault(kind.traits.name, kind.traits)
    _KINDS[kind.traits.name] = kind


def precision_kind(name: str) -> PrecisionKind:
    """Return the kind of that name. Raises UsageError for an unknown name."""
    if name not in _KINDS:
        raise UsageError(f"precision: unknown kind {name!r}; expected {', '.join(_KINDS)}")
    return _KINDS[name]

"""What a kind of precision is: what it is made from, and how it is rebuilt from a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distqexp.errors import UsageError
from distqexp.geometry.precisions.base import Precision
from distqexp.kinds import PRECISIONS, PrecisionTraits


class PrecisionKind(ABC):
    """One kind. ``register_precision`` makes it known by its name."""

    traits: PrecisionTraits

    @abstractmethod
    def make(self, k: int, public: Any, units: int, n_bar: float, step: float, damping: float) -> Precision:
        """A = (n_bar / step) (H + damping * mean eigenvalue(H) * I), or what the kind takes for it. Scales are above 0.

        public: what the kind needs, summed over public units: ``curvature_sum``'s, or the ``BlockMoments`` of every block in the
        subspace's coordinates, or None. units: how many. Raises UsageError where it can't be made.
        """

    @abstractmethod
    def restore(self, k: int, arrays: Mapping[str, np.ndarray]) -> Precision:
        """The precision that ``Precision.to_arrays`` wrote, bit for bit. Raises FileContentError for other arrays."""

    def rescaled(self, arrays: Mapping[str, np.ndarray], ratio: float) -> dict[str, np.ndarray]:
        """The arrays of A / ratio: those of a precision kept from a round whose step was smaller by ``ratio``, finite and above 0.

        The same arrays, bit for bit, at ratio 1.
        """
        root = math.sqrt(ratio)
        return {name: array * root for name, array in arrays.items()}

    def curvature_sum(self, factors: torch.Tensor) -> np.ndarray:
        """Of a kind that needs CURVATURE, what it keeps of V^T V, summed over public records; factors: V, float64 (B, r, k)."""
        raise NotImplementedError(f"precision {self.traits.name}: made without a curvature in the subspace")


_KINDS: dict[str, PrecisionKind] = {}


def register_precision(kind: PrecisionKind) -> None:
    """Make a kind known, to configs too. Every process that reads a plan with it has to."""
    PRECISIONS.setdefault(kind.traits.name, kind.traits)
    _KINDS[kind.traits.name] = kind


def precision_kind(name: str) -> PrecisionKind:
    """The kind of that name. Raises UsageError for an unknown one."""
    if name not in _KINDS:
        raise UsageError(f"precision: unknown kind {name!r}; expected {', '.join(_KINDS)}")
    return _KINDS[name]

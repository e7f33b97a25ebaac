"""How much is added to a public curvature before whitening, and relative to what. Public."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import LinAlgError, eigh

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError

Reference = Literal["bulk", "mean"]
"""What damping is relative to: the mean eigenvalue without the largest one, or with it."""


ALONE = 1e-12
"""A spectrum whose other eigenvalues sum to at most this share of it, as rounding leaves them, is of one direction alone."""


@dataclass(frozen=True)
class Damping:
    """What is added to a curvature: ``share`` times the size of its spectrum, in every direction.

    The size of the bulk is the mean eigenvalue without the largest. Features of a pretrained network have one huge direction, their
    mean, which would make up nearly all of a plain mean and set a damping that drowns the others; where no direction is huge the two
    hardly differ. A spectrum of one direction alone has no bulk; it counts with its share 1/n of the mean.

    Attributes:
        share: What is added, relative to the size of the spectrum.
        reference: Which size.
        floor: The size that a block counts with at least, relative to the mean over the whole network.
    """

    share: float
    reference: Reference = "mean"
    floor: float = 0.1

    def check(self, kind: str) -> None:
        """Raise UsageError unless the numbers are finite and 0 or more."""
        for name, value in (("damping", self.share), ("floor", self.floor)):
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"precision {kind}: precision.{name} = {value}; expected a finite number, 0 or more")

    def size(self, moment: FloatArray) -> float:
        """Return the size of the spectrum of a symmetric matrix (n, n), or of a diagonal one given by its diagonal (n,).

        It is NaN for a matrix that has no eigenvalues in float64.
        """
        n = len(moment)
        trace = float(moment.sum() if moment.ndim == 1 else np.trace(moment))
        if self.reference == "mean" or n == 1:
            return trace / n
        try:
            largest = moment.max() if moment.ndim == 1 else _largest_eigenvalue(moment)
        except (LinAlgError, ValueError):
            return math.nan
        rest = trace - float(largest)
        return rest / (n - 1) if rest > ALONE * trace else trace / n**2


def _largest_eigenvalue(matrix: FloatArray) -> float:
    n = len(matrix)
    return float(eigh((matrix + matrix.T) / 2, eigvals_only=True, subset_by_index=[n - 1, n - 1])[0])

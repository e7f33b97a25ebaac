"""How much is added to a public curvature before whitening, and relative to what. Public."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import LinAlgError, eigvalsh

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError

Reference = Literal["bulk", "mean", "winsorized"]
"""What damping is relative to: the mean eigenvalue without the largest one, the mean of all, or that of all but for outliers."""

OUTLIER = 30.0
"""A winsorized mean counts no eigenvalue above so many times itself."""

RANK = 1e-9
"""Eigenvalues up to this share of the largest are zeros that were rounded."""

ALONE = 1e-12
"""A spectrum whose other eigenvalues sum to at most this share of it, as rounding leaves them, is of one direction alone."""


@dataclass(frozen=True)
class Damping:
    """What is added to a curvature: ``share`` times the size of its spectrum, in every direction.

    The size of the bulk is the mean eigenvalue without the largest. Features of a pretrained network have one huge direction, their
    mean, which would make up nearly all of a plain mean and set a damping that drowns the others; where no direction is huge the two
    hardly differ. A spectrum of one direction alone has no bulk; it counts with its share 1/n of the mean.

    A head of several classes has such a direction for each of them. The winsorized mean is the largest number m that is the mean of
    min(eigenvalue, 30 m) over the eigenvalues that aren't zero (zeros count afterwards: it is scaled by rank / n). Where no eigenvalue
    is above 30 means it is the mean, as it always is of fewer than 30 eigenvalues: of 20 public records there are no outliers to tell
    (docs/whitening.md).

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
        if self.reference == "mean" or n == 1 or not math.isfinite(trace):
            return trace / n
        try:
            if self.reference == "winsorized":
                return _winsorized_mean(_eigenvalues(moment))
            rest = trace - float(_eigenvalues(moment, largest=1)[0])
        except (LinAlgError, ValueError):
            return math.nan
        return rest / (n - 1) if rest > ALONE * trace else trace / n**2


def _eigenvalues(moment: FloatArray, largest: int | None = None) -> FloatArray:
    """Return the eigenvalues of a moment, or its ``largest`` ones, the largest first."""
    if moment.ndim == 1:
        return np.sort(moment)[::-1][:largest]
    n = len(moment)
    places = None if largest is None else [n - largest, n - 1]
    values: FloatArray = eigvalsh((moment + moment.T) / 2, subset_by_index=places)[::-1]
    return values


def _winsorized_mean(values: FloatArray) -> float:
    """Return the largest m that is the mean of min(value, OUTLIER m) over the ``values`` that aren't zero, times their share.

    With the largest j values clipped, m is the sum of the others over (rank - OUTLIER j); the first j whose next value isn't clipped is
    the right one: until then m falls with j, and from there on with nothing.
    """
    kept = values[values > RANK * values[0]]
    if not len(kept):
        return 0.0
    clipped = np.arange(math.ceil(len(kept) / OUTLIER))
    means = kept[::-1].cumsum()[::-1][clipped] / (len(kept) - OUTLIER * clipped)
    fits = kept[clipped] <= OUTLIER * means
    first = int(np.argmax(fits)) if fits.any() else -1  # rounding may leave none
    return float(means[first]) * len(kept) / len(values)

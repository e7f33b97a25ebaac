"""The distance between discrete Gaussian noise and rounded Gaussian noise.

Rounding N(x, sigma^2) to integers, x an integer, is post-processing of an exactly mu-GDP release. The discrete
Gaussian N_Z(0, sigma^2), which is added instead, differs from the rounded noise by a Kullback-Leibler divergence of
at most 1 / (576 sigma^4) a coordinate, for every sigma >= 3 (docs/proofs/rounding.md). Divergences add up over
coordinates and adaptive rounds, and Pinsker's inequality turns the sum into a total variation distance:

    Delta <= sqrt(sum over rounds of k / sigma^4) / sqrt(1152).

A release with delta(epsilon) under rounded noise then has at most delta(epsilon) + (1 + e^epsilon) Delta.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from distqexp.privacy.rounding import TINY, sum_above

SMALLEST_SIGMA = 3.0
"""The bound is proved for sigma at and above this value, in grid steps."""

LARGEST_SIGMA = 2**62
"""Noise with a larger sigma does not fit in int64."""


def divergence(coordinates: int, sigma: float) -> float:
    """Bound the divergence of one release of ``coordinates`` draws of ``sigma`` grid steps each; the bound is above 0."""
    return max(coordinates / 576 / (sigma * sigma) / (sigma * sigma), TINY)


def total_variation(divergences: Iterable[float]) -> float:
    """Return the total variation Delta, at most 1, of releases with these divergences, by Pinsker, rounded upwards."""
    return min(1.0, math.sqrt(sum_above(list(divergences)) / 2) * (1 + 1e-14))


def smallest_sigma(coordinates: int, rounds: int, total_variation: float) -> int:
    """Return the smallest integer sigma with which the releases stay within a total variation.

    Args:
        coordinates: The coordinates of a release.
        rounds: The number of releases.
        total_variation: The largest total variation of all of them together.
    """
    sigma: float = (rounds * coordinates / 1152) ** 0.25 / math.sqrt(total_variation)
    return max(math.ceil(sigma * (1 + 1e-12)), int(SMALLEST_SIGMA))

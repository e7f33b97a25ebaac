"""How far discrete Gaussian noise is from rounded Gaussian noise.

Rounding N(x, sigma^2) to integers, x an integer, is post-processing of an exactly mu-GDP release. The discrete
Gaussian N_Z(0, sigma^2) that is added instead differs from the rounded noise by a Kullback-Leibler divergence of
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
"""Wider noise does not fit in int64."""


def divergence(coordinates: int, sigma: float) -> float:
    """Bound on the divergence of one release, above 0: ``coordinates`` draws of ``sigma`` grid steps each."""
    return max(coordinates / 576 / (sigma * sigma) / (sigma * sigma), TINY)


def total_variation(divergences: Iterable[float]) -> float:
    """Delta, at most 1, of releases whose divergences are given (Pinsker), rounded upwards."""
    return min(1.0, math.sqrt(sum_above(list(divergences)) / 2) * (1 + 1e-14))


def smallest_sigma(coordinates: int, rounds: int, total_variation: float) -> int:
    """The smallest integer sigma with which ``rounds`` releases of ``coordinates`` stay within ``total_variation``."""
    needed: float = (rounds * coordinates / 1152) ** 0.25 / math.sqrt(total_variation)
    return max(math.ceil(needed * (1 + 1e-12)), int(SMALLEST_SIGMA))

"""Noise in shares: each of m sites adds a discrete Gaussian, and the shares of any m - t sites are the whole noise together.

With s^2 = sigma^2 / (m - t), s rounded up to a whole number, the sum of n = m - t shares N_Z(0, s^2) is close to N_Z(0, n s^2):
the logarithm of the ratio of their probabilities is at most

    tau = 10 sum over j = 1 .. n - 1 of exp(-2 pi^2 s^2 j / (j + 1))

at every integer (Kairouz, Liu, Steinke 2021, The distributed discrete Gaussian mechanism, s >= 1/2). So over k coordinates the
total variation is at most k (e^tau - 1), which is added to the Delta of every round. More shares than n are more noise on top:
post-processing. Every bound is rounded upwards. See docs/proofs/consortium.md, section 5. All quantities are public.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

from distqexp.errors import UsageError
from distqexp.privacy.rounding import exp_above, sum_above

SMALLEST_SHARE = 3
"""The smallest standard deviation of a share that a plan is made with, in grid steps: tau is below n 10^-37 from here on."""

LEAST_LOG = -700.0
"""No share brings the logarithm of a total variation, of floats that are rounded upwards, down to less than about this."""

_TWICE_SQUARE_OF_PI = 19.739208802178  # below 2 pi^2 = 19.7392088021787...
_UPWARDS = 1 + 1e-12
"""Far more than the rounding errors of a few operations."""


def share_sigma(sigma: float, shares: int) -> int:
    """Return the standard deviation of a share: the smallest whole number s with s^2 shares >= sigma^2, in grid steps."""
    return math.isqrt(math.ceil(Fraction(sigma) ** 2 / shares) - 1) + 1


@functools.lru_cache(1024)  # The ledger asks for the same figure again and again.
def log_ratio(share_sigma: float, shares: int) -> float:
    """Return tau for the sum of ``shares`` discrete Gaussians of ``share_sigma`` each, rounded upwards; 0 for one share.

    Raises UsageError below the 1/2 from which the bound is proved.
    """
    if not (share_sigma >= 0.5 and shares >= 1):
        raise UsageError(
            f"shares of noise: found {shares} of sigma {share_sigma!r}; expected 1 or more, of at least 0.5"
        )
    slope = _TWICE_SQUARE_OF_PI * share_sigma * share_sigma * (1 - 1e-14)
    terms = [exp_above(-slope * (j / (j + 1)) * (1 - 1e-14)) for j in range(1, shares)]
    return 10 * sum_above(terms) * _UPWARDS


def total_variation(coordinates: int, sigma: float, shares: int) -> float:
    """Return what one release adds to Delta: k (e^tau - 1), at most 1, rounded upwards. It is 0 where one share is the whole noise.

    Args:
        coordinates: The numbers that are released, k.
        sigma: The standard deviation of the whole noise, in grid steps.
        shares: How many shares are the whole noise together.
    """
    if shares == 1:
        return 0.0
    tau = log_ratio(share_sigma(sigma, shares), shares)
    return min(1.0, coordinates * math.expm1(tau) * _UPWARDS) if tau < 1 else 1.0


def smallest_sigma(coordinates: int, rounds: int, shares: int, log_variation: float) -> int:
    """Return a whole sigma from which on all rounds together add at most a total variation; a share has SMALLEST_SHARE or more.

    Args:
        coordinates: The coordinates of a release.
        rounds: The number of releases.
        shares: How many shares are the whole noise together, 2 or more.
        log_variation: The logarithm of the largest total variation of all releases; LEAST_LOG or more.
    """
    # Every j / (j + 1) is 1/2 or more, and e^tau - 1 at most 2 tau.
    square = (math.log(20.0 * coordinates * rounds * shares) - log_variation) / (_TWICE_SQUARE_OF_PI / 2)
    share = max(SMALLEST_SHARE, math.ceil(math.sqrt(max(square, 0.0)) * (1 + 1e-9)))
    return math.isqrt(share * share * shares - 1) + 1

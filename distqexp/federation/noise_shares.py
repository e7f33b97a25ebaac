"""Noise in shares: each of m sites adds a discrete Gaussian, and the shares of any m - t sites are the whole noise together.

With s^2 = sigma^2 / (m - t), s rounded up to a whole number, the sum of n = m - t shares N_Z(0, s^2) is close to N_Z(0, n s^2):
the logarithm of the ratio of their probabilities is at most

    tau = 10 sum over j = 1 .. n - 1 of exp(-2 pi^2 s^2 j / (j + 1))

at every integer (Kairouz, Liu, Steinke 2021, The distributed discrete Gaussian mechanism, s >= 1/2). So over k coordinates the
total variation is at most k (e^tau - 1), which is added to the Delta of every round. More shares than n are more noise on top:
post-processing. Every bound is rounded upwards. See docs/proofs/consortium.md, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distqexp.arrays import IntegerArray
from distqexp.errors import UsageError
from distqexp.mechanism.noise import draw_discrete
from distqexp.privacy.discrete_slack import SMALLEST_SIGMA
from distqexp.privacy.rounding import exp_above, sum_above

LARGEST_SIGMA = 2**53

_TWICE_SQUARE_OF_PI = 19.739208802178  # below 2 pi^2 = 19.7392088021787...
_UPWARDS = 1 + 1e-12
"""Far more than the rounding errors of a few operations."""


@dataclass(frozen=True)
class SharedNoise:
    """How the noise of a round is shared. Public.

    Attributes:
        sites: The sites, m.
        tolerated: How many may be missing or collude, together: t, below m.
        sigma: The standard deviation of the whole noise, in grid steps, a whole number from 3.
        coordinates: The entries of the vector, k.
    """

    sites: int
    tolerated: int
    sigma: int
    coordinates: int

    def __post_init__(self) -> None:
        """Check the figures. Raises UsageError."""
        if not 0 <= self.tolerated < self.sites:
            raise UsageError(f"tolerated sites: found {self.tolerated} of {self.sites}; expected fewer than the sites")
        if self.sigma != int(self.sigma) or not SMALLEST_SIGMA <= self.sigma <= LARGEST_SIGMA:
            raise UsageError(f"sigma of noise in shares: found {self.sigma!r}; expected a whole number from 3 to 2^53")
        if self.coordinates < 1:
            raise UsageError(f"coordinates of noise: found {self.coordinates!r}; expected 1 or more")

    @property
    def honest(self) -> int:
        """The number of shares that are the whole noise: n = m - t."""
        return self.sites - self.tolerated

    @property
    def share_sigma(self) -> int:
        """The standard deviation of a share: the smallest whole number s with s^2 n >= sigma^2."""
        return math.isqrt(-(-(self.sigma**2) // self.honest) - 1) + 1

    @property
    def log_ratio(self) -> float:
        """The bound tau on the log-ratio of a coordinate, rounded upwards."""
        return log_ratio(self.share_sigma, self.honest)

    @property
    def total_variation(self) -> float:
        """What a round adds to Delta: k (e^tau - 1), at most 1, rounded upwards. It is 0 where one share is the whole noise."""
        tau = self.log_ratio
        return min(1.0, self.coordinates * math.expm1(tau) * _UPWARDS) if tau < 1 else 1.0

    def variance(self, present: int) -> int:
        """Return the variance of the noise in a sum over ``present`` sites, in squared grid steps: present s^2.

        Raises UsageError for fewer sites than are the whole noise, or more than there are.
        """
        if not self.honest <= present <= self.sites:
            raise UsageError(f"sites in the sum: found {present}; expected {self.honest} to {self.sites}")
        return present * self.share_sigma**2


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


class NoisyVectors(Protocol):
    """Where a site keeps the noisy vector of a round, in its ledger's folder; private, and bound to the sums it was made from."""

    def kept(self, sums: IntegerArray) -> IntegerArray | None:
        """Return the noisy vector that was made from these sums in this round, if any. Other sums never meet its noise."""

    def keep(self, sums: IntegerArray, noisy: IntegerArray) -> None:
        """Store the noisy vector durably, mode 0600, before it is used."""


def noisy_vector(sums: IntegerArray, shared: SharedNoise, vectors: NoisyVectors) -> IntegerArray:
    """Return a site's sums with its share of the noise, int64 (k,), modulo 2^64: what it masks and sends. Private.

    The same sums give the same vector again, since fresh noise on them would average out. Raises UsageError for sums of another
    length than the noise.
    """
    if sums.dtype != np.int64 or sums.shape != (shared.coordinates,):
        raise UsageError(
            f"sums of type {sums.dtype} and shape {sums.shape}; expected int64 and ({shared.coordinates},)"
        )
    kept = vectors.kept(sums)
    if kept is not None:
        return kept
    share = draw_discrete(shared.coordinates, shared.share_sigma)
    noisy = (sums.view(np.uint64) + share.view(np.uint64)).view(np.int64)
    vectors.keep(sums, noisy)
    return noisy

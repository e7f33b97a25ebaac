"""The privacy loss of releases whose units are a secret Poisson sample. All quantities are public.

Each unit joins a round by a coin of its own, of probability q, that stays as secret as the noise. The worst pair of such a
round is (1 - q) N(0, 1) + q N(mu, 1) against N(0, 1), in both orders (docs/proofs/sampled.md). The losses of adaptive rounds add up.
They are composed by dp-accounting on a grid of losses, pessimistically: every mass is moved so that no delta falls.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from distqexp.privacy.rounding import above, with_margin

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

CELLS = 2**14
"""The range of the loss of one release is about so many steps of the grid, that of the total 2^k times as many for 4^k releases."""

MOST_CELLS = 2**21
"""The largest number of steps in the range of the total loss."""

DEVIATIONS = 12.0
"""The range of the total loss ends so many standard deviations above its mean, with the coins left aside."""

LARGEST_MU = 100.0
"""The losses are not composed for releases whose mu together, with the coins left aside, is above this."""

COARSE = 16
"""The significant bits of the mu that is composed, rounded up: the rounds of one plan then have one law between them."""

EPSILONS = np.concatenate([[0.0], np.ldexp(1.0 + np.arange(8) / 8, np.arange(-10, 9)[:, None]).ravel()])
"""The epsilons among which ``SampledReleases.lowest`` chooses: from 2^-10 to below 2^9, and 0."""

ROUNDING = 5e-11
ROUNDING_PER_RELEASE = 1e-12
"""The absolute margin on delta, above what Fourier transforms lose (docs/proofs/sampled.md).

A transform of n numbers that sum to 1 is off by at most 1.2e-14 an entry. After a T-th power and the way back, the absolute errors
sum to at most (T + 1) 1.2e-14 sqrt(n sum p^2), where p is the law of the total loss: sqrt(n) at the very most, which the first
number covers, and below 80 for the smooth laws of many releases.
"""


class SampledRelease(NamedTuple):
    """One Gaussian release of a secret sample: ``mu`` of those who take part, and the probability with which a unit does."""

    mu: float
    sampling: float


@dataclass(frozen=True)
class SampledReleases:
    """Sampled releases, together with releases in which every unit takes part.

    Attributes:
        mu: The Gaussian-DP parameter of all releases in which every unit takes part; 0 for none.
        releases: The sampled releases, one or more.
    """

    mu: float
    releases: tuple[SampledRelease, ...]

    @property
    def computable(self) -> bool:
        """Whether the losses are composed; where not, the guarantee rests on the statements that leave the coins aside."""
        return self._mu_of_all <= LARGEST_MU

    def delta(self, epsilon: float) -> float:
        """Return a delta, at most 1, at ``epsilon`` >= 0, rounded upwards."""
        value = float(self._losses.get_delta_for_epsilon(epsilon))
        return min(1.0, max(value, 0.0) + ROUNDING + ROUNDING_PER_RELEASE * len(self.releases))

    def log_delta(self, epsilon: float) -> float:
        """Return the natural logarithm of ``delta(epsilon)``."""
        return with_margin(math.log(self.delta(epsilon)))

    def lowest(self, total_variation: float) -> float:
        """Return the one of EPSILONS at which delta(epsilon) + (1 + e^epsilon) total_variation is smallest."""
        deltas = np.maximum(self._losses.get_delta_for_epsilon(EPSILONS), 0.0)
        return float(EPSILONS[np.argmin(deltas + (1 + np.exp(EPSILONS)) * total_variation)])

    @property
    def _mu_of_all(self) -> float:
        return math.sqrt(math.fsum([self.mu**2, *(release.mu**2 for release in self.releases)]))

    @cached_property
    def _losses(self) -> PrivacyLossDistribution:
        total = self._mu_of_all
        # The loss of a release must span many steps, or its rounding adds up. Grids of powers of two lie in each other: of two,
        # the coarser one gives the larger deltas.
        root = 2 ** math.ceil(math.log2(len(self.releases)) / 2)
        exponent = math.ceil(math.log2((total**2 / 2 + DEVIATIONS * total) / min(CELLS * root, MOST_CELLS)))
        counts = Counter(SampledRelease(_coarse_above(release.mu), release.sampling) for release in self.releases)
        return _composed(above(self.mu) if self.mu else 0.0, tuple(sorted(counts.items())), exponent)


def joint_rate(sampling: float, size: int) -> float:
    """Return the probability, rounded upwards, that any of ``size`` units with coins of their own takes part."""
    if sampling == 1 or size == 1:
        return sampling
    rate = -math.expm1(size * math.log1p(-sampling))
    return min(1.0, rate * (1 + 1e-12))


def _coarse_above(mu: float) -> float:
    fraction, exponent = math.frexp(mu)
    return math.ldexp(math.ceil(math.ldexp(fraction, COARSE)), exponent - COARSE)


@functools.lru_cache(64)
def _composed(mu: float, counts: tuple[tuple[SampledRelease, int], ...], exponent: int) -> PrivacyLossDistribution:
    """Compose a Gaussian release, where ``mu`` is above 0, and so many releases of each kind, on a grid of steps 2^exponent."""
    laws = [_law(release.mu, release.sampling, exponent).self_compose(count) for release, count in counts]
    if mu:
        laws.append(_law(mu, 1.0, exponent))
    total = laws[0]
    for law in laws[1:]:
        total = total.compose(law)
    return total


@functools.lru_cache(64)
def _law(mu: float, sampling: float, exponent: int) -> PrivacyLossDistribution:
    # dp-accounting takes half a second to load, which only plans and ledgers with sampled rounds should cost.
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    step = math.ldexp(1.0, exponent)
    return from_gaussian_mechanism(1.0 / mu, sampling_prob=sampling, value_discretization_interval=step)

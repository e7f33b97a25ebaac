"""The privacy guarantee of a sequence of releases, from several true statements. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from scipy.special import ndtri

from distqexp.privacy import gdp, zcdp
from distqexp.privacy.pld import COARSE, Law, MixedReleases
from distqexp.privacy.rounding import below, coarse_above, exp_above, with_margin
from distqexp.privacy.sampled import SampledReleases
from distqexp.privacy.search import first_below, last_holding

SMALLEST_EPSILON = 2.0**-1022
"""The smallest epsilon that is reported for a release, even where its delta is small enough at 0: no release is free."""

_FURTHEST = 700.0
"""Beyond this epsilon e^epsilon overflows; the lowest point lies before it for every total variation that a float can hold."""

_SUM = 2e-15
"""The margin on the logarithm of a sum of two deltas that have margins of their own."""


@dataclass(frozen=True)
class Guarantee:
    """Statements that are all true of a sequence of releases; the smallest of their deltas is reported.

    None of the statements gives a smaller delta for a longer list of releases, or for a larger figure of one of them.

    Attributes:
        mu: The sequence is within ``total_variation`` of a ``mu``-GDP sequence, and so
            (epsilon, delta_GDP(epsilon) + (1 + e^epsilon) total_variation)-DP.
        total_variation: The total variation of the discrete noise; 0 when all noise is continuous.
        rho: The sequence is ``rho``-zCDP, exactly; with noise in shares it is within ``shares_variation`` of one that is.
        pure: The sequence is ``pure``-DP with delta 0; infinity where a release is not pure.
        mixed_releases: The sequence is within ``total_variation`` of sequences with these privacy losses.
        sampled_releases: So is this one, where some rounds use a secret sample of the units; else None.
        failure: All of this holds but for events of at most this probability, which is added to every delta.
        shares_variation: The part of ``total_variation`` that comes from noise in shares.
    """

    mu: float
    total_variation: float
    rho: float
    pure: float = math.inf
    mixed_releases: tuple[MixedReleases, ...] = ()
    sampled_releases: SampledReleases | None = None
    failure: float = 0.0
    shares_variation: float = 0.0

    def delta(self, epsilon: float) -> float:
        """Return the delta, at most 1, at ``epsilon`` >= 0; it is 0 from ``pure`` on, and nowhere else."""
        return exp_above(self.log_delta(epsilon))

    def log_delta(self, epsilon: float) -> float:
        """Return the natural logarithm of the delta at ``epsilon``, which never rises; it is minus infinity from ``pure`` on."""
        by_zcdp = self._log_delta_by_zcdp(epsilon)  # raises UsageError where epsilon is out of range
        if epsilon >= self.pure:
            return -math.inf
        log_delta = min([by_zcdp, *(curve(epsilon) for curve in self._curves)])
        if self.failure == 0:
            return log_delta
        return with_margin(math.log(min(1.0, exp_above(log_delta) + self.failure)), _SUM)

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon, rounded upwards, at which the delta is at most ``delta``; above 0 for any release at all.

        A ``delta`` of 0 gives ``pure``, which is infinity where pure privacy is not guaranteed. Raises UsageError for a delta
        below 0, or not below 1.
        """
        if delta == 0:
            return self.pure
        gdp.log_target(delta)  # raises UsageError where delta is out of range
        delta = (delta - self.failure) * (1 - _SUM) if self.failure else delta
        if delta <= 0:
            return math.inf
        target = gdp.log_target(delta)
        if self.pure == 0:
            return 0.0
        smallest = self.pure
        if self.rho < math.inf and self.shares_variation == 0:
            smallest = min(smallest, zcdp.epsilon(delta, self.rho))
        for curve in self._curves:
            if smallest > SMALLEST_EPSILON and (smallest == math.inf or curve(smallest) <= target):
                guess = smallest / 2 if math.isfinite(smallest) else 1.0
                smallest = min(smallest, first_below(curve, target, guess))
        return max(smallest, min(SMALLEST_EPSILON, self.pure))

    def _log_delta_by_zcdp(self, epsilon: float) -> float:
        """Return log delta by zCDP. Noise in shares costs at most 2 sqrt(shares_variation), at any epsilon.

        The statement at an epsilon of at most -log(shares_variation) / 2 serves all larger ones, and up to there
        (1 + e^epsilon) shares_variation is no more than that.
        """
        rho, variation = min(self.rho, zcdp.HOPELESS), self.shares_variation
        if variation == 0:
            return zcdp.log_delta(epsilon, rho)
        last = below(-math.log(variation) / 2, 1.0)
        by_zcdp = exp_above(zcdp.log_delta(min(epsilon, last) if math.isfinite(epsilon) else epsilon, rho))
        return with_margin(math.log(min(1.0, by_zcdp + 2 * math.sqrt(variation))), _SUM)

    @cached_property
    def _curves(self) -> list[Callable[[float], float]]:
        """The curves of log delta by GDP and by the privacy losses, with the slack of discrete noise."""
        mu = min(self.mu, gdp.HOPELESS)
        laws: list[Law | SampledReleases] = [law for releases in self.mixed_releases for law in releases.laws]
        if self.sampled_releases is not None and self.sampled_releases.computable:
            laws.append(self.sampled_releases)
        return [
            _with_slack(lambda epsilon: gdp.log_delta(epsilon, mu), self._lowest, mu, self.total_variation),
            *([self._log_delta_by_zcdp] if self.shares_variation else []),
            *(_on_coarse_values(_with_slack(law.log_delta, law.lowest, law.mu, self.total_variation)) for law in laws),
        ]

    def _lowest(self, total_variation: float) -> float:
        """Return the last epsilon of 16 bits at which delta_GDP(epsilon) + (1 + e^epsilon) total_variation still falls."""
        # The slope is e^epsilon (total_variation - Phi(-epsilon/mu - mu/2)).
        exact = self.mu * (-float(ndtri(total_variation)) - self.mu / 2) if 0 < self.mu < gdp.HOPELESS else 0.0
        if not exact > 0:
            return 0.0
        return last_holding(lambda epsilon: epsilon <= exact, inside=0.0, outside=4 * exact, bits=COARSE)


def _with_slack(
    curve: Callable[[float], float], lowest: Callable[[float], float], mu: float, total_variation: float
) -> Callable[[float], float]:
    """Return the curve of log(delta(epsilon) + (1 + e^epsilon) total_variation), where ``curve`` is log delta.

    It is constant from its lowest point on. A statement at a smaller epsilon holds at every larger one, so the lowest point
    serves all epsilons beyond it. It is chosen among the epsilons of 16 bits, which are the same whatever the figures are,
    so that the smallest value rises with all figures.
    """
    if total_variation == 0:
        return curve

    def total(epsilon: float) -> float:
        epsilon = below(epsilon, mu)  # rounded as the curve rounds it, so that curve and slack have one epsilon
        delta = exp_above(curve(epsilon)) + (1 + math.exp(epsilon)) * total_variation
        return with_margin(math.log(min(1.0, delta)), _SUM)

    before = min(lowest(total_variation), _FURTHEST)
    value, point = min((total(place), place) for place in (before, min(_next_coarse(before), _FURTHEST)))
    return lambda epsilon: value if epsilon >= point else max(value, total(epsilon))


def _on_coarse_values(curve: Callable[[float], float]) -> Callable[[float], float]:
    return lambda epsilon: coarse_above(curve(epsilon))


def _next_coarse(epsilon: float) -> float:
    """Return the next number of 16 bits; after 0 it is the smallest epsilon that is reported."""
    if epsilon == 0:
        return SMALLEST_EPSILON
    fraction, exponent = math.frexp(epsilon)
    return math.ldexp(math.floor(math.ldexp(fraction, COARSE)) + 1, exponent - COARSE)

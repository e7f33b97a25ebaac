"""What a sequence of releases satisfies, from several true statements. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from scipy.special import ndtri

from distqexp.privacy import gdp, zcdp
from distqexp.privacy.pld import COARSE, Mixed
from distqexp.privacy.rounding import below, exp_above, raised, settled
from distqexp.privacy.search import first_below, last_holding

SMALLEST_EPSILON = 2.0**-1022
"""What an epsilon is reported as at which releases had a small enough delta even at 0: none of them is for nothing."""

_FURTHEST = 700.0
"""Beyond, e^epsilon overflows; with a total variation that a float can hold the lowest point is before it."""

_SUM = 2e-15
"""Margin on the logarithm of a sum of two deltas that have their own."""


@dataclass(frozen=True)
class Guarantee:
    """What a sequence of releases satisfies: statements that are all true, of which the smallest delta is reported.

    - Within total variation ``total_variation`` of a ``mu``-GDP sequence (0 when all noise is continuous):
      (epsilon, delta_GDP(epsilon) + (1 + e^epsilon) total_variation)-DP.
    - ``rho``-zCDP, exactly.
    - ``pure``-DP, delta 0; infinity where a release is not pure.
    - Within the same total variation of sequences with the losses ``mixed``.

    Each of them gives no smaller delta for a longer list of releases or a larger figure of one of them.
    """

    mu: float
    total_variation: float
    rho: float
    pure: float = math.inf
    mixed: tuple[Mixed, ...] = ()

    def delta(self, epsilon: float) -> float:
        """The delta, at most 1, at ``epsilon`` >= 0; 0 from ``pure`` on, and nowhere else."""
        return exp_above(self.log_delta(epsilon))

    def log_delta(self, epsilon: float) -> float:
        """Natural logarithm of the delta at ``epsilon``; minus infinity from ``pure`` on; never increases with ``epsilon``."""
        found = self._log_delta_by_zcdp(epsilon)  # refuses what is no epsilon
        if epsilon >= self.pure:
            return -math.inf
        return min([found, *(curve(epsilon) for curve in self._curves)])

    def epsilon(self, delta: float) -> float:
        """An epsilon at which the delta is at most ``delta``: the smallest one, rounded upwards; above 0 for any release at all.

        ``delta`` 0 asks for pure privacy: the answer is ``pure``, infinity where that is not promised. Raises
        UsageError for a delta below 0, or not below 1.
        """
        if delta == 0:
            return self.pure
        target = gdp.log_target(delta)
        if self.pure == 0:
            return 0.0
        found = min(self.pure, math.inf if self.rho == math.inf else zcdp.epsilon(delta, self.rho))
        for curve in self._curves:
            if found > SMALLEST_EPSILON and (found == math.inf or curve(found) <= target):
                guess = found / 2 if math.isfinite(found) else 1.0
                found = min(found, first_below(curve, target, guess))
        return max(found, min(SMALLEST_EPSILON, self.pure))

    def _log_delta_by_zcdp(self, epsilon: float) -> float:
        return zcdp.log_delta(epsilon, min(self.rho, zcdp.HOPELESS))

    @cached_property
    def _curves(self) -> list[Callable[[float], float]]:
        """log delta by the statement of GDP, and by the losses, with the slack of discrete noise."""
        mu = min(self.mu, gdp.HOPELESS)
        laws = [law for mixed in self.mixed for law in mixed.laws]
        return [
            _with_slack(lambda epsilon: gdp.log_delta(epsilon, mu), self._lowest, mu, self.total_variation),
            *(_settled(_with_slack(law.log_delta, law.lowest, law.mu, self.total_variation)) for law in laws),
        ]

    def _lowest(self, total_variation: float) -> float:
        """Where delta_GDP(epsilon) + (1 + e^epsilon) total_variation still falls, and at the next of 16 bits no more."""
        # The slope is e^epsilon (total_variation - Phi(-epsilon/mu - mu/2)).
        exact = self.mu * (-float(ndtri(total_variation)) - self.mu / 2) if 0 < self.mu < gdp.HOPELESS else 0.0
        if not exact > 0:
            return 0.0
        return last_holding(lambda epsilon: epsilon <= exact, inside=0.0, outside=4 * exact, bits=COARSE)


def _with_slack(
    curve: Callable[[float], float], lowest: Callable[[float], float], mu: float, total_variation: float
) -> Callable[[float], float]:
    """The logarithm of delta(epsilon) + (1 + e^epsilon) Delta, where ``curve`` is log delta; constant from its lowest point on.

    What holds at a smaller epsilon holds at a larger one, so the lowest point serves every epsilon beyond it. It is chosen
    among the epsilons of 16 bits: the same ones whatever the figures are, so that their smallest value rises with all figures.
    """
    if total_variation == 0:
        return curve

    def total(epsilon: float) -> float:
        epsilon = below(epsilon, mu)  # as the curve does: its terms and the slack must not be about two epsilons
        found = exp_above(curve(epsilon)) + (1 + math.exp(epsilon)) * total_variation
        return raised(math.log(min(1.0, found)), _SUM)

    before = min(lowest(total_variation), _FURTHEST)
    value, point = min((total(place), place) for place in (before, min(_next_coarse(before), _FURTHEST)))
    return lambda epsilon: value if epsilon >= point else max(value, total(epsilon))


def _settled(curve: Callable[[float], float]) -> Callable[[float], float]:
    return lambda epsilon: settled(curve(epsilon))


def _next_coarse(epsilon: float) -> float:
    """The next number of 16 bits; for 0 the smallest epsilon that counts."""
    if epsilon == 0:
        return SMALLEST_EPSILON
    fraction, exponent = math.frexp(epsilon)
    return math.ldexp(math.floor(math.ldexp(fraction, COARSE)) + 1, exponent - COARSE)

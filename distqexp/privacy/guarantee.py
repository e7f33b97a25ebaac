"""What a sequence of releases satisfies, from several true statements. All quantities are public."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from scipy.special import ndtri

from distqexp.privacy import gdp, zcdp
from distqexp.privacy.pld import Mixed
from distqexp.privacy.search import last_holding


@dataclass(frozen=True)
class Guarantee:
    """What a sequence of releases satisfies: statements that are all true, of which the smallest delta is reported.

    - Within total variation ``total_variation`` of a ``mu``-GDP sequence (0 when all noise is continuous):
      (epsilon, delta_GDP(epsilon) + (1 + e^epsilon) total_variation)-DP.
    - ``rho``-zCDP, exactly.
    - ``pure``-DP, delta 0; infinity where a release is not pure.
    - Within the same total variation of sequences with the losses ``mixed``.
    """

    mu: float
    total_variation: float
    rho: float
    pure: float = math.inf
    mixed: tuple[Mixed, ...] = ()

    def delta(self, epsilon: float) -> float:
        """The delta, at most 1, at ``epsilon`` >= 0; exactly 0 from ``pure`` on."""
        return math.exp(min(0.0, self.log_delta(epsilon)))

    def log_delta(self, epsilon: float) -> float:
        """Natural logarithm of the delta at ``epsilon``; never increases with ``epsilon``."""
        found = min(self._log_delta_by_gdp(epsilon), zcdp.log_delta(epsilon, self.rho))
        if epsilon >= self.pure:
            return -math.inf
        return min([found, *(self._log_delta_by_losses(epsilon, number) for number in range(len(self.mixed)))])

    def epsilon(self, delta: float) -> float:
        """An epsilon at which the delta is at most ``delta``: the smallest one, rounded upwards.

        ``delta`` 0 asks for pure privacy: the answer is ``pure``, infinity where that is not promised. Raises
        UsageError for a delta below 0, or not below 1.
        """
        if delta == 0:
            return self.pure
        high = min(zcdp.epsilon(delta, self.rho), self.pure)
        target = math.log(delta) - gdp.SAFETY

        def holds(value: float) -> bool:
            return self.log_delta(value) <= target

        return 0.0 if high == 0 or holds(0.0) else last_holding(holds, inside=high, outside=0.0)

    def _log_delta_by_gdp(self, epsilon: float) -> float:
        if self.total_variation == 0 or self.mu == 0:
            return gdp.log_delta(epsilon, self.mu)
        # delta_GDP(e) + (1 + exp(e)) Delta falls until Phi(-e/mu - mu/2) = Delta and then rises. What holds at a
        # smaller epsilon holds at a larger one, so the lowest point serves every epsilon beyond it.
        lowest = max(0.0, self.mu * (-float(ndtri(self.total_variation)) - self.mu / 2))
        point = min(epsilon, lowest)
        return _log_sum(gdp.log_delta(point, self.mu), self._log_slack(point))

    def _log_delta_by_losses(self, epsilon: float, number: int) -> float:
        point = min(epsilon, self._lowest[number])
        found = math.log(self.mixed[number].delta(point))
        return _log_sum(found, self._log_slack(point)) if self.total_variation else found

    @cached_property
    def _lowest(self) -> list[float]:
        return [mixed.lowest(self.total_variation) for mixed in self.mixed]

    def _log_slack(self, epsilon: float) -> float:
        """log of (1 + e^epsilon) total_variation."""
        return math.log(self.total_variation) + max(0.0, epsilon) + math.log1p(math.exp(-epsilon))


def _log_sum(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))

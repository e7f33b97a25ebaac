"""Releases as privacy events, and what a list of them guarantees together. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtri

from distqexp.errors import UsageError
from distqexp.privacy import discrete_slack, gdp, zcdp
from distqexp.privacy.search import last_holding


@dataclass(frozen=True)
class GaussianRelease:
    """One release of ``coordinates`` numbers with Gaussian noise: sensitivity / standard deviation = ``mu``.

    ``sigma`` is the standard deviation in grid steps (at least 3) for discrete noise, None for continuous noise.
    """

    mu: float
    coordinates: int
    sigma: float | None = None

    def __post_init__(self) -> None:
        if not (self.mu > 0 and math.isfinite(self.mu)):
            raise UsageError(f"mu of a release: found {self.mu!r}; expected a finite number above 0")
        if self.coordinates < 1:
            raise UsageError(f"coordinates of a release: found {self.coordinates!r}; expected 1 or more")
        if self.sigma is not None and not discrete_slack.SMALLEST_SIGMA <= self.sigma <= 2.0**62:
            raise UsageError(f"sigma of a discrete release: found {self.sigma!r} grid steps; expected 3 to 2^62")


@dataclass(frozen=True)
class Guarantee:
    """What a sequence of releases satisfies: two statements, both true, of which the smaller delta is reported.

    - Within total variation ``total_variation`` of a ``mu``-GDP sequence (0 when all noise is continuous):
      (epsilon, delta_GDP(epsilon) + (1 + e^epsilon) total_variation)-DP.
    - ``rho``-zCDP, exactly.
    """

    mu: float
    total_variation: float
    rho: float

    def delta(self, epsilon: float) -> float:
        """The delta, at most 1, at ``epsilon`` >= 0."""
        return math.exp(min(0.0, self.log_delta(epsilon)))

    def log_delta(self, epsilon: float) -> float:
        """Natural logarithm of the delta at ``epsilon``; never increases with ``epsilon``."""
        return min(self._log_delta_by_gdp(epsilon), zcdp.log_delta(epsilon, self.rho))

    def epsilon(self, delta: float) -> float:
        """An epsilon at which the delta is at most ``delta``: the smallest one, rounded upwards."""
        high = zcdp.epsilon(delta, self.rho)
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
        slack = math.log(self.total_variation) + max(0.0, point) + math.log1p(math.exp(-point))
        return _log_sum(gdp.log_delta(point, self.mu), slack)


@dataclass(frozen=True)
class Cost:
    """What releases add up to: the sum of their mu^2, and of the divergences of their discrete noise."""

    square: float = 0.0
    divergence: float = 0.0

    def guarantee(self) -> Guarantee:
        """The guarantee of releases of this cost."""
        mu = math.sqrt(self.square)
        return Guarantee(mu, discrete_slack.total_variation([self.divergence]), zcdp.rho(mu))


def cost(events: Iterable[GaussianRelease]) -> Cost:
    """The cost of all ``events`` to a unit that takes part in each of them."""
    events = list(events)
    divergences = [discrete_slack.divergence(event.coordinates, event.sigma) for event in events if event.sigma]
    return Cost(math.fsum(event.mu**2 for event in events), math.fsum(divergences))


def added(costs: Iterable[Cost]) -> Cost:
    """The cost to a unit that bears all of them."""
    costs = list(costs)
    return Cost(math.fsum(item.square for item in costs), math.fsum(item.divergence for item in costs))


def worst(costs: Iterable[Cost]) -> Cost:
    """At least the cost to a unit that bears one of them, whichever: both figures the largest; none for no costs."""
    costs = list(costs)
    return Cost(max((c.square for c in costs), default=0.0), max((c.divergence for c in costs), default=0.0))


def compose(events: Iterable[GaussianRelease], times: int = 1) -> Guarantee:
    """The guarantee of all ``events`` together, the whole list ``times`` over.

    The mechanisms may adapt to earlier releases; the list itself must have been fixed beforehand. mu^2, rho and
    the divergences of the discrete noise add up.
    """
    if times < 0:
        raise UsageError(f"times: found {times!r}; expected 0 or more")
    once = cost(events)
    return Cost(times * once.square, times * once.divergence).guarantee()


def to_dp_event(events: Iterable[GaussianRelease]) -> Any:
    """The same releases as a dp-accounting event, for cross-checks (imports dp_accounting).

    Discrete noise appears as the continuous noise that it is close to; the slack is not part of the event.
    """
    import dp_accounting

    return dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(1 / event.mu) for event in events])


def _log_sum(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))

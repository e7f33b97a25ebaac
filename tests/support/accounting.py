"""Accounting of plain lists of releases, as the tests need it: their guarantee, its figures, and their dp-accounting event."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import dp_accounting

from distqexp.privacy import gdp, zcdp
from distqexp.privacy.events import Event, GaussianRelease, cost, total_cost
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.pld import MixedReleases
from distqexp.privacy.rounding import coarse_above, exp_above


def compose(events: Iterable[Event], times: int = 1) -> Guarantee:
    """Return the guarantee of all ``events`` together, the whole list ``times`` over."""
    return total_cost([cost(events)] * times).guarantee()


def spent(events: Iterable[Event], epsilon: float) -> float:
    """Return the delta, at most 1, that the releases have together at ``epsilon``."""
    return compose(events).delta(epsilon)


def spent_epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the smallest epsilon, rounded upwards, at which the releases have at most ``delta`` together."""
    return compose(events).epsilon(delta)


def delta_of_mu(epsilon: float, mu: float) -> float:
    """Return the package's delta of a mu-GDP mechanism."""
    return exp_above(gdp.log_delta(epsilon, mu))


def delta_of_rho(epsilon: float, rho: float) -> float:
    """Return the package's delta of a rho-zCDP mechanism."""
    return exp_above(zcdp.log_delta(epsilon, rho))


def delta_of_mixture(releases: MixedReleases, epsilon: float) -> float:
    """Return the smaller delta of the two laws of Gaussian and pure releases together."""
    return exp_above(coarse_above(min(law.log_delta(epsilon) for law in releases.laws)))


def to_dp_event(events: Iterable[Event]) -> Any:
    """Return the same releases as a dp-accounting event.

    Discrete noise appears as the continuous noise that it is close to; the slack is not part of the event. A bounded release
    appears as randomised response of its epsilon.
    """

    def single(event: Event) -> Any:
        if isinstance(event, GaussianRelease):
            return dp_accounting.GaussianDpEvent(1 / event.mu)
        return dp_accounting.RandomizedResponseDpEvent(2 / (1 + math.exp(event.epsilon)), 2)

    return dp_accounting.ComposedDpEvent([single(event) for event in events])

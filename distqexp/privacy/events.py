"""Releases as privacy events, and what a list of them guarantees together. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from distqexp.errors import UsageError
from distqexp.privacy import discrete_slack, pure, zcdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.pld import LARGEST_TOTAL, MOST_RESPONSES, Mixed
from distqexp.privacy.rounding import square_above, sum_above


@dataclass(frozen=True)
class GaussianRelease:
    """One release of ``coordinates`` numbers with Gaussian noise: sensitivity / standard deviation = ``mu``.

    ``sigma`` is the standard deviation in grid steps (at least 3) for discrete noise, None for continuous noise.
    """

    mu: float
    coordinates: int
    sigma: float | None = None

    def __post_init__(self) -> None:
        _require_positive("mu", self.mu)
        _require_coordinates(self.coordinates)
        if self.sigma is not None and not discrete_slack.SMALLEST_SIGMA <= self.sigma <= discrete_slack.LARGEST_SIGMA:
            raise UsageError(f"sigma of a discrete release: found {self.sigma!r} grid steps; expected 3 to 2^62")


@dataclass(frozen=True)
class BoundedRelease:
    """One release of ``coordinates`` numbers on a ball of finite radius, in idealised real arithmetic.

    Both ``mu``-GDP (Theorem 2) and ``epsilon``-DP with delta 0 (Theorem 3).
    """

    mu: float
    epsilon: float
    coordinates: int = 1

    def __post_init__(self) -> None:
        _require_positive("mu", self.mu)
        _require_positive("epsilon", self.epsilon)
        _require_coordinates(self.coordinates)

    @property
    def gdp_mu(self) -> float:
        """The smaller of ``mu`` and of what ``epsilon`` implies."""
        return min(self.mu, pure.mu(self.epsilon))

    @property
    def rho(self) -> float:
        """The smaller of the two zCDP parameters that ``mu`` and ``epsilon`` imply."""
        return min(zcdp.rho(self.mu), pure.rho(self.epsilon))


Release = GaussianRelease | BoundedRelease


@dataclass(frozen=True)
class Cost:
    """What releases add up to: for the Gaussian ones, the sum of their mu^2 and of the divergences of their discrete noise.

    bounded: the bounded ones, in falling order of epsilon, then mu; coordinates left out.
    """

    square: float = 0.0
    divergence: float = 0.0
    bounded: tuple[BoundedRelease, ...] = ()

    def guarantee(self) -> Guarantee:
        """The guarantee of releases of this cost."""
        gaussian, epsilon = math.sqrt(self.square), pure.total(event.epsilon for event in self.bounded)
        return Guarantee(
            mu=math.sqrt(sum_above([self.square, *(square_above(event.gdp_mu) for event in self.bounded)])),
            total_variation=discrete_slack.total_variation([self.divergence]),
            rho=sum_above([zcdp.rho(gaussian), *(event.rho for event in self.bounded)]),
            pure=math.inf if self.square else epsilon,
            # Which bounded releases count as pure must not hang on their figures: then more could look like less.
            mixed=(Mixed(gaussian, tuple(event.epsilon for event in self.bounded)),)
            if 1 <= len(self.bounded) <= MOST_RESPONSES and epsilon < LARGEST_TOTAL
            else (),
        )


def cost(events: Iterable[Release]) -> Cost:
    """The cost of all ``events`` to a unit that takes part in each of them."""
    events = list(events)
    gaussian = [event for event in events if isinstance(event, GaussianRelease)]
    divergences = [discrete_slack.divergence(event.coordinates, event.sigma) for event in gaussian if event.sigma]
    bounded = [replace(event, coordinates=1) for event in events if isinstance(event, BoundedRelease)]
    return Cost(sum_above([square_above(event.mu) for event in gaussian]), sum_above(divergences), _sorted(bounded))


def added(costs: Iterable[Cost]) -> Cost:
    """The cost to a unit that bears all of them."""
    costs = list(costs)
    return Cost(
        sum_above([item.square for item in costs]),
        sum_above([item.divergence for item in costs]),
        _sorted(event for item in costs for event in item.bounded),
    )


def worst(costs: Iterable[Cost]) -> Cost:
    """At least the cost to a unit that bears one of them, whichever: every figure the largest; none for no costs.

    The lists of bounded releases are laid side by side: the largest mu of each with each other, and the largest epsilon, then the
    next ones, and so on. A release's own mu and epsilon may then stand in two places; what counts rises with both, and is
    largest when the large ones meet.
    """
    costs = list(costs)
    if len(costs) == 1:
        return costs[0]
    mus = _largest([sorted((event.mu for event in item.bounded), reverse=True) for item in costs])
    epsilons = _largest([sorted((event.epsilon for event in item.bounded), reverse=True) for item in costs])
    return Cost(
        max((item.square for item in costs), default=0.0),
        max((item.divergence for item in costs), default=0.0),
        _sorted(BoundedRelease(mu, epsilon) for mu, epsilon in zip(mus, epsilons, strict=True)),
    )


def compose(events: Iterable[Release], times: int = 1) -> Guarantee:
    """The guarantee of all ``events`` together, the whole list ``times`` over.

    The mechanisms may adapt to earlier releases; the list itself must have been fixed beforehand. mu^2, rho,
    the divergences of the discrete noise and, where all releases are bounded, the epsilons add up.
    """
    if times < 0:
        raise UsageError(f"times: found {times!r}; expected 0 or more")
    once = cost(events)
    return added([once] * times).guarantee()


def of_group(events: Iterable[Release], size: int) -> list[Release]:
    """The same releases as they bear on ``size`` units together, or on one unit that is present at so many sites.

    mu and epsilon are ``size`` times as large: a chain of so many neighbours leads from one dataset to the other.
    """
    if size < 1:
        raise UsageError(f"size of a group: found {size!r}; expected 1 or more")
    return [
        replace(event, mu=size * event.mu)
        if isinstance(event, GaussianRelease)
        else replace(event, mu=size * event.mu, epsilon=size * event.epsilon)
        for event in events
    ]


def to_dp_event(events: Iterable[Release]) -> Any:
    """The same releases as a dp-accounting event, for cross-checks (imports dp_accounting).

    Discrete noise appears as the continuous noise that it is close to; the slack is not part of the event. A bounded
    release appears as randomised response of its epsilon.
    """
    import dp_accounting

    def single(event: Release) -> Any:
        if isinstance(event, GaussianRelease):
            return dp_accounting.GaussianDpEvent(1 / event.mu)
        return dp_accounting.RandomizedResponseDpEvent(2 / (1 + math.exp(event.epsilon)), 2)

    return dp_accounting.ComposedDpEvent([single(event) for event in events])


def _largest(lists: Sequence[Sequence[float]]) -> list[float]:
    """For each place the largest of what stands there."""
    return [max(column) for column in zip_longest(*lists, fillvalue=0.0)]


def _sorted(bounded: Iterable[BoundedRelease]) -> tuple[BoundedRelease, ...]:
    return tuple(sorted(bounded, key=lambda event: (-event.epsilon, -event.mu)))


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} of a release: found {value!r}; expected a finite number above 0")


def _require_coordinates(value: int) -> None:
    if value < 1:
        raise UsageError(f"coordinates of a release: found {value!r}; expected 1 or more")

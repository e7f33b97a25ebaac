"""Releases as privacy events, and the cost of a list of them. All quantities are public."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from distqexp.errors import UsageError
from distqexp.privacy import discrete_slack, noise_shares, pure, zcdp
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.pld import LARGEST_TOTAL, MOST_RESPONSES, MixedReleases
from distqexp.privacy.rounding import square_above, sum_above
from distqexp.privacy.sampled import SampledRelease, SampledReleases, joint_rate


@dataclass(frozen=True)
class GaussianRelease:
    """One release with Gaussian noise.

    Attributes:
        mu: The sensitivity divided by the standard deviation of the noise.
        coordinates: How many numbers are released.
        sigma: The standard deviation in grid steps (at least 3) for discrete noise; None for continuous noise.
        sampling: The probability with which a unit takes part, by a secret coin of its own; 1 where every unit does.
        failure: A bound on the probability that the work of a sampled round tells how many units take part.
        shares: How many draws are the discrete noise together, each as ``noise_shares.share_sigma`` says; 1: it is one draw.
    """

    mu: float
    coordinates: int
    sigma: float | None = None
    sampling: float = 1.0
    failure: float = 0.0
    shares: int = 1

    def __post_init__(self) -> None:
        _require_positive("mu", self.mu)
        _require_coordinates(self.coordinates)
        if not 0 < self.sampling <= 1:
            raise UsageError(
                f"sampling of a release: found {self.sampling!r}; expected a probability, above 0 and at most 1"
            )
        if not 0 <= self.failure < 1:
            raise UsageError(
                f"failure of a release: found {self.failure!r}; expected a probability, 0 or more and below 1"
            )
        if self.sigma is not None and not discrete_slack.SMALLEST_SIGMA <= self.sigma <= discrete_slack.LARGEST_SIGMA:
            raise UsageError(f"sigma of a discrete release: found {self.sigma!r} grid steps; expected 3 to 2^62")
        if self.shares < 1 or (self.shares > 1 and self.sigma is None):
            raise UsageError(
                f"shares of a release: found {self.shares!r} with sigma {self.sigma!r}; expected 1 or more, and 1 for continuous noise"
            )

    @property
    def shares_variation(self) -> float:
        """Bound the total variation between the sum of the shares and one discrete Gaussian draw; 0 where it is one."""
        return 0.0 if self.sigma is None else noise_shares.total_variation(self.coordinates, self.sigma, self.shares)


@dataclass(frozen=True)
class BoundedRelease:
    """One release on a ball of finite radius, in idealised real arithmetic.

    It is both ``mu``-GDP (Theorem 2) and ``epsilon``-DP with delta 0 (Theorem 3).

    Attributes:
        mu: The parameter of Gaussian differential privacy.
        epsilon: The parameter of pure differential privacy.
        coordinates: How many numbers are released.
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
        """The smaller of ``mu`` and the mu that ``epsilon`` implies."""
        return min(self.mu, pure.mu(self.epsilon))

    @property
    def rho(self) -> float:
        """The smaller of the two zCDP parameters that ``mu`` and ``epsilon`` imply."""
        return min(zcdp.rho(self.mu), pure.rho(self.epsilon))


Event = GaussianRelease | BoundedRelease


@dataclass(frozen=True)
class Cost:
    """The privacy cost of a list of releases.

    Attributes:
        square: The sum of mu^2 over the Gaussian releases in which every unit takes part.
        divergence: The sum of the divergences of their discrete noise, and of that of sampled releases.
        bounded_releases: The bounded releases, in falling order of epsilon, then of mu; their coordinates are set to 1.
        sampled_releases: The sampled Gaussian releases, in falling order of mu, then of sampling.
        failure: The sum of the failures of sampled releases.
        shares_variation: The sum of the total variations of noise in shares.
    """

    square: float = 0.0
    divergence: float = 0.0
    bounded_releases: tuple[BoundedRelease, ...] = ()
    sampled_releases: tuple[SampledRelease, ...] = ()
    failure: float = 0.0
    shares_variation: float = 0.0

    def guarantee(self) -> Guarantee:
        """Return the guarantee of releases of this cost."""
        bounded, sampled = self.bounded_releases, self.sampled_releases
        # Without its coins a sampled release is a Gaussian one like any other (docs/proofs/sampled.md).
        square = sum_above([self.square, *(square_above(event.mu) for event in sampled)])
        gaussian_mu, epsilon = math.sqrt(square), pure.total(event.epsilon for event in bounded)
        bounded_squares = [square_above(event.gdp_mu) for event in bounded]
        return Guarantee(
            mu=math.sqrt(sum_above([square, *bounded_squares])),
            total_variation=min(
                1.0, sum_above([discrete_slack.total_variation([self.divergence]), self.shares_variation])
            ),
            rho=sum_above([zcdp.rho(gaussian_mu), *(event.rho for event in bounded)]),
            pure=math.inf if square else epsilon,
            # All bounded releases count as pure here, whatever their figures: otherwise a larger cost could look smaller.
            mixed_releases=(MixedReleases(gaussian_mu, tuple(event.epsilon for event in bounded)),)
            if 1 <= len(bounded) <= MOST_RESPONSES and epsilon < LARGEST_TOTAL
            else (),
            sampled_releases=SampledReleases(math.sqrt(sum_above([self.square, *bounded_squares])), sampled)
            if sampled
            else None,
            failure=self.failure,
            shares_variation=min(1.0, self.shares_variation),
        )


def cost(events: Iterable[Event]) -> Cost:
    """Return the cost of all ``events`` to a unit that takes part in each of them."""
    events = list(events)
    gaussian = [event for event in events if isinstance(event, GaussianRelease)]
    divergences = [discrete_slack.divergence(event.coordinates, event.sigma) for event in gaussian if event.sigma]
    bounded = [replace(event, coordinates=1) for event in events if isinstance(event, BoundedRelease)]
    sampled = [SampledRelease(event.mu, event.sampling) for event in gaussian if event.sampling < 1]
    return Cost(
        sum_above([square_above(event.mu) for event in gaussian if event.sampling == 1]),
        sum_above(divergences),
        _in_order(bounded),
        tuple(sorted(sampled, reverse=True)),
        sum_above([event.failure for event in gaussian]),
        sum_above([event.shares_variation for event in gaussian]),
    )


def total_cost(costs: Iterable[Cost]) -> Cost:
    """Return the cost to a unit that bears all of ``costs``."""
    costs = list(costs)
    return Cost(
        sum_above([item.square for item in costs]),
        sum_above([item.divergence for item in costs]),
        _in_order(event for item in costs for event in item.bounded_releases),
        tuple(sorted((event for item in costs for event in item.sampled_releases), reverse=True)),
        sum_above([item.failure for item in costs]),
        sum_above([item.shares_variation for item in costs]),
    )


def worst_cost(costs: Iterable[Cost]) -> Cost:
    """Bound the cost to a unit that bears any one of ``costs`` by the largest of every figure; no costs give the empty cost.

    The lists of bounded releases are compared place by place: the largest mu and the largest epsilon of every list, then the
    second largest ones, and so on. The mu and the epsilon of one release may then end up in different places. The guarantee's
    figures rise with both, and are largest when the large ones meet. Lists of sampled releases are compared by mu in the same
    way, and each then counts with the largest sampling of all.
    """
    costs = list(costs)
    if len(costs) == 1:
        return costs[0]
    mus = _largest([sorted((event.mu for event in item.bounded_releases), reverse=True) for item in costs])
    epsilons = _largest([sorted((event.epsilon for event in item.bounded_releases), reverse=True) for item in costs])
    sampled_mus = _largest([[event.mu for event in item.sampled_releases] for item in costs])
    sampling = max((event.sampling for item in costs for event in item.sampled_releases), default=1.0)
    return Cost(
        max((item.square for item in costs), default=0.0),
        max((item.divergence for item in costs), default=0.0),
        _in_order(BoundedRelease(mu, epsilon) for mu, epsilon in zip(mus, epsilons, strict=True)),
        tuple(SampledRelease(mu, sampling) for mu in sampled_mus),
        max((item.failure for item in costs), default=0.0),
        max((item.shares_variation for item in costs), default=0.0),
    )


def of_group(events: Iterable[Event], size: int, *, replaced: bool = False) -> list[Event]:
    """Return the same releases as they bear on ``size`` units together, or on one unit that is present at ``size`` sites.

    mu and epsilon are ``size`` times as large, since a chain of ``size`` neighbours leads from one dataset to the other. A
    sampled release is one that any of the units joins. Where the units of the group come in the place of others (``replaced``) it
    counts as if all units took part.

    Raises:
        UsageError: The size is below 1.
    """
    if size < 1:
        raise UsageError(f"size of a group: found {size!r}; expected 1 or more")
    return [
        replace(event, mu=size * event.mu, sampling=1.0 if replaced else joint_rate(event.sampling, size))
        if isinstance(event, GaussianRelease)
        else replace(event, mu=size * event.mu, epsilon=size * event.epsilon)
        for event in events
    ]


def _largest(lists: Sequence[Sequence[float]]) -> list[float]:
    """Return the largest value at each place of the lists."""
    return [max(column) for column in zip_longest(*lists, fillvalue=0.0)]


def _in_order(releases: Iterable[BoundedRelease]) -> tuple[BoundedRelease, ...]:
    return tuple(sorted(releases, key=lambda event: (-event.epsilon, -event.mu)))


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name} of a release: found {value!r}; expected a finite number above 0")


def _require_coordinates(value: int) -> None:
    if value < 1:
        raise UsageError(f"coordinates of a release: found {value!r}; expected 1 or more")

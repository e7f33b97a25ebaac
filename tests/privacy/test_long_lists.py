"""Lists of many releases against 50 digits: Gaussian ones, discrete and bounded ones among them, groups, presences, thousands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import pytest
from accounting import compose
from exact_curves import gdp_delta, gdp_log_delta, mixed_delta, response_of, zcdp_log_delta
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from distqexp.mechanism.grid import GridOptions, choose_grid
from distqexp.privacy import pure
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease, of_group

EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)
SIZES = st.floats(-12, 12).map(lambda exponent: float(10**exponent))
USUAL = st.floats(-3, 1).map(lambda exponent: float(10**exponent))
SIGMAS = st.sampled_from([None, 3.0, 1e4, 2.0**30, 2.0**62])
GAUSSIANS = st.lists(st.builds(GaussianRelease, SIZES | USUAL, st.integers(1, 10**7), SIGMAS), max_size=6)
BOUNDED = st.lists(st.builds(BoundedRelease, SIZES | USUAL, SIZES | USUAL), max_size=3)
GROUPS = st.sampled_from([1, 2, 3, 7, 50, 1024, 2048])


def total_mu(events: Sequence[Event], size: int = 1) -> mpmath.mpf:
    """Of the Gaussian releases, for so many units together."""
    squares = [mpmath.mpf(event.mu) ** 2 for event in events if isinstance(event, GaussianRelease)]
    return size * mpmath.sqrt(mpmath.fsum(squares))


def stated(epsilon: float, events: Sequence[GaussianRelease], size: int = 1) -> mpmath.mpf:
    """The smaller of the zCDP bound and of the Gaussian curve with the slack, at the best epsilon' <= epsilon."""
    mu = total_mu(events, size)
    divergences = [mpmath.mpf(e.coordinates) / 576 / mpmath.mpf(e.sigma) ** 4 for e in events if e.sigma]
    slack = min(mpmath.mpf(1), mpmath.sqrt(mpmath.fsum(divergences) / 2))
    lowest = float(mu) * (-float(ndtri(float(slack))) - float(mu) / 2) if slack else math.inf
    at = min(epsilon, max(0.0, lowest))
    smallest = (gdp_delta(at, mu) + (1 + mpmath.exp(at)) * slack) * (1 - mpmath.mpf(10) ** -12)
    return min(mpmath.mpf(1), smallest, mpmath.exp(zcdp_log_delta(epsilon, mu * mu / 2)))


def truth(epsilon: float, events: Sequence[Event], size: int = 1) -> mpmath.mpf:
    """What mechanisms can have that fit the events: Gaussian noise, and answers that keep both promises of a bounded release."""
    responses = [response_of(size * e.mu, size * e.epsilon) for e in events if isinstance(e, BoundedRelease)]
    return min(mpmath.mpf(1), mixed_delta(epsilon, total_mu(events, size), responses))  # 50 digits round above 1, too


@EXAMPLES
@given(events=GAUSSIANS.filter(bool), size=GROUPS, epsilon=SIZES | USUAL)
def test_gaussian_and_discrete_lists_are_what_the_statements_say(
    events: list[GaussianRelease], size: int, epsilon: float
) -> None:
    with mpmath.workdps(50):
        found = compose(of_group(events, size)).log_delta(epsilon)
        exact = mpmath.log(stated(epsilon, events, size))
        assert exact <= found
        assert found <= exact + mpmath.mpf(10) ** -8 * (1 + abs(exact)), "tight"


@EXAMPLES
@given(gaussians=GAUSSIANS, bounded=BOUNDED, size=GROUPS, epsilon=SIZES | USUAL)
def test_mixed_lists_are_not_below_a_mechanism_that_fits_them(
    gaussians: list[GaussianRelease], bounded: list[BoundedRelease], size: int, epsilon: float
) -> None:
    events = [*gaussians, *bounded]
    if not events:
        return
    guarantee = compose(of_group(events, size))
    with mpmath.workdps(50):
        assert truth(epsilon, events, size) <= guarantee.delta(epsilon)
        for delta in (1e-300, 1e-9, 0.1):
            at = guarantee.epsilon(delta)
            assert truth(at, events, size) <= delta


@EXAMPLES
@given(bounded=BOUNDED.filter(bool), times=st.sampled_from([1, 3, 1000, 4000, 10**5]))
def test_pure_sums_are_exact(bounded: list[BoundedRelease], times: int) -> None:
    with mpmath.workdps(60):
        exact = times * mpmath.fsum(mpmath.mpf(event.epsilon) for event in bounded)
        found = pure.total([event.epsilon for event in bounded] * times)
        assert exact <= found <= exact * (1 + mpmath.mpf(10) ** -14)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3000, 20_000])
@pytest.mark.parametrize("sigma", [None, 2.0**20])
def test_thousands_of_gaussian_releases(count: int, sigma: float | None) -> None:
    events = [GaussianRelease(1e-2 / (1 + i % 7), 100, sigma) for i in range(count)]
    guarantee = compose(events)
    with mpmath.workdps(50):
        for epsilon in (0.0, 1.0, 10.0, 1e6):
            assert stated(epsilon, events) <= guarantee.delta(epsilon)
        at = guarantee.epsilon(1e-6)
        assert stated(at, events) <= 1e-6 < stated(at * (1 - 1e-6), events)


@pytest.mark.parametrize("count", [4096, 4097, 20_000])
def test_thousands_of_bounded_releases(count: int) -> None:
    """All answers true is one of the patterns, and Hoeffding's is another bound: the truth lies between."""
    events = [BoundedRelease(1e-2, 2e-2)] * count
    guarantee = compose(events)
    with mpmath.workdps(50):
        one = mpmath.mpf(response_of(1e-2, 2e-2))
        chances = [
            (
                mpmath.binomial(count, j) * mpmath.exp((count - j) * one) / (1 + mpmath.exp(one)) ** count,
                (count - 2 * j) * one,
            )
            for j in range(count // 3, count // 2 + 1, 7)
        ]
        for epsilon in (0.1, 1.0, 3.0):
            below = mpmath.fsum(-chance * mpmath.expm1(epsilon - loss) for chance, loss in chances if loss > epsilon)
            assert 0 < below <= guarantee.delta(epsilon) <= 1
    assert guarantee.delta(guarantee.pure) == 0 < guarantee.delta(guarantee.pure * (1 - 1e-9))


@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one"])
@pytest.mark.parametrize("presence", [1, 3, 1024])
@pytest.mark.parametrize("clip", [1e-9, 0.7, 1e5])
def test_presences_and_replaced_units_are_part_of_mu(adjacency: str, presence: int, clip: float) -> None:
    grid = choose_grid(clip, 0.3, 10**4, adjacency, GridOptions(presence=presence))
    moved = presence * (2 if adjacency == "replace-one" else 1) * grid.clip_integer
    with mpmath.workdps(50):
        mu = mpmath.mpf(moved) / grid.sigma * mpmath.sqrt(20)
        for epsilon in (0.01, 1.0, 7.0):
            found = compose([GaussianRelease(grid.mu, 10)], times=20).log_delta(epsilon)
            assert gdp_log_delta(epsilon, mu) <= found <= gdp_log_delta(epsilon, mu) + 1e-8

"""No curve understates, from 1e-12 to 1e12: against 60 digits and more, delta 0 for pure privacy alone, and more is never less."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import mpmath
import pytest
from accounting import compose, delta_of_mu, delta_of_rho
from exact_curves import gdp_log_delta, zcdp_log_delta
from hypothesis import given, settings
from hypothesis import strategies as st

from distqexp.privacy import gdp, pure, zcdp
from distqexp.privacy.events import BoundedRelease, Event, GaussianRelease, of_group

SIZES = st.floats(-12, 12).map(lambda exponent: float(10**exponent))
GRID = [10.0**exponent for exponent in range(-12, 13, 2)]
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("mu", GRID)
def test_the_gaussian_curve_is_an_upper_bound_everywhere(mu: float) -> None:
    for epsilon in [0.0, *GRID, mu * mu / 2, mu * mu / 2 + 3 * mu]:
        exact = gdp_log_delta(epsilon, mu)
        assert exact <= gdp.log_delta(epsilon, mu) <= 0
        assert delta_of_mu(epsilon, mu) > 0
    for delta in (1e-300, 1e-12, 1e-3, 0.5):
        assert gdp_log_delta(gdp.epsilon(delta, mu), mu) <= mpmath.log(mpmath.mpf(delta))


@pytest.mark.slow
@pytest.mark.parametrize("rho", GRID)
def test_the_concentrated_curve_is_an_upper_bound_everywhere(rho: float) -> None:
    for epsilon in [0.0, *GRID, rho, rho + 4 * math.sqrt(rho), max(0.0, rho - 50)]:
        assert zcdp_log_delta(epsilon, rho) <= zcdp.log_delta(epsilon, rho) <= 0
        assert delta_of_rho(epsilon, rho) > 0
    for delta in (1e-300, 1e-12, 0.5):
        assert zcdp_log_delta(zcdp.epsilon(delta, rho), rho) <= mpmath.log(mpmath.mpf(delta))


@pytest.mark.parametrize("mu", [37.0, 38.0, 45.0, 60.0, 1e3, 1e6, 1e12])
def test_a_hopeless_release_is_never_free(mu: float) -> None:
    """At mu = 37.7 the zCDP bound fell from 1 to 0."""
    for events in ([GaussianRelease(mu, 4)], [GaussianRelease(mu, 4, 2.0**20)], [GaussianRelease(mu / 4, 4)] * 16):
        assert compose(events).delta(1.0) > 0.999
        assert compose(events).epsilon(1e-5) > mu
    assert compose([BoundedRelease(1e12, 20 * mu)]).delta(1.0) > 0.999
    assert compose(of_group([GaussianRelease(20.0, 4)], 2)).delta(1.0) > 0.999


RELEASES = st.one_of(
    st.builds(GaussianRelease, SIZES, st.just(10), st.sampled_from([None, 3.0, 2.0**20, 2.0**62])),
    st.builds(BoundedRelease, SIZES, SIZES),
)
LISTS = st.lists(RELEASES, min_size=1, max_size=4)


@EXAMPLES
@given(events=LISTS, epsilon=SIZES)
def test_delta_is_zero_only_of_pure_releases_and_epsilon_never(events: list[Event], epsilon: float) -> None:
    guarantee = compose(events)
    every = math.fsum(e.epsilon for e in events if isinstance(e, BoundedRelease))
    truly_pure = all(isinstance(event, BoundedRelease) for event in events) and epsilon >= every
    assert (guarantee.delta(epsilon) == 0) == truly_pure
    for delta in (5e-324, 1e-12, 0.5, 1 - 2.0**-53):
        found = guarantee.epsilon(delta)
        assert found > 0
        assert guarantee.delta(found) <= delta


@EXAMPLES
@given(events=LISTS, more=RELEASES, factor=st.floats(1, 1e3), epsilon=SIZES)
def test_more_is_never_less(events: list[Event], more: Event, factor: float, epsilon: float) -> None:
    larger = replace(events[0], mu=events[0].mu * factor)
    purer = replace(larger, epsilon=larger.epsilon * factor) if isinstance(larger, BoundedRelease) else larger
    guarantee = compose(events)
    for other in (
        [*events, more],
        [larger, *events[1:]],
        [purer, *events[1:]],
        of_group(events, 2),
        of_group(events, 2048),
    ):
        grown = compose(other)
        for at in (0.0, epsilon, guarantee.rho):
            assert grown.log_delta(at) >= guarantee.log_delta(at)
        for delta in (1e-12, 0.3):
            assert grown.epsilon(delta) >= guarantee.epsilon(delta)


@pytest.mark.parametrize("start", [1e-6, 0.1, 1.0, 30.0])
def test_neighbouring_floats_are_in_order(start: float) -> None:
    values = list(itertools.accumulate(range(300), lambda value, _: math.nextafter(value, math.inf), initial=start))
    for curve in (lambda v: gdp.log_delta(1.0, v), lambda v: zcdp.log_delta(1.0, v), pure.mu, pure.rho):
        found = [curve(value) for value in values]
        assert found == sorted(found)

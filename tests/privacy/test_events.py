"""Composition of releases, and the curve that discrete noise has."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from accounting import compose, delta_of_mu, delta_of_rho, spent, spent_epsilon

from distqexp.errors import UsageError
from distqexp.privacy import gdp, pure, zcdp
from distqexp.privacy.events import BoundedRelease, GaussianRelease, cost, total_cost
from distqexp.privacy.guarantee import Guarantee


def total(guarantee: Guarantee, epsilon: float) -> float:
    return delta_of_mu(epsilon, guarantee.mu) + (1 + math.exp(epsilon)) * guarantee.total_variation


def test_parameters_add_up() -> None:
    events = [GaussianRelease(3.0, 10), GaussianRelease(4.0, 20, sigma=100.0), GaussianRelease(12.0, 5, sigma=50.0)]
    guarantee = compose(events)
    assert guarantee.mu == pytest.approx(13.0, rel=1e-14)
    assert guarantee.rho == pytest.approx(84.5, rel=1e-14)
    expected = math.sqrt((20 / 100.0**4 + 5 / 50.0**4) / 1152)
    assert guarantee.total_variation == pytest.approx(expected, rel=1e-12)
    assert compose(reversed(events)).mu == guarantee.mu


def test_what_is_stated_is_never_below_the_exact_sum() -> None:
    """Sums and roots of floats fall short of the exact ones half of the time; a certificate that says so says too little."""
    random = np.random.default_rng(4)
    short = 0
    for _ in range(500):
        mus = (10.0 ** random.uniform(-6, 3, random.integers(1, 9))).tolist()
        costs = [cost([GaussianRelease(mu, 10, 100.0)]) for mu in mus]
        for guarantee in (compose([GaussianRelease(mu, 10, 100.0) for mu in mus]), total_cost(costs).guarantee()):
            exact = sum(Fraction(mu) ** 2 for mu in mus)
            assert Fraction(guarantee.mu) ** 2 >= exact
            assert len(mus) == 1 or 2 * Fraction(guarantee.rho) >= exact
            assert guarantee.mu == pytest.approx(math.sqrt(exact), rel=1e-14)
        short += Fraction(math.sqrt(math.fsum(mu**2 for mu in mus))) ** 2 < exact
    assert short > 100
    bounded = [BoundedRelease(mu, 1e6) for mu in (0.1, 0.7, 1 / 3)]
    assert Fraction(compose(bounded).mu) ** 2 >= sum(Fraction(event.mu) ** 2 for event in bounded)


def test_shares_of_a_pure_epsilon_fit_into_it() -> None:
    random = np.random.default_rng(5)
    for epsilon in (0.107, *(10.0 ** random.uniform(-3, 3, 300)).tolist()):
        rounds = int(random.integers(1, 40))
        share = pure.round_epsilon(epsilon, rounds)
        assert compose([BoundedRelease(1.0, share)] * rounds).pure <= epsilon
        assert pure.total([share] * rounds) >= rounds * Fraction(share)


def test_nothing_released_costs_nothing() -> None:
    assert compose([]) == Guarantee(0.0, 0.0, 0.0, pure=0.0)
    assert spent([], 1.0) == 0.0
    assert spent_epsilon([], 1e-5) == 0.0


def test_slack_is_added_to_the_gaussian_curve() -> None:
    guarantee = compose([GaussianRelease(0.5, 100, sigma=5e4)])
    assert guarantee.total_variation > 0
    for epsilon in (0.0, 0.3, 1.0, 1.5):
        assert guarantee.delta(epsilon) == pytest.approx(total(guarantee, epsilon), rel=1e-12)
    continuous = compose([GaussianRelease(0.5, 100)])
    assert continuous.delta(1.0) == delta_of_mu(1.0, 0.5) < guarantee.delta(1.0)


@pytest.mark.parametrize(("mu", "sigma"), [(0.5, 10.0), (0.5, 3e3), (0.5, 1e5), (3.0, 1e6), (6.0, 1e12)])
def test_delta_never_rises_with_epsilon_though_the_slack_does(mu: float, sigma: float) -> None:
    guarantee = compose([GaussianRelease(mu, 100, sigma=sigma)])
    grid = [0.05 * step for step in range(1201)]
    deltas = [guarantee.delta(epsilon) for epsilon in grid]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(deltas))
    by_slack = [min(1.0, total(guarantee, epsilon)) for epsilon in grid]
    assert by_slack[-1] > min(by_slack)  # the plain sum does rise again
    for index, epsilon in enumerate(grid):
        expected = min(min(by_slack[: index + 1]), delta_of_rho(epsilon, guarantee.rho))
        assert deltas[index] == pytest.approx(expected, rel=2e-2, abs=1e-300)
        assert deltas[index] <= expected * (1 + 1e-12)


@pytest.mark.parametrize("sigma", [None, 3.0, 500.0, 1e6])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 1e-2])
def test_epsilon_inverts_delta_on_the_safe_side(sigma: float | None, delta: float) -> None:
    guarantee = compose([GaussianRelease(0.7, 50, sigma=sigma)], times=3)
    epsilon = guarantee.epsilon(delta)
    assert guarantee.delta(epsilon) <= delta
    assert guarantee.delta(epsilon * (1 - 1e-8)) > delta * (1 - 1e-6)
    assert gdp.epsilon(delta, guarantee.mu) <= epsilon * (1 + 1e-9)
    assert epsilon <= zcdp.epsilon(delta, guarantee.rho)


def test_hopeless_slack_leaves_the_concentrated_guarantee() -> None:
    guarantee = compose([GaussianRelease(0.5, 10**9, sigma=3.0)])
    assert guarantee.total_variation == 1.0
    assert guarantee.delta(3.0) == delta_of_rho(3.0, guarantee.rho)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1), "mu of a release: found 0.0"),
        ((math.nan, 1), "mu of a release: found nan"),
        ((math.inf, 1), "mu of a release: found inf"),
        ((1.0, 0), "coordinates of a release: found 0"),
        ((1.0, 1, 2.9), "sigma of a discrete release: found 2.9"),
        ((1.0, 1, math.nan), "sigma of a discrete release: found nan"),
    ],
)
def test_impossible_releases_are_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GaussianRelease(*arguments)  # type: ignore[arg-type]

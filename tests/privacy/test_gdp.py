"""The Gaussian curve against high-precision integration of its definition."""

from __future__ import annotations

import math

import mpmath
import pytest
from accounting import delta_of_mu

from distqexp.errors import UsageError
from distqexp.privacy import gdp

EPSILONS = (0.0, 1e-3, 0.1, 1.0, 8.0, 40.0)
MUS = (1e-12, 1e-8, 1e-5, 1e-3, 0.05, 0.3, 0.7, 0.72, 1.0, 3.0, 12.0, 30.0, 300.0)


def log_delta_by_integration(epsilon: float, mu: float) -> mpmath.mpf:
    """log of the integral of max(0, density of N(mu, 1) - e^epsilon density of N(0, 1)), 60 digits."""
    with mpmath.workdps(60):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mu)
        start = e / m + m / 2
        scale = 1 / (abs(start - m) + 1)
        # Scaled by the density of N(mu, 1) at the start, so that nothing underflows; t is the distance from it.

        def excess(t: mpmath.mpf) -> mpmath.mpf:
            return mpmath.exp(-t * t / 2 - t * (start - m)) * -mpmath.expm1(-m * t)

        points = sorted({0, scale, 4 * scale, 16 * scale, 64 * scale, 300 * scale, 16, max(16, m - start + 16)})
        points = [point for point in points if point <= max(300 * scale, m - start + 16)]
        integral = mpmath.quad(excess, points)
        return mpmath.log(integral) - (start - m) ** 2 / 2 - mpmath.log(2 * mpmath.pi) / 2


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("mu", MUS)
def test_delta_is_the_integral_of_its_definition(epsilon: float, mu: float) -> None:
    expected = log_delta_by_integration(epsilon, mu)
    found = gdp.log_delta(epsilon, mu)
    assert abs(found - expected) <= 1e-9 * max(1, abs(float(expected)) * 1e-3)
    if expected > -700:
        assert math.isclose(delta_of_mu(epsilon, mu), float(mpmath.exp(expected)), rel_tol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("mu", [1e-3, 0.05, 0.3, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 1e-2])
def test_epsilon_is_an_upper_and_tight_inverse(mu: float, delta: float) -> None:
    epsilon = gdp.epsilon(delta, mu)
    assert mpmath.exp(log_delta_by_integration(epsilon, mu)) <= delta
    if epsilon > 0:
        assert mpmath.exp(log_delta_by_integration(epsilon * (1 - 1e-9) - 1e-15, mu)) > delta * (1 - 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.01, 0.5, 1.0, 8.0, 20.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 1e-2])
def test_mu_is_a_lower_and_tight_inverse(epsilon: float, delta: float) -> None:
    mu = gdp.mu(epsilon, delta)
    assert mpmath.exp(log_delta_by_integration(epsilon, mu)) <= delta
    assert mpmath.exp(log_delta_by_integration(epsilon, mu * (1 + 1e-9))) > delta


def test_the_whole_range_stays_finite_and_monotone() -> None:
    mus = [10.0**exponent for exponent in range(-8, 4)]
    epsilons = [0.0, 1e-6, 1e-3, 1.0, 50.0, 709.0, 720.0, 1e3, 1e4]
    for mu in mus:
        logs = [gdp.log_delta(epsilon, mu) for epsilon in epsilons]
        assert all(math.isfinite(value) and value <= 0 for value in logs), mu
        assert logs == sorted(logs, reverse=True), mu
        assert all(0 <= delta_of_mu(epsilon, mu) <= 1 for epsilon in epsilons)
    for epsilon in epsilons:
        logs = [gdp.log_delta(epsilon, mu) for mu in mus]
        assert logs == sorted(logs), epsilon


def test_both_formulas_agree_where_they_meet() -> None:
    for mu in (0.5 * math.sqrt(2), 22.0):  # narrow to wide difference, and the far left tail
        for epsilon in (0.0, 1.0, mu * (mu / 2 - 10)):
            if epsilon >= 0:
                below, above = gdp.log_delta(epsilon, mu * (1 - 1e-13)), gdp.log_delta(epsilon, mu * (1 + 1e-13))
                assert abs(below - above) < 1e-11


def test_zero_mu_reveals_nothing() -> None:
    assert delta_of_mu(1.0, 0.0) == 0.0
    assert gdp.epsilon(1e-5, 0.0) == 0.0


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_values_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(UsageError, match="epsilon: found"):
        delta_of_mu(bad, 1.0)
    with pytest.raises(UsageError, match="mu: found"):
        delta_of_mu(1.0, bad)
    for delta in (bad, 0.0, 1.0):
        with pytest.raises(UsageError, match="delta: found"):
            gdp.epsilon(delta, 1.0)
        with pytest.raises(UsageError, match="delta: found"):
            gdp.mu(1.0, delta)

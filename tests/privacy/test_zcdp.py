"""The conversion of zCDP against a direct minimisation and against the exact Gaussian curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
from accounting import delta_of_rho

from distqexp.errors import UsageError
from distqexp.privacy import gdp, zcdp

MUS = (1e-3, 0.05, 0.3, 1.0, 5.0)


@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("factor", [0.5, 2.0, 6.0])
def test_delta_is_the_minimum_over_orders(mu: float, factor: float) -> None:
    rho = zcdp.rho(mu)
    epsilon = rho + factor * mu
    excess = np.exp(np.linspace(math.log(1e-4), math.log(1e6), 200_001))  # alpha - 1
    orders = 1 + excess
    logs = excess * (orders * rho - epsilon) - np.log(excess) + orders * np.log1p(-1 / orders)
    found = zcdp.log_delta(epsilon, rho)
    assert found <= min(0.0, logs.min()) + 1e-9
    assert found >= min(0.0, logs.min()) - 1e-6


@pytest.mark.parametrize("mu", MUS)
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 1e-2])
def test_the_gaussian_curve_is_never_above(mu: float, delta: float) -> None:
    exact, converted = gdp.epsilon(delta, mu), zcdp.epsilon(delta, zcdp.rho(mu))
    assert exact <= converted * (1 + 1e-9)
    assert delta_of_rho(converted, zcdp.rho(mu)) <= delta
    if converted > 0:
        assert delta_of_rho(converted * (1 - 1e-8), zcdp.rho(mu)) > delta


def test_conversion_costs_a_tenth_of_epsilon_at_one() -> None:
    mu = gdp.mu(1.0, 2e-5)
    assert math.isclose(zcdp.epsilon(2e-5, zcdp.rho(mu)), 1.098, rel_tol=2e-3)


def test_zero_rho_and_extremes_stay_finite() -> None:
    assert delta_of_rho(1.0, 0.0) == 0.0
    assert zcdp.epsilon(1e-5, 0.0) == 0.0
    for rho in (1e-16, 1e-8, 1.0, 1e6):
        for epsilon in (0.0, 1.0, 1e4):
            assert not math.isnan(zcdp.log_delta(epsilon, rho))
            assert 0 <= delta_of_rho(epsilon, rho) <= 1
    with pytest.raises(UsageError, match="rho: found"):
        delta_of_rho(1.0, -1.0)
    with pytest.raises(UsageError, match="epsilon: found"):
        delta_of_rho(math.nan, 1.0)
    with pytest.raises(UsageError, match="delta: found"):
        zcdp.epsilon(0.0, 1.0)

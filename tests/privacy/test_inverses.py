"""Conversions and inverses against 60 digits: never too small from 1e-12 to 1e12 and down to delta 1e-300, tight where budgets are."""

from __future__ import annotations

import math

import mpmath
import pytest
from accounting import delta_of_mu
from exact_curves import gdp_log_delta, log_tail, zcdp_log_delta
from hypothesis import given, settings
from hypothesis import strategies as st

from distqexp.errors import UsageError
from distqexp.privacy import gdp, pure, zcdp

SIZES = st.floats(-12, 12).map(lambda exponent: float(10**exponent))
DELTAS = st.one_of(
    st.floats(-300, -0.01).map(lambda exponent: float(10**exponent)),
    st.floats(-12, -0.5).map(lambda exponent: 1 - float(10**exponent)),
)
USUAL_MUS = st.floats(-2, 1).map(lambda exponent: float(10**exponent))
USUAL_DELTAS = st.floats(-12, -2).map(lambda exponent: float(10**exponent))
EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)
TIGHT = 1e-6


def log(delta: float) -> mpmath.mpf:
    with mpmath.workdps(60):
        return mpmath.log(mpmath.mpf(delta))


@EXAMPLES
@given(mu=SIZES, delta=DELTAS)
def test_epsilon_of_delta_is_enough(mu: float, delta: float) -> None:
    assert gdp_log_delta(gdp.epsilon(delta, mu), mu) <= log(delta)
    assert zcdp_log_delta(zcdp.epsilon(delta, mu), mu) <= log(delta)


@EXAMPLES
@given(epsilon=SIZES, delta=DELTAS)
def test_mu_of_a_target_is_small_enough_and_above_zero(epsilon: float, delta: float) -> None:
    mu = gdp.mu(epsilon, delta)
    assert mu > 0
    assert gdp_log_delta(epsilon, mu) <= log(delta)
    assert delta_of_mu(epsilon, mu) <= delta


@EXAMPLES
@given(mu=USUAL_MUS, delta=USUAL_DELTAS)
def test_usual_inverses_are_tight(mu: float, delta: float) -> None:
    rho = mu * mu / 2
    found = gdp.epsilon(delta, mu)
    if found > 0:
        assert gdp_log_delta(found * (1 - TIGHT), mu) > log(delta)
        assert gdp_log_delta(found, gdp.mu(found, delta) * (1 + TIGHT)) > log(delta)
        assert math.isclose(gdp.mu(found, delta), mu, rel_tol=TIGHT)
    assert zcdp_log_delta(zcdp.epsilon(delta, rho) * (1 - TIGHT), rho) > log(delta)


@EXAMPLES
@given(epsilon=SIZES)
def test_what_a_pure_epsilon_implies(epsilon: float) -> None:
    with mpmath.workdps(60):
        exact = mpmath.mpf(epsilon)
        error = -exact - mpmath.log1p(
            mpmath.exp(-exact)
        )  # of randomised response: the logarithm of 1 / (1 + e^epsilon)
        half = mpmath.mpf(pure.mu(epsilon)) / 2
        assert log_tail(half) <= error < log_tail(half * (1 - mpmath.mpf(10) ** -10))
        rho = exact * mpmath.tanh(exact / 2)
        assert rho <= pure.rho(epsilon) <= rho * (1 + mpmath.mpf(10) ** -12)


@pytest.mark.parametrize("delta", [5e-324, 1e-310, 1e-300, 1e-290])
def test_no_mu_is_found_rather_than_zero(delta: float) -> None:
    """mu(0, 5e-324) was 0: a release of no noise at all, or a division by zero."""
    with pytest.raises(UsageError, match=r"delta: found .* with epsilon 0.0; no mu is small enough"):
        gdp.mu(0.0, delta)
    assert gdp.mu(1e-12, delta) > 0
    assert math.isclose(gdp.mu(0.0, 1e-100), 1e-100 * math.sqrt(2 * math.pi), rel_tol=TIGHT)

"""Calibration at extreme targets: what it gives is spent within the target, in 50 digits; what can't be given is refused in a line."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import pytest
from accounting import compose, spent
from exact_curves import gdp_delta
from hypothesis import given, settings
from hypothesis import strategies as st

from distqexp.errors import UsageError
from distqexp.mechanism.grid import (
    GridOptions,
    check_capacity,
    check_trust_radius,
    choose_grid,
    pure_mu,
    with_pure_noise,
)
from distqexp.privacy import gdp
from distqexp.privacy.calibration import calibrate, calibrate_pure, sigma_minimum
from distqexp.privacy.events import BoundedRelease, GaussianRelease
from distqexp.privacy.pure import pure_epsilon

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)
SIZES = st.floats(-12, 12).map(lambda exponent: float(10**exponent))
EVERY_SIZE = st.floats(-320, 308).map(lambda exponent: float(10**exponent))
DELTAS = st.one_of(
    st.floats(-300, -0.01).map(lambda exponent: float(10**exponent)),
    st.floats(-12, -0.5).map(lambda exponent: 1 - float(10**exponent)),
    st.sampled_from([5e-324, 1e-321, 1e-300, 1 - 2.0**-53]),  # smaller than what a config takes, too
)
ROUNDS = st.floats(0, 6).map(lambda exponent: round(10**exponent))
COORDINATES = st.floats(0, 7).map(lambda exponent: round(10**exponent))
NOISES = st.sampled_from(["discrete", "gaussian"])


def zcdp_delta(epsilon: float, rho: mpmath.mpf) -> mpmath.mpf:
    """The delta of a rho-zCDP mechanism: by the best order alpha = 1 + a (Canonne, Kamath and Steinke 2020), found by bisection."""
    low, high = mpmath.mpf(10) ** -400, mpmath.mpf(10) ** 400
    for _ in range(3000):
        a = mpmath.sqrt(low * high)
        low, high = (a, high) if 2 * a * rho + rho - epsilon < mpmath.log1p(1 / a) else (low, a)
    return mpmath.exp(a * ((1 + a) * rho - epsilon)) / (1 + a) * (1 + 1 / a) ** -a


def require_readable(error: UsageError) -> None:
    line = str(error)
    assert "\n" not in line
    assert "nan" not in line
    assert "expected" in line


@EXAMPLES
@given(epsilon=SIZES | st.floats(0.01, 30), delta=DELTAS, rounds=ROUNDS, k=COORDINATES, noise=NOISES)
def test_a_target_is_kept_or_refused(epsilon: float, delta: float, rounds: int, k: int, noise: str) -> None:
    try:
        found = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise=noise)
    except UsageError as error:
        require_readable(error)
        assert epsilon < 1e-3, "every usual target can be had"
        return
    assert 0 < found.mu_round <= found.mu_total < math.inf
    with mpmath.workdps(50):
        exact = gdp_delta(epsilon, mpmath.mpf(found.mu_round) * mpmath.sqrt(rounds))
        if noise == "discrete" and found.slack_delta == 0:
            exact = zcdp_delta(epsilon, rounds * mpmath.mpf(found.mu_round) ** 2 / 2)
        elif noise == "discrete":
            variation = mpmath.sqrt(mpmath.mpf(rounds) * k / 1152) / mpmath.mpf(found.sigma_minimum) ** 2
            exact += (1 + mpmath.exp(epsilon)) * variation
        assert exact <= delta
    event = GaussianRelease(found.mu_round, k, float(found.sigma_minimum) if noise == "discrete" else None)
    assert spent([event] * min(rounds, 1000), epsilon) <= delta


@EXAMPLES
@given(epsilon=SIZES, rounds=ROUNDS, k=COORDINATES)
def test_a_pure_target_is_kept(epsilon: float, rounds: int, k: int) -> None:
    found = calibrate_pure(epsilon=epsilon, rounds=rounds, k=k)
    assert found.epsilon_round is not None
    assert 0 < rounds * Fraction(found.epsilon_round) <= Fraction(epsilon)
    assert 0 < found.mu_round <= found.mu_total < math.inf
    few = min(rounds, 1000)
    guarantee = compose([BoundedRelease(found.mu_round, found.epsilon_round)] * few)
    assert guarantee.pure <= epsilon
    assert guarantee.delta(epsilon) == 0


@EXAMPLES
@given(
    epsilon=SIZES,
    clip=EVERY_SIZE | SIZES,
    radius=EVERY_SIZE | SIZES,
    presence=st.integers(1, 1024),
    exponent=st.none() | st.integers(-500, 450),
    share=st.sampled_from([0.0, 0.001, 0.5]),
)
def test_grids_of_extreme_sizes_are_right_or_refused(
    epsilon: float, clip: float, radius: float, presence: int, exponent: int | None, share: float
) -> None:
    """A clip of 1e300 on a grid of 2^-500, or a radius of 1e237, ended in an overflow or a division by zero."""
    try:
        found = calibrate(epsilon=epsilon, delta=1e-9, rounds=3, k=100, noise="gaussian")
        grid = choose_grid(
            clip, found.mu_round, found.sigma_minimum, "replace-one", GridOptions(exponent, None, presence, share)
        )
        check_capacity(grid, 100, 1)
        assert Fraction(grid.sensitivity, grid.sigma) <= Fraction(found.mu_round)
    except UsageError as error:
        require_readable(error)
    try:
        share_of_round = calibrate_pure(epsilon=epsilon, rounds=3, k=100).epsilon_round
        assert share_of_round is not None
        mu = pure_mu(clip, radius, share_of_round, "zero-out", presence)
        grid = choose_grid(clip, mu, sigma_minimum(mu, 100), "zero-out", GridOptions(exponent, None, presence))
        grid = with_pure_noise(grid, radius, share_of_round)
        check_trust_radius(grid, radius)
        step = Fraction(grid.step)
        assert pure_epsilon(grid.sensitivity * step, radius, (grid.sigma * step) ** 2) <= share_of_round
    except UsageError as error:
        require_readable(error)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"epsilon": 1e-12, "delta": 1e-20, "noise": "gaussian", "k": 10**7}, "expected at most 2\\^62: raise epsilon"),
        ({"epsilon": 1e-200, "noise": "gaussian", "delta": 1e-300}, "mu of a round: found .* raise privacy.epsilon"),
    ],
)
def test_refusals_say_what_to_do(target: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        calibrate(**({"delta": 1e-9, "rounds": 1, "k": 5} | target))  # type: ignore[arg-type]


def test_no_release_is_calibrated_to_no_mu_at_all() -> None:
    assert gdp.mu(1e-12, 1e-300) > 0
    with pytest.raises(UsageError, match=r"mu of a round: found 0\.0"):
        sigma_minimum(0.0, 5)

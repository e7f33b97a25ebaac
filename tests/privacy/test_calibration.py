"""Calibration never overshoots its target and wastes next to nothing of it."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
from accounting import spent, spent_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st

from distqexp.errors import UsageError
from distqexp.mechanism.grid import choose_grid
from distqexp.privacy.calibration import SLACK_SHARE, calibrate
from distqexp.privacy.events import GaussianRelease

TARGETS = {
    "epsilon": st.floats(math.log(0.01), math.log(20)).map(math.exp),
    "delta": st.floats(math.log(1e-12), math.log(1e-2)).map(math.exp),
    "rounds": st.integers(1, 50),
    "k": st.floats(0, math.log(1e6)).map(lambda value: round(math.exp(value))),
}
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


def exact_delta(epsilon: float, mu_round: float, rounds: int) -> mpmath.mpf:
    """The composed Gaussian curve in 60 digits, from the formula and independent of the package."""
    e, m = mpmath.mpf(epsilon), mpmath.mpf(mu_round) * mpmath.sqrt(rounds)
    return mpmath.ncdf(-e / m + m / 2) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)


@pytest.mark.slow
@EXAMPLES
@given(**TARGETS)
def test_discrete_noise_never_overshoots(epsilon: float, delta: float, rounds: int, k: int) -> None:
    calibration = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise="discrete")
    with mpmath.workdps(60):
        variation = mpmath.sqrt(mpmath.mpf(rounds * k) / mpmath.mpf(calibration.sigma_minimum) ** 4 / 1152)
        slack = (1 + mpmath.exp(epsilon)) * variation
        if calibration.slack_delta > 0:  # else zCDP gives the noise
            assert slack <= calibration.slack_delta
            assert exact_delta(epsilon, calibration.mu_round, rounds) + slack <= delta
    events = [GaussianRelease(calibration.mu_round, k, calibration.sigma_minimum)] * rounds
    assert spent(events, epsilon) <= delta
    assert spent_epsilon(events, delta) <= epsilon


@pytest.mark.slow
@EXAMPLES
@given(clip=st.floats(-60, 60).map(math.exp), replace=st.booleans(), **TARGETS)
def test_noise_on_the_chosen_grid_meets_the_target_within_a_percent(
    clip: float, replace: bool, epsilon: float, delta: float, rounds: int, k: int
) -> None:
    calibration = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise="discrete")
    adjacency = "replace-one" if replace else "zero-out"
    grid = choose_grid(clip, calibration.mu_round, calibration.sigma_minimum, adjacency)
    events = [GaussianRelease(grid.mu, k, grid.sigma)] * rounds
    assert spent(events, epsilon) <= delta
    assert spent_epsilon(events, delta) <= epsilon
    ideal = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise="gaussian")
    assert grid.mu >= (0.99 if calibration.slack_delta > 0 else 0.9) * ideal.mu_round


@EXAMPLES
@given(**TARGETS)
def test_continuous_noise_is_tight(epsilon: float, delta: float, rounds: int, k: int) -> None:
    calibration = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise="gaussian")
    assert calibration.slack_delta == 0.0
    with mpmath.workdps(60):
        assert exact_delta(epsilon, calibration.mu_round, rounds) <= delta
        assert exact_delta(epsilon, calibration.mu_round * (1 + 1e-7), rounds) > delta
    events = [GaussianRelease(calibration.mu_round, k)] * rounds
    assert spent(events, epsilon) <= delta
    assert epsilon * (1 - 1e-6) <= spent_epsilon(events, delta) <= epsilon


def test_slack_is_a_thousandth_and_the_minimum_sigma_is_needed() -> None:
    calibration = calibrate(epsilon=8.0, delta=1e-10, rounds=20, k=10, noise="discrete")
    assert calibration.slack_delta == pytest.approx(SLACK_SHARE * 1e-10)
    half = math.sqrt(20 * 10 / (calibration.sigma_minimum * 0.5) ** 4 / 1152) * (1 + math.exp(8.0))
    assert half > calibration.slack_delta


def test_a_wider_cap_accepts_what_was_calibrated_for_a_tighter_one() -> None:
    """(1 + e^epsilon) Delta alone would exceed delta at the larger epsilon; the guarantee can't get worse there."""
    calibration = calibrate(epsilon=1.0, delta=1e-6, rounds=1, k=10**4, noise="discrete")
    events = [GaussianRelease(calibration.mu_round, 10**4, calibration.sigma_minimum)]
    assert spent(events, 30.0) <= spent(events, 1.0) <= 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "privacy.epsilon: found 0.0"),
        ({"epsilon": math.inf}, "privacy.epsilon: found inf"),
        ({"delta": 0.0}, "privacy.delta: found 0.0"),
        ({"delta": 1.0}, "privacy.delta: found 1.0"),
        ({"rounds": 0}, "rounds and k: found 0 and 5"),
        ({"k": 0}, "rounds and k: found 1 and 0"),
        ({"noise": "laplace"}, "mechanism.noise: found 'laplace'"),
    ],
)
def test_targets_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    target: dict[str, Any] = {"epsilon": 1.0, "delta": 1e-5, "rounds": 1, "k": 5, "noise": "discrete"} | change
    with pytest.raises(UsageError, match=message):
        calibrate(**target)


@pytest.mark.parametrize(("epsilon", "delta"), [(20.0, 1e-5), (126.0, 1e-9), (1e4, 1e-5), (1.0, 1e-100)])
def test_where_the_slack_asks_for_too_fine_a_grid_zcdp_gives_the_noise(epsilon: float, delta: float) -> None:
    """On the grid that the clip needs, with nothing set aside, and within the target; a hundredth more noise scale would break it."""
    found = calibrate(epsilon=epsilon, delta=delta, rounds=10, k=5000, noise="discrete")
    assert found.slack_delta == 0
    assert found.sigma_minimum < 2**30 / found.mu_round
    assert spent([GaussianRelease(found.mu_round, 5000, found.sigma_minimum)] * 10, epsilon) <= delta
    assert spent([GaussianRelease(1.01 * found.mu_round, 5000, found.sigma_minimum)] * 10, epsilon) > delta
    continuous = calibrate(epsilon=epsilon, delta=delta, rounds=10, k=5000, noise="gaussian")
    assert 0.93 * continuous.mu_total < found.mu_total < continuous.mu_total

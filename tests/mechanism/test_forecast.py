"""The accuracy forecast against 1,000 releases of a small quadratic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from distqexp.errors import UsageError
from distqexp.mechanism import forecast, noise
from distqexp.mechanism.grid import Grid, choose_grid
from distqexp.mechanism.rule import add_noise, released_point
from distqexp.privacy.calibration import calibrate

K, UNITS, RELEASES = 20, 50, 1000


def quadratic() -> tuple[Grid, NDArray[np.int64]]:
    """Fifty clipped unit vectors on a calibrated grid: the private sums of q(y) = ||y||^2/2 + <h s, y>."""
    calibration = calibrate(epsilon=1.0, delta=1e-4, rounds=1, k=K, noise="discrete")
    grid = choose_grid(0.7, calibration.mu_round, calibration.sigma_minimum, "zero-out")
    vectors = np.random.default_rng(5).standard_normal((UNITS, K))
    vectors *= 0.99 * grid.clip_integer / np.linalg.norm(vectors, axis=1, keepdims=True)
    integers = np.rint(vectors).astype(np.int64)
    assert np.all(np.sum(integers**2, axis=1) <= grid.clip_integer**2)
    return grid, integers.sum(axis=0)


def excesses(
    grid: Grid, sums: NDArray[np.int64], draws: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """q(y) - min q of one release a row of ``draws``, with q evaluated as such and its minimum by a solver."""
    linear = sums * grid.step
    curvature = np.eye(K)

    def q(y: NDArray[np.float64]) -> float:
        return float(y @ curvature @ y / 2 + linear @ y)

    minimum = q(np.linalg.solve(curvature, -linear))
    return np.array([q(released_point(add_noise(sums, row), grid)) - minimum for row in draws])


@pytest.mark.parametrize("source", ["discrete", "gaussian", "insecure discrete", "insecure gaussian"])
def test_forecast_holds_over_a_thousand_releases(source: str) -> None:
    """False alarm below 1e-6 for entropy, none for fixed seeds.

    The mean of 1,000 excesses has a relative standard error of sqrt(2 / (k * 1000)) = 1 %; the test allows the
    two-sided 1e-7 band of the exact law, about 5.4 %. Coverage: the count of excesses above the bound is
    at most the 1 - 1e-7 quantile of Binomial(1000, failure).
    """
    grid, sums = quadratic()
    if source == "discrete":
        draws = noise.draw_discrete(K * RELEASES, grid.sigma).reshape(RELEASES, K)
    elif source == "gaussian":
        draws = noise.draw_continuous(K * RELEASES, grid.sigma).reshape(RELEASES, K)
    else:
        kind = source.split()[1]
        draws = np.stack(
            [noise.draw_insecure(K, grid.sigma, noise_seed=11, round=r, noise=kind) for r in range(RELEASES)]
        )
    found = excesses(grid, sums, draws)
    assert found.min() >= 0
    expected = forecast.expected_excess(grid.temperature, K)
    freedom = K * RELEASES
    assert chi2.ppf(5e-8, freedom) / freedom <= found.mean() / expected <= chi2.isf(5e-8, freedom) / freedom
    for failure in (0.3, 0.05, 0.01):
        bound = forecast.excess_bound(grid.temperature, K, failure)
        assert np.count_nonzero(found > bound) <= binom.isf(1e-7, RELEASES, failure)
        assert chi2.sf(2 * bound / grid.temperature, K) <= failure
    assert found.mean() <= forecast.expected_excess_in_ball(grid.temperature, K)


def test_forecast_notices_a_wrong_temperature() -> None:
    """The same test rejects noise whose sigma is a tenth too small (fixed seed)."""
    grid, sums = quadratic()
    small = round(0.9 * grid.sigma)
    draws = np.stack([noise.draw_insecure(K, small, noise_seed=12, round=r, noise="discrete") for r in range(RELEASES)])
    mean = excesses(grid, sums, draws).mean()
    assert mean / forecast.expected_excess(grid.temperature, K) < chi2.ppf(5e-8, K * RELEASES) / (K * RELEASES)


@pytest.mark.parametrize("k", [1, 10, 1000, 10**6])
@pytest.mark.parametrize("failure", [0.5, 0.05, 1e-6])
def test_bound_is_safe_and_not_wildly_loose(k: int, failure: float) -> None:
    exact = chi2.isf(failure, k) / 2
    bound = forecast.excess_bound(1.0, k, failure)
    assert exact <= bound <= exact * (1.2 if k >= 1000 else 9)


def test_formulas() -> None:
    assert forecast.expected_excess(4.0, 10) == 20.0
    assert forecast.expected_excess_in_ball(4.0, 10) == 40.0
    tail = math.log(20)
    expected = 4 * (10 + 2 * math.sqrt(10 * tail) + 2 * tail) / 2
    assert forecast.excess_bound(4.0, 10, 0.05) == pytest.approx(expected)
    with pytest.raises(UsageError, match=r"temperature: found 0.0"):
        forecast.expected_excess(0.0, 10)
    with pytest.raises(UsageError, match="k: found 0"):
        forecast.expected_excess(1.0, 0)
    with pytest.raises(UsageError, match=r"failure probability: found 1.0"):
        forecast.excess_bound(1.0, 10, 1.0)

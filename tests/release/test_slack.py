"""The estimate of what float64 adds to a rounded point, against mpmath on the same normal numbers."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from distqexp.mechanism import truncated
from distqexp.mechanism.factor_grid import FactorGrid
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.rule import OWN_ROUNDINGS, ReleaseRule

FloatArray = NDArray[np.float64]

GRID = Grid(step=2.0**-30, clip_integer=2**40, sigma=2_100_000_000_001)
"""So fine that float64 can't always tell between two steps."""

K, RADIUS = 6, 6000.0


def exact_mean_and_spread(sums: NDArray[np.int64], nu: float) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    """Of the tilted Gaussian (nu in units of T / R^2; 0: the Gaussian itself) with B the identity, in steps."""
    temperature = (mpmath.mpf(GRID.sigma) * GRID.step) ** 2
    share = 1 / (1 + mpmath.mpf(nu) * temperature / mpmath.mpf(RADIUS) ** 2)
    return [-int(entry) * share for entry in sums], mpmath.sqrt(temperature * share) / GRID.step


@pytest.mark.parametrize("nu", [0.0, 0.7, 35.1])
def test_float64_moves_a_point_by_less_than_the_estimate_says(nu: float) -> None:
    """The Gaussian and the tilted one, its mean at the boundary; coordinates round apart as often as the estimate says, at most."""
    generator = np.random.default_rng(2)
    sums = np.rint(generator.standard_normal(K) * RADIUS / GRID.step / np.sqrt(K)).astype(np.int64)
    scaled = truncated._scale(np.ones(K), sums * GRID.step, GRID.temperature, RADIUS)
    normal = generator.standard_normal((6_000, K))
    points = RADIUS * truncated._tilted_proposal(scaled, nu)(normal)[0] / GRID.step
    mean, spread = exact_mean_and_spread(sums, nu)
    with mpmath.workprec(200):
        apart, largest = 0, 0.0
        for point, numbers in zip(points, normal, strict=True):
            for value, centre, number in zip(point, mean, numbers, strict=True):
                exact = centre + spread * mpmath.mpf(float(number))
                largest = max(largest, float(abs(exact - mpmath.mpf(float(value)))))
                apart += int(mpmath.floor(exact + 0.5)) != int(np.rint(value))
    room = OWN_ROUNDINGS * 2.0**-53 * RADIUS / GRID.step
    assert 0 < largest <= room / 4  # sixteen units are left for the normal numbers themselves
    rule = ReleaseRule(K, GRID, "gaussian", RADIUS)
    assert rule.sampler_slack == pytest.approx(2 * K * room)
    assert rule.sampler_slack < 1.0
    assert 0 < apart / (len(points) * K) <= 2 * room


def test_the_product_with_eigenvectors_is_in_the_estimate() -> None:
    """k more units in the last place: a row of an orthogonal matrix times a point of the ball, exactly and in float64."""
    k = 60
    generator = np.random.default_rng(5)
    vectors = np.linalg.qr(generator.standard_normal((k, k)))[0]
    point = generator.standard_normal(k)
    point *= RADIUS / np.linalg.norm(point)
    with mpmath.workprec(200):
        exact = [mpmath.fdot(map(mpmath.mpf, map(float, row)), map(mpmath.mpf, map(float, point))) for row in vectors]
        worst = max(abs(value - mpmath.mpf(float(found))) for value, found in zip(exact, vectors @ point, strict=True))
    assert 0 < worst <= k * 2.0**-53 * RADIUS


def test_the_slack_of_a_rule() -> None:
    coarse = Grid(step=2.0**-10, clip_integer=2**12, sigma=2**20)
    factors = FactorGrid(2.0**-5, 1.0, 1 << 20)
    assert ReleaseRule(100, coarse, "gaussian").sampler_slack == 0.0
    assert ReleaseRule(100, coarse, "discrete").sampler_slack == 0.0
    assert ReleaseRule(100, coarse, "gaussian", 2.0**10).sampler_slack == 200 * 64 * 2.0**-33
    assert ReleaseRule(100, coarse, "gaussian", 2.0**10, factors).sampler_slack == 200 * 164 * 2.0**-33
    assert ReleaseRule(100, coarse, "gaussian", 2.0**45).sampler_slack == 1.0

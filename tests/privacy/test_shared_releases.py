"""Releases with noise in shares: their distance from one draw counts in every figure, and calibration pays for it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import mpmath
import pytest
from accounting import compose, spent, spent_epsilon

from distqexp.errors import UsageError
from distqexp.kinds import Noise
from distqexp.privacy.calibration import Sampling, calibrate
from distqexp.privacy.events import BoundedRelease, GaussianRelease, cost, of_group, worst_cost
from distqexp.privacy.noise_shares import SMALLEST_SHARE, share_sigma, total_variation

COARSE = GaussianRelease(mu=0.3, coordinates=10, sigma=3.0, shares=4)
"""Shares of 2 grid steps: 7e-16 of total variation a round."""


def test_the_distance_of_every_release_adds_up() -> None:
    one = total_variation(10, 3.0, 4)
    assert one == pytest.approx(10 * 10 * math.exp(-(math.pi**2) * 4), rel=1e-3)
    assert cost([COARSE] * 5).shares_variation == pytest.approx(5 * one)
    assert compose([COARSE], 5).shares_variation == pytest.approx(5 * one)
    assert worst_cost([cost([COARSE]), cost([COARSE] * 3)]).shares_variation == pytest.approx(3 * one)
    for group in (of_group([COARSE], 2), of_group([COARSE], 2, replaced=True)):
        assert cost(group).shares_variation == one, "the noise is the same, whoever is protected"
    plain = replace(COARSE, shares=1)
    assert cost([plain]).shares_variation == compose([plain]).shares_variation == 0
    assert compose([COARSE]).total_variation > compose([plain]).total_variation


def test_no_curve_forgets_the_distance() -> None:
    """With shares of one grid step, zCDP without the distance would promise next to nothing at large epsilons."""
    wide = GaussianRelease(mu=0.5, coordinates=1, sigma=3.0, shares=9)
    variation = total_variation(1, 3.0, 9)
    assert share_sigma(3.0, 9) == 1
    assert 1e-4 < variation < 1e-2
    for epsilon in (0.0, 0.5, 2.0, 6.0, 40.0):
        with_shares, without = compose([wide]).delta(epsilon), compose([replace(wide, shares=1)]).delta(epsilon)
        assert with_shares >= max(variation, without)
    deltas = [compose([wide]).log_delta(epsilon / 8) for epsilon in range(400)]
    assert deltas == sorted(deltas, reverse=True)
    assert compose([wide]).epsilon(variation / 10) == math.inf
    assert 0 < compose([wide]).epsilon(0.2) < 2


def test_beside_a_coarse_grid_zcdp_still_gives_the_guarantee() -> None:
    """Noise of 3 grid steps in many coordinates is far from rounded noise; with shares zCDP holds up to their distance."""
    coarse = GaussianRelease(mu=0.5, coordinates=10**6, sigma=3.0)
    shared = GaussianRelease(mu=0.5, coordinates=10, sigma=2.0**20, shares=3)
    assert spent_epsilon([coarse, shared], 1e-5) == pytest.approx(
        spent_epsilon([coarse, replace(shared, shares=1)], 1e-5)
    )
    assert compose([coarse, shared]).epsilon(1e-5) < 4


@pytest.mark.parametrize(
    ("epsilon", "delta", "shares", "k", "rounds"),
    [
        *product((0.1, 1.0, 8.0), (1e-9, 1e-5), (2, 3, 200), (1, 10**5), (1, 10)),
        (60.0, 1e-5, 5, 100, 3),
        (340.0, 1e-5, 5, 100, 3),
        (1.0, 1e-100, 5, 100, 3),
        (20.0, 0.1, 1000, 1, 1),
    ],
)
def test_the_guarantee_of_calibrated_noise_in_shares_is_within_the_target(
    epsilon: float, delta: float, shares: int, k: int, rounds: int
) -> None:
    found = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise=Noise.DISCRETE, shares=shares)
    assert share_sigma(found.sigma_minimum, shares) >= SMALLEST_SHARE
    events = [GaussianRelease(found.mu_round, k, float(found.sigma_minimum), shares=shares)] * rounds
    assert spent(events, epsilon) <= delta
    assert spent_epsilon(events, delta) <= epsilon
    with mpmath.workdps(60):
        tau = [
            -2 * mpmath.pi**2 * share_sigma(found.sigma_minimum, shares) ** 2 * mpmath.mpf(j) / (j + 1)
            for j in range(1, shares)
        ]
        distance = rounds * k * mpmath.expm1(10 * mpmath.fsum(map(mpmath.exp, tau)))
        assert (1 + mpmath.exp(epsilon)) * distance <= mpmath.mpf(delta) / 10**6
    alone = calibrate(epsilon=epsilon, delta=delta, rounds=rounds, k=k, noise=Noise.DISCRETE)
    assert found.mu_round == pytest.approx(alone.mu_round, rel=1e-5), "it costs next to nothing"


def test_sampled_rounds_with_shares_are_within_the_target() -> None:
    found = calibrate(epsilon=1.0, delta=1e-5, rounds=5, k=100, noise=Noise.DISCRETE, sampling=Sampling(0.1), shares=3)
    events = [GaussianRelease(found.mu_round, 100, float(found.sigma_minimum), 0.1, 0.0, 3)] * 5
    assert spent_epsilon(events, 1e-5) <= 1.0


@pytest.mark.parametrize(("epsilon", "delta"), [(400.0, 1e-5), (1.0, 1e-200), (1.0, 1e-300)])
def test_targets_beyond_what_floats_can_count_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(UsageError, match="with mechanism"):
        calibrate(epsilon=epsilon, delta=delta, rounds=1, k=10, noise=Noise.DISCRETE, shares=2)


def test_impossible_shares_are_refused() -> None:
    for shares, sigma in ((0, 10.0), (2, None)):
        with pytest.raises(UsageError, match="shares of a release"):
            GaussianRelease(0.1, 10, sigma, shares=shares)
    assert compose([COARSE, BoundedRelease(0.1, 0.2)]).shares_variation > 0

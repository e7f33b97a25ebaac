"""Every step of docs/proofs/rounding.md, numerically."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import mpmath
import numpy as np
import pytest

from distqexp.privacy import discrete_slack

SIGMAS = (3.0, 3.5, 5.0, 8.25, 16.0, 40.0)


def laws(sigma: float) -> tuple[list[mpmath.mpf], list[mpmath.mpf]]:
    """Discrete Gaussian p and rounded Gaussian q on 0, 1, 2, ... (both are symmetric), 40 digits, to 14 sigma."""
    with mpmath.workdps(40):
        width = mpmath.mpf(sigma) * mpmath.sqrt(2)
        reach = range(math.ceil(14 * sigma) + 1)
        weights = [mpmath.exp(-(mpmath.mpf(x) ** 2) / width**2) for x in reach]
        total = 2 * mpmath.fsum(weights) - 1
        tails = [mpmath.erfc((x - mpmath.mpf(1) / 2) / width) / 2 for x in range(len(reach) + 1)]
        return [w / total for w in weights], [tails[x] - tails[x + 1] for x in reach]


def expectation(values: list[mpmath.mpf]) -> mpmath.mpf:
    """Sum over all integers of a symmetric sequence given on 0, 1, 2, ..."""
    return 2 * mpmath.fsum(values) - values[0]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_divergence_is_below_the_bound_and_close_to_it(sigma: float) -> None:
    with mpmath.workdps(40):
        p, q = laws(sigma)
        divergence = expectation([b * mpmath.log(b / a) for a, b in zip(p, q, strict=True)])
        bound = mpmath.mpf(1) / (576 * mpmath.mpf(sigma) ** 4)
        assert divergence <= bound
        assert divergence >= bound * (1 - mpmath.mpf("0.1") / sigma**2)
        assert float(bound) == pytest.approx(discrete_slack.divergence(1, sigma), rel=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_total_variation_is_below_the_bound(sigma: float) -> None:
    with mpmath.workdps(40):
        p, q = laws(sigma)
        distance = expectation([abs(a - b) for a, b in zip(p, q, strict=True)]) / 2
        bound = discrete_slack.total_variation([discrete_slack.divergence(1, sigma)])
        assert 0.6 * bound <= distance <= bound
        assert distance * sigma**2 <= 0.0203


@pytest.mark.parametrize("sigma", SIGMAS)
def test_moments_of_the_ratio_obey_the_stated_bounds(sigma: float) -> None:
    with mpmath.workdps(40):
        p, q = laws(sigma)
        s = 1 / mpmath.mpf(sigma) ** 2
        second, third, fourth = (
            expectation([a * (b / a - 1) ** n for a, b in zip(p, q, strict=True)]) for n in (2, 3, 4)
        )
        slack = mpmath.mpf(10) ** -30  # rounding of the sums; the theta terms are below 1e-70
        assert s**2 / 288 - slack <= second <= s**2 / 288 + s**4 / 150000 + slack
        assert third >= s**3 / 1728 - slack
        assert 0 <= fourth <= s**4 / 24 * mpmath.mpf(83) / 7200 * mpmath.exp(mpmath.mpf(1) / 6) + slack


def power_of_pairs(variables: int, power: int) -> Counter[tuple[int, ...]]:
    """The polynomial (sum over pairs of U_i U_j)^power: exponents -> coefficient."""
    polynomial: Counter[tuple[int, ...]] = Counter({(0,) * variables: 1})
    for _ in range(power):
        product: Counter[tuple[int, ...]] = Counter()
        for exponents, coefficient in polynomial.items():
            for i, j in combinations(range(variables), 2):
                raised = tuple(e + (n in (i, j)) for n, e in enumerate(exponents))
                product[raised] += coefficient
        polynomial = product
    return polynomial


def uniform_moment(n: int) -> Fraction:
    return Fraction(0) if n % 2 else Fraction(1, 2**n * (n + 1))


def expected_power(variables: int, power: int) -> Fraction:
    terms = power_of_pairs(variables, power).items()
    return sum((c * math.prod(uniform_moment(e) for e in exponents) for exponents, c in terms), Fraction(0))


def test_exact_coefficients_of_the_moment_series() -> None:
    m = {variables: [expected_power(variables, n) for n in range(7)] for variables in (2, 3, 4)}
    assert m[2][2] / 2 == Fraction(1, 288)
    assert m[2][4] / 24 == Fraction(1, 153600)
    assert m[4][4] == Fraction(83, 7200)
    for n in range(1, 7):
        third = m[3][n] - 3 * m[2][n]
        fourth = m[4][n] - 4 * m[3][n] + 6 * m[2][n]
        assert third >= 0
        assert 0 <= fourth <= m[4][n]
        assert n >= 3 or third == 0
        assert n >= 4 or fourth == 0
    assert (m[3][3] - 3 * m[2][3]) / 6 == Fraction(1, 1728)


def test_elementary_inequality() -> None:
    ratio = np.concatenate([np.linspace(1e-9, 3, 300_001), np.logspace(0.5, 6, 1000)])
    a = ratio - 1
    gap = a + a**2 / 2 - a**3 / 6 + a**4 / 3 - ratio * np.log(ratio)
    assert np.all(gap >= -1e-15 * (1 + a**4))
    assert gap[np.abs(a) > 0.1].min() > 0


def test_last_step_has_room() -> None:
    for sigma in np.linspace(3, 50, 200):
        s = sigma**-2.0
        gain = s**3 / 10368
        loss = s**4 / 300000 + 83 / 7200 * math.exp(1 / 6) * s**4 / 72 + 87 * math.exp(-2 * math.pi**2 * sigma**2)
        assert loss < 0.25 * gain


def test_product_laws_are_within_the_bound() -> None:
    """Twelve coordinates: distance by convolving the log-ratio's law on a grid, rounded away from zero."""
    sigma, coordinates, step = 3.0, 12, 1e-5
    p, q = laws(sigma)
    p_full = np.array([float(v) for v in p[:0:-1] + p])
    q_full = np.array([float(v) for v in q[:0:-1] + q])
    keep = p_full > 1e-18
    log_ratio = np.log(q_full[keep] / p_full[keep])
    cells = np.rint(log_ratio / step).astype(int)
    law = np.bincount(cells - cells.min(), weights=p_full[keep])
    size = (len(law) - 1) * coordinates + 1
    joint = np.fft.irfft(np.fft.rfft(law, 2 * size) ** coordinates, 2 * size)[:size].clip(0)
    ratio = np.exp(step * (np.arange(size) + coordinates * cells.min()))
    distance = 0.5 * float(np.sum(joint * np.abs(ratio - 1)))
    bound = discrete_slack.total_variation([discrete_slack.divergence(coordinates, sigma)])
    assert 0.6 * bound <= distance <= bound


@pytest.mark.parametrize("coordinates", [1, 1000, 10**6])
@pytest.mark.parametrize("rounds", [1, 20])
@pytest.mark.parametrize("target", [1e-3, 1e-9, 1e-20])
def test_smallest_sigma_meets_its_target_and_no_smaller_one_does(coordinates: int, rounds: int, target: float) -> None:
    def found(sigma: int) -> float:
        return discrete_slack.total_variation([discrete_slack.divergence(coordinates, sigma)] * rounds)

    sigma = discrete_slack.smallest_sigma(coordinates, rounds, target)
    assert found(sigma) <= target
    if 3 < sigma < 10**11:
        assert found(sigma - 1) > target


def test_total_variation_is_at_most_one() -> None:
    assert discrete_slack.total_variation([100.0]) == 1.0
    assert discrete_slack.total_variation([]) == 0.0

"""Noise in shares: large enough together, and as close to one discrete Gaussian as proved."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.privacy.noise_shares import SMALLEST_SHARE, log_ratio, share_sigma, smallest_sigma, total_variation


@pytest.mark.parametrize("sigma", [3, 4, 7.5, 1000, 2**22 + 1, 2**53])
@pytest.mark.parametrize("shares", [1, 2, 3, 7, 180])
def test_a_share_is_the_smallest_whole_number_that_is_enough(sigma: float, shares: int) -> None:
    share = share_sigma(sigma, shares)
    assert share**2 * shares >= Fraction(sigma) ** 2 > (share - 1) ** 2 * shares


def law(sigma_squared: float, reach: int) -> NDArray[np.float64]:
    points = np.arange(-reach, reach + 1)
    weights = np.exp(-(points**2) / (2 * sigma_squared))
    return weights / weights.sum()


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("shares", [2, 3, 6])
def test_the_law_of_the_sum_is_within_tau_of_one_discrete_gaussian(share: float, shares: int) -> None:
    """By exact convolution, at every point within eight standard deviations; for two shares tau is at most 50 times the truth."""
    reach = 40
    one = law(share**2, reach)
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    whole = law(shares * share**2, shares * reach)
    near = slice(shares * reach - (width := round(8 * share * math.sqrt(shares))), shares * reach + width + 1)
    ratios = np.abs(np.log(total[near] / whole[near]))
    tau = log_ratio(share, shares)
    assert ratios.max() <= tau
    if shares == 2:
        assert ratios.max() > tau / 50
    assert np.abs(total - whole).sum() / 2 <= math.expm1(tau), "the total variation of one coordinate"


@pytest.mark.parametrize("share", [0.5, 1, 3, 7.5, 100, 2.0**26])
@pytest.mark.parametrize("shares", [1, 2, 10, 180])
def test_tau_is_rounded_upwards_and_by_little(share: float, shares: int) -> None:
    with mpmath.workdps(60):
        slope = 2 * mpmath.pi**2 * mpmath.mpf(share) ** 2
        exact = 10 * mpmath.fsum(mpmath.exp(-slope * j / (j + 1)) for j in range(1, shares))
        found = mpmath.mpf(log_ratio(share, shares))
        assert found >= exact
        assert found <= exact * (1 + mpmath.mpf(10) ** -8) or found < mpmath.mpf(2) ** -1000
        assert (found == 0) == (shares == 1)


def test_the_addition_to_delta_bounds_k_times_e_to_tau_minus_1() -> None:
    for sigma, shares, k in ((3, 3, 10), (3, 29, 1000), (10, 199, 10**5), (2**16, 199, 10**6)):
        tau = log_ratio(share_sigma(sigma, shares), shares)
        with mpmath.workdps(60):
            exact = k * mpmath.expm1(mpmath.mpf(tau))
            found = total_variation(k, sigma, shares)
            assert min(exact, 1) <= found <= min(1, exact * (1 + 1e-9)) or found < 1e-300
    assert total_variation(10**6, 2**16, 180) < 1e-300, "nothing at the sizes that are used"
    assert total_variation(10, 3, 1) == 0


@pytest.mark.parametrize(("k", "rounds", "shares"), [(1, 1, 2), (1000, 10, 3), (10**6, 50, 1000)])
@pytest.mark.parametrize("log_variation", [-690.0, -200.0, -30.0])
def test_from_the_smallest_sigma_on_all_rounds_stay_within_their_total_variation(
    k: int, rounds: int, shares: int, log_variation: float
) -> None:
    least = smallest_sigma(k, rounds, shares, log_variation)
    assert share_sigma(least, shares) >= SMALLEST_SHARE
    for sigma in (least, least + 1, 10 * least):
        assert rounds * total_variation(k, sigma, shares) <= math.exp(log_variation)


def test_figures_that_make_no_sense_are_refused() -> None:
    for sigma, shares in ((0.4, 2), (math.nan, 2), (1.0, 0)):
        with pytest.raises(UsageError, match="shares of noise"):
            log_ratio(sigma, shares)

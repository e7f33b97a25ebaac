"""Noise in shares: large enough together, as close to one discrete Gaussian as proved, and drawn with the stated variance."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from distqexp.arrays import IntegerArray
from distqexp.errors import UsageError
from distqexp.federation.noise_shares import SharedNoise, log_ratio, noisy_vector

ALARM = 1e-7


class Kept:
    """A keeper in memory, as a ledger's owner has one on the disk."""

    def __init__(self) -> None:
        self.stored: dict[bytes, IntegerArray] = {}

    def kept(self, sums: IntegerArray) -> IntegerArray | None:
        return self.stored.get(sums.tobytes())

    def keep(self, sums: IntegerArray, noisy: IntegerArray) -> None:
        self.stored[sums.tobytes()] = noisy


@pytest.mark.parametrize("sigma", [3, 4, 1000, 2**22 + 1, 2**53])
@pytest.mark.parametrize(("sites", "tolerated"), [(1, 0), (2, 1), (4, 1), (7, 3), (200, 20)])
def test_a_share_is_the_smallest_whole_number_that_is_enough(sigma: int, sites: int, tolerated: int) -> None:
    shared = SharedNoise(sites, tolerated, sigma, 10)
    share, honest = shared.share_sigma, sites - tolerated
    assert share**2 * honest >= sigma**2 > (share - 1) ** 2 * honest
    assert shared.variance(honest) >= sigma**2
    assert shared.variance(sites) == sites * share**2
    for present in (honest - 1, sites + 1):
        with pytest.raises(UsageError, match=f"found {present}; expected {honest} to {sites}"):
            shared.variance(present)


def test_at_large_k_the_variance_is_what_the_issue_wants() -> None:
    """Within 2 % of sigma^2 m / (m - t) with all sites, and of sigma^2 with t missing: s is a whole number, and sigma is large."""
    shared = SharedNoise(4, 1, 2**16, 100_000)
    assert shared.variance(4) == pytest.approx(2**32 * 4 / 3, rel=1e-4)
    assert shared.variance(3) == pytest.approx(2**32, rel=1e-4)


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
    for sigma, sites, k in ((3, 4, 10), (3, 30, 1000), (10, 200, 10**5), (2**16, 200, 10**6)):
        shared = SharedNoise(sites, 1, sigma, k)
        tau = shared.log_ratio if shared.share_sigma >= 1 else math.nan
        with mpmath.workdps(60):
            exact = k * mpmath.expm1(mpmath.mpf(tau))
            assert (
                min(exact, 1) <= shared.total_variation <= min(1, exact * (1 + 1e-9)) or shared.total_variation < 1e-300
            )
    assert SharedNoise(200, 20, 2**16, 10**6).total_variation < 1e-300, "nothing at the sizes that are used"
    assert SharedNoise(1, 0, 3, 10).total_variation == 0


def test_the_noise_of_the_present_sites_has_the_stated_variance_and_ten_percent_show() -> None:
    """Draws from the system's entropy: each of the two-sided tests raises a false alarm with probability ALARM."""
    shared = SharedNoise(sites=4, tolerated=1, sigma=3000, coordinates=12_000)
    sums = np.arange(12_000, dtype=np.int64)
    noise = [noisy_vector(sums, shared, Kept()) - sums for _ in range(3)]

    def accepted(values: NDArray[np.int64], variance: float) -> bool:
        square = float(np.square(values.astype(float)).sum()) / variance
        return 2 * min(chi2.cdf(square, values.size), chi2.sf(square, values.size)) > ALARM

    present = noise[0] + noise[1] + noise[2]
    assert accepted(present, shared.variance(3))
    assert not accepted(present, 1.1 * shared.variance(3))
    assert not accepted(present, 0.9 * shared.variance(3))
    assert accepted(noise[0], shared.share_sigma**2)
    assert not accepted(noise[0], shared.sigma**2)


def test_a_repeat_sends_the_same_vector_and_other_sums_get_other_noise() -> None:
    shared, kept = SharedNoise(4, 1, 1000, 200), Kept()
    sums = np.full(200, np.iinfo(np.int64).max)
    first = noisy_vector(sums, shared, kept)
    assert np.array_equal(noisy_vector(sums.copy(), shared, kept), first)
    assert (first < 0).any(), "sums wrap modulo 2^64"
    other = noisy_vector(sums - 1, shared, kept)
    with np.errstate(over="ignore"):
        assert not np.array_equal(first - sums, other - (sums - 1))
    assert np.array_equal(kept.stored[sums.tobytes()], first), "it is kept before it is used"


def test_figures_that_make_no_sense_are_refused() -> None:
    for args in ((3, 3, 10, 1), (3, -1, 10, 1), (3, 1, 2, 1), (3, 1, 2**53 + 2, 1), (3, 1, 10, 0)):
        with pytest.raises(UsageError, match="expected"):
            SharedNoise(*args)
    for sigma, shares in ((0.4, 2), (math.nan, 2), (1.0, 0)):
        with pytest.raises(UsageError, match="shares of noise"):
            log_ratio(sigma, shares)
    with pytest.raises(UsageError, match="expected int64"):
        noisy_vector(np.zeros(3, dtype=np.int64), SharedNoise(3, 1, 10, 4), Kept())

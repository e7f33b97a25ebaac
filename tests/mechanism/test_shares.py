"""Shares of noise: the sites present have the stated variance together, and a share that is too small shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from distqexp.errors import UsageError
from distqexp.mechanism.shares import NoiseShare, SumOfShares
from distqexp.privacy.noise_shares import share_sigma

K, REPEATS, SITES, TOLERATED, SIGMA = 100_000, 2, 4, 1, 2**16

TOLERANCE = 0.02
"""The entropy is the system's, so nothing repeats. The mean square of 200,000 normal numbers is off by 2 % with probability 3e-10 (chi
square), 6.3 standard deviations: false alarms are below 1e-8 together. At 100,000 numbers 2 % would be 4.5 deviations, 8e-6."""


def noise(sites: int, sigma: float) -> NDArray[np.float64]:
    """The noise in the sums of ``sites`` sites that draw shares of ``sigma``."""
    sums = np.zeros(K, dtype=np.int64)
    rule = NoiseShare(K, round(sigma))
    shares = [[rule.draw(sums, None, 0) for _ in range(sites)] for _ in range(REPEATS)]
    return np.concatenate([np.sum(one, axis=0) for one in shares]).astype(float)


def accepted(values: NDArray[np.float64], variance: float) -> bool:
    return bool(abs(np.mean(values**2) / variance - 1) <= TOLERANCE)


def test_the_tolerance_is_wide_enough() -> None:
    values = K * REPEATS
    assert chi2.sf(values * (1 + TOLERANCE), values) + chi2.cdf(values * (1 - TOLERANCE), values) < 1e-9


def test_the_noise_of_the_present_sites_has_the_stated_variance_and_a_share_ten_percent_too_small_shows() -> None:
    honest = SITES - TOLERATED
    share = share_sigma(SIGMA, honest)
    three, fourth, small = noise(honest, share), noise(1, share), noise(1, 0.9 * share)
    assert accepted(three, SIGMA**2), "with as many missing as may be"
    assert accepted(three + fourth, SIGMA**2 * SITES / honest), "with all present"
    assert not accepted(three + small, SIGMA**2 * SITES / honest), "one site's share is too small"
    assert not accepted(0.9 * (three + fourth), SIGMA**2 * SITES / honest), "all of them are"
    correlation = np.corrcoef(three, fourth)[0, 1] * math.sqrt(len(three))
    assert abs(correlation) < 6.5, "sites draw independently: a normal number of 6.5 deviations has probability 8e-11"


def test_sums_wrap_and_the_pooled_ones_stay_as_they_are() -> None:
    rule, sums = NoiseShare(1000, 100), np.full(1000, np.iinfo(np.int64).max)
    draw = rule.draw(sums, None, 0)
    noisy = rule.noisy_sums(sums, draw)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(noisy - sums, draw)
    assert (noisy < 0).any()
    assert (noisy > 0).any()
    np.testing.assert_array_equal(SumOfShares().noisy_sums(noisy, SumOfShares().draw(noisy, 17, 0)), noisy)


def test_seeds_and_other_sums_are_refused() -> None:
    with pytest.raises(UsageError, match="found 17; expected none"):
        NoiseShare(4, 100).draw(np.zeros(4, dtype=np.int64), 17, 0)
    for sums in (np.zeros(3, dtype=np.int64), np.zeros(4)):
        with pytest.raises(UsageError, match=r"expected int64 \(4,\)"):
            NoiseShare(4, 100).draw(sums, None, 0)

"""Samplers tested both ways: the right law is accepted, a sigma that is a tenth too small is rejected.

Draws from the operating system's entropy can't be repeated: the tests of this file that use them raise a false alarm
with probability below 1e-6 all together. Seeded draws are the same every time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import chi2, kstest

from distqexp.errors import UsageError
from distqexp.mechanism import noise
from distqexp.mechanism.randomness import SystemRandomness

ALARM = 1e-8


def p_value_of_bins(draws: NDArray[np.int64], sigma: float) -> float:
    """Chi-square p-value against N_Z(0, sigma^2) for sigma >= 64, in about 64 bins of equal probability.

    A bin's probability is that of the rounded Gaussian, within 0.0203 / sigma^2 of the discrete one: nothing here.
    """
    edges = np.unique(np.rint(sigma * ndtri(np.arange(1, 64) / 64)))  # bin i: edges[i-1] < x <= edges[i]
    probability = np.diff(ndtr((edges + 0.5) / sigma), prepend=0.0, append=1.0)
    counts = np.bincount(np.searchsorted(edges, draws, side="left"), minlength=len(probability))
    expected = probability * len(draws)
    return float(chi2.sf(np.sum((counts - expected) ** 2 / expected), len(probability) - 1))


def p_value_of_integers(draws: NDArray[np.int64], sigma: float) -> float:
    """Chi-square p-value against N_Z(0, sigma^2) with a bin for every integer within 3 sigma, tails pooled."""
    reach = math.ceil(3 * sigma)
    support = np.arange(-math.ceil(40 * sigma), math.ceil(40 * sigma) + 1)
    mass = np.exp(-(support**2) / (2 * sigma**2))
    probability = np.bincount(np.clip(support, -reach, reach) + reach, weights=mass / mass.sum())
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=len(probability))
    expected = probability * len(draws)
    return float(chi2.sf(np.sum((counts - expected) ** 2 / expected), len(probability) - 1))


@pytest.mark.parametrize("exponent", [7, 12, 17, 22])
def test_discrete_noise_has_its_law_at_every_scale(exponent: int) -> None:
    """False alarm below 1e-7 (three checks of 1e-8 or less)."""
    sigma = 2**exponent
    draws = noise.draw_discrete(20_000, sigma)
    assert draws.dtype == np.int64
    assert draws.shape == (20_000,)
    assert p_value_of_bins(draws, sigma) > ALARM
    assert p_value_of_bins(draws, sigma / 0.9) < ALARM  # as drawn, these are a tenth too small for this law
    correlation = float(np.mean(draws[1:] / sigma * (draws[:-1] / sigma)))
    assert abs(correlation) * math.sqrt(len(draws)) < 5.8
    low_bit = int(np.sum(draws & 1))  # an odd value is as likely as an even one
    assert abs(low_bit - 10_000) < 5.8 * math.sqrt(5_000)


@pytest.mark.parametrize("sigma", [1, 4])
def test_discrete_noise_is_exact_where_discreteness_shows(sigma: int) -> None:
    """False alarm 1e-8."""
    draws = noise.draw_discrete(60_000, sigma)
    assert p_value_of_integers(draws, sigma) > ALARM
    assert p_value_of_integers(draws, sigma / 0.9) < ALARM
    if sigma == 1:  # the rounded Gaussian is told apart here: P[0] = 0.3829 against 0.3989
        rounded = noise.draw_insecure(60_000, 1, noise_seed=3, round=0, noise="discrete")
        assert p_value_of_integers(rounded, 1.0) < ALARM


@pytest.mark.parametrize("k", [100_000, 100_001])
@pytest.mark.parametrize("exponent", [10, 20, 35])
def test_continuous_noise_has_its_law(k: int, exponent: int) -> None:
    """False alarm below 1e-7 (four checks of 1e-8 or less)."""
    draws = noise.draw_continuous(k, 2.0**exponent)
    assert draws.dtype == np.int64
    assert_normal(draws / 2.0**exponent, k)


@pytest.mark.parametrize("k", [100_000, 100_001])
def test_normal_numbers_before_rounding_have_their_law(k: int) -> None:
    """False alarm below 1e-7 (four checks of 1e-8 or less)."""
    draws = SystemRandomness().normal(k)
    assert draws.dtype == np.float64
    assert_normal(draws, k)


def assert_normal(draws: NDArray[np.float64], k: int) -> None:
    assert draws.shape == (k,)
    assert kstest(draws, "norm").pvalue > ALARM
    assert kstest(draws * 0.9, "norm").pvalue < ALARM
    half = k // 2
    first, second = draws[:half], draws[-half:]
    assert abs(np.mean(first * second)) * math.sqrt(half) < 5.8
    assert abs(np.mean((first**2 - 1) * (second**2 - 1)) / 2) * math.sqrt(half) < 8  # heavier tails than a normal
    assert np.all(np.isfinite(draws))


@pytest.mark.parametrize("sigma", [1.0, 2.5])
def test_continuous_noise_is_the_rounded_gaussian_to_the_integer(sigma: float) -> None:
    """Chi-square with a bin for every integer, where rounding shows. False alarm 1e-8."""
    draws = noise.draw_continuous(60_000, sigma)
    reach = math.ceil(3 * sigma)
    cells = np.arange(-reach, reach)
    probability = np.diff(ndtr((cells + 0.5) / sigma), prepend=0.0, append=1.0)
    expected = probability * len(draws)
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=len(probability))
    assert chi2.sf(np.sum((counts - expected) ** 2 / expected), len(probability) - 1) > ALARM
    if sigma == 1:  # told from the discrete Gaussian: P[0] = 0.3829 against 0.3989
        assert p_value_of_integers(draws, sigma) < ALARM


def test_entropy_differs_between_draws() -> None:
    """A repeat of 1,000 draws would have probability far below 1e-100."""
    assert not np.array_equal(noise.draw_discrete(1000, 4096), noise.draw_discrete(1000, 4096))
    assert not np.array_equal(noise.draw_continuous(1000, 1.0), noise.draw_continuous(1000, 1.0))


@pytest.mark.parametrize("sigma", [4, 128, 2**22])
def test_seeded_stand_in_has_nearly_the_same_law(sigma: int) -> None:
    draws = noise.draw_insecure(20_000, sigma, noise_seed=1, round=2, noise="discrete")
    assert draws.dtype == np.int64
    p_value = p_value_of_integers if sigma < 64 else p_value_of_bins
    assert p_value(draws, sigma) > 1e-6  # fixed seed: no alarm, now or later
    assert p_value(draws, sigma / 0.9) < 1e-6
    continuous = noise.draw_insecure(20_000, sigma, noise_seed=1, round=2, noise="gaussian")
    assert continuous.dtype == np.int64
    assert p_value(continuous, sigma) > 1e-6
    assert p_value(continuous, sigma / 0.9) < 1e-6
    assert not np.array_equal(continuous, draws)


def test_seeded_stand_in_depends_on_seed_and_round_alone() -> None:
    first = noise.draw_insecure(100, 4096, noise_seed=7, round=0, noise="discrete")
    assert np.array_equal(first, noise.draw_insecure(100, 4096, noise_seed=7, round=0, noise="discrete"))
    assert np.array_equal(first[:10], noise.draw_insecure(10, 4096, noise_seed=7, round=0, noise="discrete"))
    for seed, round_number in ((8, 0), (7, 1), (-7, 0)):
        assert not np.array_equal(
            first, noise.draw_insecure(100, 4096, noise_seed=seed, round=round_number, noise="discrete")
        )


def test_seeded_stand_in_keeps_its_values_across_versions() -> None:
    found = noise.draw_insecure(6, 1000, noise_seed=0, round=0, noise="discrete")
    assert found.tolist() == [-917, 1550, -845, -2300, 1819, 1105]


def test_arguments_out_of_range_are_refused() -> None:
    for draw in (noise.draw_discrete, noise.draw_continuous):
        with pytest.raises(UsageError, match="coordinates of noise: found 0"):
            draw(0, 1)
        for sigma in (0, -1, math.inf, math.nan):
            with pytest.raises(UsageError, match="sigma of noise: found"):
                draw(1, sigma)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sigma of continuous noise: found"):
        noise.draw_continuous(1, 2.0**53 + 2)
    for sigma in (1.5, 2**53 + 2):
        with pytest.raises(UsageError, match="sigma of discrete noise: found"):
            noise.draw_discrete(1, sigma)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"mechanism.noise: found 'laplace'"):
        noise.draw_insecure(1, 1.0, noise_seed=0, round=0, noise="laplace")


def test_a_stream_never_runs_out_whatever_the_entropy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nonce begins with a counter of blocks: drawn at random, it could overflow in the middle of a draw."""
    monkeypatch.setattr("os.urandom", lambda count: b"\xff" * count)
    stream = SystemRandomness()
    assert len(stream.bytes(1 << 16)) == 1 << 16
    assert stream.bytes(64) != stream.bytes(64)

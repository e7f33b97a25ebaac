"""The counter-based public streams: windows, keys, distributions, and an independent implementation of Philox."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import erfc

from distqexp.errors import UsageError
from distqexp.geometry.philox import normal_quantiles, random_signs, raw_words, standard_normal_entries, stream_key

KEY = stream_key("test", 1)
FALSE_ALARM = 1e-7  # of each statistical test below


def philox_block(key: int, counter: int) -> list[int]:
    """Philox-4x64-10 in plain integers: the oracle."""
    mask = 2**64 - 1
    c = [(counter >> (64 * i)) & mask for i in range(4)]
    k = [key & mask, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & mask, (first >> 64) ^ c[3] ^ k[1], first & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def test_the_oracle_gives_the_published_answer_for_zero_key_and_counter() -> None:
    assert philox_block(0, 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


def test_words_are_philox_from_counter_one_low_half_first() -> None:
    outputs = [word for block in range(4) for word in philox_block(int.from_bytes(KEY, "little"), block + 1)]
    expected = [half for word in outputs for half in (word & 0xFFFFFFFF, word >> 32)]
    assert raw_words(KEY, 0, 32).tolist() == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(first=st.integers(0, 5000), count=st.integers(0, 300))
def test_a_window_changes_no_entry(first: int, count: int) -> None:
    window = slice(first, first + count)
    assert np.array_equal(raw_words(KEY, first, count), raw_words(KEY, 0, 5300)[window])
    assert np.array_equal(standard_normal_entries(KEY, first, count), standard_normal_entries(KEY, 0, 5300)[window])
    assert np.array_equal(random_signs(KEY, first, count), random_signs(KEY, 0, 5300)[window])


def test_windows_far_out_in_the_stream_agree() -> None:
    far = 2**45 + 3
    assert np.array_equal(raw_words(KEY, far, 20)[5:], raw_words(KEY, far + 5, 15))
    block, skip = divmod(far, 8)
    word = philox_block(int.from_bytes(KEY, "little"), block + 1)[skip // 2]
    assert int(raw_words(KEY, far, 1)[0]) == (word >> 32 if skip % 2 else word & 0xFFFFFFFF)


@pytest.mark.parametrize(("key", "first", "count"), [(b"short", 0, 1), (KEY, -1, 1), (KEY, 0, -1)])
def test_bad_windows_are_refused(key: bytes, first: int, count: int) -> None:
    with pytest.raises(UsageError, match="random stream"):
        raw_words(key, first, count)


def test_keys_differ_whatever_the_parts() -> None:
    grid = [("subspace", "gaussian", 10, 5, seed, round_) for seed in range(-3, 60) for round_ in range(60)]
    awkward: list[tuple[str | int, ...]] = [
        (), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (1, 11), (11, 1), (111,), (-1,), ("é",),
        (2**200,),
    ]  # fmt: skip
    keys = [stream_key(*parts) for parts in [*grid, *awkward]]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}


def test_normal_entries_are_on_the_grid_exact_in_float32_and_odd() -> None:
    words = np.concatenate([raw_words(KEY, 0, 10_000), np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)])
    entries = normal_quantiles(words)
    assert np.array_equal(entries * 2**16, np.rint(entries * 2**16))
    assert np.array_equal(entries, entries.astype(np.float32).astype(np.float64))
    assert np.array_equal(normal_quantiles(~words), -entries)
    assert np.abs(entries).max() <= 6.34


def test_normal_entries_follow_the_normal_law() -> None:
    """Dvoretzky-Kiefer-Wolfowitz bound on the Kolmogorov-Smirnov distance; false alarm <= 1e-7."""
    n = 200_000
    entries = standard_normal_entries(KEY, 0, n)
    bound = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n)) + 1e-5  # the grid moves the law by less than 1e-5
    assert stats.kstest(entries, "norm").statistic < bound
    assert stats.kstest(1.05 * entries, "norm").statistic > bound  # the test sees 5 %


def test_second_moment_over_the_whole_word_is_one() -> None:
    """Exact up to what the finest and the most extreme words leave out; no randomness."""
    words = (np.arange(2**20, dtype=np.uint64) * 2**12 + 2**11).astype(np.uint32)
    assert abs(float(np.mean(normal_quantiles(words) ** 2)) - 1) < 1e-4


def test_signs_are_fair_and_neighbours_unrelated() -> None:
    """Binomial tests at lags 0 to 40; false alarm <= 1e-7 in all."""
    n = 2**18
    signs = random_signs(KEY, 0, n + 40).astype(np.int64)
    assert set(signs.tolist()) == {-1, 1}
    low, high = stats.binom.ppf([FALSE_ALARM / 82, 1 - FALSE_ALARM / 82], n, 0.5)
    for products in [signs[:n], *(signs[:n] * signs[lag : n + lag] for lag in range(1, 41))]:
        assert low <= np.count_nonzero(products == 1) <= high


def test_streams_of_other_seeds_and_rounds_are_unrelated() -> None:
    """Correlations among 12 streams; each is normal of variance 1/n: false alarm < 66 * 2e-9 < 1e-6."""
    n = 20_000
    names = [("gaussian", seed, round_) for seed in (0, 1, 10) for round_ in (0, 1, 10)] + [
        ("srht", 0, 0),
        ("sjlt", 0, 0),
    ]
    rows = np.stack([standard_normal_entries(stream_key(*name), 0, n) for name in names])
    rows = np.vstack([rows, standard_normal_entries(stream_key(*names[0]), 1, n)])  # shifted by one word
    for one, other in itertools.combinations(rows, 2):
        assert abs(np.mean(one * other)) * math.sqrt(n) < 6.0


@pytest.mark.slow
def test_every_rounding_boundary_is_clear_of_library_differences() -> None:
    """All 416,000 boundaries of the map from words to entries: entries on both sides are exact.

    Where a boundary lies in units of words, of the lower tail, float64 knows to 1e-5. Those within 1e-3 of a word are looked at with 30
    digits; the others are farther from one than the margin asks for.
    """
    mp = pytest.importorskip("mpmath")
    boundary = (np.arange(416_000) + 0.5) / 2**16
    place = erfc(boundary / math.sqrt(2)) * 2**31 - 0.5
    margin, below = 1.0, np.floor(place).astype(np.int64)
    density = np.exp(-np.square(boundary) / 2) / math.sqrt(2 * math.pi)
    close = np.abs(place - np.rint(place)) < 1e-3
    assert 1e-3 / 2**32 / (density * boundary).max() > 5e-14
    with mp.workdps(30):
        for m in np.flatnonzero(close).tolist():
            exact = mp.erfc((mp.mpf(m) + 0.5) / 2**16 / mp.sqrt(2)) * 2**31 - 0.5
            assert abs(float(exact - mp.mpf(float(place[m])))) < 1e-5
            below[m] = int(mp.floor(exact))
            margin = min(margin, float(abs(exact - mp.nint(exact)) / 2**32) / density[m] / boundary[m])
    index = np.arange(int(np.argmax(below < 0)) if (below < 0).any() else len(below))
    below = below[index]
    assert close.sum() > 100
    assert margin > 5e-15
    # A word at or below the boundary lies beyond -(m + 1/2), the next one on the near side.
    assert (normal_quantiles(below.astype(np.uint32)) * 2**16 <= -(index + 1)).all()
    assert (normal_quantiles((below + 1).astype(np.uint32)) * 2**16 >= -index).all()

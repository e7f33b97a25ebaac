"""The sampler of discrete Gaussian noise: its law by enumeration, its decisions against mpmath, its draws against OpenDP's.

Streams are fixed, so nothing here raises a false alarm, now or later; OpenDP's own draws are from the operating system's entropy.
"""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import chi2

from distqexp.mechanism import discrete_gaussian
from distqexp.mechanism.discrete_gaussian import (
    PLACE_BITS,
    SLOT_BITS,
    TAIL_BITS,
    Histogram,
    _candidates,
    density,
    discrete_gaussians,
    histogram,
)

ALARM = 1e-6
SIGMAS = [1, 2, 3, 11, 63, 64, 127, 128, 1000, 2**20 - 1, 3 * 2**20, 2**45 + 1, 2**53 - 1, 2**53]
TAIL_SLOT = (1 << SLOT_BITS) - 1


class Seeded:
    """A stream of fixed bytes that counts what is read."""

    def __init__(self, seed: int) -> None:
        self.generator, self.read = np.random.default_rng(seed), 0

    def __call__(self, count: int) -> bytes:
        self.read += count
        return self.generator.bytes(count)


class Tape:
    """A stream of the words that are written on it; more of them are not to be read."""

    def __init__(self, words: list[int]) -> None:
        self.words = words

    def __call__(self, count: int) -> bytes:
        assert count == 8
        return self.words.pop(0).to_bytes(8, "little")


def unread(count: int) -> bytes:
    raise AssertionError(f"{count} bytes more are read")


def pairs(first: list[int], second: list[int]) -> NDArray[np.int64]:
    return np.array([first, second], dtype=np.uint64).view(np.int64)


def word(side: int, slot: int, place: int) -> int:
    return (side << 63) | (slot << PLACE_BITS) | place


def exact_density(x: int, sigma: int) -> mpmath.mpf:
    return mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(sigma) ** 2))


# --- the histogram ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [64, 128, 700])
@pytest.mark.parametrize(("x", "sigma"), [(0, 1), (1, 1), (77, 10), (2**56 - 1, 2**53), (40 * 2**20 + 3, 2**20 + 1)])
def test_densities_are_enclosed(x: int, sigma: int, bits: int) -> None:
    with mpmath.workprec(1200):
        low, high = density(x, sigma, bits)
        assert low < exact_density(x, sigma) * 2**bits < high
        assert high - low == 3


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_histogram_lies_above_the_density_and_what_is_certain_below_it(sigma: int) -> None:
    """Every block at its first integer and beyond its last one, and the first pieces of the tail; blocks are monotone between."""
    table = histogram(sigma)
    weights = table.weights.tolist()
    blocks = len(weights) - 1
    assert np.bincount(table.slots).tolist() == weights
    assert len(table.slots) == 1 << SLOT_BITS
    assert table.slots[-1] == blocks
    assert weights[-1] == 1
    assert table.shift <= PLACE_BITS
    assert blocks << table.shift >= 6 * sigma
    assert table.height * math.sqrt(math.pi / 2) * sigma / (1 << table.shift) > 0.95 * 2**SLOT_BITS or sigma < 64
    with mpmath.workprec(300):
        for block in range(blocks):
            top = table.height * exact_density(block << table.shift, sigma) / weights[block]
            assert top <= 1
            assert abs(table.tops[block] / top - 1) < 2.0**-52
            last = table.height * exact_density((block + 1) << table.shift, sigma) / weights[block]
            assert 0 <= last * 2**64 - int(table.certain[block]) < 2
        assert table.certain[blocks] == 0
        for piece in range(40):
            first = (blocks << table.shift) + (piece << (table.shift + TAIL_BITS))
            assert table.height * 2 ** (TAIL_BITS + piece + 1) * exact_density(first, sigma) < 0.2


@pytest.mark.parametrize("sigma", [1, 3, 50, 129, 300])
def test_candidates_times_acceptances_are_the_discrete_gaussian(sigma: int) -> None:
    """By enumeration of every side, slot and place of the blocks: proposal times acceptance is the density, to rounding."""
    table = histogram(sigma)
    side, slot, place = (
        grid.reshape(-1)
        for grid in np.meshgrid([0, 1], np.arange(TAIL_SLOT), np.arange(1 << table.shift), indexing="ij")
    )
    first = ((side << 63) | (slot << PLACE_BITS) | place).astype(np.int64)
    found, accepted = _candidates(np.stack([first, np.zeros_like(first)]), table, unread)
    assert accepted.all()  # a uniform number of 0
    values, counts = np.unique(found, return_counts=True)
    reach = (len(table.weights) - 1) << table.shift
    assert values.tolist() == list(range(-reach, reach))
    weights = table.weights[(np.where(values < 0, ~values, values) >> table.shift)]
    assert (counts == weights).all()  # so the mass kept at x is height exp(-x^2 / (2 sigma^2)) / 2^(17 + shift)
    assert (side == (found < 0)).all()


@pytest.mark.parametrize("sigma", [1, 100, 2**53])
def test_candidates_of_the_tail(sigma: int) -> None:
    """Each piece is half as likely as the one before, and its acceptance is the density by the same factor as the blocks'."""
    table = histogram(sigma)
    first = (len(table.tops) - 1) << table.shift
    for side in (0, -1):
        for zeros, piece in (([], 0), ([], 1), ([], 63), ([0], 64), ([0, 0], 130)):
            place = (1 << (table.shift + TAIL_BITS)) - 3
            tape = Tape([place | 1 << 63, *zeros, (5 << (piece % 64)) & (2**64 - 1) or 1 << 63])
            found, factor = discrete_gaussian._tail_candidate(side, table, tape)
            assert found == (first + (piece << (table.shift + TAIL_BITS)) + place) ^ side
            in_blocks = Fraction(table.height, 2 ** (SLOT_BITS + 1 + table.shift))
            proposal = Fraction(1, 2 ** (SLOT_BITS + 1)) * Fraction(1, 2 ** (piece + 1 + table.shift + TAIL_BITS))
            assert proposal * factor == in_blocks
            assert not tape.words
    found, accepted = _candidates(pairs([word(1, TAIL_SLOT, 0)], [0]), table, Tape([0, 1]))
    assert accepted.tolist() == [True]  # a uniform number of 0 keeps a candidate of the tail, 2^63 refuses it
    assert found.tolist() == [-1 - first]
    assert not _candidates(pairs([word(1, TAIL_SLOT, 0)], [1 << 63]), table, Tape([0, 1]))[1].any()


# --- decisions -------------------------------------------------------------------------------------------------------


def acceptance(first: int, table: Histogram) -> tuple[int, mpmath.mpf]:
    """The candidate of a first word that isn't the tail's, and its acceptance."""
    slot, place = (first >> PLACE_BITS) & TAIL_SLOT, first & ((1 << table.shift) - 1)
    block = int(np.searchsorted(np.cumsum(table.weights), slot, side="right"))
    magnitude = (block << table.shift) + place
    candidate = -1 - magnitude if first >> 63 else magnitude
    return candidate, table.height * exact_density(candidate, table.sigma) / int(table.weights[block])


@pytest.mark.parametrize("sigma", SIGMAS)
def test_every_decision_is_that_of_the_exact_acceptance(sigma: int) -> None:
    """Uniform numbers around the acceptance, from 1 to 2^50 units of 2^-64 away: float64 decides the far ones, digits the near."""
    table = histogram(sigma)
    generator = np.random.default_rng(5)
    first = [int(bits) for bits in generator.integers(0, 2**64, size=60, dtype=np.uint64)]
    first = [bits for bits in first if (bits >> PLACE_BITS) & TAIL_SLOT != TAIL_SLOT]
    first += [word(side, TAIL_SLOT - 1, place) for side in (0, 1) for place in (0, (1 << table.shift) - 1)]
    first += [word(side, 0, 0) for side in (0, 1)]
    with mpmath.workprec(300):
        candidates, acceptances = zip(*(acceptance(bits, table) for bits in first), strict=True)
        for distance in (0, 1, 2**10, 2**20, 2**24, 2**26, 2**50):
            for sign in (-1, 1):
                near = [int(mpmath.floor(exact * 2**64)) + sign * distance for exact in acceptances]
                kept = [i for i, uniform in enumerate(near) if 0 <= uniform < 2**64 and (distance or near[i] == 0)]
                words = pairs([first[i] for i in kept], [near[i] for i in kept])
                found, accepted = _candidates(words, table, unread)
                assert found.tolist() == [candidates[i] for i in kept]
                expected = [near[i] + 1 <= acceptances[i] * 2**64 for i in kept]
                assert accepted.tolist() == expected


@pytest.mark.parametrize("sigma", [2, 1000, 2**53])
def test_more_bits_are_drawn_until_a_decision_is_certain(sigma: int) -> None:
    """The first 64, 128 and 192 bits of the uniform number are those of the acceptance itself; the next ones decide."""
    table = histogram(sigma)
    first = word(1, 1 << 14, 0)
    with mpmath.workprec(600):
        candidate, exact = acceptance(first, table)
        digits = int(mpmath.floor(exact * 2**256)).to_bytes(32, "big")
        words = [int.from_bytes(digits[8 * i : 8 * i + 8], "big") for i in range(4)]
    for more in (1, 2, 3):
        for change, kept in ((-1, True), (1, False)):
            tape = Tape([*words[1:more], words[more] + change])
            found, accepted = _candidates(pairs([first], [words[0]]), table, tape)
            assert (found.tolist(), accepted.tolist()) == ([candidate], [kept])
            assert not tape.words


@pytest.mark.parametrize("sigma", [5, 300, 2**53])
def test_the_slow_decision_is_the_fast_one(sigma: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float64 trusts nothing, the same stream gives the same draws."""
    fast, slow = Seeded(4), Seeded(4)
    draws = discrete_gaussians(20_000, sigma, fast)
    monkeypatch.setattr(discrete_gaussian, "DOUBT", 2.0)
    assert discrete_gaussians(20_000, sigma, slow).tolist() == draws.tolist()
    assert fast.read == slow.read


# --- draws -----------------------------------------------------------------------------------------------------------


def p_value(draws: NDArray[np.int64], sigma: float, edges: NDArray[np.float64]) -> float:
    """Chi-square p-value against N_Z(0, sigma^2), sigma up to a few thousand; cells end at the edges, inclusive."""
    support = np.arange(-math.ceil(40 * sigma), math.ceil(40 * sigma) + 1)
    mass = np.exp(-(support**2) / (2 * sigma**2))
    expected = np.bincount(np.searchsorted(edges, support), weights=mass / mass.sum(), minlength=len(edges) + 1) * len(
        draws
    )
    counts = np.bincount(np.searchsorted(edges, draws), minlength=len(edges) + 1)
    return float(chi2.sf(np.sum((counts - expected) ** 2 / expected), len(edges)))


def quantiles(sigma: float) -> NDArray[np.float64]:
    return np.unique(np.rint(sigma * ndtri(np.arange(1, 64) / 64)))


@pytest.mark.parametrize("sigma", [4, 10, 70, 1500])
def test_draws_have_their_law_and_candidates_alone_do_not(sigma: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is 1 % off is rejected, and so are candidates of which none is refused."""
    edges = np.unique(np.concatenate([quantiles(sigma), np.rint(np.array([-4.4, -4, -3.5, 3.5, 4, 4.4]) * sigma)]))
    draws = discrete_gaussians(1_000_000, sigma, Seeded(sigma))
    assert p_value(draws, sigma, edges) > ALARM
    for wrong in (1.01, 0.99):
        assert p_value(draws, sigma * wrong, edges) < ALARM
    monkeypatch.setattr(
        discrete_gaussian,
        "histogram",
        lambda sigma: histogram(sigma)._replace(certain=histogram(sigma).certain | (2**64 - 1)),
    )
    refused_none = discrete_gaussians(1_000_000, sigma, Seeded(sigma))
    assert p_value(refused_none, sigma, edges) < ALARM


@pytest.mark.parametrize("sigma", [2**20, 2**40 + 1, 2**53])
def test_draws_have_their_scale_and_even_low_bits(sigma: int) -> None:
    """Mean square within 5 standard errors, 0.7 %; so a scale 1 % off is seen. Bits and neighbours are independent."""
    draws = discrete_gaussians(1_000_001, sigma, Seeded(1))
    assert draws.shape == (1_000_001,)
    assert draws.dtype == np.int64
    normal = draws / sigma
    error = math.sqrt(2 / len(draws))
    assert abs(np.mean(normal**2) - 1) < 5 * error < 0.01
    assert abs(np.mean(normal)) < 5 / 1000
    assert abs(np.mean(normal[1:] * normal[:-1])) < 5 / 1000
    for bit in (0, 1, 2, 7, 12):
        assert abs(np.mean((draws >> bit) & 1) - 0.5) < 5 / 2000


@pytest.mark.parametrize("sigma", [4, 3000])
def test_draws_are_those_of_opendp(sigma: int) -> None:
    """Two samples, one by the algorithm of Canonne, Kamath and Steinke. False alarm 1e-8; a tenth in scale is told."""
    import opendp.prelude as opendp

    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
    gaussian = opendp.m.make_gaussian(*space, scale=float(sigma))
    assert gaussian.map(100.0) == pytest.approx(100**2 / (2 * sigma**2), rel=1e-12)  # the scale is a standard deviation
    theirs = np.array(gaussian([0] * 20_000))
    edges = np.unique(np.rint(sigma * np.array([-2.5, -2, -1.5, -1, -0.5, -0.1, 0.1, 0.5, 1, 1.5, 2, 2.5])))

    def two_samples(ours: NDArray[np.int64]) -> float:
        first, second = (
            np.bincount(np.searchsorted(edges, draws), minlength=len(edges) + 1) for draws in (theirs, ours)
        )
        share = len(ours) / len(theirs)
        square = (second - share * first) ** 2 / (share * (first + second))
        return float(chi2.sf(square.sum(), len(edges)))

    assert two_samples(discrete_gaussians(200_000, sigma, Seeded(2))) > 1e-8
    assert two_samples(discrete_gaussians(200_000, 5 if sigma == 4 else 3300, Seeded(2))) < 1e-8


def test_long_draws_cross_chunks_and_begin_like_short_ones() -> None:
    count = 2 * discrete_gaussian.CHUNK + 5
    draws = discrete_gaussians(count, 1000, Seeded(9))
    assert draws.shape == (count,)
    assert np.count_nonzero(draws) > 0.99 * count
    assert len(np.unique(draws[-discrete_gaussian.CHUNK :] - draws[: discrete_gaussian.CHUNK])) > 1000
    assert discrete_gaussians(1, 1000, Seeded(9)).shape == (1,)

"""Rounded normal draws are exact: against mpmath on the same bits, wherever float64 can tell and wherever it can't."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from distqexp.mechanism import rounded_normal
from distqexp.mechanism.randomness import SystemRandomness
from distqexp.mechanism.rounded_normal import BITS, _approximate_normals, rounded_normals


class Tape:
    """A stream that gives what is written on it and remembers how much was read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.read = content, 0

    def __call__(self, count: int) -> bytes:
        found = self.content[self.read : self.read + count]
        assert len(found) == count
        self.read += count
        return found


@pytest.fixture(autouse=True)
def _digits() -> Iterator[None]:
    with mpmath.workprec(600):
        yield


def exact(radial: int, angular: int, bits: int) -> tuple[mpmath.mpf, mpmath.mpf, mpmath.mpf]:
    """The pair's radius and its two normal numbers where the uniform ones are radial / 2^bits and angular / 2^bits."""
    radius = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(radial) / 2**bits))
    turn = 2 * mpmath.pi * mpmath.mpf(angular) / 2**bits
    return radius, radius * mpmath.cos(turn), radius * mpmath.sin(turn)


def nearest(value: mpmath.mpf) -> int:
    return int(mpmath.floor(value + mpmath.mpf(1) / 2))


def extreme_words(count: int) -> NDArray[np.uint64]:
    """(2, count): a third of the radii from the middle, one from the tail, one from near 0, at every scale."""
    generator = np.random.default_rng(3)
    words = generator.integers(0, 2**64, size=(2, count), dtype=np.uint64)
    shift = generator.integers(0, 63, size=count).astype(np.uint64)
    kind = np.arange(count) % 3
    words[0] = np.where(kind == 1, words[0] >> shift, np.where(kind == 2, ~(words[0] >> shift), words[0]))
    words[0] = np.maximum(words[0], 1)
    words[1, :8] = np.array([0, 2**62, 2**63, 3 * 2**62, 2**64 - 1, 1, 2**62 - 1, 2**61], dtype=np.uint64)
    return words


@pytest.mark.parametrize("sigma", [1.0, 2.0**20, 3.0e9])
def test_float64_is_within_the_stated_error_over_the_whole_interval(sigma: float) -> None:
    """At both ends of both uniform numbers' intervals and in their middle, where less than a third of the bound is used up."""
    words = extreme_words(900)
    values, error = _approximate_normals(words, sigma)
    for place in range(words.shape[1]):
        radial, angular = 2 * int(words[0, place]), 2 * int(words[1, place])
        for a, b in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)):
            radius, *normal = exact(radial + a, angular + b, BITS + 1)
            room = 0.3 * sigma * radius * rounded_normal.FLOAT_ERROR if a == b == 1 else mpmath.mpf(error[place])
            for value, number in zip(values[:, place], normal, strict=True):
                assert abs(sigma * number - mpmath.mpf(float(value))) <= room


@pytest.mark.parametrize(("sigma", "pairs"), [(1.0, 400), (1536.7, 400), (2.0**30, 300), (2.0**40, 300), (2.0**53, 60)])
@pytest.mark.parametrize("tail", [False, True])
def test_every_draw_is_the_rounded_normal_number_of_its_bits(sigma: float, pairs: int, tail: bool) -> None:
    """The oracle draws more bits, in order, until all corners of a pair's square of uniform numbers round alike."""
    content = bytearray(np.random.default_rng(8).bytes(64 * pairs))
    if tail:
        content[: 8 * 7] = bytes(8 * 7)  # seven first words of 0: radii beyond 9.4, told by the bits that follow
    tape = Tape(bytes(content))
    found = rounded_normals(2 * pairs, sigma, tape).reshape(2, pairs)
    words = np.frombuffer(tape.content, dtype="<u8").tolist()
    read = 2 * pairs
    for place in range(pairs):
        bits, radial, angular, answers = BITS, words[place], words[pairs + place], set[tuple[int, ...]]()
        while len(answers) != 1:
            if answers or radial == 0:
                radial, angular = (radial << BITS) | words[read], (angular << BITS) | words[read + 1]
                bits, read = bits + BITS, read + 2
            corners = [exact(radial + a, angular + b, bits)[1:] for a in (0, 1) for b in (0, 1)]
            answers = {tuple(nearest(sigma * number) for number in corner) for corner in corners}
        assert answers == {tuple(found[:, place].tolist())}
        if place < 7 and tail:
            assert np.hypot(*found[:, place].astype(float)) > 9.4 * sigma - 1
    assert tape.read == 8 * read
    assert (read > 2 * pairs) == (tail or sigma == 2.0**53)


def test_cells_have_the_mass_of_the_rounded_gaussian() -> None:
    """By enumeration of 4,096 x 4,096 pairs of uniform numbers, the middles of a lattice: off by its cells on a border alone."""
    size, sigma = 4096, 1.3
    lattice = (np.arange(size, dtype=np.uint64) << np.uint64(52)) + np.uint64(2**51)
    counts = np.zeros(17, dtype=np.int64)
    for radial in np.split(lattice, 64):
        words = np.stack([grid.reshape(-1) for grid in np.meshgrid(radial, lattice, indexing="ij")])
        values, error = _approximate_normals(words, sigma)
        assert (error < 1e-9).all()
        rounded = np.rint(values).astype(np.int64)
        assert np.abs(rounded).max() <= 8
        counts += np.bincount(rounded.reshape(-1) + 8, minlength=17)
    edges = (np.arange(-8, 8) + 0.5) / sigma
    mass = np.diff(ndtr(edges), prepend=0.0, append=1.0)
    assert np.abs(counts / (2 * size**2) - mass).max() < 1e-4


def test_long_draws_cross_chunks_and_odd_ones_leave_the_last_out() -> None:
    count = 2 * rounded_normal.CHUNK + 5
    content = np.random.default_rng(1).bytes(8 * count + 4096)
    found = rounded_normals(count, 1000.0, Tape(content))
    assert found.dtype == np.int64
    assert found.shape == (count,)
    assert found.tolist() == rounded_normals(count + 1, 1000.0, Tape(content))[:count].tolist()
    first = rounded_normals(2 * rounded_normal.CHUNK, 1000.0, Tape(content)).reshape(2, -1)
    pairs = (count + 1) // 2
    assert found[: rounded_normal.CHUNK].tolist() == first[0].tolist()
    assert found[pairs : pairs + rounded_normal.CHUNK].tolist() == first[1].tolist()
    assert np.count_nonzero(found) > 0.99 * count


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [2.0**10, 2.0**45])
def test_low_bits_are_even(sigma: float) -> None:
    """Each of the lowest eight bits, and each pair of them, over 40,000 draws of the system's entropy. False alarm below 36 * 1e-9."""
    draws = rounded_normals(40_000, sigma, SystemRandomness().bytes)
    bits = 1 - 2 * ((draws[:, None] >> np.arange(8)) & 1)
    for first in range(8):
        for second in range(first, 8):
            product = bits[:, first] * (bits[:, second] if second > first else 1)
            assert abs(int(product.sum())) < 6.2 * math.sqrt(len(draws))

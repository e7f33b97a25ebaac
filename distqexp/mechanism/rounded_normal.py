"""Normal draws rounded to integers, exactly: no bit of a draw is float64's (docs/proofs/continuous.md).

Box and Muller's map turns two uniform numbers into two normal ones. 64 bits say in which interval each uniform number lies, float64 where
about the normal ones are, with a bound of its error. Where that doesn't tell between two integers, as many more bits are drawn, and
intervals computed with as many more digits, as it takes. So the law is that of ideal normal numbers, rounded: nothing is left in the low
bits of a release, and no tail is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Words = NDArray[np.uint64]
Stream = Callable[[int], bytes]
"""So many random bytes, the next ones at each call."""

BITS = 64
"""Of a uniform number, at first and at each refinement."""

CHUNK = 1 << 16
"""Pairs drawn at a time: bounds the memory."""

FLOAT_ERROR = 2.0**-46
"""Of a normal number, in units of its pair's radius: thrice what float64 adds if its functions are off by 4 units in the last place."""


def rounded_normals(count: int, sigma: float, stream: Stream) -> NDArray[np.int64]:
    """``count`` independent draws of N(0, sigma^2), each rounded to the nearest integer, int64 (count,), sigma at most 2^53.

    Beyond 2^10 sigma int64 would end: that has a probability below 2^-700000 a draw.
    """
    pairs = (count + 1) // 2
    found = np.empty((2, pairs), dtype=np.int64)
    for first in range(0, pairs, CHUNK):
        block = found[:, first : first + CHUNK]
        words = np.frombuffer(stream(2 * 8 * block.shape[1]), dtype="<u8").reshape(block.shape)
        values, error = nearly(words, sigma)
        certain = (np.abs(values - np.floor(values) - 0.5) > error).all(axis=0) & (words[0] > 0)
        block[:, certain] = np.rint(values[:, certain]).astype(np.int64)
        for place in np.flatnonzero(~certain):
            block[:, place] = _refined(int(words[0, place]), int(words[1, place]), sigma, stream)
    return found.reshape(-1)[:count]


def nearly(words: Words, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Pairs of normal draws times ``sigma``, (2, n), from 64 bits of each uniform number, (2, n), and a bound of their errors (n,).

    The bound covers every number of the two intervals that the bits leave, the first one's lowest, which ends at 0, apart.
    """
    energy, smaller = energies(words[0])
    radius = sigma * np.sqrt(2.0 * energy)
    turn = 2.0 * math.pi * middles(words[1])
    return radius * np.stack([np.cos(turn), np.sin(turn)]), radius * (FLOAT_ERROR + 2.0 ** (2 - BITS) / smaller)


def energies(words: Words) -> tuple[FloatArray, FloatArray]:
    """-log u, u the middle of each word's interval, to float64's relative accuracy at both ends; and the smaller of u and 1 - u."""
    upper = words >= np.uint64(1 << (BITS - 1))
    smaller = middles(np.where(upper, ~words, words))  # ~word is the word of 1 - u
    return np.where(upper, -np.log1p(-smaller), -np.log(smaller)), smaller


def middles(words: Words) -> FloatArray:
    """The middle of each word's interval, in (0, 1]."""
    return (words.astype(np.float64) + 0.5) * 2.0**-BITS


def _refined(radial: int, angular: int, sigma: float, stream: Stream) -> tuple[int, int]:
    """One pair, whose uniform numbers begin with these bits, rounded: with more bits until there is one answer."""
    from mpmath.ctx_iv import MPIntervalContext
    from mpmath.libmp import to_int

    intervals = MPIntervalContext()
    exact, bits = Fraction(sigma), BITS
    while True:
        if radial > 0:
            intervals.prec = bits + 64 + max(0, math.frexp(sigma)[1])
            first, second = (intervals.mpf([word, word + 1]) / 2**bits for word in (radial, angular))
            radius = intervals.sqrt(-2 * intervals.log(first)) * exact.numerator / exact.denominator
            turn = 2 * intervals.pi * second
            ends = [
                [to_int(end, "f") for end in (radius * side(turn) + intervals.mpf(1) / 2)._mpi_]
                for side in (intervals.cos, intervals.sin)
            ]
            if all(low == high for low, high in ends):
                return ends[0][0], ends[1][0]
        more = np.frombuffer(stream(2 * BITS // 8), dtype="<u8")
        radial, angular = (radial << BITS) | int(more[0]), (angular << BITS) | int(more[1])
        bits += BITS

"""Exact normal draws, rounded to integers: no bit of a draw comes from float64's rounding (docs/proofs/continuous.md).

Box and Muller's map turns two uniform numbers into two normal ones. 64 bits determine an interval for each uniform number,
and float64 computes the normal numbers approximately, with a bound on its error. Where that does not decide between two
integers, more bits are drawn, and intervals are computed with more digits, until it does. So the law is that of ideal
normal numbers, rounded: the low bits of a release reveal nothing, and no tail is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray

Words = NDArray[np.uint64]
Stream = Callable[[int], bytes]
"""A function from a number of bytes to that many random bytes: the next ones at each call."""

BITS = 64
"""The bits of a uniform number that are drawn at first, and again at each refinement."""

CHUNK = 1 << 16
"""How many pairs are drawn at a time; this bounds the memory."""

FLOAT_ERROR = 2.0**-46
"""The error of a normal number, in units of its pair's radius.

It is three times the error of float64 if its functions are off by 4 units in the last place.
"""


def rounded_normals(count: int, sigma: float, stream: Stream) -> IntegerArray:
    """Return ``count`` independent draws of N(0, sigma^2), each rounded to the nearest integer, as int64 (count,).

    ``sigma`` is at most 2^53. A draw beyond 2^10 sigma would not fit in int64; its probability is below 2^-700000.
    """
    pairs = (count + 1) // 2
    draws = np.empty((2, pairs), dtype=np.int64)
    for first in range(0, pairs, CHUNK):
        block = draws[:, first : first + CHUNK]
        words = np.frombuffer(stream(2 * 8 * block.shape[1]), dtype="<u8").reshape(block.shape)
        values, error = _approximate_normals(words, sigma)
        certain = (np.abs(values - np.floor(values) - 0.5) > error).all(axis=0) & (words[0] > 0)
        block[:, certain] = np.rint(values[:, certain]).astype(np.int64)
        for place in np.flatnonzero(~certain):
            block[:, place] = _refine(int(words[0, place]), int(words[1, place]), sigma, stream)
    return draws.reshape(-1)[:count]


def _approximate_normals(words: Words, sigma: float) -> tuple[FloatArray, FloatArray]:
    """Compute pairs of normal draws times ``sigma``, (2, n), with a bound on their errors, (n,).

    ``words`` are 64 bits of each uniform number, (2, n). The bound covers every number of the two intervals that the bits
    determine, except the first number's lowest interval, which ends at 0.
    """
    energy, smaller = energies(words[0])
    radius = sigma * np.sqrt(2.0 * energy)
    turn = 2.0 * math.pi * middles(words[1])
    return radius * np.stack([np.cos(turn), np.sin(turn)]), radius * (FLOAT_ERROR + 2.0 ** (2 - BITS) / smaller)


def energies(words: Words) -> tuple[FloatArray, FloatArray]:
    """Return -log u and the smaller of u and 1 - u, with u the middle of each word's interval.

    The logarithm has float64's relative accuracy at both ends of (0, 1).
    """
    upper = words >= np.uint64(1 << (BITS - 1))
    smaller = middles(np.where(upper, ~words, words))  # ~word is the word of 1 - u
    return np.where(upper, -np.log1p(-smaller), -np.log(smaller)), smaller


def middles(words: Words) -> FloatArray:
    """Return the middle of each word's interval, in (0, 1]."""
    return (words.astype(np.float64) + 0.5) * 2.0**-BITS


def _refine(radial: int, angular: int, sigma: float, stream: Stream) -> tuple[int, int]:
    """Round the pair whose uniform numbers begin with these bits, drawing more bits until the result is certain."""
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

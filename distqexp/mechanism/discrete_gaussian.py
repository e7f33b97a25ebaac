"""Exact draws of the discrete Gaussian, many at a time (docs/proofs/discrete-sampler.md).

A histogram lies above the density: blocks of integers, as many to a standard deviation as make the histogram tight. A candidate is
a block, chosen by whole-number weights, and an integer of it, chosen by bits. It is kept with the probability density / histogram.
Nearly always one comparison of whole numbers decides that, else float64 with a proved error, and where that leaves a doubt, arithmetic
with as many digits as it takes. So the law is exact, for every sigma, and no tail is cut.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import BoolArray, FloatArray, IntegerArray
from distqexp.mechanism.rounded_normal import Stream, Words

CHUNK = 1 << 16
"""How many candidates are drawn at a time; this bounds the memory, to a few megabytes."""

SLOT_BITS = 16
"""The bits that choose a block: each has a share of 2^16 slots."""

PLACE_BITS = 47
"""The bits that can choose an integer of a block."""

FINENESS = 6
"""A standard deviation has 2^6 to 2^7 blocks, or as many as it has integers where these are fewer."""

REACH = 6
"""How many standard deviations the blocks cover on each side. Beyond them is the tail, with a slot of its own."""

TAIL_BITS = 6
"""The tail is cut into pieces of 2^6 blocks; each is half as likely as the one before it."""

PRECISION = 128
"""The weights of blocks are known to within 2^-128."""

DOUBT = 2.0**-40
"""Where float64 finds a uniform number this near to an acceptance, it does not decide. Its error is below 2^-48."""

TERMS = 20
"""The terms of the exponential series, for arguments up to 1."""


class Histogram(NamedTuple):
    """The histogram above the density exp(-x^2 / (2 sigma^2)), as weights of blocks on one side of 0. Public.

    Block j has the integers x with j <= x / 2^shift < j + 1, and on the other side of 0 their images -1 - x. The last entry of each
    array is that of the tail.

    Attributes:
        sigma: The standard deviation.
        shift: Blocks have 2^shift integers.
        height: The weight of a block of density 1, in slots.
        slots: The block of each slot, uint16 (2^16,).
        weights: The slots of each block, int64 (blocks + 1,).
        certain: A candidate of the block is kept if 64 uniform bits are below this, uint64 (blocks + 1,).
        tops: The probability that the block's first integer is kept, to a relative 2^-52, float64 (blocks + 1,); 0 for the tail.
    """

    sigma: int
    shift: int
    height: int
    slots: NDArray[np.uint16]
    weights: IntegerArray
    certain: Words
    tops: FloatArray


def discrete_gaussians(count: int, sigma: int, stream: Stream) -> IntegerArray:
    """Return ``count`` independent draws of the discrete Gaussian N_Z(0, sigma^2), as int64 (count,).

    ``sigma`` is an integer from 1 to 2^53. A draw beyond 2^10 sigma might not fit in int64; its probability is below 2^-700000.
    """
    table = histogram(sigma)
    draws = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        size = min(CHUNK, (count - filled) * 17 // 16 + 16)
        words = np.frombuffer(stream(2 * 8 * size), dtype="<i8").reshape(2, size)
        candidates, accepted = _candidates(words, table, stream)
        kept = candidates[accepted][: count - filled]
        draws[filled : filled + len(kept)] = kept
        filled += len(kept)
    return draws


@functools.lru_cache(maxsize=16)
def histogram(sigma: int) -> Histogram:
    """Return the histogram for N_Z(0, sigma^2)."""
    shift = max(0, sigma.bit_length() - 1 - FINENESS)
    blocks = -(-REACH * sigma >> shift)
    lows, highs = zip(*(density(block << shift, sigma, PRECISION) for block in range(blocks + 1)), strict=True)
    shared = (1 << SLOT_BITS) - 1  # the last slot is the tail's
    height = ((shared - blocks) << PRECISION) // sum(highs[:-1])
    weights = [-(-height * high >> PRECISION) for high in highs[:-1]]
    weights[0] += shared - sum(weights)
    certain = [(height * low >> (PRECISION - 64)) // weight for low, weight in zip(lows[1:], weights, strict=True)]
    tops = [float(Fraction(height * low, weight << PRECISION)) for low, weight in zip(lows[:-1], weights, strict=True)]
    return Histogram(
        sigma,
        shift,
        height,
        np.repeat(np.arange(blocks + 1, dtype=np.uint16), [*weights, 1]),
        np.array([*weights, 1], dtype=np.int64),
        np.array([*certain, 0], dtype=np.uint64),
        np.array([*tops, 0.0]),
    )


def density(x: int, sigma: int, bits: int) -> tuple[int, int]:
    """Return whole numbers around 2^bits exp(-x^2 / (2 sigma^2)): one not above it, one not below it.

    mpmath computes it with 64 bits more, so that its own error is far below the 1 that is allowed on either side.
    """
    from mpmath.libmp import from_int, mpf_div, mpf_exp, mpf_shift, round_nearest, to_int

    exponent = mpf_div(from_int(-x * x), from_int(2 * sigma * sigma), bits + 64, round_nearest)
    below = to_int(mpf_shift(mpf_exp(exponent, bits + 64, round_nearest), bits), "f")
    return below - 1, below + 2


def _candidates(words: IntegerArray, table: Histogram, stream: Stream) -> tuple[IntegerArray, BoolArray]:
    """Return a candidate of each pair of words, int64 (n,), and whether it is kept, bool (n,).

    The first word says on which side of 0 it is, in which slot and at what place of the block; the second has the first bits of the
    uniform number that decides whether it is kept. ``words`` are all bits as signed numbers, int64 (2, n).
    """
    side = words[0] >> 63  # 0, or -1 for the negative side: x ^ -1 is -1 - x
    block = table.slots[(words[0] >> PLACE_BITS) & ((1 << SLOT_BITS) - 1)]
    place = words[0] & ((1 << table.shift) - 1)
    candidates = ((block.astype(np.int64) << table.shift) + place) ^ side
    uniform = words[1].view("<u8")
    accepted = uniform < table.certain[block]
    rest = np.flatnonzero(~accepted)
    accepted[rest], doubtful = _compare(uniform[rest], block[rest], (place - side)[rest], table)
    for index in rest[doubtful]:
        candidate, factor = int(candidates[index]), Fraction(table.height, int(table.weights[block[index]]))
        if block[index] == len(table.weights) - 1:
            candidate, factor = _tail_candidate(int(side[index]), table, stream)
        accepted[index] = _decide(int(uniform[index]), factor, abs(candidate), table.sigma, stream)
        if accepted[index]:
            candidates[index] = candidate
    return candidates, accepted


def _compare(
    uniform: Words, block: NDArray[np.uint16], distance: IntegerArray, table: Histogram
) -> tuple[BoolArray, BoolArray]:
    """Compare uniform numbers with the candidates' acceptances in float64; return which are below, and which are in doubt.

    ``distance`` is that of a candidate's magnitude from the first of its block. Only sums, products and quotients are computed.
    """
    first, beyond = np.ldexp(block.astype(np.float64), table.shift), distance.astype(np.float64)
    exponent = beyond * (2.0 * first + beyond) / float(2 * table.sigma * table.sigma)
    series = np.ones_like(exponent)
    for term in range(TERMS, 0, -1):
        series = 1.0 - series * exponent / term
    margin = table.tops[block] * series - (uniform.astype(np.float64) + 0.5) * 2.0**-64
    tail = block == len(table.tops) - 1
    return margin > 0, (np.abs(margin) <= DOUBT) | (exponent > 1.0) | tail


def _tail_candidate(side: int, table: Histogram, stream: Stream) -> tuple[int, Fraction]:
    """Return a candidate of the tail, and by what its density has to be multiplied to be its acceptance."""
    place = _word(stream) & ((1 << (table.shift + TAIL_BITS)) - 1)
    piece, word = 0, _word(stream)
    while word == 0:
        piece, word = piece + 64, _word(stream)
    piece += (word & -word).bit_length() - 1
    first = (len(table.tops) - 1) << table.shift
    candidate = (first + (piece << (table.shift + TAIL_BITS)) + place) ^ side
    return candidate, Fraction(table.height << (TAIL_BITS + piece + 1))


def _decide(uniform: int, factor: Fraction, x: int, sigma: int, stream: Stream) -> bool:
    """Return whether a uniform number is below factor exp(-x^2 / (2 sigma^2)), drawing more of its bits until that is certain."""
    bits = 64
    while True:
        low, high = density(x, sigma, bits + 64)
        if ((uniform + 1) * factor.denominator) << 64 <= factor.numerator * low:
            return True
        if (uniform * factor.denominator) << 64 >= factor.numerator * high:
            return False
        uniform, bits = (uniform << 64) | _word(stream), bits + 64


def _word(stream: Stream) -> int:
    return int.from_bytes(stream(8), "little")

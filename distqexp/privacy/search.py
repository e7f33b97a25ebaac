"""Searches that always end on the safe side, at a number that depends on the predicate alone, not on the search's path."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from distqexp.privacy.rounding import BITS

_PRECISION = 53
_LARGEST = math.ldexp(2.0 - 2.0 ** (1 - BITS), 1023)
"""The largest number of 44 bits."""


def last_holding(holds: Callable[[float], bool], inside: float, outside: float, bits: int = BITS) -> float:
    """Find the number nearest to ``outside`` at which a monotone predicate holds.

    Args:
        holds: The predicate.
        inside: A number of at least 0 at which the predicate is taken to hold.
        outside: A number of at least 0 at which the predicate is taken not to hold.
        bits: The significant bits of the numbers that are tried.

    Returns:
        A number of ``bits`` significant bits at which the predicate was evaluated and held, or ``inside`` itself; never an
        interpolation.
    """
    rising = inside < outside
    first, last = _place(inside, bits, up=not rising), _place(outside, bits, up=rising)
    best = inside
    while abs(last - first) > 1:
        middle = (first + last) // 2
        value = _number(middle, bits)
        if holds(value):
            first, best = middle, value
        else:
            last = middle
    return best


def first_below(curve: Callable[[float], float], target: float, guess: float) -> float:
    """Find the smallest number of 44 bits at which a falling curve is at most ``target``.

    Args:
        curve: The curve, which never rises.
        target: The value to get down to.
        guess: A rough guess of the result, above 0.

    Returns:
        The number; 0 where the curve is low enough there, infinity where no number is large enough. Interpolation only
        chooses where to look: the curve was evaluated at the number and at its predecessor.
    """
    start = curve(0.0) - target
    if start <= 0:
        return 0.0
    low, low_excess = 0.0, start
    high = min(max(guess, 2.0**-1000), 2.0**1000)
    factor, high_excess = 4.0, curve(high) - target
    while high_excess > 0:
        low, low_excess = high, high_excess
        if high == _LARGEST:
            return math.inf
        high, factor = min(high * factor, _LARGEST), factor * factor
        high_excess = curve(high) - target
    first, last = _place(low, BITS, up=False), _place(high, BITS, up=True)
    if _number(last, BITS) != high:
        high_excess = curve(_number(last, BITS)) - target
    step, side = 0, 0
    while last - first > 1:
        step += 1
        low, high = _number(first, BITS), _number(last, BITS)
        if step % 4 == 0 or not math.isfinite(high_excess):
            middle = (first + last) // 2
        else:
            share = low_excess / (low_excess - high_excess)
            middle = min(max(_place(low + (high - low) * share, BITS, up=False), first + 1), last - 1)
        excess = curve(_number(middle, BITS)) - target
        if excess > 0:
            first, low_excess = middle, excess
            high_excess = high_excess / 2 if side == 1 else high_excess  # so that neither end stays where it is
            side = 1
        else:
            last, high_excess = middle, excess
            low_excess = low_excess / 2 if side == -1 else low_excess
            side = -1
    return _number(last, BITS)


def next_number(value: float, bits: int, steps: int = 1) -> float:
    """Return the number of so many bits that is ``steps`` numbers above ``value`` > 0, which is rounded down to one first."""
    return _number(_place(value, bits, up=False) + steps, bits)


def _place(value: float, bits: int, *, up: bool) -> int:
    """Return the index of ``value`` >= 0 among the floats of ``bits`` bits, rounded up or down between two of them."""
    (pattern,) = struct.unpack("<q", struct.pack("<d", value))
    places = 1 << (_PRECISION - bits)
    return int(-(-pattern // places) if up else pattern // places)


def _number(place: int, bits: int) -> float:
    """Return the float of ``bits`` bits at an index."""
    (value,) = struct.unpack("<d", struct.pack("<q", place << (_PRECISION - bits)))
    return float(value)

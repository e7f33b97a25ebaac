"""Numbers that err on a known side, and curves that rounding errors cannot make fall where they rise.

All quantities are public. A curve is evaluated at arguments of 44 significant bits, rounded to the safe side. Two arguments
then are the same, or differ by far more than the rounding errors of the evaluation (a few times 2^-53): a curve that rises
in exact arithmetic rises in floats too, to the last bit.
"""

from __future__ import annotations

import math
import sys

BITS = 44
"""The significant bits of arguments, and of the results of searches."""

LARGEST = sys.float_info.max
SMALLEST = math.ulp(0.0)
"""The smallest positive float: a positive number below every float is rounded up to it."""

TINY = 2.0**-960
"""A positive square counts as at least this: smaller ones have too few digits, or vanish."""

MARGIN = 1e-13
"""The relative margin on a logarithm, and on its argument: a hundred times the rounding errors of a curve."""

_INFLATION = 1 + 2.0**-50


def above(value: float) -> float:
    """Return the next number of 44 bits that is larger than ``value`` > 0 by eight rounding errors.

    These cover the rounding errors of the sums and roots that ``value`` came from.
    """
    fraction, exponent = math.frexp(max(value, TINY) * _INFLATION)
    return math.ldexp(math.ceil(math.ldexp(fraction, BITS)), exponent - BITS)


def below(value: float, scale: float) -> float:
    """Round ``value`` >= 0 down to a multiple of 2^-44 times the power of two above the larger of ``value`` and ``scale``."""
    exponent = math.frexp(max(value, scale))[1]
    return math.ldexp(math.floor(math.ldexp(value, BITS - exponent)), exponent - BITS)


def with_margin(log: float, margin: float = MARGIN) -> float:
    """Raise a logarithm of at most 0 by its margin; the result is never minus infinity, which would say that the truth is 0."""
    return min(0.0, log + margin * (1 + abs(log))) if log > -LARGEST else -LARGEST


def exp_above(log: float) -> float:
    """Return e^log for ``log`` <= 0, at most 1; it is 0 for minus infinity alone, else at least the smallest float."""
    if log == -math.inf:
        return 0.0
    value = math.exp(log)
    # The margin of ``with_margin`` is above the rounding of exp, except where floats lose digits.
    return min(1.0, value) if value > TINY else math.nextafter(value, 1.0)


def log_below(value: float) -> float:
    """Return the logarithm of ``value`` > 0, or of the float two below it where ``exp_above`` loses digits."""
    if value > 2 * TINY:
        return math.log(value)
    smaller = math.nextafter(math.nextafter(value, 0.0), 0.0)
    return math.log(smaller) if smaller > 0 else -746.0


def coarse_above(log: float) -> float:
    """Round a logarithm of at most 0 up to the next multiple of 2^-32, which mostly hides the rounding errors of a long sum."""
    return math.ldexp(math.ceil(math.ldexp(log, 32)), -32)


def square_above(value: float) -> float:
    """Return the square of ``value`` >= 0, to the last digit; it is never 0 for a positive value, and infinity on overflow."""
    return max(value * value, TINY) if value > 0 else 0.0


def nearest_sum(terms: list[float]) -> float:
    """Return the sum, correctly rounded; infinity on overflow."""
    try:
        return math.fsum(terms)
    except OverflowError:
        return math.inf


def sum_above(terms: list[float]) -> float:
    """Return the sum of terms of at least 0, moved up where several are positive; infinity on overflow.

    A square is off by a rounding error, and so are a sum and a root; but the root of the square of one number is that
    number. With several terms, sum and root are at least the exact ones of the numbers that the terms are rounded from.
    """
    several = sum(term > 0 for term in terms) > 1
    return nearest_sum(terms) * (_INFLATION if several else 1.0)

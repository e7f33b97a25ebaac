"""Numbers that err on a known side, and curves that cannot turn around by a rounding error.

A curve is evaluated at arguments of 44 significant bits, rounded to the safe side. Two arguments then are the same, or
differ by far more than the rounding errors of the evaluation (a few times 2^-53): what rises in exact arithmetic rises in
floats too, to the last bit. All quantities are public.
"""

from __future__ import annotations

import math
import sys

BITS = 44
"""Significant bits of arguments, and of the results of searches."""

LARGEST = sys.float_info.max
SMALLEST = math.ulp(0.0)
"""What a positive number becomes that is smaller than every float."""

TINY = 2.0**-960
"""What a positive square counts at least: smaller ones are short of digits, or vanish."""

MARGIN = 1e-13
"""Relative margin on a logarithm, and on what it is the logarithm of: a hundred times the rounding errors of a curve."""

_INFLATION = 1 + 2.0**-50


def above(value: float) -> float:
    """The next number of 44 bits that is larger than ``value`` > 0 by eight rounding errors: those of sums and roots before."""
    fraction, exponent = math.frexp(max(value, TINY) * _INFLATION)
    return math.ldexp(math.ceil(math.ldexp(fraction, BITS)), exponent - BITS)


def below(value: float, scale: float) -> float:
    """At most ``value`` >= 0: a multiple of 2^-44 times the power of two above the larger of ``value`` and ``scale``."""
    exponent = math.frexp(max(value, scale))[1]
    return math.ldexp(math.floor(math.ldexp(value, BITS - exponent)), exponent - BITS)


def raised(log: float, margin: float = MARGIN) -> float:
    """A logarithm of at most 0, moved up by its margin, and never minus infinity: that would say that the truth is 0."""
    return min(0.0, log + margin * (1 + abs(log))) if log > -LARGEST else -LARGEST


def exp_above(log: float) -> float:
    """e^log for ``log`` <= 0, at most 1; 0 for minus infinity alone, the smallest positive float where there is none."""
    if log == -math.inf:
        return 0.0
    found = math.exp(log)
    # The margin of ``raised`` is above the rounding of exp, except where floats lose digits.
    return min(1.0, found) if found > TINY else math.nextafter(found, 1.0)


def log_below(value: float) -> float:
    """The logarithm of ``value`` > 0, or of the next smaller floats where ``exp_above`` loses digits."""
    if value > 2 * TINY:
        return math.log(value)
    smaller = math.nextafter(math.nextafter(value, 0.0), 0.0)
    return math.log(smaller) if smaller > 0 else -746.0


def settled(log: float) -> float:
    """A logarithm of at most 0, up to the next multiple of 2^-32: of a sum of many terms, whose rounding errors it mostly hides."""
    return math.ldexp(math.ceil(math.ldexp(log, 32)), -32)


def square_above(value: float) -> float:
    """The square of ``value`` >= 0, to the last digit; never 0 for a positive one, infinity where there is no float."""
    return max(value * value, TINY) if value > 0 else 0.0


def nearest_sum(terms: list[float]) -> float:
    """The sum, correctly rounded; infinity where there is no float."""
    try:
        return math.fsum(terms)
    except OverflowError:
        return math.inf


def sum_above(terms: list[float]) -> float:
    """The sum of terms of at least 0, infinity where there is no float: one alone as it is, several moved up.

    A square is off by a rounding error, and so are a sum and a root; but the root of the square of one number is that
    number. Of several, sum and root are at least the exact ones of what the terms are rounded from.
    """
    several = sum(term > 0 for term in terms) > 1
    return nearest_sum(terms) * (_INFLATION if several else 1.0)

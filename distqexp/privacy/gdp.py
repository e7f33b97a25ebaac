"""Gaussian differential privacy: the curve between mu and (epsilon, delta).

A mechanism is mu-GDP when telling two neighbouring datasets apart by its output is at least as hard as telling
N(0, 1) from N(mu, 1). Then, with Phi the normal distribution function,

    delta(epsilon) = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)

(Dong, Roth and Su 2022, "Gaussian differential privacy"; Balle and Wang 2018). Everything is evaluated in log
space: e^epsilon overflows above about 709, and for small mu the two terms cancel. A returned delta is never below
the truth, for any finite arguments; it rises with mu and falls with epsilon. All quantities are public.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfcx

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.privacy.rounding import BITS, MARGIN, SMALLEST, TINY, above, below, log_below, with_margin
from distqexp.privacy.search import first_below, last_holding

SAFETY = 1e-10
"""The relative margin on delta when the curve is inverted: a thousand times the margin of ``log_delta``."""

HOPELESS = 1e150
"""From this mu on delta counts as 1, since squares of larger ones overflow."""

_FAR = 1e140
_SQRT2 = math.sqrt(2.0)
_SQRT_PI = math.sqrt(math.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_NARROW = 0.05
_SHORTENED = 1 - 2.0**-51
"""A factor that brings a rounded quotient to at most the exact one."""


def log_delta(epsilon: float, mu: float) -> float:
    """Return the natural logarithm of the delta, at most 1, of a mu-GDP mechanism at ``epsilon`` >= 0, rounded upwards.

    It is minus infinity for mu = 0 alone. Raises UsageError unless ``epsilon`` and ``mu`` are finite and at least 0.
    """
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise UsageError(f"epsilon: found {epsilon!r}; expected a finite number, 0 or more")
    if not (mu >= 0 and math.isfinite(mu)):
        raise UsageError(f"mu: found {mu!r}; expected a finite number, 0 or more")
    if mu == 0:
        return -math.inf
    if mu >= HOPELESS:
        return 0.0
    mu = above(mu)
    # A smaller ``lower`` amounts exactly to a smaller epsilon, so the error of the quotient is on the safe side.
    lower = below(epsilon, mu) / mu * _SHORTENED - mu / 2
    if lower > _FAR:
        return with_margin(-lower * lower / 2)
    half_square = lower * lower / 2
    if lower < 0 and mu > 1:  # delta may be close to 1: its distance from 1 is a sum of two positive terms
        tails = float(erfcx(-lower / _SQRT2) + erfcx((lower + mu) / _SQRT2))
        return with_margin(math.log1p(-math.exp(-half_square) * tails / 2))
    # phi(lower) = e^epsilon phi(upper), so both terms share the factor exp(-lower^2 / 2) / 2.
    [difference] = _scaled_differences(np.array([lower / _SQRT2]), mu / _SQRT2)
    return with_margin(math.log(difference / 2) - half_square)


def deltas(epsilons: FloatArray, mu: float) -> FloatArray:
    """Return the deltas of a mu-GDP mechanism at an array (n,) of real epsilons, those below 0 included, rounded upwards.

    It needs a finite mu >= 0. Below 0, delta(-e) = 1 - e^-e + e^-e delta(e), since the pair N(0, 1), N(mu, 1) is symmetric.
    """
    if mu >= HOPELESS:
        return np.ones_like(epsilons)
    curve = np.zeros_like(epsilons)
    if mu > 0:
        mu = above(mu)
        exponents = np.frexp(np.maximum(np.abs(epsilons), mu))[1]
        epsilons = np.ldexp(np.floor(np.ldexp(epsilons, BITS - exponents)), exponents - BITS)
        with np.errstate(over="ignore"):
            lower = np.abs(epsilons) / mu * np.where(epsilons < 0, 1 / _SHORTENED, _SHORTENED) - mu / 2
        near_one = (lower < 0) & (mu > 1)
        near_zero = ~near_one & (lower < 100)
        for places, from_one in ((near_one, True), (near_zero, False)):
            start = lower[places]
            if from_one:
                parts = 2 - np.exp(-(start**2) / 2) * (erfcx(-start / _SQRT2) + erfcx((start + mu) / _SQRT2))
            else:
                parts = np.exp(-(start**2) / 2) * _scaled_differences(start / _SQRT2, mu / _SQRT2)
            curve[places] = parts / 2 * (1 + MARGIN * (1 + start**2))
        curve = np.clip(curve, SMALLEST, 1.0)
    size = np.abs(epsilons)
    return np.where(epsilons < 0, -np.expm1(-size) + np.exp(-size) * curve, curve)


def epsilon(delta: float, mu: float) -> float:
    """Return the smallest epsilon >= 0, rounded upwards, at which a mu-GDP mechanism has at most ``delta``."""
    target = log_target(delta)
    if mu >= HOPELESS:
        log_delta(0.0, mu)  # raises UsageError for an infinite mu
        return math.inf
    return first_below(lambda value: log_delta(value, mu), target, mu * (mu / 2 + math.sqrt(-2 * target)))


def mu(epsilon: float, delta: float) -> float:
    """Return the largest mu, rounded downwards, whose delta at ``epsilon`` is at most ``delta``. Raises UsageError for none."""
    target = log_target(delta)

    def holds(value: float) -> bool:
        return log_delta(epsilon, value) <= target

    low, high = 1.0, 2.0
    while not holds(low):
        if low <= TINY:
            raise UsageError(f"delta: found {delta!r} with epsilon {epsilon!r}; no mu is small enough: raise either")
        low, high = low / 2, low
    while holds(high):
        low, high = high, high * 2
    return last_holding(holds, inside=low, outside=high)


def log_target(delta: float) -> float:
    """Return the logarithm of a target delta less the margin. Raises UsageError unless it is strictly between 0 and 1."""
    if not 0 < delta < 1:
        raise UsageError(f"delta: found {delta!r}; expected a number strictly between 0 and 1")
    return log_below(delta) - SAFETY


def _scaled_differences(start: FloatArray, width: float) -> FloatArray:
    """Return erfcx(start) - erfcx(start + width) for starts (n,) and width > 0, without cancellation."""
    narrow = width <= _NARROW * np.maximum(1.0, start)
    if not narrow.any():
        return np.asarray(erfcx(start) - erfcx(start + width))
    differences = np.empty_like(start)
    differences[~narrow] = erfcx(start[~narrow]) - erfcx(start[~narrow] + width)
    points = start[narrow][:, None] + width * (1 + _NODES) / 2
    differences[narrow] = _minus_slope(points) @ _WEIGHTS * (width / 2)
    return differences


def _minus_slope(x: FloatArray) -> FloatArray:
    """Return -erfcx'(x) = 2/sqrt(pi) - 2 x erfcx(x), by a continued fraction where that difference cancels."""
    far = x > 4
    if not far.any():
        return np.asarray(2 / _SQRT_PI - 2 * x * erfcx(x))
    # sqrt(pi) erfcx(x) = 1 / (x + t), t = (1/2) / (x + 1 / (x + (3/2) / (x + 2 / ...))); -erfcx' = 2/sqrt(pi) t / (x + t).
    large = np.where(far, x, 4.0)
    tail = np.zeros_like(x)
    for number in range(24, 0, -1):
        tail = number / 2 / (large + tail)
    near = np.where(far, 0.0, x)
    return np.where(far, 2 / _SQRT_PI * tail / (large + tail), 2 / _SQRT_PI - 2 * near * erfcx(near))

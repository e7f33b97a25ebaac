"""Gaussian differential privacy: the curve between mu and (epsilon, delta).

A mechanism is mu-GDP when telling two neighbouring datasets apart by its output is at least as hard as telling
N(0, 1) from N(mu, 1). Then, with Phi the normal distribution function,

    delta(epsilon) = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)

(Dong, Roth and Su 2022, "Gaussian differential privacy"; Balle and Wang 2018). Everything is evaluated in log
space: e^epsilon overflows above about 709, and for small mu the two terms cancel. What is returned is never below
the truth, for any finite arguments, and rises with mu and falls with epsilon. All quantities are public.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx

from distqexp.errors import UsageError
from distqexp.privacy.rounding import BITS, MARGIN, SMALLEST, TINY, above, below, exp_above, log_below, raised
from distqexp.privacy.search import first_below, last_holding

SAFETY = 1e-10
"""Relative margin on delta when the curve is inverted: a thousand times what ``log_delta`` has of its own."""

HOPELESS = 1e150
"""From this mu on delta counts as 1: squares of larger ones overflow."""

_FAR = 1e140
_SQRT2 = math.sqrt(2.0)
_SQRT_PI = math.sqrt(math.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_NARROW = 0.05
_SHORTENED = 1 - 2.0**-51
"""Makes a rounded quotient one that is not above the exact one."""


def delta(epsilon: float, mu: float) -> float:
    """The delta, at most 1, of a mu-GDP mechanism at ``epsilon`` >= 0; 0 for mu = 0 alone. Needs mu >= 0."""
    return exp_above(log_delta(epsilon, mu))


def log_delta(epsilon: float, mu: float) -> float:
    """Natural logarithm of ``delta(epsilon, mu)``; minus infinity for mu = 0 alone. Raises UsageError out of range."""
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise UsageError(f"epsilon: found {epsilon!r}; expected a finite number, 0 or more")
    if not (mu >= 0 and math.isfinite(mu)):
        raise UsageError(f"mu: found {mu!r}; expected a finite number, 0 or more")
    if mu == 0:
        return -math.inf
    if mu >= HOPELESS:
        return 0.0
    mu = above(mu)
    # A smaller ``lower`` is exactly a smaller epsilon, so the error of the quotient is on the safe side.
    lower = below(epsilon, mu) / mu * _SHORTENED - mu / 2
    if lower > _FAR:
        return raised(-lower * lower / 2)
    half_square = lower * lower / 2
    if lower < 0 and mu > 1:  # delta may be close to 1: what is missing is a sum of two positive terms
        tails = float(erfcx(-lower / _SQRT2) + erfcx((lower + mu) / _SQRT2))
        return raised(math.log1p(-math.exp(-half_square) * tails / 2))
    # phi(lower) = e^epsilon phi(upper), so both terms share the factor exp(-lower^2 / 2) / 2.
    [difference] = _scaled_differences(np.array([lower / _SQRT2]), mu / _SQRT2)
    return raised(math.log(difference / 2) - half_square)


def deltas(epsilons: NDArray[np.float64], mu: float) -> NDArray[np.float64]:
    """The curve at an array (n,) of real epsilons, those below 0 too. Needs a finite mu >= 0.

    delta(-e) = 1 - e^-e + e^-e delta(e): the pair N(0, 1), N(mu, 1) is symmetric.
    """
    if mu >= HOPELESS:
        return np.ones_like(epsilons)
    found = np.zeros_like(epsilons)
    if mu > 0:
        mu = above(mu)
        exponents = np.frexp(np.maximum(np.abs(epsilons), mu))[1]
        epsilons = np.ldexp(np.floor(np.ldexp(epsilons, BITS - exponents)), exponents - BITS)
        with np.errstate(over="ignore"):
            lower = np.abs(epsilons) / mu * np.where(epsilons < 0, 1 / _SHORTENED, _SHORTENED) - mu / 2
        one = (lower < 0) & (mu > 1)
        near = ~one & (lower < 100)
        for places, missing in ((one, True), (near, False)):
            start = lower[places]
            if missing:
                parts = 2 - np.exp(-(start**2) / 2) * (erfcx(-start / _SQRT2) + erfcx((start + mu) / _SQRT2))
            else:
                parts = np.exp(-(start**2) / 2) * _scaled_differences(start / _SQRT2, mu / _SQRT2)
            found[places] = parts / 2 * (1 + MARGIN * (1 + start**2))
        found = np.clip(found, SMALLEST, 1.0)
    size = np.abs(epsilons)
    return np.where(epsilons < 0, -np.expm1(-size) + np.exp(-size) * found, found)


def epsilon(delta: float, mu: float) -> float:
    """An epsilon >= 0 at which a mu-GDP mechanism has at most ``delta``: the smallest one, rounded upwards."""
    target = log_target(delta)
    if mu >= HOPELESS:
        log_delta(0.0, mu)  # refuses what is no mu
        return math.inf
    return first_below(lambda value: log_delta(value, mu), target, mu * (mu / 2 + math.sqrt(-2 * target)))


def mu(epsilon: float, delta: float) -> float:
    """A mu above 0 whose delta at ``epsilon`` is at most ``delta``: the largest one, rounded downwards. Raises UsageError for none."""
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
    """The logarithm of a delta that is asked for, strictly between 0 and 1, less the margin. Raises UsageError."""
    if not 0 < delta < 1:
        raise UsageError(f"delta: found {delta!r}; expected a number strictly between 0 and 1")
    return log_below(delta) - SAFETY


def _scaled_differences(start: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """erfcx(start) - erfcx(start + width) for starts (n,) and width > 0, without cancellation."""
    narrow = width <= _NARROW * np.maximum(1.0, start)
    if not narrow.any():
        return np.asarray(erfcx(start) - erfcx(start + width))
    found = np.empty_like(start)
    found[~narrow] = erfcx(start[~narrow]) - erfcx(start[~narrow] + width)
    points = start[narrow][:, None] + width * (1 + _NODES) / 2
    found[narrow] = _minus_slope(points) @ _WEIGHTS * (width / 2)
    return found


def _minus_slope(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """-erfcx'(x) = 2/sqrt(pi) - 2 x erfcx(x), by a continued fraction where that difference cancels."""
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

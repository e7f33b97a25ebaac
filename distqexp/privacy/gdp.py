"""Gaussian differential privacy: the curve between mu and (epsilon, delta).

A mechanism is mu-GDP when telling two neighbouring datasets apart by its output is at least as hard as telling
N(0, 1) from N(mu, 1). Then, with Phi the normal distribution function,

    delta(epsilon) = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)

(Dong, Roth and Su 2022, "Gaussian differential privacy"; Balle and Wang 2018). Everything is evaluated in log
space: e^epsilon overflows above about 709, and for small mu the two terms cancel. All quantities are public.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr

from distqexp.errors import UsageError
from distqexp.privacy.search import last_holding

SAFETY = 1e-10
"""Relative margin on delta when the curve is inverted: a hundred times the rounding error of ``log_delta``."""

_SQRT2 = math.sqrt(2.0)
_SQRT_PI = math.sqrt(math.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def delta(epsilon: float, mu: float) -> float:
    """The delta of a mu-GDP mechanism at ``epsilon`` >= 0; 0 when it is below the smallest float. Needs mu >= 0."""
    return math.exp(log_delta(epsilon, mu))


def log_delta(epsilon: float, mu: float) -> float:
    """Natural logarithm of ``delta(epsilon, mu)``; minus infinity for mu = 0. Raises UsageError out of range."""
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise UsageError(f"epsilon: found {epsilon!r}; expected a finite number, 0 or more")
    if not (mu >= 0 and math.isfinite(mu)):
        raise UsageError(f"mu: found {mu!r}; expected a finite number, 0 or more")
    if mu == 0 or epsilon / mu == math.inf:
        return -math.inf
    lower, upper = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    if lower < -10:  # delta is close to 1: no cancellation, and erfcx(lower) would overflow further out
        second = math.exp(epsilon + float(log_ndtr(-upper)))
        return math.log(float(ndtr(-lower)) - second)
    # phi(lower) = e^epsilon phi(upper), so both terms share the factor exp(-lower^2 / 2) / 2.
    difference = _scaled_difference(lower / _SQRT2, mu / _SQRT2)
    return min(0.0, -lower * lower / 2 + math.log(difference / 2))


def deltas(epsilons: NDArray[np.float64], mu: float) -> NDArray[np.float64]:
    """The curve at an array (n,) of real epsilons, those below 0 too; where it underflows, 0. Needs a finite mu >= 0.

    delta(-e) = 1 - e^-e + e^-e delta(e): the pair N(0, 1), N(mu, 1) is symmetric.
    """
    size, found = np.abs(epsilons), np.zeros_like(epsilons)
    if mu > 0:
        with np.errstate(over="ignore"):
            lower = size / mu - mu / 2
        far, near = lower < -10, (lower >= -10) & (lower < 100)
        found[far] = ndtr(-lower[far]) - np.exp(size[far] + log_ndtr(-lower[far] - mu))
        found[near] = np.exp(-(lower[near] ** 2) / 2) * _scaled_differences(lower[near] / _SQRT2, mu / _SQRT2) / 2
    return np.where(epsilons < 0, -np.expm1(-size) + np.exp(-size) * found, found)


def epsilon(delta: float, mu: float) -> float:
    """An epsilon >= 0 at which a mu-GDP mechanism has at most ``delta``: the smallest one, rounded upwards."""
    target = _log_target(delta)

    def holds(value: float) -> bool:
        return log_delta(value, mu) <= target

    if holds(0.0):
        return 0.0
    high = mu * (mu / 2 + math.sqrt(-2 * target) + 1)
    while not holds(high):
        high *= 2
    return last_holding(holds, inside=high, outside=0.0)


def mu(epsilon: float, delta: float) -> float:
    """A mu whose delta at ``epsilon`` is at most ``delta``: the largest one, rounded downwards."""
    target = _log_target(delta)

    def holds(value: float) -> bool:
        return log_delta(epsilon, value) <= target

    low, high = 1.0, 2.0
    while not holds(low):
        low, high = low / 2, low
    while holds(high):
        low, high = high, high * 2
    return last_holding(holds, inside=low, outside=high)


def _log_target(delta: float) -> float:
    if not 0 < delta < 1:
        raise UsageError(f"delta: found {delta!r}; expected a number strictly between 0 and 1")
    return math.log(delta) - SAFETY


def _scaled_difference(start: float, width: float) -> float:
    """erfcx(start) - erfcx(start + width) for width > 0, without cancellation."""
    if width > 0.5:
        return float(erfcx(start) - erfcx(start + width))
    points = start + width * (1 + _NODES) / 2
    return float(np.dot(_WEIGHTS, _minus_slope(points))) * width / 2


def _scaled_differences(start: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """``_scaled_difference`` for an array of starts (n,)."""
    if width > 0.5:
        return np.asarray(erfcx(start) - erfcx(start + width))
    points = start[:, None] + width * (1 + _NODES) / 2
    return _minus_slope(points) @ _WEIGHTS * width / 2


def _minus_slope(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """-erfcx'(x) = 2/sqrt(pi) - 2 x erfcx(x), by its asymptotic series where that difference cancels."""
    far = x > 25
    near = 2 / _SQRT_PI - 2 * x * erfcx(x)
    ratio = 1 / (2 * np.where(far, x, 25.0) ** 2)
    series = np.zeros_like(x)
    for odd in (15, 13, 11, 9, 7, 5, 3):
        series = ratio * odd * (1 - series)
    tail = 2 / _SQRT_PI * ratio * (1 - series)
    return np.where(far, tail, near)

"""The curves and conversions of the privacy literature by their formulas, in as many digits as cancel: nothing of the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import mpmath


def scaled_tail(x: mpmath.mpf) -> mpmath.mpf:
    """Phi(-x) / density(x), by its continued fraction where exp(x^2 / 2) is out of reach."""
    if x < 40:
        return mpmath.sqrt(2 * mpmath.pi) * mpmath.exp(x * x / 2) * mpmath.erfc(x / mpmath.sqrt(2)) / 2
    tail = mpmath.mpf(0)
    for number in range(200, 0, -1):
        tail = number / (x + tail)
    return 1 / (x + tail)


def gdp_log_delta(epsilon: float, mu: float) -> mpmath.mpf:
    """The Gaussian curve by its formula, with digits for all that cancels."""
    with mpmath.workdps(60 + 4 * max(0, round(math.log10(epsilon / mu + 1) - math.log10(mu)))):
        lower = mpmath.mpf(epsilon) / mu - mpmath.mpf(mu) / 2
        if lower < -40:
            return mpmath.mpf(0) - mpmath.exp(-lower * lower / 2) / 1000 if lower > -1000 else mpmath.mpf(0)
        difference = scaled_tail(lower) - scaled_tail(lower + mu)
        return mpmath.log(difference) - lower * lower / 2 - mpmath.log(2 * mpmath.pi) / 2


def zcdp_log_delta(epsilon: float, rho: float) -> mpmath.mpf:
    """The smallest value over a fine choice of orders: above the minimum by little, never below it."""
    with mpmath.workdps(50):
        epsilon, rho = mpmath.mpf(epsilon), mpmath.mpf(rho)
        low, high = mpmath.mpf(-1000), mpmath.mpf(200)
        for _ in range(200):
            middle = (low + high) / 2
            a = mpmath.exp(middle)
            low, high = (middle, high) if (2 * a + 1) * rho - epsilon <= mpmath.log1p(1 / a) else (low, middle)
        a = mpmath.exp(low)
        return min(0, a * ((a + 1) * rho - epsilon) - a * mpmath.log1p(1 / a) - mpmath.log1p(a))


def log_tail(x: mpmath.mpf) -> mpmath.mpf:
    """The logarithm of Phi(-x), x >= 0."""
    return mpmath.log(scaled_tail(x)) - x * x / 2 - mpmath.log(2 * mpmath.pi) / 2


def gdp_delta(epsilon: float, mu: float) -> mpmath.mpf:
    """The Gaussian curve at a real epsilon, one below 0 too; what is 1 to 300 digits is 1."""
    if mu == 0:
        return max(mpmath.mpf(0), -mpmath.expm1(mpmath.mpf(epsilon)))
    if epsilon < 0:
        return -mpmath.expm1(epsilon) + mpmath.exp(epsilon) * gdp_delta(-epsilon, mu)
    return mpmath.exp(gdp_log_delta(epsilon, mu))


def response_of(mu: float, epsilon: float) -> float:
    """The epsilon of a randomised response that is both mu-GDP and epsilon-DP: the largest one, to ten digits."""
    with mpmath.workdps(60):
        half = mpmath.mpf(mu) / 2
        bound = mpmath.log1p(-mpmath.exp(log_tail(half))) - log_tail(half)
        return float(min(bound, mpmath.mpf(epsilon)) * (1 - mpmath.mpf(10) ** -10))


def mixed_delta(epsilon: float, mu: float, responses: Sequence[float]) -> mpmath.mpf:
    """A mu-GDP Gaussian and randomised responses together: every pattern of the answers, summed."""
    total = mpmath.mpf(0)
    for signs in itertools.product((1, -1), repeat=len(responses)):
        chance = mpmath.mpf(1)
        loss = mpmath.mpf(0)
        for sign, response in zip(signs, responses, strict=True):
            chance /= 1 + mpmath.exp(-sign * mpmath.mpf(response))
            loss += sign * mpmath.mpf(response)
        total += chance * gdp_delta(epsilon - loss, mu)
    return total

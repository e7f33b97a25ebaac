"""Zero-concentrated differential privacy: the exact guarantee of the discrete Gaussian, and its conversion.

A rho-zCDP mechanism has Renyi divergence at most rho * alpha at every order alpha > 1. Its (epsilon, delta)
(Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy"): for every alpha > 1,

    delta = exp((alpha - 1)(alpha rho - epsilon)) / (alpha - 1) * (1 - 1/alpha)^alpha.

The bound holds for any alpha, so an inexact minimisation is still safe. All quantities are public.
"""

from __future__ import annotations

import math

from distqexp.errors import UsageError
from distqexp.privacy.gdp import log_target
from distqexp.privacy.rounding import above, below, square_above, with_margin
from distqexp.privacy.search import first_below

HOPELESS = 1e300
"""From this rho on delta counts as 1."""

_SHORTENED = 1 - 1e-13
"""A factor that brings a root that is right but for the last digits to at most the exact one."""


def rho(mu: float) -> float:
    """Return rho = mu^2 / 2 of a Gaussian or discrete Gaussian release of sensitivity/sigma = mu."""
    return square_above(mu) / 2


def log_delta(epsilon: float, rho: float) -> float:
    """Return the natural logarithm of a delta, at most 1, of a rho-zCDP mechanism at ``epsilon`` >= 0, rounded upwards.

    It rises with rho and falls with epsilon, and is minus infinity for rho = 0 alone. Raises UsageError unless ``epsilon``
    and ``rho`` are finite and at least 0.

    With a = alpha - 1 and gap = rho - epsilon the logarithm is f(a) = a (2 a rho + gap - log(1 + 1/a)) - a^2 rho - log(1 + a),
    and its slope is the expression in brackets. Up to the root of the slope f(a) <= -a^2 rho - log(1 + a), where nothing cancels.
    """
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise UsageError(f"epsilon: found {epsilon!r}; expected a finite number, 0 or more")
    if not (rho >= 0 and math.isfinite(rho)):
        raise UsageError(f"rho: found {rho!r}; expected a finite number, 0 or more")
    if rho == 0:
        return -math.inf
    if rho >= HOPELESS:
        return 0.0
    rho = above(rho)
    gap = rho - below(epsilon, rho + math.sqrt(rho))
    if gap > 40:  # delta > 1 - e^-40
        return 0.0
    excess = _root(rho, gap) * _SHORTENED
    return with_margin(-excess * (excess * rho) - math.log1p(excess))


def epsilon(delta: float, rho: float) -> float:
    """Return the smallest epsilon >= 0, rounded upwards, at which a rho-zCDP mechanism has at most ``delta``."""
    target = log_target(delta)
    if rho >= HOPELESS:
        log_delta(0.0, rho)  # raises UsageError for an infinite rho
        return math.inf
    return first_below(lambda value: log_delta(value, rho), target, rho + 2 * math.sqrt(-rho * target))


def _root(rho: float, gap: float) -> float:
    """Solve 2 a rho + gap = log(1 + 1/a) for a, with gap <= 40, by Newton's method.

    It starts below the root, from where it cannot overshoot, since the function is concave.
    """
    # These three numbers are below the root: the logarithm is positive, is at least 1 / (1 + a), and is above 41 at 1e-18.
    root = max(-gap / (2 * rho), 1 / math.sqrt(2 * rho) - 1, min(1e-18, 0.5 / rho))
    for _ in range(200):
        slope = 2 * root * rho + gap - math.log1p(1 / root)
        step = -slope / (2 * rho + 1 / (root * (1 + root)))
        if step <= 1e-16 * root:
            break
        root += step
    return root

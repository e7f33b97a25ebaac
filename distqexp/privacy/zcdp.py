"""Zero-concentrated differential privacy: the exact guarantee of the discrete Gaussian, and its conversion.

A rho-zCDP mechanism has Renyi divergence at most rho * alpha at every order alpha > 1. Its (epsilon, delta)
(Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy"): for every alpha > 1,

    delta = exp((alpha - 1)(alpha rho - epsilon)) / (alpha - 1) * (1 - 1/alpha)^alpha.

Any alpha is valid, so an inexact minimisation is still safe. All quantities are public.
"""

from __future__ import annotations

import math

from distqexp.errors import UsageError
from distqexp.privacy.gdp import log_target
from distqexp.privacy.rounding import above, below, exp_above, raised, square_above
from distqexp.privacy.search import first_below

HOPELESS = 1e300
"""From this rho on delta counts as 1."""

_SHORTENED = 1 - 1e-13
"""Makes a root that was found to the last digits one that is not above the exact one."""


def rho(mu: float) -> float:
    """rho of a Gaussian or discrete Gaussian release of sensitivity/sigma = mu: mu^2 / 2."""
    return square_above(mu) / 2


def delta(epsilon: float, rho: float) -> float:
    """A delta, at most 1, of a rho-zCDP mechanism at ``epsilon`` >= 0; 0 for rho = 0 alone. Raises UsageError out of range."""
    return exp_above(log_delta(epsilon, rho))


def log_delta(epsilon: float, rho: float) -> float:
    """Natural logarithm of ``delta(epsilon, rho)``, at most 0; minus infinity for rho = 0 alone. Rises with rho, falls with epsilon.

    With a = alpha - 1 the logarithm is f(a) = a (2 a rho + gap - log(1 + 1/a)) - a^2 rho - log(1 + a), gap = rho - epsilon, and
    its slope is what stands in brackets. Up to the root of the slope f(a) <= -a^2 rho - log(1 + a), where nothing cancels.
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
    return raised(-excess * (excess * rho) - math.log1p(excess))


def epsilon(delta: float, rho: float) -> float:
    """An epsilon >= 0 at which a rho-zCDP mechanism has at most ``delta``: the smallest one, rounded upwards."""
    target = log_target(delta)
    if rho >= HOPELESS:
        log_delta(0.0, rho)  # refuses what is no rho
        return math.inf
    return first_below(lambda value: log_delta(value, rho), target, rho + 2 * math.sqrt(-rho * target))


def _root(rho: float, gap: float) -> float:
    """Where 2 a rho + gap = log(1 + 1/a), for gap <= 40: by Newton's method from below, which a concave function cannot make overshoot."""
    # Three places that are below the root: the logarithm is positive, is at least 1 / (1 + a), and is above 41 at 1e-18.
    root = max(-gap / (2 * rho), 1 / math.sqrt(2 * rho) - 1, min(1e-18, 0.5 / rho))
    for _ in range(200):
        slope = 2 * root * rho + gap - math.log1p(1 / root)
        step = -slope / (2 * rho + 1 / (root * (1 + root)))
        if step <= 1e-16 * root:
            break
        root += step
    return root

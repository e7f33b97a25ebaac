"""Zero-concentrated differential privacy: the exact guarantee of the discrete Gaussian, and its conversion.

A rho-zCDP mechanism has Renyi divergence at most rho * alpha at every order alpha > 1. Its (epsilon, delta)
(Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy"): for every alpha > 1,

    delta = exp((alpha - 1)(alpha rho - epsilon)) / (alpha - 1) * (1 - 1/alpha)^alpha.

Any alpha is valid, so an inexact minimisation is still safe. All quantities are public.
"""

from __future__ import annotations

import math

from distqexp.errors import UsageError
from distqexp.privacy.search import last_holding

SAFETY = 1e-10
"""Relative margin on delta when the curve is inverted."""


def rho(mu: float) -> float:
    """rho of a Gaussian or discrete Gaussian release of sensitivity/sigma = mu: mu^2 / 2."""
    return mu * mu / 2


def delta(epsilon: float, rho: float) -> float:
    """A delta, at most 1, of a rho-zCDP mechanism at ``epsilon`` >= 0. Raises UsageError out of range."""
    return math.exp(log_delta(epsilon, rho))


def log_delta(epsilon: float, rho: float) -> float:
    """Natural logarithm of ``delta(epsilon, rho)``, at most 0; minus infinity for rho = 0."""
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise UsageError(f"epsilon: found {epsilon!r}; expected a finite number, 0 or more")
    if not (rho >= 0 and math.isfinite(rho)):
        raise UsageError(f"rho: found {rho!r}; expected a finite number, 0 or more")
    if rho == 0:
        return -math.inf

    def before_minimum(excess: float) -> bool:  # excess = alpha - 1; log1p keeps log(1 - 1/alpha) for large alpha
        slope = (2 * excess + 1) * rho - epsilon - math.log1p(1 / excess)
        return slope <= 0

    low, high = 1.0, 2.0
    while not before_minimum(low):
        low, high = low / 2, low
    while before_minimum(high):
        low, high = high, high * 2
    excess = last_holding(before_minimum, inside=low, outside=high)
    value = excess * ((excess + 1) * rho - epsilon) - excess * math.log1p(1 / excess) - math.log1p(excess)
    return min(0.0, value)


def epsilon(delta: float, rho: float) -> float:
    """An epsilon >= 0 at which a rho-zCDP mechanism has at most ``delta``: the smallest one, rounded upwards."""
    if not 0 < delta < 1:
        raise UsageError(f"delta: found {delta!r}; expected a number strictly between 0 and 1")
    target = math.log(delta) - SAFETY

    def holds(value: float) -> bool:
        return log_delta(value, rho) <= target

    if holds(0.0):
        return 0.0
    high = rho + 2 * math.sqrt(-rho * target) + 1
    while not holds(high):
        high *= 2
    return last_holding(holds, inside=high, outside=0.0)

"""Pure differential privacy of a mechanism on a ball, and what epsilon-DP says in the other languages.

Theorem 3: where one unit changes the utility by a C-Lipschitz function that is 0 at the centre, it changes it by at most
C R on the ball of radius R, and a release with density proportional to exp(utility / T) on the ball is epsilon-DP with
delta 0, epsilon = 2 C R / T. The proofs of the conversions are in docs/proofs/composition.md. All quantities are public.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from scipy.special import erfinv, ndtri_exp

from distqexp.errors import UsageError
from distqexp.privacy.rounding import TINY, above, nearest_sum

_SAFE = 1 + 1e-11
"""Above the rounding errors of the two inverses of the normal distribution function, near 10^-15."""


def pure_epsilon(sensitivity: float | Fraction, radius: float | Fraction, temperature: float | Fraction) -> float:
    """The epsilon of one release, 2 * sensitivity * radius / temperature, rounded upwards. Raises UsageError."""
    quotient = 2 * _positive("sensitivity", sensitivity) * _positive("mechanism.trust_radius", radius)
    return _float_above(quotient / _positive("temperature", temperature))


def round_epsilon(epsilon: float, rounds: int) -> float:
    """The largest float of which ``rounds`` together are at most ``epsilon``, exactly."""
    share = Fraction(epsilon) / rounds
    nearest = float(share)
    return nearest if Fraction(nearest) <= share else math.nextafter(nearest, 0.0)


def total(epsilons: Iterable[float]) -> float:
    """The sum, rounded upwards: releases of these epsilons, adaptive or not, are together so private, with delta 0."""
    terms = list(epsilons)
    nearest = nearest_sum(terms)  # and so is what is left
    return nearest if nearest == math.inf or nearest_sum([*terms, -nearest]) <= 0 else math.nextafter(nearest, math.inf)


def mu(epsilon: float) -> float:
    """A mu such that whatever is epsilon-DP is mu-GDP: the smallest, 2 Phi^-1(e^epsilon / (1 + e^epsilon)), rounded upwards.

    By 2 Phi(x) - 1 = erf(x / sqrt 2) it is sqrt(8) erf^-1(tanh(epsilon / 2)), which loses no digits at a small epsilon.
    """
    epsilon = above(epsilon)
    if epsilon < 2:
        return max(math.sqrt(8) * float(erfinv(math.tanh(epsilon / 2))) * _SAFE, TINY)
    log_error = -(epsilon + math.log1p(math.exp(-epsilon)))  # of randomised response: 1 / (1 + e^epsilon)
    return -2 * float(ndtri_exp(log_error)) * _SAFE


def rho(epsilon: float) -> float:
    """A rho such that whatever is epsilon-DP is rho-zCDP: the smallest, epsilon tanh(epsilon / 2), rounded upwards."""
    epsilon = above(epsilon)
    return max(epsilon * math.tanh(epsilon / 2), TINY)


def _positive(name: str, value: float | Fraction) -> Fraction:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name}: found {value!r}; expected a finite number above 0")
    return Fraction(value)


def _float_above(exact: Fraction) -> float:
    """The smallest float that is at least ``exact``, infinity where there is none."""
    try:
        nearest = float(exact)
    except OverflowError:
        return math.inf
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)

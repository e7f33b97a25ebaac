"""Pure differential privacy of a mechanism on a ball, and the GDP and zCDP parameters that epsilon-DP implies.

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
"""A factor above the rounding errors, near 10^-15, of the two inverses of the normal distribution function."""


def pure_epsilon(sensitivity: float | Fraction, trust_radius: float | Fraction, temperature: float | Fraction) -> float:
    """Return the epsilon of one release on a ball: 2 * sensitivity * radius / temperature, rounded upwards.

    Args:
        sensitivity: C, the Lipschitz constant of one unit's change of the utility.
        trust_radius: R.
        temperature: T.

    Raises:
        UsageError: An argument is not a finite number above 0.
    """
    quotient = 2 * _positive("sensitivity", sensitivity) * _positive("mechanism.trust_radius", trust_radius)
    return _float_above(quotient / _positive("temperature", temperature))


def round_epsilon(epsilon: float, rounds: int) -> float:
    """Return the largest float that, times ``rounds``, is at most ``epsilon`` exactly."""
    share = Fraction(epsilon) / rounds
    nearest = float(share)
    return nearest if Fraction(nearest) <= share else math.nextafter(nearest, 0.0)


def total(epsilons: Iterable[float]) -> float:
    """Return the sum, rounded upwards: the pure epsilon of releases of these epsilons together, adaptive or not."""
    terms = list(epsilons)
    nearest = nearest_sum(terms)  # correctly rounded, as is the remainder below
    return nearest if nearest == math.inf or nearest_sum([*terms, -nearest]) <= 0 else math.nextafter(nearest, math.inf)


def mu(epsilon: float) -> float:
    """Return the smallest mu such that every epsilon-DP mechanism is mu-GDP, rounded upwards.

    It is 2 Phi^-1(e^epsilon / (1 + e^epsilon)). By 2 Phi(x) - 1 = erf(x / sqrt 2) this is sqrt(8) erf^-1(tanh(epsilon / 2)),
    which loses no digits at a small epsilon.
    """
    epsilon = above(epsilon)
    if epsilon < 2:
        return max(math.sqrt(8) * float(erfinv(math.tanh(epsilon / 2))) * _SAFE, TINY)
    log_error = -(epsilon + math.log1p(math.exp(-epsilon)))  # the error of randomised response is 1 / (1 + e^epsilon)
    return -2 * float(ndtri_exp(log_error)) * _SAFE


def rho(epsilon: float) -> float:
    """Return the smallest rho, epsilon tanh(epsilon / 2), such that every epsilon-DP mechanism is rho-zCDP, rounded upwards."""
    epsilon = above(epsilon)
    return max(epsilon * math.tanh(epsilon / 2), TINY)


def _positive(name: str, value: float | Fraction) -> Fraction:
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{name}: found {value!r}; expected a finite number above 0")
    return Fraction(value)


def _float_above(exact: Fraction) -> float:
    """Return the smallest float that is at least ``exact``; infinity on overflow."""
    try:
        nearest = float(exact)
    except OverflowError:
        return math.inf
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)

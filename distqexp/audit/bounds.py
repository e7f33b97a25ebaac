"""Lower bounds on what a mechanism has given away, from the counted errors of a test.

Whoever tells two neighbouring datasets apart by one release errs at least as often as Gaussian differential privacy says. Errors
that are rarer, by more than chance allows, disprove the claim (Dong, Roth and Su 2022; Nasr and others 2023).
"""

from __future__ import annotations

import math

from scipy.special import betaincinv, ndtri

from distqexp.errors import UsageError

FAILURE = 1e-6
"""Probability with which a sound mechanism fails an audit, at most."""


def rate_above(count: int, trials: int, failure: float) -> float:
    """Return a rate that the true one exceeds with probability at most ``failure`` (Clopper and Pearson 1934).

    Args:
        count: How often it happened.
        trials: How often it could have happened.
        failure: The probability, in (0, 1).

    Raises:
        UsageError: The numbers are impossible.
    """
    if not (0 <= count <= trials and trials >= 1 and 0 < failure < 1):
        raise UsageError(
            f"audit: found {count} of {trials} at failure {failure!r}; expected a count of trials, failure in (0, 1)"
        )
    return 1.0 if count == trials else float(betaincinv(count + 1, trials - count, 1.0 - failure))


def mu_below(false_positive: float, false_negative: float) -> float:
    """Return the smallest mu at which a test may have these error rates, 0 or more: Phi^-1(1 - fp) - Phi^-1(fn)."""
    return max(0.0, float(ndtri(1.0 - false_positive) - ndtri(false_negative)))


def epsilon_below(false_positive: float, false_negative: float, delta: float) -> float:
    """Return the smallest epsilon, 0 or more, at which a test of an (epsilon, delta)-private release may have these error rates."""
    bounds = [0.0]
    for one, other in ((false_positive, false_negative), (false_negative, false_positive)):
        hits = 1.0 - other - delta
        if hits > 0 and one > 0:
            bounds.append(math.log(hits / one))
    return max(bounds)

"""Lower bounds on what a mechanism has given away, from the counted errors of a test.

Whoever tells two neighbouring datasets apart by one release errs at least as often as Gaussian differential privacy says. Errors
that are rarer, by more than chance allows, disprove the claim (Dong, Roth and Su 2022; Nasr and others 2023).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaincinv, ndtri

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.privacy.guarantee import Guarantee
from distqexp.privacy.sampled import EPSILONS

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


def curve_of(claim: Guarantee, *others: float) -> tuple[FloatArray, FloatArray]:
    """Return the epsilons at which a claimed curve is tried, (n,), and the delta that is claimed at each.

    They are a fixed grid from small to large ones, and the finite ones among ``others``. All points of a curve hold at once, so that as
    many as one likes are tried at no price.
    """
    finite = [epsilon for epsilon in others if math.isfinite(epsilon)]
    epsilons = np.unique(np.concatenate([EPSILONS, finite]))
    return epsilons, np.array([claim.delta(float(epsilon)) for epsilon in epsilons])


def excess(false_positive: float, false_negative: float, epsilons: FloatArray, deltas: FloatArray) -> FloatArray:
    """Return by how much a test with these error rates beats each (epsilon, delta), either way round, (n,); 0 or less where it may not.

    The hits of a test of (epsilon, delta)-private releases are at most e^epsilon times its false alarms, plus delta.
    """
    factors = np.exp(epsilons)
    one = 1.0 - false_negative - factors * false_positive
    other = 1.0 - false_positive - factors * false_negative
    return np.asarray(np.maximum(one, other) - deltas)


def fewest_misses(false_positives: FloatArray, epsilons: FloatArray, deltas: FloatArray) -> FloatArray:
    """Return the smallest false negative rate that all points of a curve together allow at each false positive rate, (n,)."""
    rates = false_positives[:, None]
    one = 1.0 - deltas - np.exp(epsilons) * rates
    other = np.exp(-epsilons) * (1.0 - deltas - rates)
    return np.asarray(np.maximum(0.0, np.maximum(one, other).max(axis=1)))

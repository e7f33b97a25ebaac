"""Forecasts of how far above the minimum the released point lies, from public figures alone.

With q the clipped whitened quadratic and temperature T = (sigma h)^2, the release y is the minimiser of q plus
Gaussian noise of covariance T B^{-1}, B the curvature of q. So 2 (q(y) - min q) / T is chi-square distributed with
k degrees of freedom, whatever the data; with discrete noise every exponential moment is at most that of chi-square. Values
are in units of q: a loss summed over the privacy units.
"""

from __future__ import annotations

import math

from distqexp.errors import UsageError


def expected_excess(temperature: float, k: int) -> float:
    """Return E[q(y)] - min q = T k / 2, without a trust radius; with discrete noise this is an upper bound."""
    _check(temperature, k)
    return temperature * k / 2


def excess_bound(temperature: float, k: int, failure: float) -> float:
    """Bound q(y) - min q with probability at least 1 - ``failure``.

    The bound is T (k + 2 sqrt(k log(1/failure)) + 2 log(1/failure)) / 2, the upper tail of chi-square by Laurent and Massart
    (2000). It rests on the moment generating function alone, and that of a squared discrete Gaussian is at most that
    of the continuous one, so it holds for discrete noise too. Raises UsageError unless 0 < failure < 1.
    """
    _check(temperature, k)
    if not 0 < failure < 1:
        raise UsageError(f"failure probability: found {failure!r}; expected a number strictly between 0 and 1")
    tail = -math.log(failure)
    return temperature * (k + 2 * math.sqrt(k * tail) + 2 * tail) / 2


def expected_excess_in_ball(temperature: float, k: int) -> float:
    """Bound E[q(y)] minus the minimum of q over the ball, with a finite trust radius, by T k."""
    _check(temperature, k)
    return temperature * k


def sampling_excess(clip: float, units: float, sampling: float) -> float:
    """Bound how much a sample of the units adds, on average, to the excess over the quadratic of all units, scaled by ``sampling``.

    Of vectors of length at most C a sample's sum varies by at most q (1 - q) n C^2 around q times the sum of all, and the
    excess is half of that.

    Args:
        clip: C, in whitened units.
        units: The nominal number of units n.
        sampling: The probability q with which a unit takes part.
    """
    return sampling * (1.0 - sampling) * units * clip**2 / 2


def _check(temperature: float, k: int) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"temperature: found {temperature!r}; expected a finite number above 0")
    if k < 1:
        raise UsageError(f"k: found {k!r}; expected 1 or more")

"""Exact draws from a Gaussian truncated to a ball: the release with a trust region (docs/proofs/truncated.md).

The law is N(-B^{-1} s, T B^{-1}) restricted to ||y|| <= R. Where the mean is well inside the ball, the Gaussian itself is
drawn until a draw falls inside. Elsewhere that would take too long, so a tilted Gaussian
N(-(B + nu I)^{-1} s, T (B + nu I)^{-1}) is drawn, and accepted inside the ball with probability
exp(-nu (R^2 - ||y||^2) / (2 T)); nu is a trust region's multiplier. Where the mean lies so far outside that this would take
more than about sqrt(k) tries, the draw is made on a sphere (truncated_far.py). Each way is exact, whatever nu is and
whichever way is chosen. The time of a draw depends on private sums: a timing side channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import scipy.linalg
from scipy.optimize import brentq

from distqexp.arrays import FloatArray
from distqexp.errors import UsageError
from distqexp.mechanism.randomness import Randomness
from distqexp.mechanism.truncated_far import SphericalEnvelope

Propose = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""A function from normal numbers (tries, width) to points, and to the logarithms of the probabilities with which they are accepted."""

Sampler = Callable[[Randomness], FloatArray]

NORMALS_AT_ONCE = 1 << 16
"""At most this many normal numbers are drawn at a time, or those of one try if they are more; this bounds the memory."""

LARGEST_CONCENTRATION = 2**80
"""The largest R ||s|| / T: where it is exceeded, the temperature is raised.

Beyond it the spread of the law comes near the last digits of float64.
"""

LARGEST_ENTRY = 2.0**900
"""The largest entry of B and s, in absolute value, so that their norms are finite."""

MARGIN = 2.0**-40
"""How far inside the ball, as a share of R^2, a mean must be to count as inside, so that rounding can't decide every try."""

SMALLEST_SPREAD = 2.0**-45
"""The smallest spread of ||y||^2 / R^2. Below it, rounding errors would affect the acceptance of the tilted Gaussian."""


@dataclass(frozen=True)
class ScaledQuadratic:
    """The law in the eigenbasis of B and in units of R. Everything in it is private.

    Its density on ||x|| <= 1 is exp(-x' diag(precision) x / 2 + concentration <direction, x>).

    Attributes:
        precision: R^2 lam / T, (k,), with lam the eigenvalues of B.
        direction: (k,), of norm 1, or all 0 where s is 0.
        concentration: R ||s|| / T.
    """

    precision: FloatArray
    direction: FloatArray
    concentration: float

    def moments(self, nu: float) -> tuple[FloatArray, FloatArray]:
        """Return the mean and the variances, (k,) each, of the Gaussian whose precision is larger by ``nu``."""
        variance = 1.0 / (self.precision + nu)
        return self.concentration * self.direction * variance, variance


def draw_truncated(
    curvature: FloatArray | None, linear: FloatArray, temperature: float, trust_radius: float, randomness: Randomness
) -> FloatArray:
    """Draw y from N(-B^{-1} s, T B^{-1}) restricted to ||y|| <= R, exactly in ideal real arithmetic.

    Args:
        curvature: B, symmetric (k, k) with eigenvalues of at least 1, of which the lower triangle is read; None stands for
            the identity. Private.
        linear: s, (k,). Private, and so is the time that the draw takes.
        temperature: T, public.
        trust_radius: R, in whitened units, public.
        randomness: The stream that the draw takes its random numbers from.

    Returns:
        y, float64 (k,).

    Raises:
        UsageError: Wrong shapes, types or sizes, or sums that are not finite. The message holds no entry of B or s.
    """
    return truncated_sampler(curvature, linear, temperature, trust_radius)(randomness)


def truncated_sampler(
    curvature: FloatArray | None, linear: FloatArray, temperature: float, trust_radius: float
) -> Sampler:
    """Return the function with which ``draw_truncated`` draws, for many draws from one law. Private.

    See ``draw_truncated`` for the arguments and errors.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"temperature: found {temperature!r}; expected a finite number above 0")
    if not 2.0**-900 <= trust_radius <= 2.0**900:
        raise UsageError(f"mechanism.trust_radius: found {trust_radius!r}; expected a number from 2^-900 to 2^900")
    k = linear.size
    if linear.shape != (k,) or k < 1 or (curvature is not None and curvature.shape != (k, k)):
        shape = None if curvature is None else curvature.shape
        raise UsageError(f"quadratic: found s {linear.shape}, B {shape}; expected (k,), and (k, k) or none")
    for array in (linear, curvature):
        if array is not None and not (array.dtype == np.float64 and (np.abs(array) <= LARGEST_ENTRY).all()):
            raise UsageError(
                "quadratic: found sums that are not float64 or too large; expected finite ones below 2^900"
            )
    if curvature is None:
        sampler = _diagonal_sampler(np.ones(k), linear, temperature, trust_radius)
        return lambda randomness: _into_ball(sampler(randomness), trust_radius)
    values, vectors = scipy.linalg.eigh(curvature, driver="evd", check_finite=False)
    # B is the identity plus a positive semidefinite matrix: an eigenvalue lies below 1 by rounding alone.
    values = np.maximum(values, 1.0)
    diagonal_sampler = _diagonal_sampler(values, vectors.T @ linear, temperature, trust_radius)
    return lambda randomness: _into_ball(vectors @ diagonal_sampler(randomness), trust_radius)


def _diagonal_sampler(values: FloatArray, linear: FloatArray, temperature: float, trust_radius: float) -> Sampler:
    """Choose among the three ways of drawing, for B = diag(values) with values (k,)."""
    k = len(values)
    mean, spread = -linear / values, math.sqrt(temperature) / np.sqrt(values)
    with np.errstate(over="ignore"):  # a mean with an infinite sum counts as far outside
        offset, room = np.square(mean / trust_radius).sum(), np.square(spread / trust_radius).sum()
    if offset <= 1.0 - MARGIN and offset + room <= 1.0:

        def gaussian(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
            points = mean + spread * normal
            return points, np.where(np.square(points / trust_radius).sum(axis=1) <= 1.0, 0.0, -np.inf)

        return partial(_first_accepted, gaussian, k)

    scaled = _scale(values, linear, temperature, trust_radius)
    nu = _multiplier(scaled)
    squares_spread = _spread(scaled, nu)
    if nu == 0.0 and squares_spread < SMALLEST_SPREAD:
        # The mean is within MARGIN of the boundary, and float64 hardly distinguishes the law from a point.
        warmer = (squares_spread / SMALLEST_SPREAD) ** 2
        scaled = ScaledQuadratic(scaled.precision * warmer, scaled.direction, scaled.concentration * warmer)
        squares_spread = SMALLEST_SPREAD
    # ||x||^2 has mean 1 and is accepted within 2 / nu below 1, which takes about this many tries.
    tries = 1.0 + math.sqrt(2.0 * math.pi) * nu / 2.0 * squares_spread
    if squares_spread >= SMALLEST_SPREAD and tries <= _tries_allowed(k):
        propose = _tilted_proposal(scaled, nu)
        return lambda randomness: trust_radius * _first_accepted(propose, k, randomness)
    envelope = SphericalEnvelope.choose(scaled.precision, scaled.direction, scaled.concentration)
    return lambda randomness: (
        trust_radius * envelope.orient(_first_accepted(envelope.propose, k + 2, randomness)[:k], randomness)
    )


def _first_accepted(propose: Propose, width: int, randomness: Randomness) -> FloatArray:
    """Return the first accepted point of ``propose``, whose tries take ``width`` normal numbers each.

    Tries are made in blocks whose size doubles; those after the first accepted one are discarded.
    """
    tries = 1
    while True:
        points, chances = propose(randomness.normal(tries * width).reshape(tries, width))
        for number in np.flatnonzero(chances > -np.inf):
            if math.log(randomness.uniform()) <= chances[number]:
                return np.asarray(points[number], dtype=np.float64)
        tries = min(2 * tries, max(1, NORMALS_AT_ONCE // width))


def _scale(values: FloatArray, linear: FloatArray, temperature: float, trust_radius: float) -> ScaledQuadratic:
    """Scale the law to units of R, with exact quotients, so that no intermediate product leaves float64's range."""
    norm = float(scipy.linalg.norm(linear))
    direction = -linear / norm if norm > 0.0 else np.zeros(len(linear))
    pull = Fraction(trust_radius) * Fraction(norm)
    heat = max(Fraction(temperature), pull / LARGEST_CONCENTRATION)
    # An infinite precision fixes its coordinate to 0, as a precision at the end of the range would.
    with np.errstate(over="ignore"):
        precision = float(Fraction(trust_radius) ** 2 / heat) * values
    return ScaledQuadratic(precision, direction, float(pull / heat))


def _multiplier(scaled: ScaledQuadratic) -> float:
    """Find nu >= 0, in units of T / R^2, at which the tilted Gaussian's mean square is 1; 0 where it is less without a tilt."""

    def excess(nu: float) -> float:
        mean, variance = scaled.moments(nu)
        return math.log(float(np.square(mean).sum() + variance.sum()))

    # At the upper end each of the two sums is at most 1/2. The lower end stands for 0, where a sum may be infinite.
    below, above = 2.0**-20, math.sqrt(2.0) * scaled.concentration + 2.0 * len(scaled.precision)
    return float(brentq(excess, below, above, xtol=1e-300, rtol=1e-14)) if excess(below) > 0.0 else 0.0


def _tries_allowed(k: int) -> float:
    """Return how many tries of the tilted Gaussian are acceptable: beyond, the sphere with about sqrt(k) tries is better."""
    return 2.0 * math.sqrt(k + 2)


def _spread(scaled: ScaledQuadratic, nu: float) -> float:
    """Return the standard deviation of ||x||^2 under the tilted Gaussian."""
    mean, variance = scaled.moments(nu)
    return math.sqrt(float((4.0 * np.square(mean) * variance + 2.0 * np.square(variance)).sum()))


def _tilted_proposal(scaled: ScaledQuadratic, nu: float) -> Propose:
    """Return the function that proposes points of the tilted Gaussian."""
    mean, variance = scaled.moments(nu)
    spread = np.sqrt(variance)

    def propose(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
        points = mean + spread * normal
        room = 1.0 - np.square(points).sum(axis=1)
        return points, np.where(room >= 0.0, -nu / 2.0 * room, -np.inf)

    return propose


def _into_ball(point: FloatArray, trust_radius: float) -> FloatArray:
    """Return the point, moved inwards by a few units in the last place where rounding may have put it outside the ball."""
    # fsum adds exactly, and each square is off by at most 2^-51 of itself: a sum that passes belongs to a point of the ball.
    square = math.fsum(np.square(point / trust_radius))
    return point if square <= 1.0 - 2.0**-50 else point * ((1.0 - 2.0**-49) / math.sqrt(square))

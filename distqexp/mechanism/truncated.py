"""Exact draws from a Gaussian truncated to a ball: the release with a trust region (docs/proofs/truncated.md).

The law is N(-B^{-1} s, T B^{-1}) restricted to ||y|| <= R. Far inside the ball the Gaussian itself is drawn until it falls inside.
Elsewhere that would never end, so a tilted Gaussian N(-(B + nu I)^{-1} s, T (B + nu I)^{-1}) is drawn, and accepted inside the ball
with probability exp(-nu (R^2 - ||y||^2) / (2 T)); nu is a trust region's multiplier. Where the mean lies so far outside that this
would take more than about sqrt(k) tries, the draw is made on a sphere (spherical.py). Each way is exact, whatever nu is and whichever
is chosen. How long a draw takes depends on private sums: a timing side channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.optimize import brentq

from distqexp.errors import UsageError
from distqexp.mechanism.randomness import Randomness
from distqexp.mechanism.truncated_far import SphericalEnvelope

FloatArray = NDArray[np.float64]
Propose = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
Sampler = Callable[[Randomness], FloatArray]

NORMALS_AT_ONCE = 1 << 16
"""Normal numbers drawn at a time, if they are more than one try's: bounds the memory."""

LARGEST_CONCENTRATION = 2**80
"""R ||s|| / T; the temperature is raised to where it is no larger. Beyond, the law's spread nears the last digits of float64."""

LARGEST_ENTRY = 2.0**900
"""Of B and s, so that their norms are finite."""

MARGIN = 2.0**-40
"""How far inside the ball, as a share of R^2, a mean must be to count as inside, so that rounding can't decide every try."""

SMALLEST_SPREAD = 2.0**-45
"""Of ||y||^2 / R^2. Below it, its rounding errors would tell in the tilted Gaussian's acceptance."""


@dataclass(frozen=True)
class ScaledQuadratic:
    """The law in the eigenbasis of B and units of R: density exp(-x' diag(precision) x / 2 + concentration <direction, x>), ||x|| <= 1.

    precision: R^2 lam / T, (k,). direction: (k,), of norm 1. concentration: R ||s|| / T. All private.
    """

    precision: FloatArray
    direction: FloatArray
    concentration: float

    def moments(self, nu: float) -> tuple[FloatArray, FloatArray]:
        """Mean and variances, (k,) each, of the Gaussian with ``nu`` more precision."""
        variance = 1.0 / (self.precision + nu)
        return self.concentration * self.direction * variance, variance


def draw_truncated(
    curvature: FloatArray | None, linear: FloatArray, temperature: float, radius: float, randomness: Randomness
) -> FloatArray:
    """y ~ N(-B^{-1} s, T B^{-1}) restricted to ||y|| <= R, float64 (k,), exact in ideal real arithmetic.

    curvature: B, symmetric (k, k), its eigenvalues 1 or more, of which the lower triangle is read; None: the identity. linear: s, (k,).
    Both private, and so is how long this takes. temperature: T, radius: R, in whitened units, public. Raises UsageError for
    wrong shapes, types or sizes, and for sums that are not finite; it carries no entry of either.
    """
    return truncated_sampler(curvature, linear, temperature, radius)(randomness)


def truncated_sampler(curvature: FloatArray | None, linear: FloatArray, temperature: float, radius: float) -> Sampler:
    """What ``draw_truncated`` draws with, made once for many draws from one law. Private."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(f"temperature: found {temperature!r}; expected a finite number above 0")
    if not 2.0**-900 <= radius <= 2.0**900:
        raise UsageError(f"mechanism.trust_radius: found {radius!r}; expected a number from 2^-900 to 2^900")
    k = linear.size
    if linear.shape != (k,) or k < 1 or (curvature is not None and curvature.shape != (k, k)):
        found = None if curvature is None else curvature.shape
        raise UsageError(f"quadratic: found s {linear.shape}, B {found}; expected (k,), and (k, k) or none")
    for array in (linear, curvature):
        if array is not None and not (array.dtype == np.float64 and (np.abs(array) <= LARGEST_ENTRY).all()):
            raise UsageError(
                "quadratic: found sums that are not float64 or too large; expected finite ones below 2^900"
            )
    if curvature is None:
        plain = _diagonal_sampler(np.ones(k), linear, temperature, radius)
        return lambda randomness: _into_ball(plain(randomness), radius)
    values, vectors = scipy.linalg.eigh(curvature, driver="evd", check_finite=False)
    # B is the identity and something positive semidefinite: whatever lies below 1 does so by rounding alone.
    values = np.maximum(values, 1.0)
    rotated = _diagonal_sampler(values, vectors.T @ linear, temperature, radius)
    return lambda randomness: _into_ball(vectors @ rotated(randomness), radius)


def _diagonal_sampler(values: FloatArray, linear: FloatArray, temperature: float, radius: float) -> Sampler:
    """Draws for B = diag(values), (k,)."""
    k = len(values)
    mean, spread = -linear / values, math.sqrt(temperature) / np.sqrt(values)
    with np.errstate(over="ignore"):  # an infinite sum is far outside
        offset, room = np.square(mean / radius).sum(), np.square(spread / radius).sum()
    if offset <= 1.0 - MARGIN and offset + room <= 1.0:

        def gaussian(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
            points = mean + spread * normal
            return points, np.where(np.square(points / radius).sum(axis=1) <= 1.0, 0.0, -np.inf)

        return partial(_first_accepted, gaussian, k)

    scaled = _scale(values, linear, temperature, radius)
    nu = _multiplier(scaled)
    squares_spread = _spread(scaled, nu)
    if nu == 0.0 and squares_spread < SMALLEST_SPREAD:
        # A mean within MARGIN of the boundary, and a law that float64 hardly tells from a point.
        warmer = (squares_spread / SMALLEST_SPREAD) ** 2
        scaled = ScaledQuadratic(scaled.precision * warmer, scaled.direction, scaled.concentration * warmer)
        squares_spread = SMALLEST_SPREAD
    # ||x||^2 has mean 1 and is accepted within 2 / nu below 1: about so many tries.
    tries = 1.0 + math.sqrt(2.0 * math.pi) * nu / 2.0 * squares_spread
    if squares_spread >= SMALLEST_SPREAD and tries <= _tries_allowed(k):
        propose = _tilted(scaled, nu)
        return lambda randomness: radius * _first_accepted(propose, k, randomness)
    envelope = SphericalEnvelope.choose(scaled.precision, scaled.direction, scaled.concentration)
    return lambda randomness: (
        radius * envelope.orient(_first_accepted(envelope.propose, k + 2, randomness)[:k], randomness)
    )


def _first_accepted(propose: Propose, width: int, randomness: Randomness) -> FloatArray:
    """The first point that is accepted. ``propose``: (tries, width) normal numbers to points and logarithms of probabilities.

    Tries are made in blocks that double; those behind the first accepted one are thrown away.
    """
    tries = 1
    while True:
        points, chances = propose(randomness.normal(tries * width).reshape(tries, width))
        for number in np.flatnonzero(chances > -np.inf):
            if math.log(randomness.uniform()) <= chances[number]:
                return np.asarray(points[number], dtype=np.float64)
        tries = min(2 * tries, max(1, NORMALS_AT_ONCE // width))


def _scale(values: FloatArray, linear: FloatArray, temperature: float, radius: float) -> ScaledQuadratic:
    """The law in units of R; exact quotients, so that no product on the way leaves float64's range."""
    norm = float(scipy.linalg.norm(linear))
    direction = -linear / norm if norm > 0.0 else np.zeros(len(linear))
    pull = Fraction(radius) * Fraction(norm)
    heat = max(Fraction(temperature), pull / LARGEST_CONCENTRATION)
    # An infinite precision pins its coordinate to 0, as one at the end of the range would.
    with np.errstate(over="ignore"):
        precision = float(Fraction(radius) ** 2 / heat) * values
    return ScaledQuadratic(precision, direction, float(pull / heat))


def _multiplier(scaled: ScaledQuadratic) -> float:
    """nu >= 0, in units of T / R^2, at which the tilted Gaussian's mean square is 1; 0 where it is less without a tilt."""

    def excess(nu: float) -> float:
        mean, variance = scaled.moments(nu)
        return math.log(float(np.square(mean).sum() + variance.sum()))

    # At the upper end each of the two sums is at most a half. The lower end stands for 0, where a sum may be infinite.
    below, above = 2.0**-20, math.sqrt(2.0) * scaled.concentration + 2.0 * len(scaled.precision)
    return float(brentq(excess, below, above, xtol=1e-300, rtol=1e-14)) if excess(below) > 0.0 else 0.0


def _tries_allowed(k: int) -> float:
    """Tries of the tilted Gaussian beyond which the sphere, with its sqrt(k) or so, is the better way."""
    return 2.0 * math.sqrt(k + 2)


def _spread(scaled: ScaledQuadratic, nu: float) -> float:
    """Standard deviation of ||x||^2 under the tilted Gaussian."""
    mean, variance = scaled.moments(nu)
    return math.sqrt(float((4.0 * np.square(mean) * variance + 2.0 * np.square(variance)).sum()))


def _tilted(scaled: ScaledQuadratic, nu: float) -> Propose:
    """Tries of the tilted Gaussian."""
    mean, variance = scaled.moments(nu)
    spread = np.sqrt(variance)

    def propose(normal: FloatArray) -> tuple[FloatArray, FloatArray]:
        points = mean + spread * normal
        room = 1.0 - np.square(points).sum(axis=1)
        return points, np.where(room >= 0.0, -nu / 2.0 * room, -np.inf)

    return propose


def _into_ball(point: FloatArray, radius: float) -> FloatArray:
    """The point, pulled in by some units in the last place where rounding may have put it outside."""
    # fsum adds exactly, and each square is off by 2^-51 of itself at most: a sum that passes belongs to a point of the ball.
    square = math.fsum(np.square(point / radius))
    return point if square <= 1.0 - 2.0**-50 else point * ((1.0 - 2.0**-49) / math.sqrt(square))

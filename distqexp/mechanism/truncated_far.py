"""A truncated Gaussian that is drawn on a sphere, for means far outside the ball (docs/proofs/truncated.md, section 4).

The ball's law is that of the first k coordinates of a point x on the unit sphere of k + 2 dimensions with density
proportional to exp(-x' diag(precision) x / 2 + concentration <direction, x>), where precision and direction are 0 on the
last two coordinates. Points of the sphere are proposed as directions of Gaussian vectors N(0, Omega^{-1}). No distance to a
boundary has to be hit, so few tries are needed however far outside the mean is. The acceptance rule treats x and -x alike,
by cosh; which of the two is returned is drawn afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from scipy.optimize import brentq

from distqexp.arrays import FloatArray
from distqexp.mechanism.randomness import Randomness


class _Bound(NamedTuple):
    """The bound on the density at one shift: Omega = diag - slope direction direction', diag = precision + shift."""

    diagonal: FloatArray  # (k + 2,)
    tangent: float  # where the bound on log cosh touches it
    rest: float  # 1 - tanh(concentration * tangent), computed without cancellation
    determinant: float  # of Omega, divided by that of its diagonal; computed without cancellation
    inner: float  # direction' diag^{-1} direction
    trace: float  # of Omega^{-1}


@dataclass(frozen=True)
class SphericalEnvelope:
    """An angular central Gaussian whose multiple lies above the law. Everything in it is private.

    Attributes:
        direction: (k + 2,), the direction of the law in the module's docstring.
        concentration: The concentration of that law.
        bound: The bound that gives the envelope.
    """

    direction: FloatArray
    concentration: float
    bound: _Bound

    @classmethod
    def choose(cls, precision: FloatArray, direction: FloatArray, concentration: float) -> Self:
        """Choose an envelope whose shift is about the best one.

        Any shift above 0 gives an exact sampler. The best one makes the mean square of N(0, Omega^{-1}) equal to 1.

        Args:
            precision: (k,).
            direction: (k,), of norm 1, or all 0 where the concentration is 0.
            concentration: The factor of the linear term.
        """
        sphere_precision = np.concatenate([precision, np.zeros(2)])
        sphere_direction = np.concatenate([direction, np.zeros(2)])
        # At this shift the trace is at most 3/4; at a shift of 1 it is 2 or more.
        largest_shift = 2.0 * (len(sphere_precision) + 2) + 2.0 * concentration
        best = brentq(
            lambda exponent: math.log(
                _bound(sphere_precision, sphere_direction, concentration, math.exp(exponent)).trace
            ),
            0.0,
            math.log(largest_shift),
        )
        bound = _bound(sphere_precision, sphere_direction, concentration, math.exp(best))
        return cls(sphere_direction, concentration, bound)

    def propose(self, normal: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Map normal numbers (tries, k + 2) to points of the sphere and the logarithms of their acceptance probabilities."""
        size = normal.shape[1]
        diagonal, tangent, rest, determinant, inner, _ = self.bound
        scale = 1.0 / np.sqrt(diagonal)
        # Omega^{-1/2} = diag^{-1/2} (I + (determinant^{-1/2} - 1) axis axis'), so that z' Omega z is the sum of the numbers' squares.
        axis = self.direction * scale / math.sqrt(inner) if inner > 0.0 else self.direction
        stretch = 1.0 / math.sqrt(determinant) - 1.0
        vectors = (normal + stretch * (normal @ axis)[:, None] * axis) * scale
        squares = np.square(vectors).sum(axis=1)
        energy = np.square(normal).sum(axis=1) / squares  # x' Omega x
        points = vectors / np.sqrt(squares)[:, None]
        # exp(-w/2) is at most a multiple of w^{-q/2}, the density of the directions; they touch at w = q.
        chances = -(energy - size) / 2.0 + size / 2.0 * np.log(energy / size)
        # log cosh(kappa t) is at most its tangent in t^2. The difference is arranged so that nothing cancels.
        kappa, along = self.concentration, np.abs(points @ self.direction)
        beyond = along - tangent
        chances += (
            kappa * beyond * rest
            + np.log1p(np.exp(-2.0 * kappa * along))
            - math.log1p(math.exp(-2.0 * kappa * tangent))
        )
        if tangent > 0.0:
            chances -= kappa * (1.0 - rest) * np.square(beyond) / (2.0 * tangent)
        return points, chances

    def orient(self, point: FloatArray, randomness: Randomness) -> FloatArray:
        """Return the accepted point (k,) or its opposite, with the odds of their densities."""
        along = float(point @ self.direction[: len(point)])
        opposite_chance = 1.0 / (1.0 + math.exp(min(2.0 * self.concentration * abs(along), 700.0)))
        likely_point = point if along >= 0.0 else -point
        return likely_point if randomness.uniform() > opposite_chance else -likely_point


def _bound(precision: FloatArray, direction: FloatArray, concentration: float, shift: float) -> _Bound:
    """Compute the bound at a shift, with the tangent point that makes it about tightest."""
    diagonal = precision + shift
    inner = float((np.square(direction) / diagonal).sum())
    if inner == 0.0:
        return _Bound(diagonal, 0.0, 1.0, 1.0, 0.0, float((1.0 / diagonal).sum()))
    # The bound is tightest where the tangent point is the root mean square of <direction, z> under N(0, Omega^{-1}). The equation is
    # solved with tanh replaced by 1: that is about as tight, and any tangent point gives an exact sampler.
    pull = concentration * inner
    tangent = (pull + math.sqrt(pull * pull + 4.0 * inner)) / 2.0
    rest = 2.0 / (math.exp(min(2.0 * concentration * tangent, 700.0)) + 1.0)
    determinant = inner / tangent**2 + pull / tangent * rest
    spread = float(np.square(direction / diagonal).sum()) * (1.0 - rest) * concentration / tangent
    return _Bound(diagonal, tangent, rest, determinant, inner, float((1.0 / diagonal).sum()) + spread / determinant)

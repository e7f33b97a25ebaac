"""A truncated Gaussian drawn on a sphere: for means far outside the ball (docs/proofs/truncated.md, section 4).

The ball's law is that of the first k coordinates of a point x on the unit sphere of k + 2 dimensions with density proportional to
exp(-x' diag(precision) x / 2 + concentration <direction, x>), both being 0 on the last two coordinates. Points of the sphere are
proposed as directions of Gaussian vectors N(0, Omega^{-1}): no distance to a boundary has to be hit, so tries stay few however far outside
the mean is. x and -x are accepted together, by cosh, and told apart afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from distqexp.mechanism.randomness import Randomness

FloatArray = NDArray[np.float64]


class _Bound(NamedTuple):
    """The bound at one shift: Omega = diag - slope direction direction', diag = precision + shift."""

    diagonal: FloatArray  # (k + 2,)
    tangent: float  # where the bound of log cosh touches it
    rest: float  # 1 - tanh(concentration * tangent), without cancellation
    determinant: float  # of Omega, over that of its diagonal; without cancellation
    inner: float  # direction' diag^{-1} direction
    trace: float  # of Omega^{-1}


@dataclass(frozen=True)
class SphericalEnvelope:
    """An angular central Gaussian above the law. direction: (k + 2,), concentration: as in the module's text; private all."""

    direction: FloatArray
    concentration: float
    bound: _Bound

    @classmethod
    def choose(cls, precision: FloatArray, direction: FloatArray, concentration: float) -> Self:
        """For precision (k,) and direction (k,), of norm 1 (or all 0 where the concentration is): the best shift, about.

        Any shift above 0 gives an exact sampler; the best one makes the mean square of N(0, Omega^{-1}) equal to 1.
        """
        lifted = np.concatenate([precision, np.zeros(2)])
        towards = np.concatenate([direction, np.zeros(2)])
        above = (
            2.0 * (len(lifted) + 2) + 2.0 * concentration
        )  # there the trace is at most 3/4; at a shift of 1 it is 2 or more
        best = brentq(
            lambda exponent: math.log(_bound(lifted, towards, concentration, math.exp(exponent)).trace),
            0.0,
            math.log(above),
        )
        return cls(towards, concentration, _bound(lifted, towards, concentration, math.exp(best)))

    def propose(self, normal: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(tries, k + 2) normal numbers to points of the sphere, and the logarithms of the probabilities to accept them."""
        size = normal.shape[1]
        diagonal, tangent, rest, determinant, inner, _ = self.bound
        scale = 1.0 / np.sqrt(diagonal)
        # Omega^{-1/2} = diag^{-1/2} (I + (determinant^{-1/2} - 1) axis axis'), so that z' Omega z is the normal numbers' square.
        axis = self.direction * scale / math.sqrt(inner) if inner > 0.0 else self.direction
        stretch = 1.0 / math.sqrt(determinant) - 1.0
        vectors = (normal + stretch * (normal @ axis)[:, None] * axis) * scale
        squares = np.square(vectors).sum(axis=1)
        energy = np.square(normal).sum(axis=1) / squares  # x' Omega x
        points = vectors / np.sqrt(squares)[:, None]
        # exp(-w/2) is at most a multiple of w^{-q/2}, the density of the directions; they touch at w = q.
        chances = -(energy - size) / 2.0 + size / 2.0 * np.log(energy / size)
        # log cosh(kappa t) is at most its tangent in t^2; the difference, arranged so that nothing cancels.
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
        """The accepted point (k,), or its opposite: with the odds of their densities."""
        along = float(point @ self.direction[: len(point)])
        wrong_way = 1.0 / (1.0 + math.exp(min(2.0 * self.concentration * abs(along), 700.0)))
        towards = point if along >= 0.0 else -point
        return towards if randomness.uniform() > wrong_way else -towards


def _bound(precision: FloatArray, direction: FloatArray, concentration: float, shift: float) -> _Bound:
    diagonal = precision + shift
    inner = float((np.square(direction) / diagonal).sum())
    if inner == 0.0:
        return _Bound(diagonal, 0.0, 1.0, 1.0, 0.0, float((1.0 / diagonal).sum()))
    # The tangent point is the root mean square of <direction, z> under N(0, Omega^{-1}): that makes the bound tightest. Solved with
    # tanh replaced by 1, which is as good, and exact as any other.
    pull = concentration * inner
    tangent = (pull + math.sqrt(pull * pull + 4.0 * inner)) / 2.0
    rest = 2.0 / (math.exp(min(2.0 * concentration * tangent, 700.0)) + 1.0)
    determinant = inner / tangent**2 + pull / tangent * rest
    spread = float(np.square(direction / diagonal).sum()) * (1.0 - rest) * concentration / tangent
    return _Bound(diagonal, tangent, rest, determinant, inner, float((1.0 / diagonal).sum()) + spread / determinant)

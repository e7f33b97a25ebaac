"""How a round's sums become a released point: Gaussian noise, or a draw from a truncated Gaussian; in whole grid steps, both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError
from distqexp.mechanism.factor_grid import FactorGrid, packed_size
from distqexp.mechanism.grid import Grid, check_radius
from distqexp.mechanism.noise import draw_continuous, draw_discrete, draw_insecure
from distqexp.mechanism.randomness import Randomness, SeededRandomness, SystemRandomness
from distqexp.mechanism.truncated import truncated_sampler

Released = NDArray[np.int64]

OWN_ROUNDINGS = 64
"""By so many units of 2^-53 R float64 moves a coordinate of a point at most, beside the product with the eigenvectors."""


@dataclass(frozen=True)
class ReleaseRule:
    """The law of a round's release, given its sums. Public.

    k: coordinates. noise: "discrete" or "gaussian" (continuous, rounded to the grid). radius: R, None without a trust region;
    a finite one needs "gaussian". factors: the grid of private curvature, None where the curvature is public.
    """

    k: int
    grid: Grid
    noise: str
    radius: float | None = None
    factors: FactorGrid | None = None

    def __post_init__(self) -> None:
        if self.noise not in ("discrete", "gaussian"):
            raise UsageError(f"mechanism.noise: found {self.noise!r}; expected discrete or gaussian")
        if self.radius is None and self.factors is not None:
            raise UsageError("mechanism.trust_radius: absent; expected a finite one with private curvature")
        if self.radius is not None and self.noise == "discrete":
            raise UsageError('mechanism.noise: found "discrete"; expected "gaussian" with mechanism.trust_radius')
        if self.radius is not None:
            check_radius(self.grid, self.radius)

    @property
    def width(self) -> int:
        """How many integers the sums are: k, and with private curvature the upper triangle of the Gram matrix."""
        return self.k + (packed_size(self.k) if self.factors else 0)

    @property
    def independent(self) -> bool:
        """Whether what is drawn is noise, independent of the sums, that is added to them."""
        return self.radius is None

    @property
    def sampler_slack(self) -> float:
        """Total variation, at most, between what is drawn, rounded, and the rounded ideal draw (docs/proofs/continuous.md).

        0 for noise, which is drawn exactly. With a trust region an estimate to first order: by how much float64's errors move a
        point, times how often that takes a coordinate across a border of the grid. Not part of any delta.
        """
        if self.radius is None:
            return 0.0
        roundings = OWN_ROUNDINGS + (self.k if self.factors else 0)
        return min(1.0, 2.0 * self.k * roundings * 2.0**-53 * self.radius / self.grid.step)

    def draw(self, sums: NDArray[np.int64], seed: int | None, round: int) -> Released:
        """(k,) in grid steps: noise to be added to the sums, or, with a trust region, minus the released point itself.

        ``sums`` int64 (width,), private. From the operating system's entropy; from ``seed`` and ``round``, NOT PRIVATE, where a
        seed is given.
        """
        self._check(sums)
        k, sigma = self.k, self.grid.sigma
        if self.radius is not None:
            return self.point_sampler(sums)(SystemRandomness() if seed is None else SeededRandomness(seed, round))
        if seed is not None:
            return draw_insecure(k, sigma, seed=seed, round=round, noise=self.noise)
        return draw_discrete(k, sigma) if self.noise == "discrete" else draw_continuous(k, float(sigma))

    def point_sampler(self, sums: NDArray[np.int64]) -> Callable[[Randomness], Released]:
        """With a trust region: what draws minus the released point, (k,), from one law as often as is wanted. Private.

        In grid steps, each coordinate rounded to the nearest: the float64 point would give away the sums by its last bits. So a point
        may lie up to half a step a coordinate outside the ball.
        """
        self._check(sums)
        if self.radius is None:
            raise UsageError("mechanism.trust_radius: absent; expected one: without it noise is drawn, not a point")
        linear = sums[: self.k].astype(np.float64) * self.grid.step
        draw = truncated_sampler(self._curvature(sums), linear, self.grid.temperature, self.radius)
        return lambda randomness: np.rint(-draw(randomness) / self.grid.step).astype(np.int64)

    def released(self, sums: NDArray[np.int64], drawn: Released) -> Released:
        """The noisy sums (k,), in grid steps, from what ``draw`` gave for these sums."""
        return add_noise(sums, drawn) if self.independent else drawn

    def _check(self, sums: NDArray[np.int64]) -> None:
        if sums.dtype != np.int64 or sums.shape != (self.width,):
            raise UsageError(f"sums: found {sums.dtype} {sums.shape}; expected int64 ({self.width},)")

    def _curvature(self, sums: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """B = I + sum_j V_j^T V_j, (k, k); None for the identity."""
        if self.factors is None:
            return None
        found = np.zeros((self.k, self.k))
        upper = np.triu_indices(self.k)
        found[upper] = sums[self.k :] * self.factors.step**2
        found = found + np.triu(found, 1).T
        found[np.diag_indices(self.k)] += 1.0
        return found


def add_noise(sums: NDArray[np.int64], noise: Released) -> Released:
    """The noisy sums (k,), in grid steps: the release itself; whatever follows is post-processing.

    ``sums`` and ``noise``, int64 (k,) both, are private. Noise is added modulo 2^64: it wraps, never saturates or
    refuses, so that nothing but the release depends on the data. Raises UsageError for a wrong type or shape.
    """
    if sums.dtype != np.int64 or sums.ndim != 1:
        raise UsageError(f"sums: found {sums.dtype} of {sums.ndim} dimensions; expected int64 of one")
    if noise.shape != sums.shape or noise.dtype != np.int64:
        raise UsageError(f"noise: found {noise.dtype} {noise.shape}; expected int64 {sums.shape}")
    return sums + noise


def released_point(noisy_sums: Released, grid: Grid) -> NDArray[np.float64]:
    """y = -(noisy sums) * h, float64 (k,), in whitened coordinates."""
    return -noisy_sums.astype(np.float64) * grid.step + 0.0  # + 0.0 turns -0.0 into 0.0

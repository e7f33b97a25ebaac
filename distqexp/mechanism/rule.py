"""The step from a round's sums to a released point, in whole grid steps: Gaussian noise, or a truncated Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distqexp.arrays import FloatArray, IntegerArray, blocks_of
from distqexp.errors import UsageError
from distqexp.kinds import Noise
from distqexp.mechanism.blocks import Source, new_source, noise_of_block
from distqexp.mechanism.factor_grid import FactorGrid, packed_size
from distqexp.mechanism.grid import Grid, check_trust_radius
from distqexp.mechanism.noise import draw_continuous, draw_discrete, draw_insecure
from distqexp.mechanism.randomness import Randomness, SeededRandomness, SystemRandomness
from distqexp.mechanism.truncated import truncated_sampler

OWN_ROUNDINGS = 64
"""Float64 moves a coordinate of a point by at most this many units of 2^-53 R, apart from the product with the eigenvectors."""


@dataclass(frozen=True)
class ReleaseRule:
    """The law of a round's release, given its sums. Public.

    Attributes:
        k: The number of coordinates.
        grid: The grid of the sums and of the release.
        noise: "discrete", or "gaussian" (continuous, rounded to the grid).
        trust_radius: R, or None without a trust region; a finite one needs "gaussian" noise.
        factors: The grid of private curvature, or None where the curvature is public.
    """

    k: int
    grid: Grid
    noise: Noise
    trust_radius: float | None = None
    factors: FactorGrid | None = None

    def __post_init__(self) -> None:
        if self.noise not in list(Noise):
            raise UsageError(f"mechanism.noise: found {self.noise!r}; expected discrete or gaussian")
        if self.trust_radius is None and self.factors is not None:
            raise UsageError("mechanism.trust_radius: absent; expected a finite one with private curvature")
        if self.trust_radius is not None and self.noise == Noise.DISCRETE:
            raise UsageError('mechanism.noise: found "discrete"; expected "gaussian" with mechanism.trust_radius')
        if self.trust_radius is not None:
            check_trust_radius(self.grid, self.trust_radius)

    @property
    def width(self) -> int:
        """The length of the sums: k, plus the upper triangle of the Gram matrix where the curvature is private."""
        return self.k + (packed_size(self.k) if self.factors else 0)

    @property
    def independent(self) -> bool:
        """Whether ``draw`` gives noise that is independent of the sums and is added to them."""
        return self.trust_radius is None

    @property
    def by_blocks(self) -> bool:
        """Whether what is drawn is a source of noise, from which each block's follows: where there is more than one block."""
        return self.independent and len(blocks_of(self.k)) > 1

    @property
    def sampler_slack(self) -> float:
        """A bound on the total variation between the rounded draw and the rounded ideal draw (docs/proofs/continuous.md).

        It is 0 for noise, which is drawn exactly. With a trust region it is an estimate to first order: how far float64's
        errors move a point, times how often that takes a coordinate across a border of the grid. It is not part of any
        delta.
        """
        if self.trust_radius is None:
            return 0.0
        roundings = OWN_ROUNDINGS + (self.k if self.factors else 0)
        return min(1.0, 2.0 * self.k * roundings * 2.0**-53 * self.trust_radius / self.grid.step)

    def draw(self, sums: IntegerArray, noise_seed: int | None, round: int) -> npt.NDArray[Any]:
        """Draw noise to be added to the sums, or its source or, with a trust region, minus the released point itself.

        Args:
            sums: int64 (width,), private.
            noise_seed: None draws from the operating system's entropy. A seed makes the draw depend on ``noise_seed`` and ``round`` alone:
                NOT PRIVATE.
            round: The number of the round; it matters with a seed only.

        Returns:
            int64 (k,), in grid steps; or the source of noise by blocks, uint8 (33,).

        Raises:
            UsageError: Sums of another type or shape.
        """
        if self.trust_radius is not None:
            return self.point_sampler(sums)(
                SystemRandomness() if noise_seed is None else SeededRandomness(noise_seed, round)
            )
        self._check(sums)
        if self.by_blocks:
            return new_source(self.noise, noise_seed, round)
        k, sigma = self.k, self.grid.sigma
        if noise_seed is not None:
            return draw_insecure(k, sigma, noise_seed=noise_seed, round=round, noise=self.noise)
        return draw_discrete(k, sigma) if self.noise == Noise.DISCRETE else draw_continuous(k, float(sigma))

    def point_sampler(self, sums: IntegerArray) -> Callable[[Randomness], IntegerArray]:
        """Return the function that draws minus the released point, (k,), with a trust region. Private.

        It can be called for many draws from one law. A draw is in grid steps, each coordinate rounded to the nearest: the float64
        point would reveal the sums by its last bits. So a point may lie up to half a step a coordinate outside the ball.
        """
        self._check(sums)
        if self.trust_radius is None:
            raise UsageError("mechanism.trust_radius: absent; expected one: without it noise is drawn, not a point")
        linear = sums[: self.k].astype(np.float64) * self.grid.step
        draw = truncated_sampler(self._curvature(sums), linear, self.grid.temperature, self.trust_radius)
        return lambda randomness: np.rint(-draw(randomness) / self.grid.step).astype(np.int64)

    def noisy_sums(self, sums: IntegerArray, draw: npt.NDArray[Any]) -> IntegerArray:
        """Return the noisy sums (k,), in grid steps, of these sums and the ``draw`` that was made for them."""
        if draw.dtype != np.uint8:
            return add_noise(sums, draw) if self.independent else draw
        noisy_sums = np.empty_like(sums)
        for number, place in enumerate(blocks_of(self.k)):
            noisy_sums[place] = self.noisy_block(sums[place], draw, number)
        return noisy_sums

    def noisy_block(self, sums: IntegerArray, source: Source, number: int) -> IntegerArray:
        """Return the noisy sums of block ``number`` from its sums, both int64 (coordinates of the block,), in grid steps."""
        place = blocks_of(self.k)[number]
        return add_noise(sums, noise_of_block(source, number, place, self.grid.sigma, self.noise))

    def _check(self, sums: IntegerArray) -> None:
        if sums.dtype != np.int64 or sums.shape != (self.width,):
            raise UsageError(f"sums: found {sums.dtype} {sums.shape}; expected int64 ({self.width},)")

    def _curvature(self, sums: IntegerArray) -> FloatArray | None:
        """Return B = I + sum_j V_j^T V_j, (k, k); None stands for the identity."""
        if self.factors is None:
            return None
        curvature = np.zeros((self.k, self.k))
        upper = np.triu_indices(self.k)
        curvature[upper] = sums[self.k :] * self.factors.step**2
        curvature = curvature + np.triu(curvature, 1).T
        curvature[np.diag_indices(self.k)] += 1.0
        return curvature


def add_noise(sums: IntegerArray, noise: IntegerArray) -> IntegerArray:
    """Return the noisy sums (k,), in grid steps: the release itself; whatever follows is post-processing.

    ``sums`` and ``noise``, both int64 (k,), are private. Noise is added modulo 2^64: the sum wraps, and never saturates or
    fails, so that nothing but the release depends on the data. Raises UsageError for a wrong type or shape.
    """
    if sums.dtype != np.int64 or sums.ndim != 1:
        raise UsageError(f"sums: found {sums.dtype} of {sums.ndim} dimensions; expected int64 of one")
    if noise.shape != sums.shape or noise.dtype != np.int64:
        raise UsageError(f"noise: found {noise.dtype} {noise.shape}; expected int64 {sums.shape}")
    return sums + noise


def released_point(noisy_sums: IntegerArray, grid: Grid) -> FloatArray:
    """Return the point y = -(noisy sums) * h, float64 (k,), in whitened coordinates."""
    return -noisy_sums.astype(np.float64) * grid.step + 0.0  # + 0.0 turns -0.0 into 0.0

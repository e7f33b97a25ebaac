"""Noise in whole grid steps: exact discrete Gaussian, rounded continuous Gaussian, and a seeded stand-in for tests.

The first two take their randomness from the operating system through a cryptographic generator. What they
return is secret until it is part of a release.
"""

from __future__ import annotations

import math

import numpy as np

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.errors import UsageError
from distqexp.kinds import Noise
from distqexp.mechanism.discrete_gaussian import discrete_gaussians
from distqexp.mechanism.grid import LARGEST_SIGMA
from distqexp.mechanism.randomness import SystemRandomness, seeded_normals, seeded_stream
from distqexp.mechanism.rounded_normal import rounded_normals


def draw_discrete(k: int, sigma: int, randomness: SystemRandomness | None = None) -> IntegerArray:
    """Return k independent exact draws of the discrete Gaussian N_Z(0, sigma^2), as int64 (k,).

    They are made by rejection from a ChaCha20 key stream, whose key comes from the operating system's entropy; ``randomness`` is
    that stream, or None for a new one. The law is exact, whatever float64 does (docs/proofs/discrete-sampler.md). Raises UsageError
    unless k >= 1 and sigma is an integer from 1 to 2^53.
    """
    _check(k, sigma)
    if sigma != int(sigma) or sigma > LARGEST_SIGMA:
        raise UsageError(f"sigma of discrete noise: found {sigma!r}; expected a whole number up to 2^53")
    return discrete_gaussians(k, int(sigma), (randomness or SystemRandomness()).bytes)


def draw_continuous(k: int, sigma: float, randomness: SystemRandomness | None = None) -> IntegerArray:
    """Return k independent draws of N(0, sigma^2), each rounded to the nearest integer, as int64 (k,).

    They are made by Box and Muller's method from a ChaCha20 key stream, whose key comes from the operating system's
    entropy; ``randomness`` is that stream, or None for a new one. The law is that of ideal normal numbers, rounded
    (docs/proofs/continuous.md). An unrounded float64 would reveal, by its last bits, which sums it was added to. Raises UsageError
    for k out of range or sigma above 2^53.
    """
    _check(k, sigma)
    if sigma > LARGEST_SIGMA:
        raise UsageError(f"sigma of continuous noise: found {sigma!r}; expected at most 2^53")
    return rounded_normals(k, sigma, (randomness or SystemRandomness()).bytes)


def draw_insecure(k: int, sigma: float, noise_seed: int, round: int, noise: Noise) -> IntegerArray:
    """Return k reproducible draws for tests, int64 (k,), that depend on (noise_seed, round, noise, sigma) alone. NOT PRIVATE.

    They are normal numbers, made from a Philox stream by the inverse distribution function and rounded. Anyone who knows the
    seed can subtract them.
    """
    _check(k, sigma)
    if noise not in list(Noise):
        raise UsageError(f"mechanism.noise: found {noise!r}; expected discrete or gaussian")
    return scaled(seeded_normals(seeded_stream(insecure_name(noise_seed, round, noise)), k), sigma)


def insecure_name(noise_seed: int, round: int, noise: Noise) -> str:
    """Return the name of the seeded stream that a round's test noise is made from. NOT PRIVATE."""
    return f"distqexp insecure noise/{noise_seed}/{round}/{noise}"


def scaled(normal: FloatArray, sigma: float) -> IntegerArray:
    """Return seeded standard normal numbers (k,) as test noise in whole grid steps, int64 (k,). NOT PRIVATE."""
    return np.rint(sigma * normal).astype(np.int64)


def _check(k: int, sigma: float) -> None:
    if k < 1:
        raise UsageError(f"coordinates of noise: found {k!r}; expected 1 or more")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise UsageError(f"sigma of noise: found {sigma!r}; expected a finite number above 0")

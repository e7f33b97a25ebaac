"""The theorems of docs/proofs/guarantee.md, numerically: laws on a grid, every threshold test, every pair of outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

FloatArray = NDArray[np.float64]

TEMPERATURE = 2.0


def masses(utility: FloatArray, cells: FloatArray) -> FloatArray:
    found = np.exp((utility - utility.max()) / TEMPERATURE) * cells
    return np.asarray(found / found.sum())


def largest_shift(first: FloatArray, second: FloatArray) -> float:
    """The largest difference of normal quantiles of power and level, over all likelihood-ratio tests that are not too rare."""
    order = np.argsort(first / second)
    level, power = np.cumsum(first[order]), np.cumsum(second[order])
    seen = (level > 1e-6) & (power < 1.0 - 1e-6)
    return float((ndtri(power[seen]) - ndtri(level[seen])).max())


def random_units(generator: np.random.Generator, k: int, clip: float, radius: float) -> tuple[FloatArray, FloatArray]:
    """A unit's gradient and matrix at the very edge of the joint clip, norm + radius * trace = clip."""
    share = generator.uniform()
    gradient, factor = generator.standard_normal(k), generator.standard_normal((int(generator.integers(1, 3)), k))
    matrix = factor.T @ factor
    return gradient * share * clip / np.linalg.norm(gradient), matrix * (1.0 - share) * clip / (
        radius * np.trace(matrix)
    )


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
def test_no_test_tells_neighbours_apart_better_than_two_gaussians(k: int) -> None:
    generator, shares, pure = np.random.default_rng(k), [], []
    for _ in range(60 if k == 1 else 20):
        radius, clip = float(np.exp(generator.uniform(-1.0, 1.5))), float(np.exp(generator.uniform(-1.5, 1.5)))
        axis = np.linspace(-radius, radius, 200_001 if k == 1 else 801)
        points = np.stack(np.meshgrid(*[axis] * k), axis=-1).reshape(-1, k)
        points = points[np.square(points).sum(axis=1) <= radius**2]
        others = generator.standard_normal(k) * 3.0, random_units(generator, k, 5.0, radius)[1]
        gradient, matrix = random_units(generator, k, clip, radius)
        base = -np.square(points).sum(axis=1) / 2.0 - points @ others[0]
        base -= np.einsum("ni,ij,nj->n", points, others[1], points) / 2.0
        unit = -points @ gradient - np.einsum("ni,ij,nj->n", points, matrix, points) / 2.0
        ones = np.ones(len(points))
        with_unit, without = masses(base + unit, ones), masses(base, ones)
        mu = clip / math.sqrt(TEMPERATURE)
        shares += [largest_shift(with_unit, without) / mu, largest_shift(without, with_unit) / mu]
        ratio = np.abs(np.log(with_unit / without)).max()
        pure.append(ratio / (2.0 * clip * radius / TEMPERATURE))
    # A grid's sums are off by about a cell's mass: more in two dimensions than in one.
    assert max(shares) <= 1.0 + (1e-3 if k == 1 else 1e-2)
    assert max(shares) > 0.6
    assert max(pure) <= 1.0 + 1e-9
    assert max(pure) > 0.4


def test_the_bound_is_attained_by_gaussians_and_broken_without_convexity() -> None:
    """Tight: a wide ball, a linear unit. And two separate intervals, which aren't convex, break it."""
    axis = np.linspace(-30.0, 30.0, 400_001)
    base, unit = -np.square(axis) / 2.0, -0.8 * axis
    ones = np.ones(len(axis))
    shift = largest_shift(masses(base, ones), masses(base + unit, ones))
    assert shift == pytest.approx(0.8 / math.sqrt(TEMPERATURE), rel=1e-3)
    apart = (np.abs(axis) >= 6.0) & (np.abs(axis) <= 8.0)
    base, unit, ones = base[apart], unit[apart], ones[apart]
    assert largest_shift(masses(base, ones), masses(base + unit, ones)) > 2.0 * 0.8 / math.sqrt(TEMPERATURE)


def test_the_lipschitz_bound_holds_on_the_ball_and_is_attained() -> None:
    generator = np.random.default_rng(9)
    for _ in range(50):
        k, radius, clip = 4, 1.7, 0.9
        gradient, matrix = random_units(generator, k, clip, radius)
        points = generator.standard_normal((2_000, k))
        points *= radius / np.linalg.norm(points, axis=1)[:, None]
        slopes = np.linalg.norm(gradient + points @ matrix, axis=1)
        assert slopes.max() <= clip * (1.0 + 1e-12)
    direction = np.array([0.6, 0.8])
    along = np.outer(direction, direction) * 0.5 * clip / radius
    assert np.linalg.norm(0.5 * clip * direction + along @ (radius * direction)) == pytest.approx(clip)


def test_the_quantile_that_closes_the_second_step() -> None:
    """Phi(-a - x) <= exp(-a x) Phi(-a) for a, x >= 0."""
    a, x = np.meshgrid(np.linspace(0.0, 20.0, 201), np.linspace(0.0, 10.0, 101))
    assert np.all(ndtr(-a - x) <= np.exp(-a * x) * ndtr(-a) * (1.0 + 1e-12))

"""The released point is minus the noisy sum, in whitened units."""

from __future__ import annotations

import numpy as np
import pytest

from distqexp.errors import UsageError
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.randomness import SeededRandomness
from distqexp.mechanism.rule import ReleaseRule, add_noise, released_point
from distqexp.mechanism.truncated import draw_truncated

GRID = Grid(step=2.0**-8, clip_integer=256, sigma=512)


def test_release_is_minus_the_noisy_sum() -> None:
    sums, noise = np.array([5, -300, 7], dtype=np.int64), np.array([-1, 44, -7], dtype=np.int64)
    released = released_point(add_noise(sums, noise), GRID)
    assert released.dtype == np.float64
    assert released.tolist() == [-4 / 256, 256 / 256, 0.0]
    assert not np.signbit(released[2])


def test_integer_noise_wraps_and_cancels_modulo_two_to_the_64() -> None:
    sums, noise = np.array([2**63 - 1], dtype=np.int64), np.array([2], dtype=np.int64)
    assert released_point(add_noise(sums, noise), GRID).tolist() == [
        (2**63 - 1) / 256
    ]  # -(2^63 + 1 - 2^64), rounded to a float
    wrapped = sums + noise
    assert released_point(add_noise(wrapped, -noise), GRID).tolist() == [-(2.0**63) / 256]


def test_wrong_arrays_are_refused() -> None:
    sums, noise = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    with pytest.raises(UsageError, match="sums: found float64"):
        add_noise(sums.astype(np.float64), noise)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"noise: found int64 \(2,\)"):
        add_noise(sums, noise[:2])
    for kind in (np.float32, np.float64, np.int32):  # a draw that isn't on the grid never reaches a release
        with pytest.raises(UsageError, match=f"noise: found {np.dtype(kind)}"):
            add_noise(sums, noise.astype(kind))  # type: ignore[arg-type]


def test_a_ball_too_large_for_int64_is_refused_before_a_draw() -> None:
    """The bound is public: at the draw, whether a point fits would depend on the data."""
    ReleaseRule(3, GRID, "gaussian", np.nextafter(2.0**54, 0.0))
    for radius in (2.0**54, 2.0**1000, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=r"mechanism\.trust_radius: found .*expected less than 2\^62 steps"):
            ReleaseRule(3, GRID, "gaussian", radius)


@pytest.mark.parametrize("seed", [None, 4])
def test_points_of_a_ball_are_on_the_grid(seed: int | None) -> None:
    """With a trust region what is drawn is the point itself, at most half a step a coordinate from one inside the ball."""
    radius = 3.0
    rule = ReleaseRule(3, GRID, "gaussian", radius)
    for sums in ([0, 0, 0], [100, -200, 300], [10**6, 0, -(10**7)]):
        drawn = rule.draw(np.array(sums, dtype=np.int64), seed, 0)
        assert drawn.dtype == np.int64
        assert np.linalg.norm(drawn) <= radius / GRID.step + np.sqrt(3) / 2
        assert rule.noisy_sums(np.array(sums, dtype=np.int64), drawn) is drawn


def test_seeded_points_are_the_rounded_ones_of_the_sampler() -> None:
    rule = ReleaseRule(3, GRID, "gaussian", 3.0)
    sums = np.array([100, -200, 300], dtype=np.int64)
    point = draw_truncated(None, sums * GRID.step, GRID.temperature, 3.0, SeededRandomness(4, 1)) / -GRID.step
    assert not (point == np.rint(point)).any()
    assert rule.draw(sums, 4, 1).tolist() == np.rint(point).tolist()

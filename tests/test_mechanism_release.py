"""The released point is minus the noisy sum, in whitened units."""

from __future__ import annotations

import numpy as np
import pytest

from distqexp.errors import UsageError
from distqexp.mechanism.grid import Grid
from distqexp.mechanism.release import add_noise, released_point

GRID = Grid(step=2.0**-8, clip_integer=256, sigma=512)


def test_release_is_minus_the_noisy_sum() -> None:
    sums, noise = np.array([5, -300, 7], dtype=np.int64), np.array([-1, 44, -7], dtype=np.int64)
    released = released_point(add_noise(sums, noise), GRID)
    assert released.dtype == np.float64
    assert released.tolist() == [-4 / 256, 256 / 256, 0.0]
    assert not np.signbit(released[2])
    assert released_point(add_noise(sums, noise.astype(np.float64) + 0.5), GRID).tolist() == [
        -4.5 / 256,
        255.5 / 256,
        -0.5 / 256,
    ]


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
    with pytest.raises(UsageError, match="noise: found float32"):
        add_noise(sums, noise.astype(np.float32))  # type: ignore[arg-type]

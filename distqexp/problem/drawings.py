"""Synthetic line drawings: what features of images can be fitted to where no image may be looked at. Public, made of nothing but a seed.

A drawing has one to three strokes, smooth curves through random points or straight lines, drawn with a round pen. Nothing but the
layout is known of real images: light strokes on black, centred, about two thirds of the image long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distqexp.arrays import FloatArray

_LONGEST = 3
"""The largest number of strokes."""
_POINTS = 60
"""The number of places along a stroke where the pen is put down."""
_BRANCH = 0.7
"""The share of later strokes that begin on an earlier one."""
_CLOSED = 0.25
"""The share of curves that end where they began."""


def drawings(count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Draw images (count, 1, size, size) with pixels from 0 to 1. Drawing i is a function of (seed, i) and ``size`` alone."""
    images = np.zeros((count, 1, size, size), dtype=np.float32)
    for number in range(count):
        images[number, 0] = _drawing(size, np.random.default_rng((seed, number)))
    return images


def _drawing(size: int, random: np.random.Generator) -> FloatArray:
    """Draw one image: the largest extent is 61 to 68 % of the side, the pen's radius 2 to 6 %."""
    strokes: list[FloatArray] = []
    for _ in range(1 + int(_LONGEST * random.random())):
        strokes.append(_stroke(strokes, random))
    path = np.concatenate(strokes)
    extent = max(float(np.ptp(path, axis=0).max()), 1e-3)
    path = (path - path.mean(axis=0)) * (size * (0.61 + 0.07 * random.random()) / extent) + (size - 1) / 2
    radius = size * (0.02 + 0.04 * random.random())
    places = np.arange(size)
    down, right = (np.square(places[:, None] - path[:, axis]) for axis in (0, 1))
    distance = np.sqrt((down[:, None, :] + right[None, :, :]).min(axis=-1))
    return np.clip(radius + 0.5 - distance, 0.0, 1.0)


def _stroke(earlier: list[FloatArray], random: np.random.Generator) -> FloatArray:
    """Draw a stroke in the unit square: a line between two points, or a curve through three to five."""
    points = random.random((2 + int(4 * random.random()), 2))
    if earlier and random.random() < _BRANCH:
        stroke = earlier[int(len(earlier) * random.random())]
        points[0] = stroke[int(_POINTS * random.random())]
    if len(points) > 2 and random.random() < _CLOSED:
        points[-1] = points[0]
    return _curve(points)


def _curve(points: FloatArray) -> FloatArray:
    """Return places along the Catmull-Rom spline through the points; of two points it is the line between them."""
    before, after = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    ends = np.vstack([before, points, after])
    along = np.linspace(0, len(points) - 1, _POINTS)
    piece = np.minimum(along.astype(np.int64), len(points) - 2)
    share = (along - piece)[:, None]
    first, second, third, fourth = (ends[piece + offset] for offset in range(4))
    return 0.5 * (
        2 * second
        + (third - first) * share
        + (2 * first - 5 * second + 4 * third - fourth) * share**2
        + (3 * second - first - 3 * third + fourth) * share**3
    )

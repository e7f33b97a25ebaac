"""Rotation of images, by one angle or by random ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rotate_images(images: NDArray[Any], degrees: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate (n, c, h, w) counter-clockwise about the centre: linear interpolation, zeros outside, same size.

    degrees: one angle, or (n,). Image by image, so that an image's bits don't depend on its batch.
    """
    from scipy.ndimage import rotate

    angles = np.broadcast_to(degrees, len(images))
    found = np.empty(images.shape, dtype=np.float64)
    for record, image in enumerate(images):
        for channel, plane in enumerate(image):
            angle = float(angles[record])
            found[record, channel] = rotate(np.asarray(plane, dtype=np.float64), angle, reshape=False, order=1)
    return found


@dataclass(frozen=True)
class Turns:
    """An angle of its own for each row of a file: uniform from ``lowest`` to ``highest`` degrees, by seed and round. Public."""

    lowest: float
    highest: float
    seed: int
    round: int

    def of_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The angles, (n,), of these rows: each a function of (seed, round, row) alone."""
        digests = (hashlib.sha256(f"turns/{self.seed}/{self.round}/{int(row)}".encode()).digest() for row in rows)
        shares = np.array([int.from_bytes(digest[:6], "little") for digest in digests], dtype=np.float64) * 2.0**-48
        return self.lowest + (self.highest - self.lowest) * shares

"""Images turned and moved: by one angle, by random angles, and in several random views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.arrays import FloatArray, IntegerArray
from distqexp.problem.records import Records


def rotate_images(images: NDArray[Any], degrees: float | FloatArray) -> FloatArray:
    """Rotate images (n, c, h, w) counter-clockwise about their centre by one angle in degrees, or by (n,) angles.

    Values are interpolated linearly, and are zero outside; the size stays. Each image is rotated by itself, so that its bits don't
    depend on its batch.
    """
    from scipy.ndimage import rotate

    planes = np.asarray(images, dtype=np.float64)
    if np.ndim(degrees) == 0:
        return rotate(planes, float(degrees), axes=(3, 2), reshape=False, order=1)
    results = np.empty(images.shape, dtype=np.float64)
    for record, angle in enumerate(np.asarray(degrees)):
        rotate(planes[record], float(angle), axes=(2, 1), reshape=False, output=results[record], order=1)
    return results


@dataclass(frozen=True)
class Turns:
    """An angle of its own for each row of a file, by seed and round. Public.

    Attributes:
        lowest: the smallest angle in degrees; angles are uniform from here to ``highest``.
        highest: the largest angle in degrees.
        seed: the seed of the angles.
        round: the round that the angles are for.
    """

    lowest: float
    highest: float
    seed: int
    round: int

    def of_rows(self, rows: IntegerArray) -> FloatArray:
        """Return the angles, (n,), of these rows, each a function of (seed, round, row) alone."""
        digests = (hashlib.sha256(f"turns/{self.seed}/{self.round}/{int(row)}".encode()).digest() for row in rows)
        shares = np.array([int.from_bytes(digest[:6], "little") for digest in digests], dtype=np.float64) * 2.0**-48
        return self.lowest + (self.highest - self.lowest) * shares


@dataclass(frozen=True)
class Views:
    """Random moves of each row of a file, other ones in every round. Public: they don't look at the image.

    Attributes:
        count: the number of views of a row.
        rotate: angles are uniform from -rotate to rotate degrees.
        shift: both offsets are uniform from -shift to shift pixels.
        seed: the seed of the moves.
        round: the round that the moves are for.
    """

    count: int
    rotate: float
    shift: float
    seed: int
    round: int

    def of_rows(self, rows: IntegerArray) -> FloatArray:
        """Return the angle, the offset down and the offset to the right of each view, (n, count, 3).

        They are a function of (seed, round, row) alone.
        """
        names = (f"views/{self.seed}/{self.round}/{int(row)}/{view}" for row in rows for view in range(self.count))
        words = b"".join(hashlib.sha256(name.encode()).digest()[:24] for name in names)
        shares = (np.frombuffer(words, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
        moves = (2.0 * shares - 1.0).reshape(len(rows), self.count, 3)
        return moves * np.array([self.rotate, self.shift, self.shift])


def with_views(records: Records, rows: IntegerArray, views: Views) -> Records:
    """Return the views of images: inputs (n, c, h, w) become (n, count, c, h, w), each moved as ``views`` says of its row.

    An image is turned about its centre, counter-clockwise, then moved. Values are interpolated linearly, and are zero outside. Each
    image is moved by itself.
    """
    from scipy.ndimage import affine_transform

    images, moves = records.inputs.numpy(), views.of_rows(rows)
    centre = (np.array(images.shape[2:], dtype=np.float64) - 1) / 2
    results = np.zeros((len(images), views.count, *images.shape[1:]), dtype=images.dtype)
    for record in np.flatnonzero(records.present.numpy()):
        for view, (degrees, *offset) in enumerate(moves[record]):
            sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
            turn = np.array([[cosine, sine], [-sine, cosine]])  # from places in the view to places in the image
            start = centre - turn @ (centre + offset)
            for channel, plane in enumerate(images[record].astype(np.float64)):
                results[record, view, channel] = affine_transform(plane, turn, start, order=1)
    return Records(torch.from_numpy(results), records.targets, records.present, views.count)

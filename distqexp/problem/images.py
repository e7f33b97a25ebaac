"""Images turned and moved: by one angle, by random ones, in several random views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distqexp.problem.records import Records


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


@dataclass(frozen=True)
class Views:
    """``count`` random moves of each row of a file, other ones in every round. Public: they don't look at the image.

    rotate: angles are uniform from -rotate to rotate degrees; shift: both offsets from -shift to shift pixels.
    """

    count: int
    rotate: float
    shift: float
    seed: int
    round: int

    def of_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Angle, offset down and offset to the right of each view, (n, count, 3), a function of (seed, round, row) alone."""
        names = (f"views/{self.seed}/{self.round}/{int(row)}/{view}" for row in rows for view in range(self.count))
        words = b"".join(hashlib.sha256(name.encode()).digest()[:24] for name in names)
        shares = (np.frombuffer(words, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
        moves = (2.0 * shares - 1.0).reshape(len(rows), self.count, 3)
        return moves * np.array([self.rotate, self.shift, self.shift])


def viewed(records: Records, rows: NDArray[np.int64], views: Views) -> Records:
    """The views of images, inputs (n, c, h, w) to (n, count, c, h, w), each by the moves of its row.

    An image is turned about its centre, counter-clockwise, then moved: linear interpolation, zeros outside. Image by image.
    """
    from scipy.ndimage import affine_transform

    images, moves = records.inputs.numpy(), views.of_rows(rows)
    centre = (np.array(images.shape[2:], dtype=np.float64) - 1) / 2
    found = np.zeros((len(images), views.count, *images.shape[1:]), dtype=images.dtype)
    for record in np.flatnonzero(records.present.numpy()):
        for view, (degrees, *offset) in enumerate(moves[record]):
            sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
            turn = np.array([[cosine, sine], [-sine, cosine]])  # from places in the view to places in the image
            start = centre - turn @ (centre + offset)
            for channel, plane in enumerate(images[record].astype(np.float64)):
                found[record, view, channel] = affine_transform(plane, turn, start, order=1)
    return Records(torch.from_numpy(found), records.targets, records.present, views.count)

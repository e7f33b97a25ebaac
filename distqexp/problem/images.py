"""Rotation of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rotate_images(images: NDArray[Any], degrees: float) -> NDArray[np.float64]:
    """Rotate (n, c, h, w) counter-clockwise about the centre: linear interpolation, zeros outside, same size.

    Image by image, so that an image's bits don't depend on its batch.
    """
    from scipy.ndimage import rotate

    found = np.empty(images.shape, dtype=np.float64)
    for record, image in enumerate(images):
        for channel, plane in enumerate(image):
            found[record, channel] = rotate(np.asarray(plane, dtype=np.float64), degrees, reshape=False, order=1)
    return found

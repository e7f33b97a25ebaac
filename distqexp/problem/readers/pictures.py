"""PNG and JPEG images as arrays of bytes. Nothing that a file says makes it take more memory than an honest image may."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distqexp.errors import UsageError

MOST_PIXELS = 1 << 26
"""Images of more pixels are refused before they are unpacked."""
_GREY = ("1", "L", "LA", "I", "F")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class NoPictureError(Exception):
    """The bytes are no whole PNG or JPEG image of a size that is allowed."""


def picture_shape(file: BinaryIO) -> tuple[int, int, int]:
    """Return channels (1 for grey, 3 for others), height and width of an image, from its header. Raises NoPictureError."""
    with _opened(file) as picture:
        grey = picture.mode in _GREY or picture.mode.startswith("I;16")
        return (1 if grey else 3, picture.height, picture.width)


def read_picture(file: BinaryIO, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return an image as uint8 of ``shape`` (c, h, w).

    Colours become grey, or grey becomes colours, as c says; of 16 bits the upper 8 are kept, and transparency is left out unless c is 4.
    An image of another size is resized by area-weighted linear interpolation. Raises NoPictureError.
    """
    channels, height, width = shape
    with _opened(file) as picture:
        picture.load()
        image = _upper_bits(picture).convert(_MODES[channels])
        if image.size != (width, height):
            from PIL import Image

            image = image.resize((width, height), Image.Resampling.BILINEAR)
        values = np.asarray(image, dtype=np.uint8).reshape(height, width, channels)
    return np.moveaxis(values, -1, 0)


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    """Open an image, whose size is allowed; whatever goes wrong in the block becomes a NoPictureError."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("data.format: images need Pillow; pip install 'distqexp[images]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning would tell of a record
            with Image.open(file, formats=("PNG", "JPEG")) as picture:
                if not 0 < picture.width * picture.height <= MOST_PIXELS:
                    raise NoPictureError
                yield picture
    except Exception:  # noqa: BLE001 - Pillow meets damage with exceptions of every class, whose texts may hold data
        raise NoPictureError from None


def _upper_bits(picture: Any) -> Any:
    """Return an image of 16 bits as one of 8, any other as it is."""
    if not picture.mode.startswith("I"):
        return picture
    from PIL import Image

    return Image.fromarray((np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8).astype(np.uint8))

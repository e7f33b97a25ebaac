"""Small folders of images, good and bad."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(values: NDArray[Any], format: str = "PNG") -> bytes:
    """An image (h, w) or (h, w, c) as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def write_folder(folder: Path, images: NDArray[Any], labels: list[str], suffix: str = ".png") -> Path:
    """Store image i as folder/label/i; the rows of the folder are then by label and number."""
    for place, (values, label) in enumerate(zip(images, labels, strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        format = "PNG" if suffix == ".png" else "JPEG"
        (folder / label / f"{place:03d}{suffix}").write_bytes(picture(values, format))
    return folder


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that declares, and unpacks to, very many grey pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(width + 1)) for _ in range(min(height, 2000))) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


GOOD = picture(np.arange(30, dtype=np.uint8).reshape(6, 5))
BAD: dict[str, bytes] = {
    "empty": b"",
    "text": b"not an image",
    "cut": GOOD[:-40],
    "header alone": GOOD[:33],
    "other format": picture(np.zeros((6, 5), np.uint8), "GIF"),
    "bomb": bomb(40_000, 40_000),
    "cut jpeg": picture(np.zeros((64, 64), np.uint8), "JPEG")[:200],
    "no pixels": b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 0, 0, 0, 0)),
}
"""What is no image that a reader may take."""

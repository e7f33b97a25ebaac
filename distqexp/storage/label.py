"""The label of a file between stages: 512 bytes with a magic line, and the length and SHA-256 of everything after them.

It is checked in plain Python before the HDF5 library sees a byte.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import BinaryIO

from distqexp.errors import FileContentError

LABEL_BYTES = 512
_MAGIC = b"distqexp file\n"
_CHUNK = 1 << 22


def write_label(file: BinaryIO) -> None:
    """Write the label of a file that is open for reading and writing and whose content starts after 512 bytes."""
    length, digest = _measure(file)
    file.seek(0)
    file.write(make_label(length, digest))


def make_label(length: int, digest: str) -> bytes:
    """Return the label of ``length`` bytes that have the hexadecimal SHA-256 ``digest``."""
    return (_MAGIC + f"length {length}\nsha256 {digest}\n".encode()).ljust(LABEL_BYTES, b"\0")


def check_label(path: Path, file: BinaryIO) -> int:
    """Return how many bytes follow the label. Raises FileContentError unless the label fits them."""
    label = file.read(LABEL_BYTES)
    if len(label) < LABEL_BYTES:
        raise FileContentError(
            f"{path}: {len(label)} bytes, a label alone has {LABEL_BYTES}; the file is cut short: copy it again"
        )
    if not label.startswith(_MAGIC):
        raise FileContentError(f"{path}: it is no distqexp file, or damaged; expected one that distqexp wrote")
    length, digest = _measure(file)
    lines = label[len(_MAGIC) :].split(b"\n")
    if lines[0].startswith(b"length ") and lines[0][7:] != str(length).encode():
        raise FileContentError(
            f"{path}: {length} bytes after the label, the label says {_printable(lines[0][7:])}; "
            "the file is cut short or padded: copy it again"
        )
    if not hmac.compare_digest(label, make_label(length, digest)):
        raise FileContentError(f"{path}: its checksum is not the one in its label; the file is damaged: copy it again")
    return length


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Return the length and the SHA-256 of everything after the label."""
    digest, length = hashlib.sha256(), 0
    file.seek(LABEL_BYTES)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
    return length, digest.hexdigest()


def _printable(number: bytes) -> str:
    """Return the digits of a number from a label that may hold anything."""
    return number.decode("ascii") if number.isdigit() and len(number) < 20 else "no number"

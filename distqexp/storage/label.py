"""The first 512 bytes of a file between stages: a magic line, the length and the SHA-256 of everything after them.

Checked in plain Python, before the HDF5 library sees a byte.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import BinaryIO

from distqexp.errors import FileContentError

LABEL_BYTES = 512
MAGIC = b"distqexp file\n"
_CHUNK = 1 << 22


def write_label(file: BinaryIO) -> None:
    """Label what stands after the first 512 bytes of a file that is open for reading and writing."""
    length, digest = _measure(file)
    file.seek(0)
    file.write(make_label(length, digest))


def make_label(length: int, digest: str) -> bytes:
    """The label of ``length`` bytes with the hexadecimal SHA-256 ``digest``."""
    return (MAGIC + f"length {length}\nsha256 {digest}\n".encode()).ljust(LABEL_BYTES, b"\0")


def check_label(path: Path, file: BinaryIO) -> int:
    """How many bytes stand after the label, which fits them. Raises FileContentError."""
    found = file.read(LABEL_BYTES)
    if len(found) < LABEL_BYTES:
        raise FileContentError(
            f"{path}: {len(found)} bytes, a label alone has {LABEL_BYTES}; the file is cut short: copy it again"
        )
    if not found.startswith(MAGIC):
        raise FileContentError(f"{path}: begins with {found[:14]!r}, not {MAGIC!r}; it is no distqexp file, or damaged")
    length, digest = _measure(file)
    lines = found[len(MAGIC) :].split(b"\n")
    if lines[0].startswith(b"length ") and lines[0][7:] != str(length).encode():
        raise FileContentError(
            f"{path}: {length} bytes after the label, the label says {_shown(lines[0][7:])}; "
            "the file is cut short or padded: copy it again"
        )
    if not hmac.compare_digest(found, make_label(length, digest)):
        raise FileContentError(f"{path}: its checksum is not the one in its label; the file is damaged: copy it again")
    return length


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Length and SHA-256 of everything after the label."""
    digest, length = hashlib.sha256(), 0
    file.seek(LABEL_BYTES)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
    return length, digest.hexdigest()


def _shown(number: bytes) -> str:
    return number.decode("ascii") if number.isdigit() and len(number) < 20 else "no number"

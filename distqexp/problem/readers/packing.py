"""How a file is packed, which its first bytes tell whatever its name is: gzip, bzip2, xz or Zstandard."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

PACKINGS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
"""The first bytes of a packed file, and how it is packed."""

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError)
"""What unpacking a damaged file raises."""


def packing_of(path: Path) -> str | None:
    """Return how a file is packed, one of PACKINGS; None where it is not."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for start, name in PACKINGS.items() if head.startswith(start)), None)


def open_unpacked(file: BinaryIO, packing: str) -> BinaryIO:
    """Return the unpacked bytes of an open file, which can be read forwards, and after a ``seek`` from anywhere."""
    if packing == "gzip":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if packing == "bzip2":
        import bz2

        return cast(BinaryIO, bz2.open(file, "rb"))
    if packing == "xz":
        return cast(BinaryIO, lzma.open(file, "rb"))
    return cast(BinaryIO, io.BufferedReader(_Zstandard(file)))


class _Zstandard(io.RawIOBase):
    """The unpacked bytes of a Zstandard file. Going back starts over."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._restart()

    def _restart(self) -> None:
        import pyarrow

        self._file.seek(0)
        # Arrow closes what it has read, and the file is needed again.
        whole = pyarrow.PythonFile(_Unclosed(self._file), mode="r")
        self._stream: Any = pyarrow.CompressedInputStream(whole, "zstd")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0:
            raise io.UnsupportedOperation("only from the beginning")
        if offset < self._at:
            self._restart()
        while self._at < offset and (content := self._stream.read(min(offset - self._at, 1 << 20))):
            self._at += len(content)
        return self._at


class _Unclosed(io.RawIOBase):
    """A file that stays open whoever closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._inner = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(size)

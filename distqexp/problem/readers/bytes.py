"""Random access to the bytes of a plain or gzip file, without holding all of a large one."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from distqexp.errors import FileContentError
from distqexp.problem.readers.base import changed, facts_of

CACHED = 64 * 2**20
BLOCK = 2**20
DEFLATE_RATIO = 1032
"""No gzip file unpacks to more than so many times its size."""
BOMB_RATIO, BOMB_FROM = 128, 64 * 2**20
"""A table that unpacks to more than the one times its size, and to more than the other in bytes, is a bomb."""


class ByteSource:
    """The uncompressed bytes of a file.

    A plain file is read in place. A gzip one up to ``cached`` bytes is unpacked once and kept, also for the next ones who
    open it in this process (every round does); a larger one is streamed, which is quick for ascending offsets and starts over
    for descending ones. Copies sent to other processes open the file anew. Damage raises FileContentError.
    """

    def __init__(self, path: Path, cached: int = CACHED) -> None:
        self.path = path
        self.cached = cached
        with path.open("rb") as file:
            self.compressed = file.read(2) == b"\x1f\x8b"
        self._stream: BinaryIO | None = None
        self._kept: bytes | None = None
        self._found: os.stat_result | None = None

    def opened(self) -> os.stat_result:
        """What the system says of the file that is read, which its path may not name any more."""
        self._open()
        if self._found is None:
            raise changed(self.path)
        return self._found

    def blocks(self, size: int = BLOCK) -> Iterator[bytes]:
        """All bytes in order, in blocks of at most ``size``."""
        at = 0
        most = max(BOMB_FROM, BOMB_RATIO * self.path.stat().st_size) if self.compressed else math.inf
        while block := self.read(at, size, short=True):
            yield block
            at += len(block)
            if at > most:
                raise FileContentError(
                    f"{self.path}: unpacks to more than {BOMB_RATIO} times its size; expected a table; unpack it by hand"
                )

    def read(self, offset: int, length: int, short: bool = False) -> bytes:
        """``length`` bytes from ``offset``; fewer only with ``short``, at the end of the file."""
        try:
            found = self._read(offset, length)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise changed(self.path) from None
        if len(found) != length and not short:
            raise changed(self.path)
        return found

    def check_whole(self) -> None:
        """Unpack all of a gzip file once, which compares its checksums; nothing to do for a plain one."""
        at = 0
        while self.compressed and (block := self.read(at, BLOCK, short=True)):
            at += len(block)

    def holds_exactly(self, length: int) -> bool:
        """Whether the uncompressed file is ``length`` bytes long (of a gzip file the trailer is asked first)."""
        size = self.path.stat().st_size
        if not self.compressed:
            return size == length
        if length > DEFLATE_RATIO * size:
            return False
        with self.path.open("rb") as file:
            file.seek(-4, 2)
            trailer = int.from_bytes(file.read(4), "little")
        if trailer == length % 2**32:
            return True
        at = 0  # several members, or damage
        while at <= length and (block := self.read(at, BLOCK, short=True)):
            at += len(block)
        return at == length

    def _read(self, offset: int, length: int) -> bytes:
        self._open()
        if self._kept is not None:
            return self._kept[offset : offset + length]
        stream = cast(BinaryIO, self._stream)
        stream.seek(offset)
        parts, missing = [], length
        while missing and (part := stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _open(self) -> None:
        if self._stream is None:
            stream = gzip.open(self.path, "rb") if self.compressed else self.path.open("rb")  # noqa: SIM115
            self._stream = cast(BinaryIO, stream)
            self._found = os.fstat(self._stream.fileno())
            if self.compressed:
                self._kept = _unpacked(self.path, facts_of(self._found), self.cached)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_kept": None, "_found": None}


@lru_cache(maxsize=2)
def _unpacked(path: Path, facts: tuple[int, ...], most: int) -> bytes | None:
    """The content of a gzip file as it was when the file system gave these facts; None where it is more than ``most`` bytes."""
    with gzip.open(path, "rb") as stream:
        if facts_of(os.fstat(stream.fileno())) != facts:
            raise changed(path)
        found = stream.read(most + 1)
    return found if len(found) <= most else None
